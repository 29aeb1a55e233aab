"""The `Outbox` on JetStream, put together from its parts."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager

import anyio
import msgspec
import structlog

from bridge.delivery import Delivery, Settlement
from bridge.errors import OutboxError, StartError
from bridge.outbox import (
    Accepted,
    AlertRow,
    Batch,
    DeadLetter,
    DeadLetterFilter,
    Due,
    Intake,
    PauseState,
    SinkTotals,
    SourceTotals,
    Trace,
    Waiting,
)
from bridge.outbox.exchange import Exported
from bridge.outbox.jetstream import pauses
from bridge.outbox.jetstream.address import Address
from bridge.outbox.jetstream.books import Books
from bridge.outbox.jetstream.bucket import Bucket
from bridge.outbox.jetstream.cursors import Cursors
from bridge.outbox.jetstream.desk import Desk, together
from bridge.outbox.jetstream.handing import Handing
from bridge.outbox.jetstream.importing import take_in
from bridge.outbox.jetstream.judged import Judged, stored_rows
from bridge.outbox.jetstream.leasing import Leasing
from bridge.outbox.jetstream.letters import Letters
from bridge.outbox.jetstream.link import Link, Watch, connected, unwatched
from bridge.outbox.jetstream.questions import Questions
from bridge.outbox.jetstream.replicas import Replicas, own_name
from bridge.outbox.jetstream.routing import Intakes, Router
from bridge.outbox.jetstream.sights import SightLog, publish
from bridge.outbox.jetstream.streams import EVENTS, SHARED, STATE, Windows, prepared
from bridge.outbox.jetstream.upkeep import Upkeep
from bridge.outbox.jetstream.wire import Subjects, sink_of, sink_token, token
from bridge.outbox.queue import Imported, Queue, Shown
from bridge.outbox.verify import Accounts

log = structlog.get_logger()

WRITE_DOWN_EVERY = 1.0  # seconds between two pages of the totals
LOOK_EVERY = 2.0  # seconds between two looks for what no wake-up has told: the work of a dead replica
SWEEP_EVERY = 10.0  # seconds between two looks for what a killed server has kept too long
CLOSE_WITHIN = 5.0  # seconds to give back what is held
NOTIFIED = "alerts"  # the source under which notifications are counted (ingest.py)
ROW_BYTES = 1000  # what an event costs beside its bodies


class Remembered(msgspec.Struct, frozen=True):
    """A row of JSON of a sink, or of alerts: *names* is its key."""

    names: tuple[str, ...]
    value: str


class JetStreamOutbox:
    """One replica's outbox. *arrived* is called with the sinks for which something new may wait."""

    read_ahead = 4

    def __init__(self, desk: Desk, windows: Windows, overflow: str, *, boot: str) -> None:
        self._desk = desk
        self._windows = windows
        self._overflow = overflow
        self._letters = Letters(desk)
        self._intakes = Intakes(desk)
        self._router = Router(desk)
        self._upkeep = Upkeep(desk, self._letters)
        self._questions = Questions(desk)
        self._handing = Handing(desk, anew=False)
        self._cursors = Cursors(desk.bucket)
        self.boot = boot
        """Tells this process from others under its name."""
        self.replicas = Replicas(desk, boot)
        self.leasing = Leasing(desk, self.replicas)
        self.arrived: Callable[[frozenset[str]], None] = lambda _sinks: None
        self.paused: Callable[[str, PauseState | None], None] = lambda _sink, _pause: None
        """Called when some replica has paused a sink, or (None) ended its pause."""
        self.leaving: Callable[[], Awaitable[None]] | None = None
        """Called before the leases are given back."""
        self.is_killed = False
        """For tests: it ends as by a kill, without giving back or writing down anything."""

    @property
    def name(self) -> str:
        """This replica's."""
        return self._desk.me

    @property
    def bucket(self) -> Bucket:
        return self._desk.bucket

    @property
    def lease(self) -> float:
        """Seconds."""
        return self._desk.link.address.lease

    @property
    def reconnects(self) -> int:
        """How often the connection has come back; what was told meanwhile was not heard."""
        return int(self._desk.link.client.stats["reconnects"])

    async def begin(self) -> None:
        await self.replicas.begin()
        alone = self.replicas.alive <= {self._desk.me}
        self._handing = Handing(self._desk, anew=alone)
        await self._router.route()

    async def work(self) -> None:
        """What goes on beside the calls, until cancelled."""
        address = self._desk.link.address
        beside = (
            (address.ack_wait / 4, self._keep_alive),
            (WRITE_DOWN_EVERY, self._write_down),
            (address.lease / 3, self.replicas.beat),
            (LOOK_EVERY, self._look),
            (SWEEP_EVERY, self._sweep),
        )
        async with anyio.create_task_group() as tasks:
            for seconds, call in beside:
                tasks.start_soon(_every, seconds, call)
            tasks.start_soon(self._listen)
            tasks.start_soon(self._watch_pauses)

    async def _keep_alive(self) -> None:
        await self._handing.keep_alive()

    async def _write_down(self) -> None:
        if self._desk.books.changed:
            await self.replicas.write_down()

    async def _sweep(self) -> None:
        await self._handing.sweep()

    async def _look(self) -> None:
        await self._router.route()
        self.arrived(frozenset(self._desk.shelves))

    async def _listen(self) -> None:
        """Wake-ups of all replicas."""
        desk = self._desk
        wakes = await desk.link.client.subscribe(f"{desk.subjects.prefix}.wake.*")
        async for message in wakes.messages:
            self.arrived(frozenset([sink_of(message.subject.rpartition(".")[2])]))

    async def _watch_pauses(self) -> None:
        desk = self._desk
        changes = await desk.link.client.subscribe(f"$KV.{desk.subjects.stream(SHARED)}.pauses.*")
        async for message in changes.messages:
            if message.data:
                found = msgspec.json.decode(message.data, type=pauses.Paused)
                self.paused(found.sink, found.state())

    async def close(self) -> None:
        """Give back what is held and write down the totals."""
        if self.is_killed:
            return
        try:
            await self._handing.close()
            await self._router.close()
            if not self._desk.replaced:
                if self.leaving is not None:
                    await self.leaving()
                await self.leasing.end()
                await self.replicas.end()
        except OutboxError as error:
            log.warning("nats: not closed in order", error=str(error))

    async def accept(self, batch: Batch) -> Accepted:
        self._desk.check()
        intakes = batch.intakes
        dropped = await self._make_room(intakes)
        told = [each for each in intakes if each.source == NOTIFIED]
        heard = [each for each in intakes if each.source != NOTIFIED]
        intakes = [*heard, *told]  # as they come: see `Ingest.run`
        fresh_told = await self._intakes.take(told)
        await self._remember("alerts", batch.alerts)
        fresh = await self._intakes.take(heard) + fresh_told
        await self._routed()
        superseded = await self._supersede(batch)
        await self._cursors.move(batch)
        sinks = set[str]()
        for intake, new in zip(intakes, fresh, strict=True):
            if not (new and intake.matched):
                counted = {"unmatched" if new else "duplicate": 1}
                self._desk.books.move("source", intake.source, received=1, **counted)
            elif intake.routes:
                sinks.update(route.sink for route in intake.routes)
        self._intakes.finished(intakes)
        return Accepted(fresh, frozenset(sinks), dropped, superseded)

    async def _routed(self) -> None:
        """Wait for the router, so that what was accepted can be delivered."""
        stored = set(self._intakes.stored)
        await self._router.until(stored)
        self._intakes.stored -= stored

    async def _make_room(self, intakes: Sequence[Intake]) -> Mapping[str, int]:
        limit = self._windows.max_size
        if limit is None or not intakes:
            return {}
        incoming = sum(
            (ROW_BYTES + len(each.event.body)) * len(each.routes) for each in intakes if each.matched
        )
        if self._upkeep.surely_room(limit, incoming):
            return {}
        used = await self._upkeep.used()
        if used + incoming <= limit:
            return {}
        if self._overflow == "block":
            raise OutboxError(f"{self._desk.link.address.shown}: has reached max_size", full=True)
        return await self._upkeep.make_room(limit, incoming, max(each.received for each in intakes))

    async def _supersede(self, batch: Batch) -> Mapping[tuple[str, str], int]:
        """Of notifications with one key only the newest waits: rule and sink to how many are dropped."""
        keys = {
            (route.sink, route.supersedes, intake.received)
            for intake in batch.intakes
            for route in intake.routes
            if route.supersedes is not None
        }
        dropped: Counter[tuple[str, str]] = Counter()
        for sink, key, at in keys:
            for place in (await self._desk.waiting_places(sink, supersedes=key))[:-1]:
                waits = await self._desk.drop_waiting(place, at)
                if waits is not None:
                    dropped[waits.rule, sink] += 1
        return dropped

    async def fresh(self, intakes: Sequence[Intake]) -> tuple[bool, ...]:
        return await self._intakes.fresh(intakes)

    async def due(self, sink: str, *, now: float, horizon: float, limit: int, taken: Collection[int]) -> Due:
        return await self._handing.due(sink, now, horizon, limit, taken)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        await self._handing.settle(settlements)

    def holds(self, delivery: Delivery) -> bool:
        return self._handing.holds(delivery)

    async def cursors(self, source: str) -> dict[str, int]:
        return await self._cursors.of(source)

    async def recent_ids(self, source: str, identifier: str) -> tuple[str, ...]:
        return await self._cursors.recent_ids(source, identifier)

    async def _remember(self, under: str, rows: Mapping[AlertRow, bytes | None]) -> None:
        await together(self._remember_one(under, row, value) for row, value in rows.items())

    async def _remember_one(self, under: str, names: tuple[str, ...], value: bytes | None) -> None:
        key = ".".join(
            (under, names[0] if under == "alerts" else sink_token(names[0]), *map(token, names[1:]))
        )
        bucket = self._desk.shared if under == "alerts" else self.bucket
        if value is None:
            await bucket.forget(key)
        else:
            await bucket.put(key, msgspec.json.encode(Remembered(names, value.decode())))

    async def alert_states(self, part: str | None = None) -> list[tuple[str, str, str, bytes]]:
        entries = await self._desk.shared.all("alerts" if part is None else f"alerts.{part}")
        read = [msgspec.json.decode(entry.value, type=Remembered) for entry in entries]
        found = [(each.names[0], each.names[1], each.names[2], each.value.encode()) for each in read]
        if part != "silence":
            judged = [(*names, state) async for names, state in stored_rows(self.bucket)]
            found += [each for each in judged if part in (None, each[0])]
        return found

    def judged_rows(self, what: str) -> AsyncIterator[tuple[AlertRow, bytes]]:
        """What is stored of alerts, of one kind, whoever judges them."""
        return stored_rows(self.bucket, what)

    async def follow(self, keys: str, hear: Callable[[str, bytes], None]) -> None:
        """Call *hear* with what is put into the bucket under *keys*, until cancelled; some may be missed."""
        prefix = f"$KV.{self._desk.subjects.stream('state')}."
        changes = await self._desk.link.client.subscribe(prefix + keys)
        async for message in changes.messages:
            hear(message.subject.removeprefix(prefix), message.data)

    async def tell_replicas(self, what: str) -> None:
        """All that listen now hear *what*, this one too. Raises OutboxError."""
        try:
            await self._desk.link.client.publish(self._desk.subjects.told(), what.encode())
        except (nats_errors(), OSError) as error:
            raise OutboxError(f"the other replicas cannot be told: {type(error).__name__}") from None

    async def told(self) -> AsyncIterator[str]:
        """What replicas tell each other, until cancelled."""
        heard = await self._desk.link.client.subscribe(self._desk.subjects.told())
        async for message in heard.messages:
            yield message.data.decode(errors="replace")

    def judged(self, number: int) -> Judged:
        """What is stored of a partition of the alerts."""
        return Judged(self.bucket, number, self._desk.me)

    def sight_log(self, number: int) -> SightLog:
        """What its owner judges."""
        return SightLog(self._desk, number)

    async def publish_sights(self, messages: Sequence[tuple[int, bytes, str]]) -> None:
        """Partition, body and id of each, in order; raises OutboxError: then the same again."""
        self._desk.check()
        await publish(self._desk, messages)

    async def recall(self, sink: str) -> Mapping[str, bytes]:
        found = self.bucket.newest(f"memory.{sink_token(sink)}")
        read = [msgspec.json.decode(entry.value, type=Remembered) async for entry in found]
        return {each.names[1]: each.value.encode() for each in read}

    async def keep(self, sink: str, rows: Mapping[str, bytes | None]) -> None:
        self._desk.check()
        await together(self._remember_one("memory", (sink, key), value) for key, value in rows.items())

    async def pauses(self) -> dict[str, PauseState]:
        return await pauses.pauses(self._desk.shared)

    async def set_pause(self, sink: str, pause: PauseState | None, now: float) -> None:
        self._desk.check()
        await pauses.set_pause(self._desk.shared, sink, pause, now)

    async def may_probe(self, sink: str, pause: PauseState) -> bool:
        """False also where the pause is another one by now; it is learned here, if no message told it."""
        current = await pauses.pause_of(self._desk.shared, sink)
        if current != pause:
            self.paused(sink, current)
            return False
        return await pauses.claim_probe(self._desk.shared, sink, pause, self.name, self.replicas.lives)

    async def paused_seconds(self, sink: str, now: float) -> float:
        return await pauses.paused_seconds(self._desk.shared, sink, now)

    def source_totals(self) -> Mapping[str, SourceTotals]:
        return self._desk.books.source_totals()

    def sink_totals(self) -> Mapping[str, SinkTotals]:
        return self._desk.books.sink_totals()

    async def accounts(self) -> Accounts:
        """What `verify` looks at, of all replicas."""
        await self._write_down()
        return await self._questions.accounts()

    async def queues(self) -> list[Queue]:
        return await self._questions.queues()

    async def show(self, identifier: str) -> list[Shown]:
        return await self._questions.show(identifier)

    async def check(self) -> list[str]:
        return await self._questions.check()

    async def exported(self, after: int) -> tuple[list[Exported], int | None]:
        return await self._questions.exported(after)

    async def take_in(self, lines: Sequence[Exported], now: float) -> Imported:
        """Accept what another store has exported; for a store on which nothing else works meanwhile."""
        others = self.replicas.alive - {self.name}
        if others:
            raise StartError("bridge is running on this store; stop it, import, and start it again")
        return await take_in(self._desk, self.accept, lines, now)

    async def oldest(self, sink: str) -> float | None:
        return await self._questions.oldest(sink)

    async def dead_letters(
        self, wanted: DeadLetterFilter, *, limit: int, after: str | None = None
    ) -> list[DeadLetter]:
        return await self._letters.listed(wanted, limit, after)

    async def waiting(
        self, sink: str | None, rule: str | None, *, after: int = 0, limit: int
    ) -> list[Waiting]:
        return await self._questions.waiting(sink, rule, after, limit)

    async def retry_dead_letters(self, wanted: DeadLetterFilter, now: float) -> int:
        return await self._letters.retry(wanted, now)

    async def drop_dead_letters(self, wanted: DeadLetterFilter, now: float) -> int:
        return await self._letters.drop(wanted, now)

    async def trace(self, unique_id: str) -> Trace | None:
        return await self._questions.trace(unique_id)

    async def tidy(self, now: float) -> None:
        await self._upkeep.tidy(now)

    async def bytes_used(self) -> int:
        return await self._upkeep.bytes_used()


async def _every(seconds: float, call: Callable[[], Awaitable[None]]) -> None:
    """Call it again and again; a failure is told when it begins and when it ends."""
    failing = False
    while True:
        await anyio.sleep(seconds)
        try:
            await call()
        except OutboxError as error:
            if not failing:
                log.warning("nats: not now", what=call.__name__, error=str(error))
            failing = True
        else:
            if failing:
                log.info("nats: works again", what=call.__name__)
            failing = False


@asynccontextmanager
async def open_jetstream(
    address: Address,
    *,
    dedup_window: float,
    dead_letter_retention: float,
    trace_retention: float,
    max_size: int | None = None,
    overflow: str = "drop_oldest",
    watch: Watch = unwatched,
) -> AsyncIterator[JetStreamOutbox]:
    """This replica's outbox on the streams at *address*; windows and retentions in seconds, sizes in bytes.

    Raises ConfigError without the extra, StartError when the server is not there or does not fit.
    """
    if not address.replica:
        address = dataclasses.replace(address, replica=own_name())
    windows = Windows(dedup_window, max_size)
    async with connected(address, watch=watch) as link:
        await prepared(link, windows)
        subjects = Subjects(address.stream)
        books, buckets = Books(address.replica), buckets_of(link, subjects)
        desk = Desk(link, subjects, *buckets, books, dedup_window, trace_retention, dead_letter_retention)
        outbox = JetStreamOutbox(desk, windows, overflow, boot=uuid.uuid4().hex)
        await outbox.begin()
        beside = asyncio.create_task(outbox.work())  # not in a group: an error of the caller stays as it is
        beside.add_done_callback(_told)
        try:
            yield outbox
        finally:
            beside.cancel()
            with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_WITHIN):
                await asyncio.wait([beside])
                await outbox.close()


def nats_errors() -> type[Exception]:
    import nats.errors

    return nats.errors.Error


def buckets_of(link: Link, subjects: Subjects) -> tuple[Bucket, Bucket]:
    return Bucket(link, subjects.stream(STATE)), Bucket(link, subjects.stream(SHARED))


def _told(work: asyncio.Task[None]) -> None:
    """A bug in what goes on beside is not lost."""
    if not work.cancelled() and (bug := work.exception()) is not None:
        log.error("bug beside the outbox", exc_info=bug)


@asynccontextmanager
async def open_reader(address: Address) -> AsyncIterator[JetStreamOutbox]:
    """For a command that only looks, also while bridge runs; raises StartError where there is no store."""
    address = dataclasses.replace(address, replica=own_name())
    async with connected(address) as link:
        subjects = Subjects(address.stream)
        try:
            await link.info(subjects.stream(EVENTS))
        except OutboxError as error:
            raise StartError(f"there is no store yet: {error}") from None
        books, buckets = Books(address.replica), buckets_of(link, subjects)
        desk = Desk(link, subjects, *buckets, books, 0.0, 0.0, 0.0)
        yield JetStreamOutbox(desk, Windows(0.0, None), "block", boot="")
