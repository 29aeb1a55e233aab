"""What the parts of the outbox on JetStream work with, and the one way a delivery is decided about.

A decision is a message on the delivery's own subject in the stream of decisions, stored only if the last
decision there is the one it was made from. So of any number of replicas that hold the same delivery (one was
stopped beyond `ack_wait`, say) one decides; the others pass over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from bridge.delivery import Delivery, delivery_id
from bridge.errors import OutboxError
from bridge.outbox.jetstream.books import Books
from bridge.outbox.jetstream.bucket import Bucket
from bridge.outbox.jetstream.link import Link, Stored, UncertainError
from bridge.outbox.jetstream.shelf import Held, Shelf, monotonic
from bridge.outbox.jetstream.streams import DEAD, DELIVERIES, SETTLED
from bridge.outbox.jetstream.wire import (
    Decision,
    Letter,
    Place,
    Subjects,
    Waits,
    header,
    place_of,
    read,
    sink_token,
    token,
)
from bridge.outbox.queries import stored_event

T = TypeVar("T")

AT_ONCE = 128  # requests under way at a time


class Turn(msgspec.Struct, frozen=True):
    """Of an order key: the row whose turn it is, 0 for none."""

    sink: str
    order_key: str
    row: int


@dataclass(slots=True)
class Desk:
    link: Link
    subjects: Subjects
    bucket: Bucket
    """What there is of each entity: to list something in it costs the server a look at all of it."""
    shared: Bucket
    """The little that all replicas look at all the time: each other, totals, leases, pauses, silences."""
    books: Books
    dedup_window: float
    trace_retention: float
    dead_letter_retention: float
    shelves: dict[str, Shelf] = field(default_factory=dict)
    uncertain: dict[str, list[int]] = field(default_factory=dict)
    """Tickets of publishes that were not answered, by subject: they may have been stored."""
    replaced: bool = False
    """Another process runs under this replica's name."""

    @property
    def me(self) -> str:
        return self.books.name

    def stream(self, kind: str) -> str:
        return self.subjects.stream(kind)

    def check(self) -> None:
        """Raises OutboxError when this process may not write any more."""
        if self.replaced:
            raise OutboxError(f"{self.link.address.shown}: another bridge runs under this replica's name")

    def shelf(self, sink: str) -> Shelf:
        if sink not in self.shelves:
            self.shelves[sink] = Shelf(sink, self.link.address.ack_wait)
        return self.shelves[sink]

    async def last_decision(self, place: Place) -> tuple[int, Decision] | None:
        found = await self.link.get(self.stream(SETTLED), subject=self.subjects.settled(place))
        return (found.seq, read(found.headers, Decision)) if found else None

    async def decide(self, place: Place, decision: Decision, expect: int) -> int | None:
        """Its sequence number if it holds, and it is counted; None if somebody has decided otherwise.

        *expect*: the last decision it was made from. Raises OutboxError; asked again, it is counted once.
        """
        self.check()
        subject, counting = self.subjects.settled(place), self.books.settled
        ticket = counting.begin()
        try:
            seq = await self.link.publish(subject, b"", header(decision), expect=expect)
        except UncertainError:
            self.uncertain.setdefault(subject, []).append(ticket)
            raise
        except OutboxError:
            counting.end(ticket, None)
            raise
        if seq is None:
            seq = await self._was_mine(place, decision)
        counting.end(ticket, seq)
        for each in self.uncertain.pop(subject, ()):
            counting.end(each, None)
        if seq is not None:
            self.books.decided(decision)
        return seq

    async def _was_mine(self, place: Place, decision: Decision) -> int | None:
        """The number of a decision of ours that was stored without our knowing."""
        last = await self.last_decision(place)
        if last is None:
            return None
        seq, found = last
        mine = (found.by, found.state, found.at) == (self.me, decision.state, decision.at)
        return seq if mine and not self.books.settled.has(seq) else None

    async def bury(self, place: Place, waits: Waits, body: bytes, seq: int, decision: Decision) -> None:
        """The dead letter that *decision* (number *seq*) has made; nothing happens if it is there."""
        letter = Letter(
            waits=waits,
            name=stored_event(waits.unique_id, body).name,
            decision=seq,
            reason=decision.reason,
            attempts=decision.attempts,
            first=decision.first,
            last=decision.last,
            status=decision.status,
            error=decision.error,
            response=decision.response,
        )
        await self.link.publish(self.subjects.dead(place), body, header(letter), expect=0)

    async def confirm(self, held: Held) -> None:
        """It waits no more: acknowledged, and the server has said so."""
        self.shelf(held.place.sink).held.pop(held.row, None)
        if held.reply:
            await self.link.acknowledge([held.reply])
        else:
            await self.link.delete(self.stream(DELIVERIES), held.seq)

    async def waiting_places(
        self,
        sink: str | None = None,
        order_key: str | None = None,
        supersedes: str | None = None,
        event: int | None = None,
    ) -> list[Place]:
        """Of all that waits, by row. The server looks at every subject it has for that: see docs/nats.md."""
        asked = self.subjects.deliveries(sink, order_key, supersedes, event)
        found = await self.link.subjects(self.stream(DELIVERIES), asked)
        return sorted(map(place_of, found), key=lambda each: each.row)

    async def waiting_subjects(self, sink: str | None = None) -> list[tuple[Place, str]]:
        """The same with their subjects, under which each is found at once."""
        found = await self.link.subjects(self.stream(DELIVERIES), self.subjects.deliveries(sink))
        return sorted(((place_of(each), each) for each in found), key=lambda each: each[0].row)

    async def dead_places(self, sink: str | None = None, event: int | None = None) -> list[Place]:
        found = await self.link.subjects(self.stream(DEAD), self.subjects.tails("dead", sink, event))
        return sorted(map(place_of, found), key=lambda each: each.row)

    async def waiting_message(self, place: Place, subject: str | None = None) -> Stored | None:
        """The delivery at *place* as it waits now, whatever its keys, or on *subject*."""
        anywhere = f"{self.subjects.prefix}.deliveries.{sink_token(place.sink)}.*.*.{place.event}.{place.n}"
        return await self.link.get(self.stream(DELIVERIES), subject=subject or anywhere)

    async def is_held(self, event: int) -> bool:
        """Does a delivery or a dead letter of the event number *event* still need it?"""
        return bool(await self.waiting_places(event=event) or await self.dead_places(event=event))

    async def drop_waiting(self, place: Place, at: float, subject: str | None = None) -> Waits | None:
        """Let go of a delivery that waits, counted as dropped; None if it waited no more."""
        found = await self.waiting_message(place, subject)
        if found is None:
            return None
        waits = read(found.headers, Waits)
        decision = Decision(state="dropped", by=self.me, at=at, rule=waits.rule, sink=waits.sink)
        won = await self.decide(place, decision, waits.decision)
        await self.link.delete(self.stream(DELIVERIES), found.seq)
        self.shelf(place.sink).held.pop(place.row, None)
        await self.hand_turn_on(place, waits.order_key)
        return waits if won is not None else None

    # Turns: of one order key only the first is due, on whichever replica it is.

    def _turn_key(self, sink: str, order_key: str) -> str:
        return f"turns.{sink_token(sink)}.{token(order_key)}"

    async def turn(self, sink: str, order_key: str, *, give: bool = True) -> int:
        """The row whose turn it is; the first that waits gets it if nobody has it. 0 if none waits.

        With *give* False that is only said, not done.
        """
        key = self._turn_key(sink, order_key)
        entry = await self.bucket.get(key)
        row = msgspec.json.decode(entry.value, type=Turn).row if entry else 0
        waiting = [each.row for each in await self.waiting_places(sink, order_key)]
        if row not in waiting:
            row = waiting[0] if waiting else 0
            turn = msgspec.json.encode(Turn(sink, order_key, row))
            if not give:
                return row
            if row and await self.bucket.put(key, turn, entry.revision if entry else 0) is None:
                return await self.turn(sink, order_key)
        self.shelf(sink).turns[order_key] = row
        return row

    async def hand_turn_on(self, place: Place, order_key: str | None) -> None:
        """After what was at *place* has left the queue."""
        if order_key is not None:
            self.shelf(place.sink).turns.pop(order_key, None)
            await self.turn(place.sink, order_key)

    def delivery(self, held: Held) -> Delivery:
        waits = held.waits
        return Delivery(
            held.row,
            delivery_id(waits.unique_id, waits.rule, waits.sink),
            stored_event(waits.unique_id, held.body),
            waits.source,
            waits.rule,
            waits.sink,
            waits.attempt,
            waits.received,
            waits.tried_since,
            waits.order_key,
        )

    def held(self, message: Stored, reply: str, waits: Waits) -> Held:
        place = place_of(message.subject)
        return Held(place, message.seq, message.subject, reply, waits, message.body, monotonic())


async def together(calls: Iterable[Awaitable[T]]) -> list[T]:
    """All of *calls*, AT_ONCE at a time, begun in their order; a failure is raised once all have ended."""
    found: list[T] = []
    waiting = list(calls)
    failure: BaseException | None = None
    for start in range(0, len(waiting), AT_ONCE):
        results = await asyncio.gather(*waiting[start : start + AT_ONCE], return_exceptions=True)
        for each in results:
            if isinstance(each, BaseException):
                failure = failure or each
            else:
                found.append(each)
    if failure is not None:
        raise failure
    return found
