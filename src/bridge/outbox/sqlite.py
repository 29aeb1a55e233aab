"""The outbox on SQLite: one file, one writer, every promise a transaction."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import anyio
import anyio.to_thread

from bridge.delivery import Settlement
from bridge.errors import OutboxError
from bridge.outbox import (
    Accepted,
    Batch,
    DeadLetter,
    DeadLetterFilter,
    Due,
    Offload,
    PauseState,
    SinkTotals,
    SourceTotals,
    Trace,
    queries,
    transactions,
)
from bridge.outbox.file import (
    RESERVE,
    Durability,
    Reserve,
    connect,
    connect_readonly,
    locked,
    refuse_network,
)
from bridge.outbox.transactions import Total, Transaction

T = TypeVar("T")

MOUNTS = Path("/proc/self/mounts")
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(slots=True)
class _Job(Generic[T]):
    """One change that waits for its commit."""

    change: Callable[[Transaction], T]
    done: bool = False
    result: T | None = None
    error: BaseException | None = None


@asynccontextmanager
async def threads() -> AsyncIterator[Offload]:
    """An offload with one thread of its own: its calls run one after another, in order."""
    limiter = anyio.CapacityLimiter(1)

    async def offload(call: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(call, limiter=limiter)

    yield offload


@asynccontextmanager
async def open_outbox(
    path: Path,
    *,
    durability: Durability,
    dedup_window: float,
    dead_letter_retention: float,
    trace_retention: float,
    offload_write: Offload,
    offload_read: Offload,
    reserve: int = RESERVE,
) -> AsyncIterator[SqliteOutbox]:
    """The store of the running bridge, locked; windows and retentions in seconds, *reserve* in bytes.

    Raises StartError when the file cannot be used, belongs to another program, or another bridge runs.
    """
    if MOUNTS.exists():
        refuse_network(path, MOUNTS.read_text())
    with (
        locked(path),
        _closing(connect(path, durability)) as writer,
        _closing(connect_readonly(path)) as reader,
    ):
        kept = Reserve(Path(f"{path}.reserve"), reserve)
        kept.take()
        windows = _Windows(dedup_window, dead_letter_retention, trace_retention)
        yield SqliteOutbox(path, writer, reader, windows, kept, offload_write, offload_read)


@asynccontextmanager
async def open_readonly(path: Path) -> AsyncIterator[SqliteReader]:
    """The store for a command that only looks, also while bridge runs; raises StartError."""
    async with AsyncExitStack() as stack:
        offload = await stack.enter_async_context(threads())
        reader = stack.enter_context(_closing(connect_readonly(path)))
        yield SqliteReader(path, reader, offload)


@contextmanager
def _closing(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield db
    finally:
        db.close()


@dataclass(frozen=True, slots=True)
class _Windows:
    dedup: float
    dead_letters: float
    traces: float


class SqliteReader:
    """Every question to the store; each is one short read of what was last committed."""

    def __init__(self, path: Path, db: sqlite3.Connection, offload: Offload) -> None:
        self.path = path
        self._reader = db
        self._offload_read = offload

    async def _read(self, question: Callable[[sqlite3.Connection], T]) -> T:
        def ask() -> T:
            try:
                return question(self._reader)
            except sqlite3.Error as error:
                raise OutboxError(f"{self.path}: {error}") from None

        return await self._offload_read(ask)

    async def due(self, sink: str, *, now: float, horizon: float, limit: int, taken: Collection[int]) -> Due:
        return await self._read(lambda db: queries.due(db, sink, now, horizon, limit, taken))

    async def cursors(self, source: str) -> dict[str, int]:
        return await self._read(lambda db: queries.cursors(db, source))

    async def recent_ids(self, source: str, identifier: str) -> tuple[str, ...]:
        return await self._read(lambda db: tuple(transactions.recent_ids(db, (source, identifier))))

    async def oldest(self, sink: str) -> float | None:
        return await self._read(lambda db: queries.oldest(db, sink))

    async def pauses(self) -> dict[str, PauseState]:
        return await self._read(queries.pauses)

    async def paused_seconds(self, sink: str, now: float) -> float:
        return await self._read(lambda db: queries.paused_seconds(db, sink, now))

    async def dead_letters(
        self, wanted: DeadLetterFilter, *, limit: int, after: str | None = None
    ) -> list[DeadLetter]:
        return await self._read(lambda db: queries.dead_letters(db, wanted, limit, after))

    async def trace(self, unique_id: str) -> Trace | None:
        return await self._read(lambda db: queries.trace(db, unique_id))

    async def bytes_used(self) -> int:
        return await self._read(lambda db: queries.bytes_used(db, self.path))

    async def totals(self) -> dict[Total, int]:
        """As stored, for commands; the running bridge has `source_totals` and `sink_totals`."""
        return await self._read(queries.totals)

    async def verify(self) -> list[str]:
        """The sums of promise 6 that do not hold; empty if all do."""
        return await self._read(queries.verify)


class SqliteOutbox(SqliteReader):
    """The `Outbox` of the running bridge.

    Changes that wait together share one commit: whoever gets the lock commits everything that waits, the
    others find theirs done. With `durability: power` a commit is a disk sync of a millisecond or more.
    """

    def __init__(
        self,
        path: Path,
        writer: sqlite3.Connection,
        reader: sqlite3.Connection,
        windows: _Windows,
        reserve: Reserve,
        offload_write: Offload,
        offload_read: Offload,
    ) -> None:
        super().__init__(path, reader, offload_read)
        self._writer = writer
        self._windows = windows
        self._reserve = reserve
        self._offload_write = offload_write
        self._lock = anyio.Lock()
        self._waiting: list[_Job[Any]] = []
        self._totals = queries.totals(writer)
        self._next_event = queries.next_event(writer)

    async def accept(self, batch: Batch) -> Accepted:
        def change(tx: Transaction) -> Accepted:
            accepted = transactions.accept(tx, batch, self._windows.dedup, self._next_event)
            self._next_event += len(batch.intakes)
            return accepted

        return await self._write(change)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        def change(tx: Transaction) -> None:
            for settlement in settlements:
                transactions.settle(tx, settlement)

        await self._write(change)

    async def set_pause(self, sink: str, pause: PauseState | None, now: float) -> None:
        await self._write(lambda tx: transactions.set_pause(tx, sink, pause, now))

    async def retry_dead_letters(self, wanted: DeadLetterFilter, now: float) -> int:
        return await self._write(lambda tx: transactions.retry_dead_letters(tx, wanted, now))

    async def drop_dead_letters(self, wanted: DeadLetterFilter, now: float) -> int:
        return await self._write(lambda tx: transactions.drop_dead_letters(tx, wanted, now))

    async def tidy(self, now: float) -> None:
        windows = self._windows
        steps: list[Callable[[Transaction], int]] = [
            lambda tx: transactions.forget_ids(tx, now - windows.dedup),
            lambda tx: transactions.forget_traces(tx, now - windows.traces),
            lambda tx: transactions.expire_dead_letters(tx, now - windows.dead_letters, now),
        ]
        for step in steps:
            while await self._write(step) >= transactions.STEP:
                pass
        await self._offload_write(self._give_back)

    def _give_back(self) -> None:
        """Return free pages to the disk, a few at a time, and take the reserve again if there is room."""
        with suppress(sqlite3.Error):
            self._writer.execute("PRAGMA incremental_vacuum(1000)").fetchall()
        self._reserve.take()

    def source_totals(self) -> Mapping[str, SourceTotals]:
        return queries.source_totals(self._totals)

    def sink_totals(self) -> Mapping[str, SinkTotals]:
        return queries.sink_totals(self._totals)

    async def _write(self, change: Callable[[Transaction], T]) -> T:
        """Do *change* in the next commit. Not cancelled half-way: the caller knows what happened."""
        job = _Job(change)
        self._waiting.append(job)
        with anyio.CancelScope(shield=True):
            async with self._lock:
                if not job.done:
                    jobs, self._waiting = self._waiting, []
                    await self._offload_write(lambda: self._commit(jobs))
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]  # set by _commit unless there is an error

    def _commit(self, jobs: Sequence[_Job[Any]]) -> None:
        """All of *jobs* in one transaction; if that fails, each alone, so that an error is its own."""
        try:
            self._transact(jobs)
        except Exception as error:  # noqa: BLE001  # handed to whoever waits for it
            if len(jobs) > 1:
                for job in jobs:
                    self._commit([job])
                return
            jobs[0].error = self._told(error)
        for job in jobs:
            job.done = True

    def _transact(self, jobs: Sequence[_Job[Any]]) -> None:
        tx = Transaction(self._writer)
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            for job in jobs:
                job.result = job.change(tx)
            tx.write_totals()
            self._writer.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")
            raise
        for total, by in tx.moves.items():
            self._totals[total] = self._totals.get(total, 0) + by

    def _told(self, error: Exception) -> Exception:
        """*error* as an OutboxError; a full disk gets the reserve back, so that the next try may succeed."""
        if not isinstance(error, sqlite3.Error | OSError):
            return error
        full = is_full(error)
        if full:
            self._reserve.release()
        return OutboxError(f"{self.path}: {error}", full=full)


def is_full(error: Exception) -> bool:
    if isinstance(error, sqlite3.Error):
        return error.sqlite_errorcode == sqlite3.SQLITE_FULL if hasattr(error, "sqlite_errorcode") else False
    return isinstance(error, OSError) and error.errno in FULL
