"""Opening streams and reading them: every stream of a source, live or of history, goes through here.

The server drops events for a reader that falls behind, and does not say so (`Channel.Notify`,
pkg/events/handler.go in v3.32). So nothing here waits for rules, disk or sinks: an event is handed over and
the next one read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import anyio
import structlog
from anyio.abc import TaskGroup

from bridge.clock import loop_clock
from bridge.decode import Frame, Malformed, StreamStart, is_sparse
from bridge.errors import SourceError
from bridge.event import Entity, Event, Identifiers
from bridge.sources import Arrival
from bridge.sources.evidence import Evidence
from bridge.sources.feed import Feed
from bridge.sources.followed import Followed, Seen
from bridge.sources.names import Asked, mark, without
from bridge.sources.pace import Pace
from bridge.sources.plan import carriers
from bridge.sources.turns import FULL_SOON
from bridge.sources.upstream import Stream, Upstream

log = structlog.get_logger()

SECOND = 1_000_000_000  # ns
OPENING = 30.0  # seconds in which the server has to send the start event
LINGER = 1.0  # seconds a stream stays beside its successor: what it has under way may be in no history
QUIET = 2.0  # seconds without an old event after the newest known one
STIRRED = 10  # events of an entity between two calls of `busy`
REMEMBERED = 4096  # names and identifiers of which a stream knows for whom it carries them
LONGEST = 60.0  # seconds for one replay: a server part with a slow clock makes old events for ever


@dataclass(frozen=True, slots=True)
class Wanted:
    """A stream to be opened; *after* in ns of server time."""

    entities: Mapping[Entity, Followed]
    after: int | None
    is_live: bool = True
    """Cursors move by live streams only."""
    is_urgent: bool = True
    """May it use the part of the rate budget that is kept for live streams?"""
    skip_before: int = 0
    """ns; replayed events before it are read but not handed over."""
    skip_start: bool = False
    """Nothing from before the stream's start is wanted: the server's clock was not known."""
    replay: Mapping[Entity, Evidence] = field(default_factory=dict)
    """What its history is to prove."""
    apart: bool = False
    """For the names that go on a stream of their own."""
    began: Callable[[Opened], Awaitable[None]] | None = None
    """Called when the start event has come, before anything else of the stream is looked at."""


@dataclass(slots=True, eq=False)
class Opened:
    """One stream and how far it is; times are `anyio.current_time()` unless they say ns."""

    wanted: Wanted
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    started: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)
    error: SourceError | None = None
    warnings: tuple[str, ...] = ()
    start_ns: int = 0
    """The server's clock when the stream opened."""
    start: float = 0.0
    last_old: float = 0.0
    """When the last event older than the start came."""
    skip_before: int = 0
    _brought: dict[tuple[str, tuple[Identifiers, ...]], list[Followed]] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        return self.started.is_set() and not self.ended.is_set()

    def clock_ns(self, now: float) -> int:
        """The server's clock."""
        return self.start_ns + int((now - self.start) * SECOND)

    def brought_by(self, event: Event, propagates: Mapping[str, bool]) -> list[Followed]:
        """The entities of this stream that it carried *event* for; *propagates* as of `carriers`."""
        asked = event.name, event.identifiers
        found = self._brought.get(asked)
        if found is None:
            if len(self._brought) >= REMEMBERED:
                self._brought.clear()
            entities = self.wanted.entities
            found = [entities[each] for each in carriers(event, entities, propagates)]
            self._brought[asked] = found
        return found

    async def calm(self, overlap: float) -> bool:
        """Return when history has been replayed, as far as one can tell; False if the stream ended before.

        The server does not say when. It replays one entity after the other as they were asked for: once the
        newest event known of the last one has come, a moment without old events is enough. Else nothing old
        must have come for *overlap* seconds, since a connection may stall.
        """
        while not self.ended.is_set():
            quiet = QUIET if self._is_replayed() else max(QUIET, overlap)
            due = min(self.last_old + quiet, self.start + LONGEST)
            if anyio.current_time() >= due:
                return True
            with anyio.move_on_after(min(quiet, due - anyio.current_time())):
                await self.ended.wait()
        return False

    def _is_replayed(self) -> bool:
        shown = list(self.wanted.replay.values())
        return bool(shown) and shown[-1].reached


class Streams:
    """The streams of one source. *overlap* and *keep* in seconds, *propagates* as of `carriers`.

    *busy* is called with an entity by which FULL_SOON events or more came, *heard* with every event that is
    new.
    """

    def __init__(
        self,
        upstream: Upstream,
        feed: Feed,
        *,
        asked: Asked,
        overlap: float,
        keep: float,
        propagates: Mapping[str, bool],
        busy: Callable[[Followed], None],
        heard: Callable[[Event], None],
    ) -> None:
        self.asked = asked
        self.mark = mark(asked.names)
        """Stored with the first event, so that the next process knows what was asked for."""
        self._is_marked = False
        self.pace = Pace()
        self.seen = Seen(keep)
        self.open_streams: set[Opened] = set()
        self._upstream = upstream
        self._feed = feed
        self._lags = feed.metrics.source_lag.of
        self._overlap = overlap
        self._propagates = propagates
        self._busy = busy
        self._heard = heard
        self._clock: tuple[int, float] | None = None
        self._time: Callable[[], float] = anyio.current_time

    def clock_ns(self) -> int | None:
        """The server's clock by the last stream that started; None before the first."""
        if self._clock is None:
            return None
        return self._clock[0] + int((anyio.current_time() - self._clock[1]) * SECOND)

    def set_clock(self, server_ns: int) -> None:
        self._clock = server_ns, anyio.current_time()

    async def open(self, tasks: TaskGroup, wanted: Wanted, *, paid: bool = False) -> Opened:
        """A stream that has sent its start event and is read by a task of *tasks*, or one with an error.

        *paid*: its turn in the rate budget has already been taken.
        Names the server does not know are left out. If *after* turns out to lie in the server's future,
        where it would say nothing (UPSTREAM.md §2.3), the stream is opened again from before its start.
        """
        while True:
            if not paid:
                await self.pace.turn(urgent=wanted.is_urgent)
            paid = False
            opened = Opened(wanted)
            tasks.start_soon(self._read, opened)
            with anyio.move_on_after(OPENING):
                await opened.started.wait()
            if not opened.started.is_set():
                opened.scope.cancel()
                opened.error = SourceError(f"the server sent no start event in {OPENING:g} s")
            if opened.error is not None:
                if opened.error.kind == "rate_limited":
                    self.pace.refused(opened.error.retry_after)
                if not wanted.apart and self._drop_name(opened.error):
                    continue
            elif wanted.after is not None and wanted.after > opened.start_ns:
                opened.scope.cancel()
                wanted = replace(wanted, after=max(0, opened.start_ns - int(self._overlap * SECOND)))
                continue
            return opened

    def _drop_name(self, error: SourceError) -> bool:
        left = without(self.asked, error)
        if left is None:
            return False
        refused = left.refused[len(self.asked.refused) :]
        log.warning("event names unknown to the server, not asked for", source=self._feed.name, names=refused)
        self._feed.metrics.source_names_refused.labels(self._feed.name).inc(len(refused))
        self.asked = left
        return True

    async def _read(self, opened: Opened) -> None:
        """Read one stream to its end, and leave the reason in *opened*."""
        wanted = opened.wanted
        names = self.asked.apart if wanted.apart else self.asked.names
        self._time = loop_clock()
        try:
            with opened.scope:
                async with self._upstream.open(tuple(wanted.entities), wanted.after, names) as stream:
                    self.pace.told(stream.budget)
                    async with closing(stream.frames()) as frames:
                        async for frame in frames:
                            if isinstance(frame, Event):
                                arrival = self._take(opened, frame)
                                if arrival is not None and not self._feed.put(arrival):
                                    await self._feed.wait(arrival)
                            else:
                                await self._meet(opened, stream, frame)
            opened.error = opened.error or SourceError("the server closed the stream", kind="ended")
        except SourceError as error:
            opened.error = error
        finally:
            self._count(opened, -1)
            opened.started.set()
            opened.ended.set()

    async def _meet(self, opened: Opened, stream: Stream, frame: Frame) -> None:
        if isinstance(frame, StreamStart):
            await self._begin(opened, stream, frame)
        elif isinstance(frame, Malformed):
            self._feed.malformed(frame)

    async def _begin(self, opened: Opened, stream: Stream, frame: StreamStart) -> None:
        """The start event tells the server's clock."""
        if opened.started.is_set():
            return
        opened.start = opened.last_old = anyio.current_time()
        opened.start_ns = frame.time_ns or self.clock_ns() or int(self._feed.now() * SECOND)
        opened.warnings = stream.warnings
        opened.skip_before = opened.wanted.skip_before
        if opened.wanted.skip_start:
            opened.skip_before = opened.start_ns - SECOND
        self.set_clock(opened.start_ns)
        self._count(opened, 1)
        if opened.wanted.began is not None:
            await opened.wanted.began(opened)
        opened.started.set()

    def _count(self, opened: Opened, by: int) -> None:
        if not opened.wanted.is_live or (by < 0) == (opened not in self.open_streams):
            return
        (self.open_streams.add if by > 0 else self.open_streams.discard)(opened)
        for each in opened.wanted.entities.values():
            each.streams += by
        self._feed.metrics.source_connected.labels(self._feed.name).set(bool(self.open_streams))

    def _take(self, opened: Opened, event: Event) -> Arrival | None:
        """What is handed over of one event, if it is wanted.

        History has no events from before *after*: an older one has come late, and is news.
        """
        now = self._time()
        wanted = opened.wanted
        brought_by = opened.brought_by(event, self._propagates)
        already = self.seen.add(event.unique_id, now)
        clock_ns = opened.clock_ns(now)
        old = event.time_ns < opened.start_ns
        if old:
            opened.last_old = now
            is_late = wanted.is_live and now - opened.start >= LINGER
            replayed = event.time_ns >= (wanted.after or 0)
            if replayed and not self._is_history(opened, event, brought_by, already=already, late=is_late):
                return None
        elif wanted.is_live:
            self._lags[self._feed.name] = max(0, clock_ns - event.time_ns) / SECOND
        if not already:
            self._heard(event)
            for each in brought_by:
                each.events += 1
                if each.events >= FULL_SOON and each.events % STIRRED == 0:
                    self._busy(each)
        elif wanted.is_live and not (old and now - opened.start < LINGER):
            came_live(event, wanted, brought_by)
        cursors = self._move(opened, event, brought_by, now, clock_ns) if wanted.is_live else {}
        if cursors and not self._is_marked:
            cursors[self.mark], self._is_marked = clock_ns, True
        return self._feed.arrival(event, cursors, sparse=old and is_sparse(event))

    def _is_history(
        self, opened: Opened, event: Event, brought_by: Sequence[Followed], *, already: bool, late: bool
    ) -> bool:
        """Note *event* of the replay; is it wanted?"""
        self._testify(opened, event, brought_by, already or late)
        if event.time_ns < opened.skip_before:
            return False
        if brought_by and all(event.time_ns < each.floor_ns for each in brought_by):
            return False
        if opened.wanted.replay and not already:
            self._recover(event, brought_by)
        return True

    def _testify(self, opened: Opened, event: Event, brought_by: Iterable[Followed], already: bool) -> None:
        for each in brought_by:
            evidence = opened.wanted.replay.get(each.entity)
            if evidence is not None:
                known = already or event.time_ns <= each.known_ns
                if evidence.is_break:
                    known = self.seen.before(event.unique_id, each.lost_at)
                evidence.saw(event.unique_id, event.time_ns, already=known)

    def _recover(self, event: Event, brought_by: Iterable[Followed]) -> None:
        """Count what would have been lost without its history."""
        if any(event.time_ns > each.known_ns for each in brought_by):
            self._feed.metrics.source_recovered.labels(self._feed.name).inc()

    def _move(
        self, opened: Opened, event: Event, brought_by: Iterable[Followed], now: float, clock_ns: int
    ) -> dict[str, int]:
        """Where cursors move: never past the server's clock, and not while anything still replays.

        While they stand still the ids beside them go on, unless history is unread: it is they that prove it.
        """
        is_calm = now - opened.last_old >= self._overlap
        at = min(event.time_ns, clock_ns)
        moved: dict[str, int] = {}
        for each in brought_by:
            if each.cursor_ns is not None and not each.is_unread:
                moved[each.key] = at if is_calm and now >= each.hold else each.cursor_ns
                each.move(moved[each.key], event.unique_id)
        return moved


def came_live(event: Event, wanted: Wanted, brought_by: Iterable[Followed]) -> None:
    """What history brought first was not dropped."""
    for each in brought_by:
        for reading in each.readings:
            if reading is not wanted.replay.get(each.entity):
                reading.came_live(event.unique_id)


@asynccontextmanager
async def closing(frames: AsyncIterator[Frame]) -> AsyncIterator[AsyncIterator[Frame]]:
    """*frames*, closed on the way out if they are a generator: the collector would do it at some time."""
    try:
        yield frames
    finally:
        if isinstance(frames, AsyncGenerator):
            await frames.aclose()
