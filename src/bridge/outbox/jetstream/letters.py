"""Dead letters: listed, tried again, dropped, and made whole after a crash in between."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from bridge.delivery import delivery_id
from bridge.outbox import DeadLetter, DeadLetterFilter
from bridge.outbox.jetstream.desk import Desk, together
from bridge.outbox.jetstream.link import Stored
from bridge.outbox.jetstream.streams import DEAD
from bridge.outbox.jetstream.wire import Decision, Letter, Place, header, read

PAGE = 200  # dead letters read at a time


def dead_letter(letter: Letter) -> DeadLetter:
    waits = letter.waits
    return DeadLetter(
        delivery_id(waits.unique_id, waits.rule, waits.sink),
        waits.sink,
        waits.rule,
        letter.name,
        waits.unique_id,
        letter.reason,  # type: ignore[arg-type]  # it was a Reason when it was stored
        letter.attempts,
        letter.first,
        letter.last,
        letter.status,
        letter.error,
        letter.response,
    )


def is_wanted(letter: DeadLetter, wanted: DeadLetterFilter) -> bool:
    return (
        (wanted.ids is None or letter.id in wanted.ids)
        and wanted.sink in (None, letter.sink)
        and wanted.rule in (None, letter.rule)
        and wanted.reason in (None, letter.reason)
        and (wanted.since is None or letter.last >= wanted.since)
    )


class Letters:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._mended = 0  # up to which row `mend` has looked

    async def listed(self, wanted: DeadLetterFilter, limit: int, after: str | None) -> list[DeadLetter]:
        found: list[DeadLetter] = []
        beyond = after is None or await self._row_of(after) is None
        async for _, _, letter in self.chosen(DeadLetterFilter(sink=wanted.sink)):
            shown = dead_letter(letter)
            if not beyond:
                beyond = shown.id == after
                continue
            if is_wanted(shown, wanted):
                found.append(shown)
            if len(found) == limit:
                break
        return found

    async def _row_of(self, identifier: str) -> int | None:
        async for place, _, letter in self.chosen(DeadLetterFilter(ids=(identifier,))):
            if dead_letter(letter).id == identifier:
                return place.row
        return None

    async def chosen(self, wanted: DeadLetterFilter) -> AsyncIterator[tuple[Place, Stored, Letter]]:
        """Those of *wanted* as they are stored, in the order in which their events came."""
        desk = self._desk
        places = await desk.dead_places(wanted.sink)
        for start in range(0, len(places), PAGE):
            page = places[start : start + PAGE]
            found = await together(
                desk.link.get(desk.stream(DEAD), subject=desk.subjects.dead(place)) for place in page
            )
            for place, stored in zip(page, found, strict=True):
                if stored is None:
                    continue
                letter = read(stored.headers, Letter)
                if is_wanted(dead_letter(letter), wanted):
                    yield place, stored, letter

    async def retry(self, wanted: DeadLetterFilter, now: float) -> int:
        self._desk.check()
        done = 0
        async for place, stored, letter in self.chosen(wanted):
            decision = self._decided("waiting", letter, now)
            seq = await self._desk.decide(place, decision, letter.decision)
            if seq is None:
                await self._mend(place, stored, letter)
                continue
            await self._revive(place, stored, letter, seq, now)
            done += 1
        return done

    def _decided(self, state: str, letter: Letter, at: float) -> Decision:
        waits = letter.waits
        return Decision(
            state=state,  # type: ignore[arg-type]  # waiting or dropped
            by=self._desk.me,
            at=at,
            rule=waits.rule,
            sink=waits.sink,
            was_dead=True,
            tried=True,
        )

    async def _revive(self, place: Place, stored: Stored, letter: Letter, seq: int, now: float) -> None:
        """Attempt 1 again, due *now*, or when its turn comes."""
        desk, before = self._desk, letter.waits
        key = before.order_key
        blocked = key is not None and bool(await desk.turn(place.sink, key))
        waits = msgspec.structs.replace(
            before, attempt=1, due=None if blocked else now, tried_since=None, first=None, error="",
            supersedes=None, decision=seq,
        )  # fmt: skip
        subject = desk.subjects.delivery(place, key, None)
        await desk.link.publish(subject, stored.body, header(waits), expect=0)
        await desk.link.delete(desk.stream(DEAD), stored.seq)
        if key is not None:
            await desk.turn(place.sink, key)
        await desk.link.client.publish(desk.subjects.wake(place.sink))

    async def drop(self, wanted: DeadLetterFilter, now: float) -> int:
        self._desk.check()
        done = 0
        async for place, stored, letter in self.chosen(wanted):
            done += await self.let_go(place, stored, letter, now)
        return done

    async def let_go(self, place: Place, stored: Stored, letter: Letter, now: float) -> bool:
        decision = self._decided("dropped", letter, now)
        if await self._desk.decide(place, decision, letter.decision) is None:
            await self._mend(place, stored, letter)
            return False
        await self._desk.link.delete(self._desk.stream(DEAD), stored.seq)
        return True

    async def let_go_at(self, place: Place, now: float) -> bool:
        desk = self._desk
        stored = await desk.link.get(desk.stream(DEAD), subject=desk.subjects.dead(place))
        return stored is not None and await self.let_go(place, stored, read(stored.headers, Letter), now)

    async def expire(self, before: float, now: float) -> int:
        """Those whose last attempt was before *before*, counted as dropped."""
        done = 0
        async for place, stored, letter in self.chosen(DeadLetterFilter()):
            if letter.last < before:
                done += await self.let_go(place, stored, letter, now)
        return done

    async def _mend(self, place: Place, stored: Stored, letter: Letter) -> None:
        """Finish what a crash has left: it was decided that it is no dead letter any more."""
        last = await self._desk.last_decision(place)
        if last is None or last[0] == letter.decision:
            return
        seq, decision = last
        if decision.state == "waiting":
            await self._revive(place, stored, letter, seq, decision.at)
        elif decision.state != "dead":
            await self._desk.link.delete(self._desk.stream(DEAD), stored.seq)

    async def mend(self) -> None:
        """Look at PAGE dead letters, and at the next ones the next time."""
        places = await self._desk.dead_places()
        page = [each for each in places if each.row > self._mended][:PAGE]
        self._mended = page[-1].row if len(page) == PAGE else 0
        for place in page:
            subject = self._desk.subjects.dead(place)
            stored = await self._desk.link.get(self._desk.stream(DEAD), subject=subject)
            if stored is not None:
                await self._mend(place, stored, read(stored.headers, Letter))
