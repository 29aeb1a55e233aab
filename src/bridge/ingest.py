"""From what a source read to what is on disk: rules decide, the outbox stores, in one transaction a batch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Protocol, TypeVar

import anyio
import msgspec
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream

from bridge import decode
from bridge.alerts.engine import GAP, Alerting, Unsettled
from bridge.alerts.groups import Notice
from bridge.alerts.sights import Sight
from bridge.delivery import Delivery, Route
from bridge.errors import OutboxError
from bridge.event import Event, order_key
from bridge.metrics import Metrics
from bridge.outbox import Accepted, AlertRow, Batch, Intake, Outbox
from bridge.redact import Redactor
from bridge.report import Tell, is_own, silent, spared
from bridge.rules import Rule, RuleSet
from bridge.sources import Arrival, Reading, Reconciled, Started, Tick

log = structlog.get_logger()

BATCH_LIMIT = 512  # readings a transaction: 10 times fewer is slower, more only delays the first
RECENT = 50  # events shown on the page
RETRY_WAITS = (0.1, 0.5, 2.0, 5.0)  # seconds between tries to store a batch; the last is repeated
ALERTS = "alerts"  # the source under which notifications are counted

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Notification:
    """A notification of *alert* that is to be stored, and the sinks it goes to."""

    alert: str
    key: str
    sinks: tuple[str, ...]
    event: Event


def notification(notice: Notice) -> Notification:
    event = decode.event(msgspec.json.encode(notice.document))
    return Notification(notice.alert.name, notice.key, notice.sinks, event)


class Judges(Protocol):
    """Who is told what alerts see: the engine in this process, or the way to replicas that have one.

    Times are ns of the server's clock; all but `hand_over` only take note.
    """

    now: int

    def look(self, event: Event) -> Sequence[Sight]: ...

    def gap(self, source: str, event: Event) -> None: ...

    def observe(
        self, source: str, sights: Sequence[Sight], now: int, *, only_known: bool = False
    ) -> None: ...

    def tick(self, now: int, unsettled: Unsettled, parts: Collection[str], /) -> Sequence[Notice]: ...

    def rows(self) -> Mapping[AlertRow, bytes | None]: ...


async def nowhere() -> None:
    """The engine in this process has it already."""


@dataclass(slots=True)
class Ingest:
    """*rules* is asked anew for each batch; *wake* is called with the sinks that got a delivery,
    and some of what they got (`Accepted.ready`).

    *ordered* are the sinks with `order: entity`.
    """

    outbox: Outbox
    rules: Callable[[], RuleSet]
    redactor: Redactor
    metrics: Metrics
    wake: Callable[[frozenset[str], Mapping[str, Sequence[Delivery]]], None]
    ordered: frozenset[str] = frozenset()
    eager: Callable[[], frozenset[str] | None] = lambda: None
    """The sinks that would take at once what is stored now; None for all."""
    storing: bool = True
    """False while the disk does not take what is read."""
    recent: deque[Event] = field(default_factory=lambda: deque(maxlen=RECENT))
    """The last events that came, as they came."""
    tell: Tell = silent
    alerting: Judges = field(default_factory=Alerting)
    hand_over: Callable[[], Awaitable[None]] = nowhere
    """Sends on what `alerting` has noted, before the events it came in are stored; raises OutboxError."""
    alerted: Callable[[Sequence[Notification], Accepted], None] = lambda _notices, _accepted: None
    """Told of notifications that are stored."""
    appending: frozenset[str] = frozenset()
    """Sinks for which a newer notification does not take the place of one that waits."""
    now: Callable[[], float] = time.time
    stored: Callable[[Event, str, float, float], None] | None = None
    """Told of each event with a delivery once it is on disk: the event, its source, when it came, and now."""

    async def run(self, readings: MemoryObjectReceiveStream[Reading]) -> None:
        """Store what comes until all sources have let go of the stream.

        A batch is whatever came while the last one was written: one event when it is quiet, hundreds
        under load. A batch the disk does not take is tried again for ever: the buffer fills up behind
        it, the sources wait, and their cursors stand still.
        """
        async for first in readings:
            taken = [first, *waiting(readings, BATCH_LIMIT - 1)]
            rules = self.rules()
            arrivals = [reading for reading in taken if isinstance(reading, Arrival)]
            matched = [rules.select(arrival.event) for arrival in arrivals]
            left_out = [rules.left_out(arrival.event) for arrival in arrivals] if rules.samples else ()
            sights = [self.alerting.look(arrival.event) for arrival in arrivals]
            intakes = [
                intake(arrival, wanted, self.redactor, self.ordered, is_seen=bool(seen or skipped))
                for arrival, wanted, seen, skipped in zip_longest(arrivals, matched, sights, left_out)
            ]
            self.recent.extend(arrival.event for arrival in arrivals[-RECENT:])
            notices = await self._judge(taken, intakes, sights)
            await self._insist(self.hand_over)
            for notice in notices:
                wanted = rules.select(notice.event)
                matched.append(wanted)
                intakes.append(self._notified(notice, wanted))
            states = self.alerting.rows()
            if not (intakes or states or any(not isinstance(reading, Tick) for reading in taken)):
                continue
            accepted = await self._store(batch(taken, intakes, states, self.eager()))
            self._count(matched, left_out, accepted)
            self._trace(intakes, accepted)
            self.alerted(notices, accepted)
            self._tell_overflow(arrivals, accepted)
            self.wake(accepted.sinks, accepted.ready)

    async def _judge(
        self, taken: Sequence[Reading], intakes: Sequence[Intake], sights: Sequence[Sequence[Sight]]
    ) -> list[Notification]:
        """Alerts see what is new in *taken*, in its order, and tell what follows."""
        seen = [each for each, looked in zip(intakes, sights, strict=True) if looked]
        fresh = iter(await self._insist(lambda: self.outbox.fresh(seen)) if seen else ())
        looked = iter(sights)
        notices: list[Notification] = []
        for reading in taken:
            match reading:
                case Arrival():
                    found = next(looked)
                    if reading.event.name == GAP:
                        self.alerting.gap(reading.source, reading.event)
                    is_new: bool = next(fresh) if found else False
                    if is_new:
                        self.alerting.observe(reading.source, found, self._server_ns(reading.received))
                case Reconciled():
                    now = self._server_ns(0.0)
                    found = self.alerting.look(reading.event)
                    self.alerting.observe(reading.source, found, now, only_known=reading.only_known)
                case Tick():
                    told = self.alerting.tick(reading.now_ns, reading.unsettled, reading.parts)
                    notices += map(notification, told)
        return notices

    async def announce(self, notices: Sequence[Notification]) -> None:
        """Store notifications that were judged apart from what is read here; raises OutboxError."""
        rules = self.rules()
        matched = [rules.select(notice.event) for notice in notices]
        intakes = [self._notified(notice, wanted) for notice, wanted in zip(notices, matched, strict=True)]
        accepted = await self.outbox.accept(Batch(intakes))
        self._count(matched, (), accepted)
        new = [notice for notice, is_new in zip(notices, accepted.fresh, strict=True) if is_new]
        self.alerted(new, accepted)
        self.wake(accepted.sinks, accepted.ready)

    def _server_ns(self, received: float) -> int:
        """The server's clock by the last tick, or before the first by ours."""
        return self.alerting.now or int(received * 1e9)

    def _notified(self, notice: Notification, wanted: Sequence[Rule]) -> Intake:
        """Not redacted again: it is made of redacted events, and its own `data.key` is no secret."""
        event = notice.event
        routes = [
            Route(rule, sink, None, None if sink in self.appending else f"{rule}/{notice.key}")
            for rule, sink in dict.fromkeys((notice.alert, sink) for sink in notice.sinks)
        ]
        routes += [Route(rule.name, sink) for rule in wanted for sink in rule.send]
        key = order_key(event, ALERTS)
        routes = [route._replace(order_key=key) if route.sink in self.ordered else route for route in routes]
        return Intake(ALERTS, event, self.now(), matched=True, routes=tuple(routes))

    async def _store(self, transaction: Batch) -> Accepted:
        return await self._insist(lambda: self.outbox.accept(transaction))

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        failures = 0
        while True:
            try:
                answer = await ask()
            except OutboxError as error:
                if not failures:
                    log.error("events cannot be stored, reading waits", error=str(error))
                await anyio.sleep(RETRY_WAITS[min(failures, len(RETRY_WAITS) - 1)])
                failures += 1
                self.storing = False
            else:
                if failures:
                    log.info("events can be stored again", tries=failures)
                self.storing = True
                return answer

    def _tell_overflow(self, arrivals: Sequence[Arrival], accepted: Accepted) -> None:
        """What had to go for *arrivals*; not where they are themselves about such things."""
        if all(is_own(arrival.event) for arrival in arrivals):
            return
        for sink, dropped in accepted.dropped.items():
            self.tell("bridge.outbox.overflow", sink, {"sink": sink, "dropped": dropped})

    def _trace(self, intakes: Sequence[Intake], accepted: Accepted) -> None:
        if self.stored is None:
            return
        now = self.now()
        for each, is_fresh in zip(intakes, accepted.fresh, strict=True):
            if is_fresh and each.routes:
                self.stored(each.event, each.source, each.received, now)

    def _count(
        self, matched: Sequence[tuple[Rule, ...]], left_out: Sequence[tuple[str, ...]], accepted: Accepted
    ) -> None:
        matches = self.metrics.rule_matches.of
        for wanted, new in zip(matched, accepted.fresh, strict=True):
            for rule in wanted if new else ():
                matches[rule.name] += 1
        for names, new in zip(left_out, accepted.fresh, strict=False):
            for name in names if new else ():
                self.metrics.events_dropped.of[name] += 1


def waiting(readings: MemoryObjectReceiveStream[Reading], limit: int) -> list[Reading]:
    """What is already there to be read, up to *limit*."""
    found: list[Reading] = []
    try:
        while len(found) < limit:
            found.append(readings.receive_nowait())
    except (anyio.WouldBlock, anyio.EndOfStream):
        pass
    return found


def intake(
    arrival: Arrival,
    wanted: Sequence[Rule],
    redactor: Redactor,
    ordered: frozenset[str],
    *,
    is_seen: bool = False,
) -> Intake:
    """What is to be stored of *arrival*, which the rules *wanted* match; redacted only if it will be kept.

    *is_seen*: an alert looks at it, or a rule whose `sample` leaves it out.
    """
    if not wanted:
        return Intake(arrival.source, arrival.event, arrival.received, matched=is_seen)
    event = arrival.event
    avoided = spared(event)
    routes = [Route(rule.name, sink) for rule in wanted for sink in rule.send if sink != avoided]
    if ordered and not ordered.isdisjoint(route.sink for route in routes):
        key = order_key(event, arrival.source)
        routes = [route._replace(order_key=key) if route.sink in ordered else route for route in routes]
    stored = redactor.redact(event) if routes else event
    return Intake(arrival.source, stored, arrival.received, matched=True, routes=tuple(routes))


def batch(
    readings: Sequence[Reading],
    intakes: Sequence[Intake],
    alerts: Mapping[AlertRow, bytes | None] | None = None,
    eager: Collection[str] | None = None,
) -> Batch:
    """One transaction of *readings*: the furthest each cursor moves, and where new ones start."""
    cursors: dict[tuple[str, str], int] = {}
    starts: dict[tuple[str, str], int] = {}
    recent: dict[tuple[str, str], list[str]] = {}
    for reading in readings:
        if isinstance(reading, Arrival):
            for identifier, at in reading.cursors.items():
                key = reading.source, identifier
                cursors[key] = max(at, cursors.get(key, 0))
                recent.setdefault(key, []).append(reading.event.unique_id)
        elif isinstance(reading, Started):
            for identifier, at in reading.cursors.items():
                starts.setdefault((reading.source, identifier), at)
    return Batch(intakes, cursors, starts, recent, alerts or {}, eager)
