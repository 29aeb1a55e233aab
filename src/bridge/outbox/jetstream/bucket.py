"""The key-value bucket: what all replicas share, changed by compare-and-set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, TypeVar

import msgspec

from bridge.errors import OutboxError
from bridge.outbox.jetstream.link import Link, Stored, UncertainError
from bridge.outbox.jetstream.reading import newest

T = TypeVar("T")

TRIES = 100  # compare-and-set rounds before it is told as a failure


class Entry(NamedTuple):
    """A value and its revision; *at* by the server's clock, RFC 3339, where it was asked for."""

    key: str
    value: bytes
    revision: int
    at: str


class Bucket:
    """Keys are dotted tokens without wildcards."""

    def __init__(self, link: Link, name: str) -> None:
        self._link = link
        self._stream = f"KV_{name}"
        self._prefix = f"$KV.{name}."

    async def get(self, key: str, *, direct: bool = False) -> Entry | None:
        return self._entry(await self._link.get(self._stream, subject=self._prefix + key, direct=direct))

    def _entry(self, found: Stored | None) -> Entry | None:
        if found is None:
            return None
        return Entry(found.subject.removeprefix(self._prefix), found.body, found.seq, found.at)

    async def put(self, key: str, value: bytes, expect: int | None = None) -> int | None:
        """The new revision; None if the key is not at revision *expect* (0: not there)."""
        return await self._link.publish(self._prefix + key, value, expect=expect)

    async def forget(self, key: str, *, upto: int | None = None) -> None:
        """*upto*: only if it has not been changed since this revision."""
        before = None if upto is None else upto + 1
        await self._link.purge(self._stream, subject=self._prefix + key, before=before)

    async def keys(self, under: str) -> list[str]:
        """Those below *under*, such as `alerts`."""
        found = await self._link.subjects(self._stream, f"{self._prefix}{under}.>")
        return [each.removeprefix(self._prefix) for each in found]

    async def all(self, under: str) -> list[Entry]:
        """The entries below *under*, in the order of their keys."""
        keys = sorted(await self.keys(under))
        found = await asyncio.gather(*(self.get(key, direct=True) for key in keys))
        return [each for each in found if each is not None]

    async def newest(self, under: str) -> AsyncIterator[Entry]:
        """The entries below *under*, which may have wildcards, by one copy of the bucket, in no order."""
        async for each in newest(self._link, self._stream, f"{self._prefix}{under}.>"):
            key = each.subject.removeprefix(self._prefix)
            yield Entry(key, each.data, each.metadata.sequence.stream, "")

    async def update(self, key: str, kind: type[T], change: Callable[[T | None], T | None]) -> T | None:
        """Put in the place of the value of *key* what *change* makes of it; None from it leaves it alone.

        Returns what is there then. *change* may be asked more than once.
        """
        for _ in range(TRIES):
            entry = await self.get(key)
            before = msgspec.json.decode(entry.value, type=kind) if entry else None
            after = change(before)
            if after is None or after == before:
                return before
            try:
                stored = await self.put(key, msgspec.json.encode(after), entry.revision if entry else 0)
            except UncertainError:
                continue
            if stored is not None:
                return after
        raise OutboxError(f"{self._stream}: {key.partition('.')[0]}: too many at once")
