"""Staying on the event stream of The Things Stack: opening, reconnecting, recycling, cursors (DESIGN.md §3).

The server drops events for a reader that falls behind, and does not say so (`Channel.Notify`,
pkg/events/handler.go in v3.32). So nothing here waits for rules, disk or sinks: an event is handed over and
the next one read. Silence is no error, for the server sends no heartbeat: the answer to it is recycling, the
new stream before the old one ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import anyio
import structlog
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from bridge.decode import Malformed, StreamStart, is_sparse
from bridge.errors import SourceError
from bridge.event import Event
from bridge.fields import seconds
from bridge.metrics import Metrics
from bridge.sources import Arrival, Reading, SourceStatus, Started
from bridge.sources.http import NAME_ERRORS, Upstream
from bridge.sources.models import TtsSourceConfig
from bridge.sources.plan import after, carriers, key

log = structlog.get_logger()

SLOW_RETRY = 120.0  # seconds; the server remembers a refusal for 2 min (pkg/component/rights.go in v3.32)
STEADY = 30.0  # seconds a stream has to live for the waits to begin anew
OPENING = 30.0  # seconds in which the server has to send the start event
SECOND = 1_000_000_000  # ns


@dataclass(slots=True)
class Opened:
    """One stream and how far it is; times are `anyio.current_time()` unless they say ns."""

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
    """ns; replayed events before it are not wanted."""

    def clock_ns(self, now: float) -> int:
        """The server's clock."""
        return self.start_ns + int((now - self.start) * SECOND)


class TtsSource:
    """Follows a fixed list of identifiers.

    *cursors* reads what is stored; *wait* gives the seconds before reconnecting for the nth time in a row,
    from 1; *now* is unix seconds.
    """

    def __init__(
        self,
        name: str,
        config: TtsSourceConfig,
        upstream: Upstream,
        metrics: Metrics,
        *,
        cursors: Callable[[], Awaitable[dict[str, int]]],
        wait: Callable[[int], float],
        now: Callable[[], float],
        names: Sequence[str] = (),
    ) -> None:
        self.name = name
        self._config = config
        self._entities = config.entities
        self._upstream = upstream
        self._metrics = metrics
        self._stored_cursors = cursors
        self._wait = wait
        self._now = now
        self._names = list(names)
        self._cursors: dict[str, int] = {}
        self._streams: set[int] = set()
        self._error = ""
        self._refused = ""
        self._backing_off = False
        self._retry_at: float | None = None
        self._warnings: tuple[str, ...] = ()
        self._garbled = False

    def status(self) -> SourceStatus:
        connected = bool(self._streams)
        wait = None if self._retry_at is None else max(0.0, self._retry_at - anyio.current_time())
        return SourceStatus(
            connected=connected,
            ready=not self._refused and (connected or self._backing_off),
            error=self._refused or self._error,
            streams=len(self._streams),
            retry_in=wait,
            warnings=self._warnings,
        )

    async def run(self, into: MemoryObjectSendStream[Reading]) -> None:
        self._cursors = await self._stored_cursors()
        failures = 0
        while True:
            began = anyio.current_time()
            error = await self._session(into)
            failures = 1 if anyio.current_time() - began > STEADY else failures + 1
            await self._sit_out(error, failures)

    async def _sit_out(self, error: SourceError, failures: int) -> None:
        """Say why there is no stream, and wait as long as that asks for."""
        wait = self._pause(error, failures)
        self._metrics.source_reconnects.labels(self.name, error.kind).inc()
        if str(error) != self._error:
            log.warning("stream lost", source=self.name, error=str(error), retry_in=round(wait, 1))
        self._error = str(error)
        self._backing_off = error.kind not in ("refused", "rejected")
        self._refused = "" if self._backing_off else str(error)
        self._retry_at = anyio.current_time() + wait
        await anyio.sleep(wait)
        self._retry_at = None

    def _pause(self, error: SourceError, failures: int) -> float:
        jittered = self._wait(failures)
        if error.kind == "rate_limited":
            return (error.retry_after or 0.0) + jittered
        if error.kind in ("refused", "rejected"):
            return SLOW_RETRY
        return jittered

    async def _session(self, into: MemoryObjectSendStream[Reading]) -> SourceError:
        """Follow until there is no stream left; returns why."""
        async with anyio.create_task_group() as streams:
            current = await self._open(streams, into, await self._resume())
            while current.error is None:
                with anyio.move_on_after(self._config.recycle):
                    await current.ended.wait()
                if not current.ended.is_set():
                    current = await self._recycle(streams, into, current)
            streams.cancel_scope.cancel()
        return current.error  # type: ignore[return-value]  # the loop above ends when it is set

    async def _recycle(
        self, streams: TaskGroup, into: MemoryObjectSendStream[Reading], current: Opened
    ) -> Opened:
        """The new stream before the old one ends, from where that one began: heals what was dropped since."""
        check = await self._upstream.check()
        if check.refused and not self._refused:
            log.error("key refused, although the stream flows", source=self.name, error=check.refused)
        self._refused = check.refused
        overlap = int(self._config.overlap * SECOND)
        fresh = await self._open(streams, into, max(0, current.start_ns - overlap))
        if fresh.error:
            log.warning("stream not renewed, the old one goes on", source=self.name, error=str(fresh.error))
            return current
        self._metrics.source_reconnects.labels(self.name, "recycle").inc()
        current.scope.cancel()
        return fresh

    async def _resume(self) -> int | None:
        """Where to begin, ns of server time; None when the server's clock is not known."""
        overlap = int(self._config.overlap * SECOND)
        missing = [each for each in self._entities if key(each) not in self._cursors]
        resumed = after([self._cursors.get(key(each)) for each in self._entities], overlap)
        if not missing or self._config.start == "oldest":
            return resumed
        clock = (await self._upstream.check()).server_ns
        if clock is None:
            return resumed
        back = SECOND if self._config.start == "now" else int(seconds(self._config.start) * SECOND)
        return min(clock - back, clock if resumed is None else resumed)

    async def _open(
        self, streams: TaskGroup, into: MemoryObjectSendStream[Reading], start: int | None
    ) -> Opened:
        """A stream that has sent its start event, or one with an error; unknown names are left out."""
        while True:
            opened = Opened()
            streams.start_soon(self._read, opened, into, start)
            with anyio.move_on_after(OPENING):
                await opened.started.wait()
            if not opened.started.is_set():
                opened.scope.cancel()
                opened.error = SourceError(f"the server sent no start event in {OPENING:g} s")
            if not (opened.error and self._drop_name(opened.error)):
                return opened

    def _drop_name(self, error: SourceError) -> bool:
        """Leave out a name this server does not know; rules still match it, should it come."""
        if error.name not in NAME_ERRORS or not self._names:
            return False
        said = {str(value) for value in error.attributes.values()}
        kept = [name for name in self._names if name not in said and name.strip("/") not in said]
        log.warning("event name unknown to the server, not asked for", source=self.name, names=sorted(said))
        self._names = kept if len(kept) < len(self._names) else []
        return True

    async def _read(self, opened: Opened, into: MemoryObjectSendStream[Reading], start: int | None) -> None:
        """Read one stream to its end, and leave the reason in *opened*."""
        try:
            with opened.scope:
                async with self._upstream.open(self._entities, start, self._names) as stream:
                    opened.warnings = stream.warnings
                    async for frame in stream.frames():
                        if isinstance(frame, Event):
                            await self._hand_over(opened, frame, into)
                        elif isinstance(frame, StreamStart):
                            await self._begin(opened, frame, into, start)
                        elif isinstance(frame, Malformed):
                            self._count_malformed(frame)
            opened.error = SourceError("the server closed the stream", kind="ended")
        except SourceError as error:
            opened.error = error
        finally:
            self._streams.discard(id(opened))
            self._metrics.source_connected.labels(self.name).set(bool(self._streams))
            opened.started.set()
            opened.ended.set()

    async def _begin(
        self,
        opened: Opened,
        frame: StreamStart,
        into: MemoryObjectSendStream[Reading],
        start: int | None,
    ) -> None:
        """The start event: the server's clock, and where cursors of new identifiers begin."""
        opened.start_ns = frame.time_ns or int(self._now() * SECOND)
        opened.start = opened.last_old = anyio.current_time()
        if start is None and self._config.start == "now":
            opened.skip_before = opened.start_ns - SECOND
        if self._error:
            log.info("stream open again", source=self.name)
        self._error, self._backing_off = "", False
        if opened.warnings and opened.warnings != self._warnings:
            log.warning("the server warns", source=self.name, warnings=list(opened.warnings))
        self._warnings = opened.warnings
        self._streams.add(id(opened))
        self._metrics.source_connected.labels(self.name).set(1)
        opened.started.set()
        first = self._first_cursor(opened)
        new = {key(each): first for each in self._entities if key(each) not in self._cursors}
        if new:
            self._cursors |= new
            await self._send(into, Started(self.name, new))

    def _first_cursor(self, opened: Opened) -> int:
        if self._config.start == "oldest":
            return 0
        back = 0.0 if self._config.start == "now" else seconds(self._config.start)
        return max(0, opened.start_ns - int(back * SECOND))

    async def _hand_over(self, opened: Opened, event: Event, into: MemoryObjectSendStream[Reading]) -> None:
        now = anyio.current_time()
        clock = opened.clock_ns(now)
        old = event.time_ns < opened.start_ns
        if event.time_ns < opened.skip_before:
            return
        if old:
            opened.last_old = now
            if is_sparse(event):
                self._metrics.source_sparse.labels(self.name).inc()
        else:
            self._metrics.source_lag.labels(self.name).set(max(0, clock - event.time_ns) / SECOND)
        received = self._now()
        self._metrics.source_last_event.labels(self.name).set(received)
        cursors: dict[str, int] = {}
        if now - opened.last_old >= self._config.overlap:
            cursors = self._move(event, clock)
        await self._send(into, Arrival(self.name, event, received, cursors))

    def _move(self, event: Event, clock: int) -> dict[str, int]:
        """Where the cursors of the identifiers that brought *event* move: never past the server's clock."""
        at = min(event.time_ns, clock)
        moved = {key(each): at for each in carriers(event, self._entities)}
        for name in moved:
            self._cursors[name] = max(at, self._cursors.get(name, 0))
        return moved

    async def _send(self, into: MemoryObjectSendStream[Reading], reading: Reading) -> None:
        """Into the buffer; if that is full, wait and count it: the server drops events meanwhile."""
        try:
            into.send_nowait(reading)
        except anyio.WouldBlock:
            began = anyio.current_time()
            await into.send(reading)
            self._metrics.source_blocked.labels(self.name).inc(anyio.current_time() - began)

    def _count_malformed(self, frame: Malformed) -> None:
        self._metrics.source_frame_errors.labels(self.name).inc()
        if not self._garbled:
            log.warning("frames that are no event are skipped and counted", source=self.name, why=frame.why)
        self._garbled = True
