"""Questions to the streams, for commands, the page and metrics."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence

from bridge.delivery import delivery_id
from bridge.outbox import Attempt, Trace, TracedDelivery, Waiting
from bridge.outbox.exchange import Exported, ExportedDelivery
from bridge.outbox.jetstream.books import Total, sink_totals, source_totals
from bridge.outbox.jetstream.books import together as summed
from bridge.outbox.jetstream.desk import Desk, together
from bridge.outbox.jetstream.link import Stored
from bridge.outbox.jetstream.pages import pages, uncounted
from bridge.outbox.jetstream.pauses import pauses
from bridge.outbox.jetstream.streams import ATTEMPTS, DEAD, DELIVERIES, EVENTS
from bridge.outbox.jetstream.wire import Letter, Place, Taken, Waits, place_of, read
from bridge.outbox.queries import stored_event
from bridge.outbox.queue import Queue, Shown
from bridge.outbox.verify import Accounts, violations

EXACT = 5000  # up to so many waiting the oldest is looked for among all
MUCH = 50_000  # deliveries in the stream that are not listed any more where they can be walked through
PAGE = 200  # deliveries read at a time


class Questions:
    """Above *much* deliveries what waits is walked through, not listed."""

    def __init__(self, desk: Desk, much: int = MUCH) -> None:
        self._desk = desk
        self._much = much
        self._last = 0, 0
        """Row and number of the message at which a walk stopped."""
        self._moving: tuple[dict[int, list[tuple[Place, str]]], dict[int, list[Place]]] | None = None
        """By event number what an export that has begun will find waiting and dead."""

    async def oldest(self, sink: str) -> float | None:
        """When the oldest that waits was received; of very many, that of the one longest untouched."""
        desk = self._desk
        stream = desk.stream(DELIVERIES)
        asked = desk.subjects.deliveries(sink)
        first = await desk.link.get(stream, subject=asked, seq=1, direct=True)
        if first is None:
            return None
        received = read(first.headers, Waits).received
        info = await desk.link.info(stream)
        if info["state"]["messages"] <= EXACT:
            places = await desk.waiting_places(sink)
            if places:
                found = await desk.waiting_message(places[0])
                received = min(received, read(found.headers, Waits).received) if found else received
        return received

    async def waiting(self, sink: str | None, rule: str | None, after: int, limit: int) -> list[Waiting]:
        found: list[Waiting] = []
        async for place, stored, waits in self.queue(sink, after):
            if rule not in (None, waits.rule):
                continue
            due: float | None = waits.due_at
            if (
                waits.order_key is not None
                and await self._desk.turn(place.sink, waits.order_key, give=False) != place.row
            ):
                due = None
            found.append(
                Waiting(
                    place.row,
                    delivery_id(waits.unique_id, waits.rule, waits.sink),
                    waits.sink,
                    waits.rule,
                    stored_event(waits.unique_id, stored.body).name,
                    waits.unique_id,
                    waits.received,
                    waits.attempt,
                    due,
                    waits.order_key,
                    waits.error,
                )
            )
            if len(found) == limit:
                break
        return found

    async def queue(
        self, sink: str | None = None, after: int = 0
    ) -> AsyncIterator[tuple[Place, Stored, Waits]]:
        """What waits, in the order received, beyond row *after*; of very much, in that last touched."""
        found = self._walked(sink, after) if await self._is_much() else self._listed(sink, after)
        async for place, stored in found:
            yield place, stored, read(stored.headers, Waits)

    async def _is_much(self) -> bool:
        """Too much for a list: the server would answer nobody else for seconds."""
        info = await self._desk.link.info(self._desk.stream(DELIVERIES))
        return bool(info["state"]["messages"] > self._much)

    async def _listed(self, sink: str | None, after: int) -> AsyncIterator[tuple[Place, Stored]]:
        places = [each for each in await self._desk.waiting_subjects(sink) if each[0].row > after]
        for start in range(0, len(places), PAGE):
            page = places[start : start + PAGE]
            found = await together(self._desk.waiting_message(*each) for each in page)
            for (place, _), stored in zip(page, found, strict=True):
                if stored is not None:
                    yield place, stored

    async def _walked(self, sink: str | None, after: int) -> AsyncIterator[tuple[Place, Stored]]:
        """In the order of the stream, PAGE numbers at a time, from behind the row *after*."""
        desk, subject = self._desk, self._desk.subjects.deliveries(sink)
        seq = 1 + await self._number(after) if after else 1
        while True:
            found = await together(
                desk.link.get(desk.stream(DELIVERIES), subject=subject, seq=number, direct=True)
                for number in range(seq, seq + PAGE)
            )
            for each in {stored.seq: stored for stored in found if stored}.values():
                place = place_of(each.subject)
                self._last = place.row, each.seq
                yield place, each
            if found[-1] is None:
                return
            seq = found[-1].seq + 1

    async def _number(self, row: int) -> int:
        """Of the message of *row*: the last one that was walked over, mostly."""
        if self._last[0] == row:
            return self._last[1]
        event, n = Place.at("", row)[1:]
        anywhere = f"{self._desk.subjects.prefix}.deliveries.*.*.*.{event}.{n}"
        found = await self._desk.link.get(self._desk.stream(DELIVERIES), subject=anywhere)
        return found.seq if found else 0

    async def queues(self) -> list[Queue]:
        """Of every sink that ever got a delivery."""
        sums = sink_totals(await self._sums())
        paused = await pauses(self._desk.shared)
        return [
            Queue(sink, each.waiting, each.dead, await self.oldest(sink), paused.get(sink))
            for sink, each in sorted(sums.items())
        ]

    async def show(self, identifier: str) -> list[Shown]:
        """What waits under the delivery id or unique_id *identifier*; everything is looked at."""
        paused = await pauses(self._desk.shared)
        found: list[Shown] = []
        for each in await self.waiting(None, None, 0, sys.maxsize):
            if identifier in (each.id, each.unique_id):
                place = Place.at(each.sink, each.row)
                stored = await self._desk.waiting_message(place)
                body = stored.body if stored else b""
                found.append(Shown(each, paused.get(each.sink), await self.attempts(place), body))
        return found

    async def exported(self, after: int) -> tuple[list[Exported], int | None]:
        """Events beyond number *after* with what waits or is dead of them, and where to go on.

        What came after the first page is not in the others.
        """
        if self._moving is None or not after:
            self._moving = await self._all_held()
        held, dead = self._moving
        numbers = sorted(each for each in {*held, *dead} if each > after)[:PAGE]
        lines = await together(self._exported(held.get(each, []), dead.get(each, [])) for each in numbers)
        return [each for each in lines if each], numbers[-1] if len(numbers) == PAGE else None

    async def _all_held(self) -> tuple[dict[int, list[tuple[Place, str]]], dict[int, list[Place]]]:
        held: dict[int, list[tuple[Place, str]]] = {}
        for place, subject in await self._desk.waiting_subjects():
            held.setdefault(place.event, []).append((place, subject))
        dead: dict[int, list[Place]] = {}
        for place in await self._desk.dead_places():
            dead.setdefault(place.event, []).append(place)
        return held, dead

    async def _exported(self, waiting: Sequence[tuple[Place, str]], dead: Sequence[Place]) -> Exported | None:
        """The line of one event."""
        desk, rows = self._desk, list[tuple[int, ExportedDelivery]]()
        about: tuple[Waits, bytes] | None = None
        for place, subject in waiting:
            stored = await desk.waiting_message(place, subject)
            if stored is None:
                continue
            waits = read(stored.headers, Waits)
            about = waits, stored.body
            key = waits.order_key
            turn = key is None or await desk.turn(place.sink, key, give=False) == place.row
            rows.append((place.n, _waits(waits, turn=turn)))
        for place in dead:
            stored = await desk.link.get(desk.stream(DEAD), subject=desk.subjects.dead(place))
            if stored is None:
                continue
            letter = read(stored.headers, Letter)
            about = letter.waits, stored.body
            rows.append((place.n, _dead(letter)))
        if about is None:
            return None
        waits, body = about
        deliveries = (each for _, each in sorted(rows, key=lambda row: row[0]))
        return Exported.of(waits.unique_id, waits.source, waits.received, body, deliveries)

    async def check(self) -> list[str]:
        """The sums; the streams look after their own bytes."""
        return list(violations(await self.accounts()))

    async def attempts(self, place: Place) -> tuple[Attempt, ...]:
        """Those that are kept, in their order."""
        desk, seq = self._desk, 1
        found: list[Attempt] = []
        while stored := await desk.link.get(
            desk.stream(ATTEMPTS), subject=desk.subjects.attempts(place), seq=seq, direct=True
        ):
            found.append(read(stored.headers, Attempt))
            seq = stored.seq + 1
        return tuple(found)

    async def trace(self, unique_id: str) -> Trace | None:
        desk = self._desk
        found = await desk.link.get(desk.stream(EVENTS), subject=desk.subjects.event(unique_id))
        if found is None:
            return None
        taken = read(found.headers, Taken)
        places = [Place(each.sink, found.seq, n) for n, each in enumerate(taken.routes)]
        told = await together(
            self._traced(place, taken, each.rule) for place, each in zip(places, taken.routes, strict=True)
        )
        return Trace(
            unique_id, taken.received, taken.name, taken.source, tuple(each for each in told if each)
        )

    async def _traced(self, place: Place, taken: Taken, rule: str) -> TracedDelivery | None:
        desk = self._desk
        key = delivery_id(taken.unique_id, rule, place.sink)
        made = await self.attempts(place)
        last = await desk.last_decision(place)
        if last is not None and last[1].state != "waiting":
            decision = last[1]
            at = decision.last if decision.state == "dead" else decision.at
            return TracedDelivery(key, rule, place.sink, decision.state, made, None, at)
        stored = await desk.waiting_message(place)
        if stored is None:
            return None
        waits = read(stored.headers, Waits)
        return TracedDelivery(key, rule, place.sink, "waiting", made, waits.due_at)

    async def accounts(self) -> Accounts:
        """The totals of all replicas, and what is counted in the streams."""
        desk = self._desk
        sums = await self._sums()
        waiting = Counter(place.sink for place in await desk.waiting_places())
        dead = Counter(place.sink for place in await desk.dead_places())
        return Accounts(source_totals(sums), sink_totals(sums), waiting, dead)

    async def _sums(self) -> Counter[Total]:
        known = await pages(self._desk.shared)
        beyond = await uncounted(self._desk.link, self._desk.subjects, known)
        return summed([*(page.counter() for page in known.values()), *beyond.values()])


def _waits(waits: Waits, *, turn: bool) -> ExportedDelivery:
    return ExportedDelivery(
        rule=waits.rule,
        sink=waits.sink,
        order_key=waits.order_key,
        attempt=waits.attempt,
        due=waits.due_at if turn else None,
        error=waits.error,
    )


def _dead(letter: Letter) -> ExportedDelivery:
    waits = letter.waits
    return ExportedDelivery(
        rule=waits.rule,
        sink=waits.sink,
        order_key=waits.order_key,
        attempt=letter.attempts,
        error=letter.error,
        state="dead",
        reason=letter.reason,
        first=letter.first,
        last=letter.last,
        status=letter.status,
        response=letter.response,
    )
