"""From disk to the receivers: one dispatcher a sink, so that none can hurt another (DESIGN.md §1.5).

A slot is held from taking a delivery until its settlement is on disk. So a crash repeats at most
`max_in_flight` deliveries of a sink, and while settling fails nothing new is sent.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from bridge.delivery import (
    Dead,
    Delivered,
    Delivery,
    Failure,
    Later,
    Outcome,
    Pause,
    RetryLater,
    Settlement,
    Verdict,
)
from bridge.errors import OutboxError
from bridge.metrics import Metrics
from bridge.outbox import Outbox, PauseState
from bridge.retry import PROBE_MAX, RetryPolicy, probe_wait, verdict
from bridge.sinks import Sink

log = structlog.get_logger()

STORE_RETRY = 1.0  # seconds between tries while the disk does not take a settlement
CALM = 30.0  # seconds without a failure after which a sink counts as well again, for the log


class Dispatcher:
    """Delivers what waits for one sink.

    *now* is unix seconds; *chance* is uniform in [0, 1).
    """

    def __init__(
        self,
        sink: Sink,
        outbox: Outbox,
        policy: RetryPolicy,
        metrics: Metrics,
        *,
        now: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self.sink = sink
        self.pause: PauseState | None = None
        self._outbox = outbox
        self._policy = policy
        self._metrics = metrics
        self._now = now
        self._chance = chance
        self._prefetch = max(16, 2 * sink.max_in_flight)
        self._taken: set[int] = set()
        self._more = False
        self._paused_before = 0.0  # seconds, without the pause that runs
        self._unsettled = 0
        self._last_failure: float | None = None
        self._stopping = False
        self._wake = anyio.Event()

    def wake(self) -> None:
        """There may be something new to do."""
        self._wake.set()

    def stop(self) -> None:
        """Begin nothing new; `run` ends when what is in flight has ended."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Deliver until `stop`."""
        await self._restore_pause()
        ready, work = anyio.create_memory_object_stream[Delivery](self._prefetch)
        async with work, anyio.create_task_group() as slots:
            for _ in range(self.sink.max_in_flight):
                slots.start_soon(self._slot, work)
            with ready:
                await self._feed(ready)

    async def _restore_pause(self) -> None:
        now = self._now()
        self.pause = (await self._outbox.pauses()).get(self.sink.name)
        self._paused_before = await self._outbox.paused_seconds(self.sink.name, now)
        if self.pause:
            self._paused_before -= max(0.0, now - self.pause.since)
            self._metrics.sink_paused.labels(self.sink.name, self.pause.reason).set(1)

    async def _feed(self, ready: MemoryObjectSendStream[Delivery]) -> None:
        """Keep *ready* filled from the outbox; while the sink is paused, probe it instead."""
        while not self._stopping:
            self._wake = anyio.Event()
            if self.pause:
                await self._sit_out(self.pause)
                continue
            if self._unsettled:
                await self._sleep(STORE_RETRY)
                continue
            room = self._prefetch - len(self._taken)
            if room < self._prefetch // 2:
                await self._sleep(None)
                continue
            found, next_due = await self._fetch(room)
            for delivery in found:
                ready.send_nowait(delivery)
            if not found:
                await self._sleep(None if next_due is None else next_due - self._now())

    async def _fetch(self, limit: int) -> tuple[tuple[Delivery, ...], float | None]:
        """Deliveries due now, marked as taken; and when the next one falls due."""
        now = self._now()
        try:
            due = await self._outbox.due(
                self.sink.name, now=now, horizon=self._policy.max, limit=limit, taken=self._taken
            )
        except OutboxError as error:
            log.error("deliveries cannot be read", sink=self.sink.name, error=str(error))
            return (), now + STORE_RETRY
        self._taken.update(delivery.row for delivery in due.deliveries)
        self._more = len(due.deliveries) == limit
        return due.deliveries, due.next_due

    async def _sleep(self, seconds: float | None) -> None:
        """Until `wake`, or for *seconds*; at least long enough not to spin on a clock that stands still."""
        with anyio.move_on_after(None if seconds is None else max(0.001, seconds)):
            await self._wake.wait()

    async def _slot(self, work: MemoryObjectReceiveStream[Delivery]) -> None:
        async for delivery in work:
            if not (self._stopping or self.pause or self._unsettled):
                await self._attempt(delivery)
            self._taken.discard(delivery.row)
            if self._more and len(self._taken) <= self._prefetch // 2:
                self._wake.set()

    async def _sit_out(self, pause: PauseState) -> None:
        """Wait for the end of *pause*, then try the sink with one delivery."""
        now = self._now()
        left = min(pause.until - now, max(self._policy.max, PROBE_MAX))
        if left > 0:
            await self._sleep(left)
            return
        found, next_due = await self._fetch(1)
        if not found:
            await self._sleep(None if next_due is None else next_due - now)
        for delivery in found:
            await self._attempt(delivery, probe=True)
            self._taken.discard(delivery.row)

    async def _attempt(self, delivery: Delivery, *, probe: bool = False) -> None:
        """One attempt at *delivery*, settled on disk before this returns."""
        started, clock = self._now(), anyio.current_time()
        outcome = await self._send(delivery)
        duration = anyio.current_time() - clock
        now = self._now()
        decided = verdict(
            outcome, delivery, self._policy, now=now, paused=self._paused(now), chance=self._chance()
        )
        await self._store(Settlement(delivery, started, duration, outcome, decided))
        if isinstance(decided, Later):
            self._wake.set()
        self._observe(delivery, outcome, decided, duration, now)
        if isinstance(outcome, Pause):
            await self._begin_pause(outcome, now, probe=probe)
        elif probe:
            await self._end_pause(now)

    async def _send(self, delivery: Delivery) -> Outcome:
        try:
            return await self.sink.send(delivery)
        except Exception as bug:
            log.exception("bug in a sink", sink=self.sink.name, delivery=delivery.id)
            return RetryLater(Failure("other", f"bug: {type(bug).__name__}"))

    async def _store(self, settlement: Settlement) -> None:
        """Settle, as often as it takes; meanwhile no slot begins anything new."""
        failed = False
        while True:
            try:
                await self._outbox.settle([settlement])
            except OutboxError as error:
                if not failed and not self._unsettled:
                    log.error("deliveries cannot be settled", sink=self.sink.name, error=str(error))
                self._unsettled += not failed
                failed = True
                await anyio.sleep(STORE_RETRY)
            else:
                self._unsettled -= failed
                if failed and not self._unsettled:
                    log.info("deliveries can be settled again", sink=self.sink.name)
                    self._wake.set()
                return

    def _paused(self, now: float) -> float:
        running = max(0.0, now - self.pause.since) if self.pause else 0.0
        return self._paused_before + running

    async def _begin_pause(self, outcome: Pause, now: float, *, probe: bool) -> None:
        """Pause the sink, or prolong its pause; only a probe that failed makes the waits grow."""
        before = self.pause
        probes = before.probes + probe if before else 0
        asked = outcome.seconds
        if asked is None:
            wait = probe_wait(probes, self._policy, self._chance())
        else:
            wait = min(asked, self._policy.max)
        if before and not probe:
            until = max(before.until, now + wait) if asked is not None else before.until
        else:
            until = now + wait
        since = before.since if before else now
        failure = outcome.failure
        await self._set_pause(PauseState(failure.reason, failure.error, since, until, probes), now)
        if before is None:
            log.warning(
                "sink paused",
                sink=self.sink.name,
                reason=failure.reason,
                error=failure.error,
                seconds=round(wait, 1),
            )

    async def _end_pause(self, now: float) -> None:
        if self.pause is None:
            return
        paused = max(0.0, now - self.pause.since)
        self._metrics.sink_pause_seconds.labels(self.sink.name, self.pause.reason).inc(paused)
        log.info("sink resumed", sink=self.sink.name, seconds=round(paused, 1))
        self._paused_before += paused
        await self._set_pause(None, now)

    async def _set_pause(self, pause: PauseState | None, now: float) -> None:
        if self.pause:
            self._metrics.sink_paused.labels(self.sink.name, self.pause.reason).set(0)
        self.pause = pause
        if pause:
            self._metrics.sink_paused.labels(self.sink.name, pause.reason).set(1)
        self._wake.set()
        try:
            await self._outbox.set_pause(self.sink.name, pause, now)
        except OutboxError as error:
            log.warning("pause not stored", sink=self.sink.name, error=str(error))

    def _observe(
        self, delivery: Delivery, outcome: Outcome, decided: Verdict, duration: float, now: float
    ) -> None:
        name = self.sink.name
        self._metrics.delivery_latency.labels(name).observe(duration)
        if isinstance(outcome, Delivered):
            self._metrics.end_to_end_latency.labels(name).observe(max(0.0, now - delivery.received))
            if self._last_failure is not None and now - self._last_failure > CALM:
                self._last_failure = None
                log.info("deliveries succeed again", sink=name)
            return
        failure = outcome.failure
        self._metrics.delivery_failures.labels(name, failure.reason).inc()
        if isinstance(decided, Dead):
            log.warning(
                "dead letter", sink=name, delivery=delivery.id, reason=decided.reason, error=failure.error
            )
        elif isinstance(outcome, RetryLater) and isinstance(decided, Later):
            if self._last_failure is None:
                log.warning("deliveries fail", sink=name, reason=failure.reason, error=failure.error)
            self._last_failure = now
