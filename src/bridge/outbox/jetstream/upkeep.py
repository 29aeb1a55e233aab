"""What is let go of: by window and retention, or to make room."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping

from bridge.outbox.jetstream.desk import Desk, together
from bridge.outbox.jetstream.letters import Letters
from bridge.outbox.jetstream.link import Stored
from bridge.outbox.jetstream.shelf import monotonic
from bridge.outbox.jetstream.streams import ATTEMPTS, DEAD, DELIVERIES, EVENTS, SETTLED, SHARED, STATE
from bridge.outbox.jetstream.wire import Decision, Place, Taken, place_of, read
from bridge.outbox.transactions import event_of

COUNT_AGAIN = 5.0  # seconds after which bytes are counted anew: others store too
SLOW = 0.5  # seconds for a list of what waits, above which it is used again
AGAIN = 20.0  # times as long as it took
LISTED = 10_000  # of the oldest, noted for when more room is needed
ROOM_STEP = 200  # deliveries dropped at a time until there is room
UNCOUNTED = 60.0  # seconds decisions stay in any case: until a replica that is gone has been counted
KINDS = (EVENTS, DELIVERIES, SETTLED, ATTEMPTS, DEAD)


class Upkeep:
    """All replicas may do it at once: what one has let go of is gone for the others."""

    def __init__(self, desk: Desk, letters: Letters) -> None:
        self._desk = desk
        self._letters = letters
        self._bound: int | None = None  # bytes that wait, at most; None: not known
        self._bound_until = 0.0
        self._rows: array[int] | None = None
        self._rows_until = 0.0
        self._oldest: list[tuple[Place, str]] = []

    async def tidy(self, now: float) -> None:
        desk = self._desk
        await self._letters.mend()
        await self._letters.expire(now - desk.dead_letter_retention, now)
        await self._forget_ids(now - desk.dedup_window)
        await self._forget_decisions(now - max(desk.trace_retention, UNCOUNTED))

    async def _forget_ids(self, before: float) -> None:
        """Events received before *before*, but not those something of which waits or is dead."""
        desk, stream = self._desk, self._desk.stream(EVENTS)
        first, end = await self._range(stream, lambda found: read(found.headers, Taken).received < before)
        if first == end:
            return
        held = {event_of(row) for row in await self._held()}
        kept = sorted(each for each in held if first <= each < end)
        routed = await self._routed()
        if not kept:
            await desk.link.purge(stream, before=min(end, routed + 1))
            return
        async for found in self._until(stream, first, min(end, routed + 1)):
            if found.seq not in held and read(found.headers, Taken).received < before:
                await desk.link.delete(stream, found.seq)

    async def _held(self) -> frozenset[int]:
        """Rows of what waits and what is dead; where listing them is slow, as they were a while ago.

        What has come since is too new to be let go of.
        """
        began = monotonic()
        if self._rows is None or self._rows_until < began:
            places = (*await self._desk.waiting_places(), *await self._desk.dead_places())
            took = monotonic() - began
            self._rows = array("q", (each.row for each in places))
            self._rows_until = began + took * AGAIN if took > SLOW else 0.0
        return frozenset(self._rows)

    async def _routed(self) -> int:
        """Up to which number all events have been routed."""
        info = await self._desk.link.consumer(self._desk.stream(EVENTS), "router")
        return int(info["ack_floor"]["stream_seq"])

    async def _until(self, stream: str, first: int, end: int) -> AsyncIterator[Stored]:
        async for found in self._desk.link.scan(stream, first):
            if found.seq >= end:
                return
            yield found

    async def _range(self, stream: str, is_old: Callable[[Stored], bool]) -> tuple[int, int]:
        """From which number to which (not included) messages are old, by bisection: they are in order."""
        state = (await self._desk.link.info(stream))["state"]
        first, low, high = state["first_seq"], state["first_seq"], state["last_seq"] + 1
        subject = f"{self._desk.subjects.prefix}.>"
        while low < high:
            middle = (low + high) // 2
            found = await self._desk.link.get(stream, subject=subject, seq=middle, direct=True)
            if found is not None and found.seq < high and is_old(found):
                low = found.seq + 1
            else:
                high = middle
        return first, low

    async def _forget_decisions(self, before: float) -> None:
        """Decisions made before *before*, with their attempts; not those that something still waits after."""
        desk, stream = self._desk, self._desk.stream(SETTLED)
        first, end = await self._range(stream, lambda found: read(found.headers, Decision).at < before)
        if first == end:
            return
        needed = await self._held()
        kept = False
        async for found in self._until(stream, first, end):
            place, decision = place_of(found.subject), read(found.headers, Decision)
            if place.row in needed:
                kept = True
            elif decision.tried:
                await desk.link.purge(desk.stream(ATTEMPTS), subject=desk.subjects.attempts(place))
        if not kept:
            await desk.link.purge(stream, before=end)
            return
        async for found in self._until(stream, first, end):
            if place_of(found.subject).row not in needed:
                await desk.link.delete(stream, found.seq)

    async def bytes_used(self, kinds: tuple[str, ...] = KINDS) -> int:
        names = [self._desk.stream(kind) for kind in kinds]
        if kinds == KINDS:
            names += [f"KV_{self._desk.stream(bucket)}" for bucket in (STATE, SHARED)]
        infos = await together(map(self._desk.link.info, names))
        return sum(int(each["state"]["bytes"]) for each in infos)

    def surely_room(self, limit: int, incoming: int) -> bool:
        """By what was last counted; *incoming* is added to it."""
        if self._bound is None or self._bound + incoming > limit or monotonic() > self._bound_until:
            return False
        self._bound += incoming
        return True

    async def used(self) -> int:
        """Bytes of what waits and what is dead."""
        self._bound = await self.bytes_used((DELIVERIES, DEAD))
        self._bound_until = monotonic() + COUNT_AGAIN
        return self._bound

    async def make_room(self, limit: int, incoming: int, now: float) -> Mapping[str, int]:
        """Dead letters go first, then the oldest of the sink that holds most, until *incoming* bytes fit."""
        dropped: Counter[str] = Counter()
        while await self.used() + incoming > limit:
            step = await self._drop_letters(now) or await self._drop_oldest(now)
            if not step:
                break
            dropped.update(step)
        return dropped

    async def _drop_letters(self, now: float) -> Counter[str]:
        dropped: Counter[str] = Counter()
        desk = self._desk
        for place in (await desk.dead_places())[:ROOM_STEP]:
            dropped[place.sink] += await self._letters.let_go_at(place, now)
        return +dropped

    async def _drop_oldest(self, now: float) -> Counter[str]:
        """Those of the sink that held most when they were last listed; who holds most changes slowly."""
        desk = self._desk
        while True:
            oldest, self._oldest = self._oldest[:ROOM_STEP], self._oldest[ROOM_STEP:]
            gone = await together(desk.drop_waiting(place, now, subject) for place, subject in oldest)
            if any(gone):
                return Counter(each.sink for each in gone if each is not None)
            if not self._oldest and not (found := await desk.waiting_subjects()):
                return Counter()
            if not self._oldest:
                (sink, _), *_ = Counter(place.sink for place, _ in found).most_common(1)
                self._oldest = [each for each in found if each[0].sink == sink][:LISTED]
