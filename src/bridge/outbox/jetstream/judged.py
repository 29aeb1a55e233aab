"""What is stored of one partition of the alerts: rows, and the commit that says what they have to be.

In the bucket, below `judged.<partition>`:

    commit            a `Head` and what it commits; its revision is the fence
    chunk.<by>.<n>    the rest of a commit that is larger than a message, written before it
    row.<part>.<alert>.<key>   a row, or nothing where it was forgotten; written after the commit
    now               who is pending or firing, for those that only show it

`bridge.replicas.owning` says in which order, and why nothing is lost in between.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from bridge.errors import OutboxError
from bridge.outbox import AlertRow
from bridge.outbox.jetstream.bucket import Entry
from bridge.outbox.jetstream.desk import together
from bridge.outbox.jetstream.shelf import monotonic
from bridge.outbox.jetstream.wire import token

CHUNK = 1 << 16  # bytes: half of what a server has to take as one message
SMALL = 4096  # bytes that are not worth compressing
PACKED = b"z"  # the first byte of what is compressed; JSON never begins so
FORGOTTEN_FOR = 600.0  # seconds an empty row stands in the way of an owner that was stopped


class Told(msgspec.Struct, frozen=True, array_like=True):
    """A notification of *alert* for *sinks*; *event* is its JSON."""

    alert: str
    key: str
    sinks: tuple[str, ...]
    event: str


class Passed(msgspec.Struct, frozen=True, array_like=True):
    """A message for another partition, and the id by which a repeat is known."""

    number: int
    body: str
    id: str


class Commit(msgspec.Struct, frozen=True, omit_defaults=True):
    """What follows from the messages of the log up to *through*; None for a row that is forgotten."""

    through: int = 0
    rows: tuple[tuple[str, str, str, str | None], ...] = ()
    told: tuple[Told, ...] = ()
    passed: tuple[Passed, ...] = ()


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """By whom a commit is. *chunks* follow the first; *sum* is of all of it."""

    by: str
    through: int
    chunks: int = 0
    sum: int = 0


class Row(msgspec.Struct, frozen=True, array_like=True):
    names: AlertRow
    value: str


class Entries(Protocol):
    """The bucket, as far as it is used here."""

    async def get(self, key: str, /) -> Entry | None: ...

    async def put(self, key: str, value: bytes, expect: int | None = None, /) -> int | None: ...

    async def forget(self, key: str, /, *, upto: int) -> None: ...

    def newest(self, under: str, /) -> AsyncIterator[Entry]: ...


Together = Callable[[Iterable[Awaitable[bool]]], Awaitable[list[bool]]]
"""Makes several calls at once; as `desk.together` in production."""


def packed(body: bytes) -> bytes:
    return body if len(body) < SMALL else PACKED + zlib.compress(body, 1)


def unpacked(body: bytes) -> bytes:
    return zlib.decompress(body[1:]) if body[:1] == PACKED else body


class Judged:
    """The store of the partition *number* for the owner *me*: one caller at a time; *chunk* in bytes."""

    def __init__(
        self, bucket: Entries, number: int, me: str, at_once: Together = together, chunk: int = CHUNK
    ) -> None:
        self._bucket = bucket
        self._at_once = at_once
        self._size = chunk
        self._under = f"judged.{number}"
        self._me = me
        self._revision = 0
        self._shown = 0
        self._rows: dict[str, int] = {}
        """Revisions by key."""
        self._forgotten: deque[tuple[float, str]] = deque()

    async def take(self) -> tuple[Commit, Mapping[AlertRow, bytes]]:
        """Shut out whoever had it; the last commit, not all of it may have been done, and all rows.

        Raises OutboxError, also when another takes it at the same moment.
        """
        entry = await self._bucket.get(f"{self._under}.commit")
        commit = Commit() if entry is None else await self._read(entry.value)
        self._revision = 0 if entry is None else entry.revision
        await self.commit(commit)
        return commit, await self._load()

    async def _read(self, value: bytes) -> Commit:
        """Without its content if that is gone: its owner has begun the next one, so it was done."""
        line, _, first = value.partition(b"\n")
        head = msgspec.json.decode(line, type=Head)
        chunks = [first]
        for number in range(head.chunks):
            found = await self._bucket.get(self._chunk(head.by, number))
            chunks.append(found.value if found else b"")
        body = b"".join(chunks)
        if zlib.crc32(body) != head.sum:
            return Commit(head.through)
        return msgspec.json.decode(unpacked(body), type=Commit)

    async def commit(self, commit: Commit) -> None:
        """All of it or nothing; OutboxError where another has taken the partition, or perhaps has not."""
        body = packed(msgspec.json.encode(commit))
        chunks = [body[at : at + self._size] for at in range(self._size, len(body), self._size)]
        for number, chunk in enumerate(chunks):
            await self._bucket.put(self._chunk(self._me, number), chunk)
        head = msgspec.json.encode(Head(self._me, commit.through, len(chunks), zlib.crc32(body)))
        key, value = f"{self._under}.commit", head + b"\n" + body[: self._size]
        revision = await self._bucket.put(key, value, self._revision)
        if revision is None:
            raise OutboxError("another replica has taken this partition of the alerts")
        self._revision = revision

    def _chunk(self, by: str, number: int) -> str:
        return f"{self._under}.chunk.{by}.{number}"

    async def _load(self) -> Mapping[AlertRow, bytes]:
        """Raises OutboxError if the copy that was asked is behind, or another owner has written since.

        What one that was shut out still writes of its last commit is harmless, but cannot be told from what
        one writes that has taken the partition since: over that the last commit must not be done again.
        """
        found: dict[AlertRow, bytes] = {}
        self._rows, self._forgotten, last = {}, deque(), 0
        async for entry in self._bucket.newest(self._under):
            if entry.key == f"{self._under}.commit":
                last = max(last, entry.revision)
            if entry.key == f"{self._under}.now":
                self._shown = entry.revision
            if not entry.key.startswith(f"{self._under}.row."):
                continue
            last = max(last, entry.revision)
            self._rows[entry.key] = entry.revision
            if entry.value:
                names, state = read_row(entry.value)
                found[names] = state
            else:
                self._forgotten.append((monotonic(), entry.key))
        if last != self._revision:
            raise OutboxError("the copy that was asked for alerts is behind, or another replica writes there")
        return found

    async def write(self, rows: Sequence[tuple[str, str, str, str | None]]) -> None:
        """What the last commit says of rows; OutboxError where another owner has changed one since."""
        calls = [self._write((part, alert, key), value) for part, alert, key, value in rows]
        done = await self._at_once(calls)
        if not all(done):
            raise OutboxError("another replica has written what alerts remember")

    async def _write(self, names: AlertRow, value: str | None) -> bool:
        part, alert, what = names
        key = f"{self._under}.row.{part}.{token(alert)}.{token(what)}"
        body = b"" if value is None else packed(msgspec.json.encode(Row(names, value)))
        before = self._rows.get(key, 0)
        if not (body or before):
            return True
        revision = await self._put(key, body, before)
        if revision is None:
            return False
        self._rows[key] = revision
        if not body:
            self._forgotten.append((monotonic(), key))
        return True

    async def _put(self, key: str, body: bytes, before: int) -> int | None:
        return await self._bucket.put(key, body, before)

    async def tidy(self) -> None:
        """Let go of rows that have been empty for so long that no owner can be left who would fill them."""
        until = monotonic() - FORGOTTEN_FOR
        while self._forgotten and self._forgotten[0][0] < until:
            _, key = self._forgotten[0]
            await self._forget(key)
            self._forgotten.popleft()

    async def _forget(self, key: str) -> None:
        entry = await self._bucket.get(key)
        if entry is not None and not entry.value and entry.revision == self._rows.get(key):
            await self._bucket.forget(key, upto=entry.revision)
            del self._rows[key]

    async def show(self, now: bytes) -> None:
        """Who is pending or firing; OutboxError if another owner has shown that since."""
        revision = await self._bucket.put(f"{self._under}.now", packed(now), self._shown)
        if revision is None:
            raise OutboxError("another replica shows this partition of the alerts")
        self._shown = revision


async def stored_rows(bucket: Entries, what: str = "") -> AsyncIterator[tuple[AlertRow, bytes]]:
    """Those of all partitions, as of the last that was written; *what*: of one part, or `track_rows`."""
    async for entry in bucket.newest(f"judged.*.row{what}"):
        if entry.value:
            yield read_row(entry.value)


def track_rows(alert: str) -> str:
    """Where the tracks of *alert* are."""
    return f".track.{token(alert)}"


def read_row(value: bytes) -> tuple[AlertRow, bytes]:
    row = msgspec.json.decode(unpacked(value), type=Row)
    return row.names, row.value.encode()
