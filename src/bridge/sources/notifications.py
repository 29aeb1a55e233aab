"""A user's notifications as events: polled, woken by `user.notification.create`, marked once delivered.

The NotificationService lists newest first and by offset, and can neither filter by time nor lock
(UPSTREAM.md §5). So what was taken in is remembered as a high-water mark, the cursor of the user, and not by
the status, which belongs to the people who read in the Console.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import anyio
import structlog
from anyio.streams.memory import MemoryObjectSendStream

from bridge.decode import Malformed
from bridge.errors import FrameError, SourceError
from bridge.event import Entity, Event
from bridge.metrics import Metrics
from bridge.outbox import Trace
from bridge.sources import Reading, SourceStatus
from bridge.sources.api import PAGE, Api
from bridge.sources.feed import Feed
from bridge.sources.keycheck import EXPIRED
from bridge.sources.marking import Marking
from bridge.sources.notification import Notification, NotificationsSourceConfig, notification
from bridge.sources.plan import key
from bridge.sources.upstream import Upstream

log = structlog.get_logger()

CREATED = "user.notification.create"
UNSEEN = "NOTIFICATION_STATUS_UNSEEN"
PASSES = 3  # readings of a list that shrinks while it is read, before the next poll has to do
LATE = 2_000_000_000  # ns by which a notification may become visible after a newer one
GATHER = 1.0  # seconds after a wake-up in which others come in
SLOW_RETRY = 120.0  # seconds; the server remembers a refusal for 2 min (pkg/component/rights.go in v3.32)
RENEW = 600.0  # seconds after which the waking stream is opened anew: a dead one is as silent as a quiet one
STEADY = 30.0  # seconds a stream has to live for the waits to begin anew


@dataclass(frozen=True, slots=True)
class Listing:
    """What was found unseen; not *whole* if some may have slipped from page to page unread."""

    items: tuple[Notification, ...]
    whole: bool


class NotificationsSource:
    """Follows the notifications of one user.

    *cursors* and *recent* read what the outbox keeps of this source, *trace* one event of it. *wait* gives
    the seconds before the nth try in a row, from 1; *now* is unix seconds; *rng* spreads polls.
    """

    def __init__(
        self,
        name: str,
        config: NotificationsSourceConfig,
        api: Api,
        upstream: Upstream,
        metrics: Metrics,
        *,
        cursors: Callable[[], Awaitable[dict[str, int]]],
        recent: Callable[[str], Awaitable[tuple[str, ...]]],
        trace: Callable[[str], Awaitable[Trace | None]],
        wait: Callable[[int], float],
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.name = name
        self._config = config
        self._user = Entity("user", config.user)
        self._api = api
        self._upstream = upstream
        self._metrics = metrics
        self._cursors = cursors
        self._recent = recent
        self._trace = trace
        self._wait = wait
        self._rng = rng
        self._feed = Feed(name, metrics, now, rng)
        self._marking = Marking(name, config, api, trace)
        self._mark: int | None = None
        self._begin: int | None = None
        self._is_first = True
        self._taken: dict[str, int] = {}
        self._wake = anyio.Event()
        self._connected = False
        self._listening = False
        self._error = ""
        self._refused = False
        self._deaf = ""
        self._retry_at: float | None = None

    def status(self) -> SourceStatus:
        wait = None if self._retry_at is None else max(0.0, self._retry_at - anyio.current_time())
        return SourceStatus(
            connected=self._connected,
            ready=self._connected or bool(self._error and not self._refused),
            error=self._error,
            streams=int(self._listening),
            retry_in=wait,
            warnings=(f"not woken by events: {self._deaf}",) if self._deaf else (),
        )

    async def run(self, into: MemoryObjectSendStream[Reading]) -> None:
        """Poll until cancelled; what comes is handed over oldest first, so that the mark only rises."""
        self._feed.into = into
        self._mark = self._begin = (await self._cursors()).get(key(self._user))
        recent = await self._recent(key(self._user))
        self._taken = {id.rpartition("/")[2]: self._mark or 0 for id in recent}
        failures = 0
        async with anyio.create_task_group() as beside:
            beside.start_soon(self._listen)
            if self._config.mark != "none":
                beside.start_soon(self._marking.run)
            while True:
                self._wake = anyio.Event()
                try:
                    await self._poll()
                except SourceError as error:
                    failures += 1
                    await self._sit_out(error, failures)
                else:
                    failures = 0
                    await self._recovered()
                    await self._rest()

    async def _rest(self) -> None:
        """Until the next poll is due, or an event says that there is something."""
        with anyio.move_on_after(self._config.interval * self._rng.uniform(0.9, 1.1)):
            await self._wake.wait()
            await anyio.sleep(min(GATHER, self._config.interval / 2))

    # Taking in

    async def _poll(self) -> None:
        listing = await self._listed()
        fresh = sorted(
            [each for each in listing.items if await self._is_new(each)], key=lambda each: each.order
        )
        newest = max((each.created for each in listing.items), default=0)
        for each in fresh:
            at = newest if each is fresh[-1] else each.created
            await self._hand_over(each, at if listing.whole else 0)
        self._is_first = False
        if self._config.mark != "none":
            self._marking.consider(listing.items)
        floor = (self._mark or 0) - LATE
        self._taken = {id: created for id, created in self._taken.items() if created >= floor}

    async def _listed(self) -> Listing:
        """Everything unseen down to the mark, and further only where something is to be marked."""
        found: dict[str, Notification] = {}
        for _ in range(PASSES):
            items, whole = await self._pass()
            found |= {each.id: each for each in items}
            if whole:
                break
        return Listing(tuple(found.values()), whole)

    async def _pass(self) -> tuple[list[Notification], bool]:
        """Read page after page.

        What arrives meanwhile pushes the rest down, and it is seen twice. What is read or archived by
        somebody pulls the rest up, and an unread one slips past: then the total has shrunk.
        """
        found: list[Notification] = []
        whole, total, asked, page = True, 0, 0, 1
        while True:
            got = await self._api.notifications(self._config.user, status=(UNSEEN,), page=page, limit=PAGE)
            whole = whole and got.total >= total
            total, asked, page = got.total, asked + len(got.items), page + 1
            items = list(self._read(got.items))
            found += items
            last = asked >= total if total else len(got.items) < PAGE
            if last or not got.items or self._reaches_the_mark(items):
                return found, whole

    def _read(self, bodies: Iterable[bytes]) -> Iterable[Notification]:
        for body in bodies:
            try:
                yield notification(self._config.user, body)
            except FrameError as error:
                self._feed.malformed(Malformed(str(error)))

    def _reaches_the_mark(self, items: Sequence[Notification]) -> bool:
        if self._config.mark != "none" or self._mark is None:
            return False
        return any(each.created < self._mark - LATE for each in items)

    async def _is_new(self, each: Notification) -> bool:
        """Above the mark; shortly below it only if it was never taken in, and became visible late.

        The outbox is asked where the last run may have taken in more than its mark says.
        """
        if each.id in self._taken:
            return False
        if self._mark is None or not each.created:
            return True
        if each.created < self._mark - LATE:
            return False
        if self._is_first or (self._begin is not None and each.created <= self._begin):
            return await self._trace(each.event.unique_id) is None
        return True

    async def _hand_over(self, each: Notification, mark: int) -> None:
        """*mark* is where the mark may move with it; 0 if some may have slipped past that are older."""
        arrival = self._feed.arrival(each.event, {key(self._user): mark} if mark else {})
        await self._feed.send(arrival)
        self._metrics.source_lag.of[self.name] = max(0.0, arrival.received - each.created / 1e9)
        self._taken[each.id] = each.created
        if mark:
            self._mark = max(mark, self._mark or 0)

    # Trouble

    async def _sit_out(self, error: SourceError, failures: int) -> None:
        wait = pause(error, self._wait(failures))
        if str(error) != self._error:
            log.warning("notifications not read", source=self.name, error=str(error), retry_in=round(wait, 1))
        self._error = str(error)
        self._connect(False)
        self._metrics.source_reconnects.labels(self.name, error.kind).inc()
        if error.kind in ("refused", "rejected"):
            await self._judge("expired" if error.name in EXPIRED else "refused")
        self._retry_at = anyio.current_time() + wait
        await anyio.sleep(wait)
        self._retry_at = None

    async def _recovered(self) -> None:
        if self._error:
            log.info("notifications are read again", source=self.name)
        self._error = ""
        self._connect(True)
        await self._judge("")

    async def _judge(self, reason: str) -> None:
        """A key that goes bad or good again is told once, by metric and event."""
        if bool(reason) == self._refused:
            return
        self._refused = bool(reason)
        self._metrics.source_refused.labels(self.name).set(self._refused)
        if reason:
            await self._feed.tell("bridge.source.unready", {"reason": reason, "error": self._error})
        else:
            await self._feed.tell("bridge.source.ready", {})

    def _connect(self, connected: bool) -> None:
        self._connected = connected
        self._metrics.source_connected.labels(self.name).set(connected)

    # Waking

    async def _listen(self) -> None:
        """A small stream on the user, for as long as the key is good for one; polling goes on without."""
        failures = 0
        while True:
            began = anyio.current_time()
            error = await self._stream()
            self._listening = False
            if error is None:
                continue
            failures = 1 if anyio.current_time() - began > STEADY else failures + 1
            if error.kind != "ended" and str(error) != self._deaf:
                log.info("not woken by events, polling goes on", source=self.name, error=str(error))
                self._deaf = str(error)
            await anyio.sleep(pause(error, self._wait(failures)))

    async def _stream(self) -> SourceError | None:
        """Why it ended; None when it is only old. History is asked for, and at most wakes once too often."""
        try:
            with anyio.move_on_after(RENEW):
                async with self._upstream.open([self._user], None, [CREATED]) as stream:
                    self._listening, self._deaf = True, ""
                    async for frame in stream.frames():
                        if isinstance(frame, Event) and frame.name == CREATED:
                            self._wake.set()
                return SourceError("the server closed the stream", kind="ended")
        except SourceError as error:
            return error
        return None


def pause(error: SourceError, jittered: float) -> float:
    """Seconds until the next try after *error*."""
    if error.kind == "rate_limited":
        return (error.retry_after or 0.0) + jittered
    return SLOW_RETRY if error.kind in ("refused", "rejected") else jittered
