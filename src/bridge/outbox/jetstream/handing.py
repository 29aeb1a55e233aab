"""Deliveries handed out and taken back: what is due for a sink, and what came of each attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, assert_never

import msgspec

from bridge.delivery import Dead, Delivered, Delivery, Done, Later, Settlement
from bridge.errors import OutboxError
from bridge.outbox import Attempt, Due
from bridge.outbox.jetstream.desk import Desk, together
from bridge.outbox.jetstream.link import Pull, Stored
from bridge.outbox.jetstream.shelf import Held, Shelf, monotonic
from bridge.outbox.jetstream.streams import DELIVERIES, deliveries_consumer, is_consumer, sink_consumer
from bridge.outbox.jetstream.wire import Decision, Place, Waits, header, read, sink_token
from bridge.outbox.transactions import ATTEMPT_RESPONSE, failure_of, outcome_word

if TYPE_CHECKING:
    from nats.aio.msg import Msg

IN_PROGRESS = b"+WPI"
PULLED = 2000  # deliveries looked through in one call for some that are due
LOOK_AGAIN = 0.5  # seconds between two looks at whose turn it is, where another replica has it


class Handing:
    """*anew*: what the consumers had handed out comes again at once, because nobody is there who has it."""

    def __init__(self, desk: Desk, *, anew: bool) -> None:
        self._desk = desk
        self._anew = anew
        self._pulls: dict[str, Pull] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._suspects: dict[str, int] = {}

    async def due(self, sink: str, now: float, horizon: float, limit: int, taken: Collection[int]) -> Due:
        desk = self._desk
        async with self._locks.setdefault(sink, asyncio.Lock()):
            shelf = desk.shelf(sink)
            shelf.taken = set(taken)
            shelf.drop_stale(monotonic())
            more = await self._fill(shelf, now, horizon, limit)
            await self._look_for_turns(shelf)
            for each in shelf.too_many_later(now, horizon):
                shelf.park(each)
                await self._give_back(each, shelf.back_in(each, now, horizon))
            ready = shelf.ready(now, horizon)
            given = ready[:limit]
            rows = {each.row for each in given}
            following = shelf.next_due(rows, now)
            if more:
                following = now if following is None else min(following, now)
            if any(True for key in shelf.unsure_keys() if key in shelf.looked):
                following = min(following or now + LOOK_AGAIN, now + LOOK_AGAIN)
            shelf.taken |= rows
            return Due(tuple(desk.delivery(each) for each in given), following)

    async def _pull(self, sink: str) -> Pull:
        if sink not in self._pulls:
            desk = self._desk
            self._suspects[sink] = await self._prepare(sink)
            await deliveries_consumer(desk.link, desk.subjects, sink, anew=self._anew)
            self._pulls[sink] = Pull(desk.link, desk.stream(DELIVERIES), sink_consumer(sink))
        return self._pulls[sink]

    async def _prepare(self, sink: str) -> int:
        """Up to which number deliveries may have been handed out before, though the consumer is a new one."""
        desk, key = self._desk, f"suspects.{sink_token(sink)}"
        if self._anew or not await is_consumer(desk.link, DELIVERIES, sink_consumer(sink)):
            last = (await desk.link.info(desk.stream(DELIVERIES)))["state"]["last_seq"]
            await desk.shared.put(key, msgspec.json.encode(last))
        entry = await desk.shared.get(key)
        return msgspec.json.decode(entry.value, type=int) if entry else 0

    async def _fill(self, shelf: Shelf, now: float, horizon: float, limit: int) -> bool:
        """Pull until *limit* can be handed out or nothing more is there; says whether there may be more."""
        pull, pulled = await self._pull(shelf.sink), 0
        while True:
            missing = limit + 1 - len(shelf.ready(now, horizon))
            if missing <= 0 or pulled > PULLED:
                return True
            messages = await pull.fetch(missing)
            await together(self._take_up(shelf, each) for each in messages)
            pulled += len(messages)
            if len(messages) < missing:
                return False
            if any(each.waits.order_key is not None for each in shelf.held.values()):
                await self._look_for_turns(shelf)
            for each in shelf.too_many_later(now, horizon):
                shelf.park(each)
                await self._give_back(each, shelf.back_in(each, now, horizon))

    async def _take_up(self, shelf: Shelf, message: Msg) -> None:
        """Hold *message*, unless it turns out to be settled: then only its acknowledgement was lost."""
        desk = self._desk
        waits = read(message.headers, Waits)
        seq = message.metadata.sequence.stream
        stored = Stored(message.subject, seq, message.headers or {}, message.data)
        held = desk.held(stored, message.reply, waits)
        suspicious = (
            message.metadata.num_delivered > 1
            or waits.attempt > 1
            or waits.decision
            or seq <= self._suspects.get(shelf.sink, 0)
        )
        if suspicious and await self._is_over(held):
            await desk.confirm(held)
            await desk.hand_turn_on(held.place, waits.order_key)
        else:
            shelf.put(held)

    async def _is_over(self, held: Held) -> bool:
        """Has it been decided about? A dead letter that was not yet stored is stored now."""
        last = await self._desk.last_decision(held.place)
        if last is None or last[0] == held.waits.decision:
            return False
        seq, decision = last
        if decision.state == "dead":
            await self._desk.bury(held.place, held.waits, held.body, seq, decision)
        return True

    async def _look_for_turns(self, shelf: Shelf) -> None:
        """Whose turn it is, of the order keys whose turn is not known to be here."""
        at = monotonic()
        keys = [key for key in shelf.unsure_keys() if shelf.looked.get(key, 0.0) < at - LOOK_AGAIN]
        rows = await together(self._desk.turn(shelf.sink, key) for key in keys)
        for key, row in zip(keys, rows, strict=True):
            if row in shelf.held:
                shelf.looked.pop(key, None)
            else:
                shelf.looked[key] = at

    async def _give_back(self, held: Held, seconds: float) -> None:
        """To the server, which hands it out again after *seconds*, also if it was restarted meanwhile."""
        delay = msgspec.json.encode({"delay": max(0, int(seconds * 1e9))})
        await self._desk.link.client.publish(held.reply, b"-NAK " + delay)

    def holds(self, delivery: Delivery) -> bool:
        """Not where this process was stopped, or cut off, for so long that another may have it."""
        shelf = self._desk.shelf(delivery.sink)
        held = shelf.held.get(delivery.row)
        return held is not None and not shelf.is_doubtful(held, monotonic())

    async def keep_alive(self) -> None:
        """A sign of life for all that is surely held; it counts once the server has answered."""
        at, link = monotonic(), self._desk.link
        shelves = self._desk.shelves.values()
        held = [each for shelf in shelves for each in shelf if not shelf.is_doubtful(each, at)]
        if not held or not link.is_connected:
            return
        for each in held[:-1]:
            await link.client.publish(each.reply, IN_PROGRESS)
        await link.ask(held[-1].reply, IN_PROGRESS)
        for each in held:
            each.alive = at

    async def sweep(self) -> None:
        """Let go of what the server still has, though its consumer says that it was acknowledged.

        nats-server (2.9) writes acknowledgements and removals at different times: killed in between,
        a server comes back with such messages, and hands them out to nobody.
        """
        desk, stream = self._desk, self._desk.stream(DELIVERIES)
        for sink in list(self._pulls):
            floor = (await desk.link.consumer(stream, sink_consumer(sink)))["ack_floor"]["stream_seq"]
            seq, asked = 1, desk.subjects.deliveries(sink)
            while (found := await desk.link.get(stream, subject=asked, seq=seq, direct=True)) is not None:
                if found.seq > floor:
                    break
                await self._let_go(found)
                seq = found.seq + 1

    async def _let_go(self, found: Stored) -> None:
        """Or have it handed out again, in case that nothing was decided about it."""
        desk, waits = self._desk, read(found.headers, Waits)
        held = desk.held(found, "", waits)
        if await self._is_over(held):
            await desk.confirm(held)
            await desk.hand_turn_on(held.place, waits.order_key)
        else:
            await desk.link.publish(found.subject, found.body, header(waits), expect=found.seq)

    async def close(self) -> None:
        """Give everything back at once."""
        for shelf in self._desk.shelves.values():
            for each in shelf:
                if self._desk.link.is_connected:
                    await self._give_back(each, 0.0)
            shelf.held.clear()
        for pull in self._pulls.values():
            await pull.close()

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Those of one delivery one after another."""
        self._desk.check()
        by_row: dict[tuple[str, int], list[Settlement]] = {}
        for each in settlements:
            by_row.setdefault((each.delivery.sink, each.delivery.row), []).append(each)
        over: dict[str, list[str]] = {}
        await together(self._settle(each, over) for each in by_row.values())
        for replies in over.values():
            await self._desk.link.acknowledge(replies)

    async def _settle(self, settlements: Sequence[Settlement], over: dict[str, list[str]]) -> None:
        """*over*: what can be acknowledged together afterwards, by sink."""
        for each in settlements:
            held = self._desk.shelf(each.delivery.sink).held.get(each.delivery.row)
            held = held or await self._not_held(each)
            if held is None:
                return
            verdict = each.verdict
            match verdict:
                case Later():
                    await self._postpone(held, each, verdict)
                    await self._desk.confirm(held)
                case Dead() | Done():
                    await self._end(held, each, verdict if isinstance(verdict, Dead) else None)
                    await self._leave(held, over)
                    return
                case _:
                    assert_never(verdict)

    async def _not_held(self, settlement: Settlement) -> Held | None:
        """The delivery as it waits, put down here or in other hands; only what is still true of it counts."""
        delivery = settlement.delivery
        found = await self._desk.waiting_message(Place.at(delivery.sink, delivery.row))
        if found is None:
            return None
        waits = read(found.headers, Waits)
        same = waits.attempt == delivery.attempt or isinstance(settlement.verdict, Done)
        return self._desk.held(found, "", waits) if same else None

    async def _postpone(self, held: Held, settlement: Settlement, verdict: Later) -> None:
        """A new version takes the place of the old one, if that is still there."""
        desk, waits = self._desk, held.waits
        after = msgspec.structs.replace(
            waits,
            due=verdict.due,
            attempt=verdict.attempt,
            tried_since=verdict.tried_since,
            first=settlement.started if waits.first is None else waits.first,
            error=failure_of(settlement.outcome)[2],
        )
        stored = await desk.link.publish(held.subject, held.body, header(after), expect=held.seq)
        if stored is not None or await self._was_postponed(held, after):
            desk.books.move("sink", held.place.sink, retried=1)
            await self._record(held, settlement)

    async def _was_postponed(self, held: Held, after: Waits) -> bool:
        """Was it stored when the server's answer was lost?"""
        found = await self._desk.waiting_message(held.place)
        return found is not None and read(found.headers, Waits) == after

    async def _end(self, held: Held, settlement: Settlement, dead: Dead | None) -> None:
        desk, waits = self._desk, held.waits
        _, status, error, response = failure_of(settlement.outcome)
        tried = waits.tried_since is not None or not isinstance(settlement.outcome, Delivered)
        if desk.shelf(held.place.sink).is_doubtful(held, monotonic()) and not await self._is_there(held):
            return
        decision = Decision(
            state="dead" if dead else "delivered",
            by=desk.me,
            at=settlement.started + settlement.duration,
            rule=waits.rule,
            sink=waits.sink,
            tried=tried,
        )
        if dead:
            decision = msgspec.structs.replace(
                decision,
                reason=dead.reason,
                attempts=settlement.delivery.attempt,
                first=settlement.started if waits.first is None else waits.first,
                last=settlement.started,
                status=status,
                error=error,
                response=response,
            )
        won = await desk.decide(held.place, decision, waits.decision)
        if won is not None and tried:
            await self._record(held, settlement)
        if won is not None and dead:
            await desk.bury(held.place, waits, held.body, won, decision)
        elif won is None:
            await self._is_over(held)

    async def _leave(self, held: Held, over: dict[str, list[str]]) -> None:
        """It waits no more; where another one waits for its turn, that has to be so before it gets it."""
        desk, key = self._desk, held.waits.order_key
        if key is None and held.reply:
            desk.shelf(held.place.sink).held.pop(held.row, None)
            over.setdefault(held.place.sink, []).append(held.reply)
        else:
            await desk.confirm(held)
            await desk.hand_turn_on(held.place, key)

    async def _is_there(self, held: Held) -> bool:
        stream = self._desk.stream(DELIVERIES)
        return await self._desk.link.get(stream, seq=held.seq) is not None

    async def _record(self, held: Held, settlement: Settlement) -> None:
        reason, status, error, response = failure_of(settlement.outcome)
        made = Attempt(
            number=settlement.delivery.attempt,
            at=settlement.started,
            duration=settlement.duration,
            outcome=outcome_word(settlement.outcome),
            reason=reason,
            status=status,
            error=error,
            response=response[:ATTEMPT_RESPONSE],
        )
        try:
            await self._desk.link.publish(self._desk.subjects.attempts(held.place), b"", header(made))
        except OutboxError:
            return  # the trace lacks an attempt; nothing else depends on it
