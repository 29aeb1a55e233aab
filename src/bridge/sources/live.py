"""Entities that share their live streams: opened, renewed before the old one ends, opened again.

Silence is no error, for the server sends no heartbeat over HTTP: the answer to it is recycling.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import anyio
import structlog
from anyio.abc import TaskGroup

from bridge.errors import SourceError
from bridge.event import Entity
from bridge.sources.feed import Feed
from bridge.sources.followed import UNREAD, Followed
from bridge.sources.heal import Heal, evidence
from bridge.sources.names import NAME_ERRORS
from bridge.sources.plan import mixes_levels
from bridge.sources.stream import LINGER, SECOND, Opened, Streams, Wanted

log = structlog.get_logger()

SLOW_RETRY = 120.0  # seconds; the server remembers a refusal for 2 min (pkg/component/rights.go in v3.32)
STEADY = 30.0  # seconds a stream has to live for the waits to begin anew
SPREAD = 0.15  # of `recycle`, by which renewals are early, so that streams do not renew together
NO_STORE = "Events storage is not enabled"  # X-Warning (pkg/events/grpc/grpc.go in v3.32)


@dataclass(frozen=True, slots=True)
class Living:
    """What all groups of a source share. *back* is where a new identifier starts, in seconds before now, None
    for the oldest there is; *chance* is uniform in [0, 1).

    *server_clock* asks the server for its time; *exclude* is told whom the server may have refused;
    *opened* hears of every live stream that starts.
    """

    streams: Streams
    heal: Heal
    feed: Feed
    recycle: float
    overlap: float
    back: float | None
    redundancy: int
    wait: Callable[[int], float]
    chance: Callable[[], float]
    server_clock: Callable[[], Awaitable[int | None]]
    exclude: Callable[[Sequence[Entity], SourceError], bool]
    opened: Callable[[Opened], None]


class Group:
    """*entities* on the same live streams; who is taken out of the mapping leaves with the next renewal."""

    def __init__(self, shared: Living, entities: Iterable[Followed], *, apart: bool = False) -> None:
        self.entities = {each.entity: each for each in entities}
        self.error: SourceError | None = None
        """Why it has no stream now."""
        self.retry_at: float | None = None
        self.tried = anyio.Event()
        """Set when its first stream has started or failed."""
        self.apart = apart
        self._shared = shared
        self._scope = anyio.CancelScope()

    def end(self) -> None:
        self._scope.cancel()

    @property
    def is_refused(self) -> bool:
        return self.error is not None and self.error.kind in ("refused", "rejected")

    async def run(self) -> None:
        """Follow until `end`, or until nobody is left."""
        with self._scope:
            async with anyio.create_task_group() as tasks:
                async with anyio.create_task_group() as slots:
                    for number in range(1 if self.apart else self._shared.redundancy):
                        slots.start_soon(self._follow, tasks, number)
                tasks.cancel_scope.cancel()

    async def _follow(self, tasks: TaskGroup, slot: int) -> None:
        failures = 0
        while self.entities:
            began = anyio.current_time()
            current = await self._open(tasks, is_first=slot == 0)
            if current.error is None:
                current = await self._stay(tasks, current)
            error = current.error or SourceError("the stream ended")
            if not self.apart:
                self._shared.heal.lost(each for each in self.entities.values() if each.streams == 0)
            failures = 1 if anyio.current_time() - began > STEADY else failures + 1
            if self.apart and error.name in NAME_ERRORS:
                return  # a server without managed gateways
            if self._shared.exclude(list(self.entities), error):
                failures = 0
                self.tried.set()
                continue
            await self._sit_out(error, failures)

    async def _sit_out(self, error: SourceError, failures: int) -> None:
        """Say why there is no stream, and wait as long as that asks for."""
        feed = self._shared.feed
        wait = self._shared.wait(failures)
        if error.kind in ("refused", "rejected"):
            wait = SLOW_RETRY
        if error.kind == "rate_limited":
            wait += error.retry_after or 0.0
        feed.metrics.source_reconnects.labels(feed.name, error.kind).inc()
        if self.error is None or str(error) != str(self.error):
            log.warning("stream lost", source=feed.name, error=str(error), retry_in=round(wait, 1))
        self.error, self.retry_at = error, anyio.current_time() + wait
        self.tried.set()
        await anyio.sleep(wait)
        self.retry_at = None

    async def _stay(self, tasks: TaskGroup, current: Opened) -> Opened:
        """Stay on *current* and its successors; returns the one that ended."""
        shared = self._shared
        while True:
            with anyio.move_on_after(shared.recycle * (1 - SPREAD * shared.chance())):
                await current.ended.wait()
            if current.ended.is_set():
                return current
            current = await self._renewed(tasks, current)

    async def _renewed(self, tasks: TaskGroup, current: Opened) -> Opened:
        """The new stream before the old one ends; the old one if there is no new one."""
        shared = self._shared
        for attempt in range(1, 4):
            fresh = await self._open(tasks, is_first=True)
            if fresh.error is None:
                shared.feed.metrics.source_reconnects.labels(shared.feed.name, "recycle").inc()
                tasks.start_soon(self._leave, current)
                return fresh
            if not shared.exclude(list(self.entities), fresh.error):
                log.warning(
                    "stream not renewed, the old one goes on", source=shared.feed.name, error=str(fresh.error)
                )
                if current.ended.is_set() or fresh.error.kind != "transient":
                    break
                with anyio.move_on_after(shared.wait(attempt)):
                    await current.ended.wait()
            if not self.entities:
                break
        return current

    async def _leave(self, old: Opened) -> None:
        await anyio.sleep(LINGER)
        old.scope.cancel()

    # One stream

    async def _open(self, tasks: TaskGroup, *, is_first: bool) -> Opened:
        opened = await self._shared.streams.open(tasks, await self._wanted(is_first))
        if opened.error is None:
            self._welcome(opened)
            if not self.apart:
                await self._read_back(tasks, opened)
            self.tried.set()
        return opened

    def _welcome(self, opened: Opened) -> None:
        if self.error is not None:
            log.info("stream open again", source=self._shared.feed.name)
        self.error = None
        self._shared.opened(opened)

    async def _read_back(self, tasks: TaskGroup, opened: Opened) -> None:
        """See to the history of what this stream carries: it comes on the stream itself or beside it."""
        heal = self._shared.heal
        if NO_STORE in opened.warnings:
            await heal.without_store(opened)
            return
        heal.has_store = True
        if opened.wanted.replay:
            tasks.start_soon(self._settle, opened)
        else:
            heal.resume(each for each in opened.wanted.entities.values() if each.is_unread)

    async def _settle(self, opened: Opened) -> None:
        if await opened.calm(self._shared.overlap):
            await self._shared.heal.settle(opened)

    async def _wanted(self, is_first: bool) -> Wanted:
        """Few entities come with their history; of many the live stream brings the last *overlap* only,
        for history is read beside it (UPSTREAM.md §2.8)."""
        shared, found = self._shared, dict(self.entities)
        if self.apart:
            return Wanted(found, None, is_live=False, skip_start=True, apart=True)
        is_small = len(found) <= shared.heal.backfill_size and not mixes_levels(found)
        if is_first and is_small and shared.heal.has_store:
            return await self._with_history(found)
        is_known = any(each.cursor_ns is not None for each in found.values())
        after = await self._ago(shared.overlap if is_known else 1.0)
        return Wanted(found, after, skip_start=after is None, began=self._began)

    async def _with_history(self, found: dict[Entity, Followed]) -> Wanted:
        """From the oldest cursor, or where new identifiers start if that is earlier."""
        shared = self._shared
        followed = [each for each in found.values() if each.cursor_ns is not None]
        new = [each for each in found.values() if each.cursor_ns is None]
        wanted = await shared.heal.reading(followed, is_live=True) if followed else None
        after, replay = (wanted.after, dict(wanted.replay)) if wanted else (None, {})
        if new:
            first = 0 if shared.back is None else await self._ago(max(1.0, shared.back))
            after = first if after is None or first is None else min(first, after)
            replay = {each.entity: evidence(each) for each in new if shared.back != 0.0} | replay
        return Wanted(
            {each.entity: each for each in new} | (dict(wanted.entities) if wanted else {}),
            after,
            skip_before=wanted.skip_before if wanted and not new else 0,
            skip_start=after is None and not followed and shared.back == 0.0,
            replay=replay,
            began=self._began,
        )

    async def _ago(self, seconds: float) -> int | None:
        """*seconds* ago in ns of server time; None if nobody knows the server's clock."""
        clock = self._shared.streams.clock_ns() or await self._shared.server_clock()
        return None if clock is None else max(0, clock - int(seconds * SECOND))

    async def _began(self, opened: Opened) -> None:
        """The server's clock is known: cursors of new identifiers begin."""
        new = [each for each in opened.wanted.entities.values() if each.cursor_ns is None]
        back = self._shared.back
        first = 0 if back is None else max(0, opened.start_ns - int(back * SECOND))
        for each in new:
            each.cursor_ns, each.known_ns = first, opened.start_ns
            each.floor_ns = 0 if back is None else max(0, first - SECOND)
            if back == 0.0:
                each.read_ns, each.read_at = opened.start_ns, opened.start
                each.turn_at = opened.start + self._shared.recycle
            else:
                each.hold, each.recent = UNREAD, ()
        if new:
            await self._shared.feed.started({each.key: first for each in new})
