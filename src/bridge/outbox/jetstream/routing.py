"""Events taken in, and from each event its deliveries.

The event's message is the commit: from then on it is known, counted, and will be routed. Its router
acknowledges it only after every delivery message is stored. A crash between repeats the routing; the repeat
is absorbed by the ids of the messages, by their subjects, and by the decisions already made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from bridge.delivery import delivery_id
from bridge.errors import OutboxError
from bridge.ids import made_at
from bridge.outbox import Intake
from bridge.outbox.jetstream.desk import Desk, together
from bridge.outbox.jetstream.hollow import hollow, refusal
from bridge.outbox.jetstream.link import Pull, TooLargeError, UncertainError
from bridge.outbox.jetstream.shelf import monotonic
from bridge.outbox.jetstream.streams import DELIVERIES, EVENTS, ROUTER
from bridge.outbox.jetstream.wire import Place, Taken, Waits, Wanted, header, read

if TYPE_CHECKING:
    from nats.aio.msg import Msg

log = structlog.get_logger()

ROUTE_BATCH = 256  # events routed at a time
LATE = 20.0  # seconds after which a first routing is not trusted to be one: the consumer may be new
PATIENCE = 5.0  # seconds `accept` waits for another replica that routes its events
LOOK_AGAIN = 0.02  # seconds between two looks at that
REMEMBERED = 20_000  # events whose routing is remembered for `accept`
IS_STORED = -1
RECENT = 65_536  # events whose ids are remembered here: some 10 MB
TRIES = 10  # rounds of compare-and-set for one event


def taken_of(intake: Intake, me: str, *, fits: bool = True) -> Taken:
    """What is stored of *intake*; raises UnicodeEncodeError for a name that is no text."""
    routes: dict[tuple[str, str], Wanted] = {}
    for each in intake.routes:
        delivery_id(intake.event.unique_id, each.rule, each.sink)
        routes[each.rule, each.sink] = Wanted(each.rule, each.sink, each.order_key, each.supersedes)
    return Taken(
        unique_id=intake.event.unique_id,
        source=intake.source,
        name=intake.event.name,
        received=intake.received,
        by=me,
        routes=tuple(routes.values()),
        too_large=0 if fits or not routes else len(intake.event.body),
    )


class Intakes:
    """Events become known, once."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._unfinished: set[tuple[str, float]] = set()
        """Stored in an `accept` that failed afterwards: when it is asked again they are as new as before."""
        self._recent: dict[str, float] = {}
        """When the last events that were new were received: most repeats come soon, and need no question."""
        self.stored: set[int] = set()
        """Numbers of events that nobody has yet waited for to be routed."""

    async def _look(self, unique_id: str, received: float) -> int | None:
        """What an event received at *received* has to be stored behind, 0 for nothing; None: a duplicate.

        IS_STORED: by an `accept` that failed afterwards and is asked again.
        """
        desk = self._desk
        if self._is_recent(unique_id, received):
            return None
        found = await desk.link.get(desk.stream(EVENTS), subject=desk.subjects.event(unique_id), direct=True)
        if found is None:
            return 0
        if (unique_id, received) in self._unfinished:
            return IS_STORED
        known = read(found.headers, Taken)
        if known.by == desk.me and not desk.books.events.has(found.seq):
            return 0
        if known.received >= received - desk.dedup_window or await desk.is_held(found.seq):
            return None
        return found.seq

    def _is_recent(self, unique_id: str, received: float) -> bool:
        known = self._recent.get(unique_id)
        return known is not None and known >= received - self._desk.dedup_window

    async def fresh(self, intakes: Sequence[Intake]) -> tuple[bool, ...]:
        ids = {each.event.unique_id: each.received for each in reversed(intakes)}
        told = await together(self._look(unique_id, at) for unique_id, at in ids.items())
        known = {unique_id: behind is None for unique_id, behind in zip(ids, told, strict=True)}
        found = []
        for each in intakes:
            found.append(not known[each.event.unique_id])
            known[each.event.unique_id] = True
        return tuple(found)

    async def take(self, intakes: Sequence[Intake]) -> tuple[bool, ...]:
        """Store what is matched and new; says of each whether it was new. Raises OutboxError."""
        fits = self._desk.link.has_room
        taken = [taken_of(each, self._desk.me, fits=fits(each.event.body)) for each in intakes]
        before: set[str] = set()
        asked = list[int]()
        for number, each in enumerate(intakes):
            unique_id = each.event.unique_id
            if unique_id in before or self._is_recent(unique_id, each.received):
                continue
            if each.matched:
                before.add(unique_id)
            asked.append(number)
        behind = await together(self._behind(intakes[number]) for number in asked)
        found = [(number, after) for number, after in zip(asked, behind, strict=True) if after is not None]
        stores = [(number, after) for number, after in found if intakes[number].matched]
        fresh = {number: True for number, _ in found}
        new = await together(self._store(intakes[number], taken[number], after) for number, after in stores)
        fresh |= {number: is_new for (number, _), is_new in zip(stores, new, strict=True)}
        return tuple(fresh.get(number, False) for number in range(len(intakes)))

    def finished(self, intakes: Sequence[Intake]) -> None:
        for each in intakes:
            key = each.event.unique_id, each.received
            if key in self._unfinished:
                self._unfinished.remove(key)
                self._recent[key[0]] = key[1]
        while len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]

    async def _behind(self, intake: Intake) -> int | None:
        """As `_look`, which is left out for an id so new that where it is known it is a duplicate.

        Storing it will tell. Of an older id that has to be known before, or it would be stored after those
        that came after it.
        """
        made = made_at(intake.event.unique_id)
        if intake.matched and made is not None and made > intake.received - self._desk.dedup_window / 2:
            return 0
        return await self._look(intake.event.unique_id, intake.received)

    async def _store(self, intake: Intake, taken: Taken, behind: int) -> bool:
        """Was it new, and is it stored? Others may have stored it before, or since we looked."""
        if behind == IS_STORED:
            return True
        desk, unique_id = self._desk, intake.event.unique_id
        subject = desk.subjects.event(unique_id)
        expect, message_id = behind, _message_id(unique_id, behind)
        for _ in range(TRIES):
            seq = await self._publish(subject, intake, taken, expect, message_id)
            if seq is not None:
                self._unfinished.add((unique_id, intake.received))
                return True
            found = await desk.link.get(desk.stream(EVENTS), subject=subject)
            if found is None:  # its id is still in the server's window, and bridge has let it go since
                expect, message_id = 0, None
                continue
            known = read(found.headers, Taken)
            if known.by == desk.me and not desk.books.events.has(found.seq):
                self._count(subject, taken, found.seq)
                return True
            if known.received == intake.received and (unique_id, intake.received) in self._unfinished:
                return True
            if known.received >= intake.received - desk.dedup_window or await desk.is_held(found.seq):
                return False
            expect, message_id = found.seq, _message_id(unique_id, found.seq)
        raise OutboxError(f"{desk.link.address.shown}: an event is taken in by too many at once")

    async def _publish(
        self, subject: str, intake: Intake, taken: Taken, expect: int, message_id: str | None
    ) -> int | None:
        desk, counting = self._desk, self._desk.books.events
        body = intake.event.body if taken.routes else b""
        if taken.too_large:
            log.error(
                "event larger than max_payload of nats-server: dead letters",
                name=taken.name,
                bytes=taken.too_large,
            )
            body = hollow(body, taken.name)
        ticket = counting.begin()
        try:
            seq = await desk.link.publish(subject, body, header(taken), expect=expect, message_id=message_id)
        except UncertainError:
            desk.uncertain.setdefault(subject, []).append(ticket)
            raise
        except OutboxError:
            counting.end(ticket, None)
            raise
        counting.end(ticket, None)
        if seq is not None:
            self._count(subject, taken, seq)
        return seq

    def _count(self, subject: str, taken: Taken, seq: int) -> None:
        counting = self._desk.books.events
        counting.end(counting.begin(), seq)
        for each in self._desk.uncertain.pop(subject, ()):
            counting.end(each, None)
        self._desk.books.accepted(taken)
        self.stored.add(seq)
        self._unfinished.add((taken.unique_id, taken.received))


def _message_id(unique_id: str, behind: int) -> str | None:
    """That of an event which comes again after the window must be another one."""
    return f"{unique_id}@{behind}" if behind else unique_id


class Router:
    """Every replica has one; they share the consumer."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._pull = Pull(desk.link, desk.stream(EVENTS), ROUTER)
        self._turn = asyncio.Lock()
        self._routed: dict[int, None] = {}

    async def route(self) -> int:
        """Route what is there; returns how many events. Raises OutboxError: they come again."""
        count = 0
        async with self._turn:
            while messages := await self._pull.fetch(ROUTE_BATCH):
                await self._route(messages)
                count += len(messages)
                if len(messages) < ROUTE_BATCH:
                    break
        return count

    async def until(self, seqs: Collection[int]) -> None:
        """Returns once the events *seqs* are routed, by whomever; does not wait for a dead replica."""
        left, deadline = set(seqs), monotonic() + PATIENCE
        while left:
            await self.route()
            left -= self._routed.keys()
            if not left or monotonic() > deadline:
                return
            info = await self._desk.link.consumer(self._desk.stream(EVENTS), ROUTER)
            if info["ack_floor"]["stream_seq"] >= max(left):
                return
            if not info["num_pending"]:
                await asyncio.sleep(LOOK_AGAIN)

    async def close(self) -> None:
        await self._pull.close()

    async def _route(self, messages: Sequence[Msg]) -> None:
        await together(self._deliver(each) for each in messages)
        sinks = {wanted.sink for each in messages for wanted in read(each.headers, Taken).routes}
        for sink in sinks:
            await self._desk.link.client.publish(self._desk.subjects.wake(sink))
        await self._desk.link.acknowledge([each.reply for each in messages])
        self._routed |= dict.fromkeys(each.metadata.sequence.stream for each in messages)
        for seq in list(self._routed)[:-REMEMBERED]:
            del self._routed[seq]

    async def _deliver(self, message: Msg) -> None:
        """The delivery messages of one event."""
        taken = read(message.headers, Taken)
        seq, at = message.metadata.sequence.stream, message.metadata.timestamp
        again = message.metadata.num_delivered > 1 or (datetime.now(UTC) - at).total_seconds() > LATE
        for n, each in enumerate(taken.routes):
            await self._wait(Place(each.sink, seq, n), taken, each, message.data, again=again)

    async def _wait(self, place: Place, taken: Taken, wanted: Wanted, body: bytes, *, again: bool) -> None:
        desk = self._desk
        waits = Waits(
            unique_id=taken.unique_id,
            source=taken.source,
            received=taken.received,
            rule=wanted.rule,
            sink=wanted.sink,
            order_key=wanted.order_key,
            supersedes=wanted.supersedes,
        )
        if again and await desk.last_decision(place):
            return
        if taken.too_large:
            await self._refuse(place, taken, wanted, waits, body)
            return
        subject = desk.subjects.delivery(place, wanted.order_key, wanted.supersedes)
        key: str | None = delivery_id(taken.unique_id, wanted.rule, wanted.sink)
        try:
            stored = await desk.link.publish(subject, body, header(waits), expect=0, message_id=key)
        except TooLargeError:  # max_payload is smaller than when the event was taken in
            await self._refuse(place, taken, wanted, waits, hollow(body, taken.name))
            return
        if stored is not None:
            return
        if await desk.link.get(desk.stream(DELIVERIES), subject=subject) or await desk.last_decision(place):
            return
        await desk.link.publish(subject, body, header(waits), expect=0)

    async def _refuse(self, place: Place, taken: Taken, wanted: Wanted, waits: Waits, body: bytes) -> None:
        """It becomes a dead letter, or is one already; the decision alone may be there after a crash."""
        decision, desk = refusal(taken, wanted, self._desk.me), self._desk
        seq = await desk.decide(place, decision, 0)
        last = (seq, decision) if seq is not None else await desk.last_decision(place)
        if last is not None and last[1].state == "dead":
            await desk.bury(place, waits, body, *last)
