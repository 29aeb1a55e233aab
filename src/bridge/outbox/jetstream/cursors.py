"""How far each identifier of a source has been read: an entry of the bucket each."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from bridge.errors import OutboxError
from bridge.outbox import Batch
from bridge.outbox.jetstream.bucket import TRIES, Bucket
from bridge.outbox.jetstream.desk import together
from bridge.outbox.jetstream.link import UncertainError
from bridge.outbox.jetstream.wire import token
from bridge.outbox.transactions import RECENT_IDS, storable

KNOWN = 50_000  # cursors whose last value is kept here, so that moving one is one request: some 50 MB

Key = tuple[str, str]
"""Source and identifier."""


class Cursor(msgspec.Struct, frozen=True):
    """*time_ns*: ns of server time; *recent*: the last ids seen there, newest last."""

    source: str
    identifier: str
    time_ns: int
    recent: tuple[str, ...] = ()


class Known(NamedTuple):
    cursor: Cursor
    revision: int


class Cursors:
    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._known: dict[Key, Known] = {}

    async def move(self, batch: Batch) -> None:
        """Forward only; *starts* only where there is none. Each once: no two of one key are under way."""
        await together(self._start(key, at) for key, at in batch.starts.items())
        await together(
            self._move(key, storable(at), tuple(batch.recent.get(key, ())))
            for key, at in batch.cursors.items()
        )

    async def _start(self, key: Key, at: int) -> None:
        await self._bucket.put(_place(key), msgspec.json.encode(Cursor(*key, storable(at))), 0)

    async def _move(self, key: Key, at: int, came: tuple[str, ...]) -> None:
        for _ in range(TRIES):
            known = self._known.pop(key, None) or await self._read(key)
            before = known.cursor if known else Cursor(*key, at)
            after = Cursor(*key, max(before.time_ns, at), (before.recent + came)[-RECENT_IDS:])
            try:
                revision = await self._bucket.put(
                    _place(key), msgspec.json.encode(after), known.revision if known else 0
                )
            except UncertainError:
                continue
            if revision is not None:
                self._remember(key, Known(after, revision))
                return
        raise OutboxError("a cursor is moved by too many at once")

    async def _read(self, key: Key) -> Known | None:
        entry = await self._bucket.get(_place(key))
        return Known(msgspec.json.decode(entry.value, type=Cursor), entry.revision) if entry else None

    def _remember(self, key: Key, known: Known) -> None:
        """The one that was moved longest ago goes first."""
        self._known[key] = known
        if len(self._known) > KNOWN:
            del self._known[next(iter(self._known))]

    async def of(self, source: str) -> dict[str, int]:
        """Identifier to ns of server time."""
        found = [
            msgspec.json.decode(each.value, type=Cursor)
            async for each in self._bucket.newest(f"cursors.{token(source)}")
        ]
        return {each.identifier: each.time_ns for each in found}

    async def recent_ids(self, source: str, identifier: str) -> tuple[str, ...]:
        found = await self._read((source, identifier))
        return found.cursor.recent if found else ()


def _place(key: Key) -> str:
    return f"cursors.{token(key[0])}.{token(key[1])}"
