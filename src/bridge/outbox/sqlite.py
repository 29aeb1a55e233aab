"""The outbox on SQLite: one file, one writer, every promise a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import anyio
import anyio.to_thread
import structlog

from bridge.delivery import Delivery, Settlement
from bridge.errors import OutboxError, StartError
from bridge.outbox import (
    Accepted,
    Batch,
    DeadLetter,
    DeadLetterFilter,
    Due,
    Intake,
    Offload,
    PauseState,
    SinkTotals,
    SourceTotals,
    Trace,
    Waiting,
    alert_rows,
    letting_go,
    queries,
    queue,
    transactions,
)
from bridge.outbox.exchange import Exported
from bridge.outbox.file import (
    LOG_PAGES,
    PAGE,
    RESERVE,
    Durability,
    Reserve,
    connect_readonly,
    locked,
    refuse_foreign,
    refuse_network,
)
from bridge.outbox.letting_go import Step
from bridge.outbox.queue import Imported, Queue, Shown
from bridge.outbox.salvage import Salvaged, damage, is_damage, replace
from bridge.outbox.transactions import Transaction
from bridge.outbox.verify import Accounts
from bridge.outbox.writer import File, Writer

log = structlog.get_logger()

Overflow: TypeAlias = Literal["drop_oldest", "block"]
T = TypeVar("T")

MOUNTS = Path("/proc/self/mounts")
ROW_BYTES = 1000  # what an event costs beside its body, with some deliveries
FREE_PAGES = 1000  # pages given back at a time, and left in the file for what comes next
ID_STEPS = 100  # steps of `tidy` over ids in one round


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
    max_size: int | None = None,
    overflow: Overflow = "drop_oldest",
    reserve: int = RESERVE,
) -> AsyncIterator[SqliteOutbox]:
    """The store of the running bridge, locked; windows and retentions in seconds, sizes in bytes.

    A damaged store is replaced by what is readable of it. Raises StartError when the file cannot be used,
    belongs to another program, or another bridge runs.
    """
    if MOUNTS.exists():
        refuse_network(path, MOUNTS.read_text())
    refuse_foreign(path)
    limits = Limits(dedup_window, dead_letter_retention, trace_retention, max_size, overflow)
    with ExitStack() as stack:
        stack.enter_context(locked(path))
        salvaged = mended(path)
        kept = Reserve(Path(f"{path}.reserve"), reserve)
        kept.shrink_to_disk()
        kept.take()
        store = File(path, durability, log_pages(max_size, kept.size), stack)
        store.salvaged = salvaged
        yield SqliteOutbox(store, limits, kept, offload_write, offload_read)


def mended(path: Path) -> Salvaged | None:
    """What had to be done about damage at *path*; raises StartError if it could not."""
    why = damage(path)
    if why is None:
        return None
    try:
        return replace(path, why)
    except (sqlite3.Error, OSError) as error:
        raise StartError(f"{path}: is damaged and cannot be replaced: {error}") from None


def log_pages(max_size: int | None, reserve: int) -> int:
    """After how many pages the write-ahead log is brought into the file.

    It counts towards the size, and with the reserve given back there must be room to bring it in.
    """
    most = [LOG_PAGES, *(size // part // PAGE for size, part in ((max_size, 16), (reserve, 4)) if size)]
    return max(50, min(most))


@asynccontextmanager
async def open_readonly(path: Path) -> AsyncIterator[SqliteReader]:
    """The store for a command that only looks, also while bridge runs; raises StartError."""
    async with AsyncExitStack() as stack:
        offload = await stack.enter_async_context(threads())
        reader = stack.enter_context(closing(connect_readonly(path)))
        yield SqliteReader(path, lambda: reader, offload)


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds and bytes; *max_size* None: the disk is the limit."""

    dedup_window: float
    dead_letter_retention: float
    trace_retention: float
    max_size: int | None = None
    overflow: Overflow = "drop_oldest"


class SqliteReader:
    """Every question to the store; each is one short read of what was last committed."""

    def __init__(self, path: Path, db: Callable[[], sqlite3.Connection], offload: Offload) -> None:
        self.path = path
        self._db = db
        self._offload_read = offload

    async def read(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """The answer to *question*; raises OutboxError."""

        def ask() -> T:
            try:
                return question(self._db())
            except sqlite3.Error as error:
                raise OutboxError(f"{self.path}: {error}") from error

        return await self._offload_read(ask)

    async def due(self, sink: str, *, now: float, horizon: float, limit: int, taken: Collection[int]) -> Due:
        return await self.read(lambda db: queries.due(db, sink, now, horizon, limit, taken))

    async def cursors(self, source: str) -> dict[str, int]:
        return await self.read(lambda db: queries.cursors(db, source))

    async def recent_ids(self, source: str, identifier: str) -> tuple[str, ...]:
        return await self.read(lambda db: tuple(transactions.recent_ids(db, (source, identifier))))

    async def alert_states(self, part: str | None = None) -> list[tuple[str, str, str, bytes]]:
        return await self.read(lambda db: alert_rows.read(db, part))

    async def recall(self, sink: str) -> Mapping[str, bytes]:
        return await self.read(lambda db: queries.memory(db, sink))

    async def oldest(self, sink: str) -> float | None:
        return await self.read(lambda db: queries.oldest(db, sink))

    async def pauses(self) -> dict[str, PauseState]:
        return await self.read(queries.pauses)

    async def paused_seconds(self, sink: str, now: float) -> float:
        return await self.read(lambda db: queries.paused_seconds(db, sink, now))

    async def dead_letters(
        self, wanted: DeadLetterFilter, *, limit: int, after: str | None = None
    ) -> list[DeadLetter]:
        return await self.read(lambda db: queries.dead_letters(db, wanted, limit, after))

    async def waiting(
        self, sink: str | None, rule: str | None, *, after: int = 0, limit: int
    ) -> list[Waiting]:
        return await self.read(lambda db: queue.waiting(db, sink, rule, after, limit))

    async def trace(self, unique_id: str) -> Trace | None:
        return await self.read(lambda db: queries.trace(db, unique_id))

    async def bytes_used(self) -> int:
        return await self.read(lambda db: queries.bytes_used(db, self.path))

    async def queues(self) -> list[Queue]:
        """Of every sink that ever got a delivery."""
        return await self.read(queue.queues)

    async def show(self, identifier: str) -> list[Shown]:
        """What waits under the delivery id or unique_id *identifier*."""
        return await self.read(lambda db: queue.show(db, identifier))

    async def check(self) -> list[str]:
        """What is wrong with the store; empty if nothing is."""
        return await self.read(queue.check)

    async def exported(self, after: int) -> tuple[list[Exported], int | None]:
        """A page of events beyond number *after*, and where to go on."""
        return await self.read(lambda db: queue.exported(db, after))

    async def accounts(self) -> Accounts:
        """What `verify` looks at."""
        return await self.read(queries.accounts)


class SqliteOutbox(SqliteReader):
    """The `Outbox` of the running bridge."""

    read_ahead = 16
    """With 4 the slots ran dry while the next were read: a tenth less delivered from a backlog."""

    def __init__(
        self,
        file: File,
        limits: Limits,
        reserve: Reserve,
        offload_write: Offload,
        offload_read: Offload,
    ) -> None:
        super().__init__(file.path, lambda: file.reader, offload_read)
        self._file = file
        self._limits = limits
        self._reserve = reserve
        self._writer = Writer(file, reserve, offload_write, limits.max_size)
        self._ids_after = 0  # where `tidy` goes on in the ids

    @property
    def salvaged(self) -> Salvaged | None:
        """What was last done about a damaged file, at the start or since."""
        return self._file.salvaged

    async def read(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """The answer to *question*, if need be of what is readable of a damaged file; raises OutboxError."""
        asked = self._file.reader
        try:
            return await super().read(question)
        except OutboxError as error:
            if error.__cause__ is None or not is_damage(error.__cause__):
                raise
            await self._writer.heal(asked, str(error.__cause__))
            return await super().read(question)

    async def fresh(self, intakes: Sequence[Intake]) -> tuple[bool, ...]:
        return await self.read(lambda db: alert_rows.fresh(db, intakes, self._limits.dedup_window))

    async def accept(self, batch: Batch) -> Accepted:
        def change(tx: Transaction) -> Accepted:
            self._writer.refuse_beyond_the_disk()
            accepted = transactions.accept(tx, batch, self._limits.dedup_window)
            now = max((intake.received for intake in batch.intakes), default=0.0)
            if batch.alerts:
                alert_rows.write(tx.db, batch.alerts)
            superseded = alert_rows.supersede(tx, batch)
            dropped = self._make_room(tx, now, incoming)
            if not (dropped or superseded):
                return accepted
            return Accepted(accepted.fresh, accepted.sinks, dropped, superseded)

        incoming = sum(ROW_BYTES + len(intake.event.body) for intake in batch.intakes)

        return await self._writer.write(change)

    def _make_room(self, tx: Transaction, now: float, incoming: int) -> Mapping[str, int]:
        """Looks closely only when *incoming* bytes might be too much, by the sizes of the files."""
        limit = self._limits.max_size
        if limit is None or self._writer.bound + 2 * incoming <= limit:
            return {}
        log_size = queries.log_bytes(self.path)

        def too_much() -> bool:
            return queries.pages_used(tx.db) + log_size > limit

        if not too_much():
            return {}
        if self._limits.overflow == "block":
            raise OutboxError(f"{self.path}: has reached max_size", full=True)
        return letting_go.make_room(tx, self._writer.totals, now, too_much)

    async def take_in(self, lines: Sequence[Exported], now: float) -> Imported:
        """Accept what another store has exported; `max_size` is as in `accept`."""

        def change(tx: Transaction) -> Imported:
            self._writer.refuse_beyond_the_disk()
            imported = queue.take_in(tx, lines, self._limits.dedup_window, now)
            self._make_room(tx, now, incoming)
            return imported

        incoming = sum(ROW_BYTES + len(bytes(line.event)) for line in lines)
        return await self._writer.write(change)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        await self._writer.write(lambda tx: tx.settlements.extend(settlements))

    def holds(self, delivery: Delivery) -> bool:
        """Always: one process owns the file."""
        return True

    async def may_probe(self, sink: str, pause: PauseState) -> bool:
        return True

    async def keep(self, sink: str, rows: Mapping[str, bytes | None]) -> None:
        await self._writer.write(lambda tx: transactions.keep(tx.db, sink, rows))

    async def set_pause(self, sink: str, pause: PauseState | None, now: float) -> None:
        await self._writer.write(lambda tx: transactions.set_pause(tx, sink, pause, now))

    async def retry_dead_letters(self, wanted: DeadLetterFilter, now: float) -> int:
        return await self._in_steps(lambda tx, after: letting_go.retry_dead_letters(tx, wanted, now, after))

    async def drop_dead_letters(self, wanted: DeadLetterFilter, now: float) -> int:
        return await self._in_steps(lambda tx, after: letting_go.drop_dead_letters(tx, wanted, now, after))

    async def _in_steps(self, step: Callable[[Transaction, int], Step], after: int = 0) -> int:
        """How many rows *step* changed, in commits of its own, until there is nothing more."""
        done, last = 0, after
        while True:
            made = await self._writer.write(lambda tx, last=last: step(tx, last))  # type: ignore[misc]
            done += made.done
            if made.last is None:
                return done
            last = made.last

    async def tidy(self, now: float) -> None:
        limits = self._limits
        before = now - limits.trace_retention
        await self._forget_ids(now - limits.dedup_window)
        await self._in_steps(
            lambda tx, after: letting_go.forget_traces(tx, before, now + limits.trace_retention, after)
        )
        await self._in_steps(
            lambda tx, _: letting_go.expire_dead_letters(tx, now - limits.dead_letter_retention, now)
        )
        keep = 0 if self._writer.disk_full else FREE_PAGES
        while await self._writer.aside(lambda db: give_back(db, keep)):
            pass
        await self._writer.aside(lambda _: self._reserve.take())

    async def _forget_ids(self, before: float) -> None:
        """At most ID_STEPS steps; the next call goes on there, so that a long queue costs no long round."""
        for _ in range(ID_STEPS):
            after = self._ids_after
            made = await self._writer.write(lambda tx, after=after: letting_go.forget_ids(tx, before, after))  # type: ignore[misc]
            self._ids_after = made.last or 0
            if made.last is None:
                return

    def source_totals(self) -> Mapping[str, SourceTotals]:
        return queries.source_totals(self._writer.totals)

    def sink_totals(self) -> Mapping[str, SinkTotals]:
        return queries.sink_totals(self._writer.totals)


def give_back(db: sqlite3.Connection, keep: int) -> bool:
    """Return some free pages to the disk; says whether there are more to return. A busy store wants some."""
    try:
        free, pages = (
            db.execute(f"PRAGMA {what}").fetchone()[0] for what in ("freelist_count", "page_count")
        )
        if free <= (max(keep, pages // 10) if keep else 0):
            return False
        db.execute(f"PRAGMA incremental_vacuum({FREE_PAGES})").fetchall()
    except sqlite3.Error:
        return False
    return True
