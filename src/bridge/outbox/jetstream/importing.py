"""What another store has exported, taken in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from bridge.errors import OutboxError
from bridge.outbox import Accepted, Batch
from bridge.outbox.exchange import Exported, ExportedDelivery
from bridge.outbox.jetstream.desk import Desk
from bridge.outbox.jetstream.streams import DELIVERIES, EVENTS
from bridge.outbox.jetstream.wire import Decision, Place, Taken, Waits, read
from bridge.outbox.queue import Imported, intakes


async def take_in(
    desk: Desk, accept: Callable[[Batch], Awaitable[Accepted]], lines: Sequence[Exported], now: float
) -> Imported:
    """As if received now; what waits starts again as attempt 1, what is dead stays so."""
    accepted = await accept(Batch(intakes(lines, now)))
    fresh = [line for line, new in zip(lines, accepted.fresh, strict=True) if new]
    dead = 0
    for line in fresh:
        dead += await _bury(desk, line, now)
    deliveries = sum(len(line.distinct()) for line in fresh) - dead
    return Imported(len(fresh), len(lines) - len(fresh), deliveries, dead)


async def _bury(desk: Desk, line: Exported, now: float) -> int:
    """The dead letters of *line* become what they were; returns how many."""
    letters = {(each.rule, each.sink): each for each in line.distinct() if each.state == "dead"}
    if not letters:
        return 0
    event = await desk.link.get(desk.stream(EVENTS), subject=desk.subjects.event(line.unique_id))
    if event is None:
        raise OutboxError("an event that was just taken in is gone")
    for n, each in enumerate(read(event.headers, Taken).routes):
        letter = letters.get((each.rule, each.sink))
        if letter is not None:
            await _bury_one(desk, Place(each.sink, event.seq, n), letter, now)
    return len(letters)


async def _bury_one(desk: Desk, place: Place, letter: ExportedDelivery, now: float) -> None:
    found = await desk.waiting_message(place)
    if found is None:
        return
    waits = read(found.headers, Waits)
    decision = Decision(
        state="dead",
        by=desk.me,
        at=now,
        rule=letter.rule,
        sink=letter.sink,
        reason=letter.reason,
        attempts=letter.attempt,
        first=letter.first or now,
        last=letter.last or now,
        status=letter.status,
        error=letter.error,
        response=letter.response,
    )
    seq = await desk.decide(place, decision, waits.decision)
    if seq is not None:
        await desk.bury(place, waits, found.body, seq, decision)
    await desk.link.delete(desk.stream(DELIVERIES), found.seq)
