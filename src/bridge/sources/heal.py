"""Reading again what the server still keeps: after a break, and in turns, because live drops are silent.

What is read goes the way of all events; the outbox knows those it has. A break that history does not bridge
is told once, as `bridge.source.gap`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence

import anyio
import structlog
from anyio.abc import TaskGroup

from bridge.errors import SourceError
from bridge.event import Entity, rfc3339
from bridge.sources.evidence import Break, Evidence, Gap, Verdict, verdict
from bridge.sources.feed import Feed
from bridge.sources.followed import UNREAD, Followed
from bridge.sources.plan import UNKNOWN_HISTORY, backfill_size, key
from bridge.sources.stream import SECOND, Opened, Streams, Wanted
from bridge.sources.turns import Turns

log = structlog.get_logger()

KEPT = 100  # events of an entity the server keeps in any case
LATE = 1.5  # times `recycle` after which a reading is late
TRIES = 2  # more readings before what is not in history is believed to be gone
READINGS = 4  # of one entity that are told what its live stream brings
READERS = 128  # streams of history at once
RATIO_EVERY = 5.0  # seconds
LEAST_WAIT = 0.2  # seconds between two looks at whose turn it is
NAMED = 100  # entities a gap event names


class Heal:
    """Reads history through short streams beside the live ones.

    *recycle* and *overlap* in seconds; *recent_ids* reads what is stored beside a cursor; *wait* gives the
    pause before trying again for the nth time in a row; *exclude* takes entities and the error of a stream
    that asked for them, and says whether it knows whom the server refused.
    """

    def __init__(
        self,
        streams: Streams,
        feed: Feed,
        *,
        recycle: float,
        overlap: float,
        recent_ids: Callable[[str], Awaitable[tuple[str, ...]]],
        wait: Callable[[int], float],
        exclude: Callable[[Sequence[Entity], SourceError], bool],
    ) -> None:
        self.has_store = True
        self.largest_history = UNKNOWN_HISTORY
        self._streams = streams
        self._feed = feed
        self._recycle = recycle
        self._overlap = overlap
        self._overlap_ns = int(overlap * SECOND)
        self._recent_ids = recent_ids
        self._wait = wait
        self._exclude = exclude
        self._broken = Break()
        self._turns = Turns(recycle)
        self._readers = 0
        self._failures = 0
        self._wake = anyio.Event()

    @property
    def backfill_size(self) -> int:
        return backfill_size(self.largest_history)

    # What happens to entities

    def follow(self, each: Followed) -> None:
        """From now on *each* is read in turns; one with a cursor of an earlier process is to be resumed."""
        self._turns.add(each)
        if each.is_unread and each.lost_at < math.inf:
            self._broken.open.add(each.entity)

    def forget(self, each: Followed) -> None:
        """*each* is gone, or cannot be followed for now."""
        self._turns.remove(each)
        self._broken.open.discard(each.entity)

    def lost(self, found: Iterable[Followed]) -> None:
        """No live stream carries these any more: their cursors stand still until history has been read."""
        now, clock = anyio.current_time(), self._streams.clock_ns() or 0
        for each in found:
            self._turns.suspend(each)
            if each.cursor_ns is not None and not each.is_unread:
                each.hold, each.lost_at, each.lost_ns = UNREAD, now, clock
                self._broken.open.add(each.entity)

    def resume(self, found: Iterable[Followed]) -> None:
        """A live stream carries these again: read what came in between."""
        self._turns.resume(each for each in found if each.is_unread)
        self._wake.set()

    def stir(self, each: Followed) -> None:
        """An event came by *each*: its history may fill up before its turn."""
        if self.has_store and self._turns.is_full_soon(each):
            self._wake.set()

    # Reading

    async def run(self) -> None:
        """Read until cancelled; a batch is chosen only when the budget allows it to be read."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._show_ratio)
            while True:
                batch: list[Followed] = []
                if self.has_store and self._readers < READERS and self._turns.is_due(anyio.current_time()):
                    await self._streams.pace.turn(urgent=False)
                    batch = self._turns.next(self.backfill_size, anyio.current_time())
                if batch:
                    self._readers += 1
                    tasks.start_soon(self._read, tasks, batch)
                    await anyio.lowlevel.checkpoint()
                else:
                    self._wake = anyio.Event()
                    with anyio.move_on_after(self._until_turn()):
                        await self._wake.wait()

    def _until_turn(self) -> float:
        """Seconds until the next turn; readers that end wake earlier."""
        turn = self._turns.next_turn()
        if turn is None or not self.has_store or self._readers >= READERS:
            return self._recycle
        return max(LEAST_WAIT, turn - anyio.current_time())

    async def _read(self, tasks: TaskGroup, batch: list[Followed]) -> None:
        """One stream of history: opened, read until it is quiet, closed."""
        try:
            opened = await self._streams.open(tasks, await self.reading(batch), paid=True)
            if opened.error is None and await opened.calm(self._overlap):
                self._failures = 0
                opened.scope.cancel()
                await self.settle(opened)
            else:
                await self._failed(batch, opened.error or SourceError("ended before it was quiet"))
        finally:
            self._readers -= 1
            self._turns.release(batch)
            self._wake.set()

    async def _failed(self, batch: list[Followed], error: SourceError) -> None:
        """Once more later; what the server refuses is left out."""
        if not self._exclude([each.entity for each in batch], error):
            self._failures += 1
            await anyio.sleep(self._wait(self._failures))
        for each in batch:
            if each.entity in self._turns.followed and each.streams:
                self._turns.again(each)

    async def reading(self, batch: Iterable[Followed], *, is_live: bool = False) -> Wanted:
        """The stream that reads the history of *batch*, from its oldest cursor after a break, else from the
        start of the reading before, and back to the last event that had come by then.

        In the stream of a break a live stream goes back to the cursors alone (DESIGN.md §3); what may have
        been dropped before them is read later.
        """
        ordered = list(batch)
        for each in ordered:
            if each.recent is None:
                each.recent = each.anchor = await self._recent_ids(each.key)
        ordered.sort(key=lambda each: bool(each.recent))  # the last one tells when all are replayed
        found = {each.entity: each for each in ordered}
        is_unread = any(each.is_unread for each in found.values())
        since = min(self._since(each, cursors=is_live) for each in found.values())
        skip = 0 if is_unread else min(each.read_ns for each in found.values()) - self._overlap_ns
        return Wanted(
            found,
            max(0, since - self._overlap_ns),
            is_live=is_live,
            is_urgent=is_live,
            skip_before=max(0, skip),
            replay={each.entity: evidence(each) for each in found.values()},
        )

    def _since(self, each: Followed, *, cursors: bool) -> int:
        cursor = each.cursor_ns or 0
        if not each.is_unread:
            return min(each.read_ns, each.anchor_ns) if each.anchor else each.read_ns
        return cursor if cursors or not each.read_ns else min(cursor, each.read_ns)

    # What it showed

    async def settle(self, opened: Opened) -> None:
        """The history that *opened* replayed has come: judge it, let cursors go on, tell what is missing."""
        clock = opened.clock_ns(anyio.current_time())
        for entity, shown in opened.wanted.replay.items():
            each = opened.wanted.entities[entity]
            self.largest_history = max(self.largest_history, shown.count)
            if each.streams == 0 or self._is_doubtful(each, shown):
                continue
            if each.is_unread and not shown.is_break:  # it broke after this reading had begun
                self._turns.again(each)
                continue
            each.readings = [other for other in each.readings if other not in (shown, each.doubted)]
            each.doubted = None
            found = verdict(shown, clock, filtered=self._streams.asked.is_filtered)
            if each.is_unread:
                self._mended(each, shown, found, opened, clock)
            elif found == "gap":
                self._broken.gaps.append(self._gap(entity, shown.since, shown, clock))
            self._was_read(each, shown, opened)
        await self._tell("trimmed")

    def _is_doubtful(self, each: Followed, shown: Evidence) -> bool:
        """Did the newest event known not come again? Trimmed, or the connection stalled: look again."""
        if shown.reached or not shown.recent or each.tries >= TRIES:
            each.tries = 0
            return False
        each.tries += 1
        each.doubted = shown
        self._turns.again(each)
        self._wake.set()
        return True

    def _mended(self, each: Followed, shown: Evidence, found: Verdict, opened: Opened, clock: int) -> None:
        """History since a break is read; an entity that was not followed before has lost nothing."""
        was_lost = each.lost_at < math.inf
        gap = self._gap(each.entity, self._lost_since(each, shown), shown, clock) if found == "gap" else None
        each.unproven = was_lost and found == "unproven"
        each.hold = opened.last_old + self._overlap
        self._broken.settle(each.entity, gap if was_lost else None)

    def _gap(self, entity: Entity, since: int, shown: Evidence, clock: int) -> Gap:
        """Up to the first event that history still had; events may be late by *overlap* on both sides."""
        until = min(clock, shown.first + self._overlap_ns)
        return Gap(entity, max(0, min(since, until) - self._overlap_ns), until)

    def _lost_since(self, each: Followed, shown: Evidence) -> int:
        """Nothing is missing before the last event seen, nor before the last reading ahead of the break."""
        if not each.lost_ns:
            return shown.since
        return max(shown.since, min(each.read_ns or each.lost_ns, each.lost_ns))

    def _was_read(self, each: Followed, shown: Evidence, opened: Opened) -> None:
        """The next reading starts where this one did, if this one went back far enough; else at once."""
        if not each.read_ns:
            each.read_ns = max(1, each.known_ns - int(self._recycle * SECOND))
        if (opened.wanted.after or 0) > max(0, each.read_ns - self._overlap_ns):
            self._turns.again(each)
            self._wake.set()
            return
        in_time = opened.start - each.read_at <= self._recycle * LATE
        each.in_time = shown.events <= KEPT and (in_time or each.read_at == -math.inf)
        each.read_ns, each.read_at = opened.start_ns, opened.start
        each.anchor, each.anchor_ns = shown.recent, shown.cursor
        each.events = max(0, each.events - shown.events)
        self._turns.was_read(each, opened.start)

    async def without_store(self, opened: Opened) -> None:
        """There is no history to read: what a break lost is lost."""
        self.has_store = False
        self._turns.clear()
        for each in opened.wanted.entities.values():
            if each.is_unread:
                since = each.cursor_ns or opened.start_ns
                if each.lost_ns:
                    since = max(since, each.lost_ns - self._overlap_ns)
                gap = Gap(each.entity, since, opened.start_ns) if each.lost_at < math.inf else None
                each.hold = opened.start + self._overlap
                self._broken.settle(each.entity, gap)
        await self._tell("no_store")

    async def _tell(self, cause: str) -> None:
        gaps = self._broken.told()
        unproven = sum(each.unproven for each in self._turns.followed.values())
        self._feed.metrics.source_unproven.labels(self._feed.name).set(unproven)
        if not gaps:
            return
        self._feed.metrics.source_gaps.labels(self._feed.name, cause).inc()
        found = sorted({gap.entity for gap in gaps})
        log.error("events are missing", source=self._feed.name, cause=cause, entities=len(found))
        since = min(gap.since for gap in gaps)
        data = {
            "cause": cause,
            "entities": [key(each) for each in found[:NAMED]],
            "count": len(found),
            "from": rfc3339(since),
            "to": rfc3339(max(since, *(gap.until for gap in gaps))),
        }
        await self._feed.tell("bridge.source.gap", data, found[:NAMED], self._streams.clock_ns())

    async def _show_ratio(self) -> None:
        while True:
            now = anyio.current_time()
            late = self._recycle * LATE
            followed = list(self._turns.followed.values())
            good = sum(
                each.in_time and each.events <= KEPT and now - each.read_at <= late for each in followed
            )
            ratio = good / len(followed) if followed and self.has_store else 0.0
            self._feed.metrics.source_reread_ratio.labels(self._feed.name).set(ratio)
            await anyio.sleep(RATIO_EVERY)


def evidence(each: Followed) -> Evidence:
    """What a replay of *each* is to be judged by, as things stand when it is asked for."""
    known = each.recent if each.is_unread else each.anchor
    since = each.cursor_ns or 0
    if not each.is_unread:
        since = min(each.anchor_ns, each.read_ns) if each.anchor else each.read_ns
    made = Evidence(
        each.entity,
        frozenset(known or ()),
        since,
        each.is_unread,
        recent=each.recent or (),
        cursor=each.cursor_ns or 0,
        events=each.events,
        is_blind=each.is_blind,
        missing=set(each.doubted.missing) if each.doubted is not None else set(),
    )
    each.readings = [*each.readings[1 - READINGS :], made]
    return made
