"""The pause of one sink: on disk, in the metrics, in the log, and told as an own event (DESIGN.md §2.5)."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from bridge.delivery import Pause
from bridge.errors import OutboxError
from bridge.metrics import Metrics
from bridge.outbox import Outbox, PauseState
from bridge.report import Tell
from bridge.retry import RetryPolicy, pause_wait

log = structlog.get_logger()


class Pausing:
    """*chance* is uniform in [0, 1)."""

    def __init__(
        self,
        sink: str,
        outbox: Outbox,
        policy: RetryPolicy,
        metrics: Metrics,
        *,
        chance: Callable[[], float],
        tell: Tell,
    ) -> None:
        self.state: PauseState | None = None
        self._sink = sink
        self._outbox = outbox
        self._policy = policy
        self._metrics = metrics
        self._chance = chance
        self._tell = tell
        self._before = 0.0  # seconds, without the pause that runs

    async def restore(self, now: float) -> None:
        """What the previous process knew; raises OutboxError."""
        self.state = (await self._outbox.pauses()).get(self._sink)
        self._before = await self._outbox.paused_seconds(self._sink, now)
        if self.state:
            self._before -= max(0.0, now - self.state.since)
            self._metrics.sink_paused.labels(self._sink, self.state.reason).set(1)

    def learn(self, state: PauseState | None, now: float) -> None:
        """Another replica has paused the sink, changed its pause or ended it: nothing is stored or told."""
        if state == self.state:
            return
        if self.state:
            self._metrics.sink_paused.labels(self._sink, self.state.reason).set(0)
            if state is None:
                self._before += max(0.0, now - self.state.since)
        if state:
            self._metrics.sink_paused.labels(self._sink, state.reason).set(1)
        self.state = state

    def seconds(self, now: float) -> float:
        """All the seconds the sink was paused."""
        return self._before + (max(0.0, now - self.state.since) if self.state else 0.0)

    async def begin(self, outcome: Pause, now: float, *, probe: bool) -> None:
        """Pause the sink, or prolong its pause; only a probe that failed makes the waits grow."""
        before, failure = self.state, outcome.failure
        probes = before.probes + probe if before else 0
        wait = pause_wait(outcome.seconds, probes, self._policy, self._chance())
        until = now + wait
        if before and not probe:
            until = before.until if outcome.seconds is None else max(before.until, until)
        since = before.since if before else now
        await self._set(PauseState(failure.reason, failure.error, since, until, probes), now)
        if before is None:
            seconds = round(wait, 1)
            log.warning(
                "sink paused", sink=self._sink, reason=failure.reason, error=failure.error, seconds=seconds
            )
            data = {"sink": self._sink, "reason": failure.reason, "error": failure.error, "seconds": seconds}
            self._tell("bridge.sink.paused", self._sink, data)

    async def end(self, now: float) -> None:
        if self.state is None:
            return
        paused, reason = max(0.0, now - self.state.since), self.state.reason
        self._metrics.sink_pause_seconds.labels(self._sink, reason).inc(paused)
        self._before += paused
        await self._set(None, now)
        log.info("sink resumed", sink=self._sink, seconds=round(paused, 1))
        data = {"sink": self._sink, "reason": reason, "seconds": round(paused, 1)}
        self._tell("bridge.sink.resumed", self._sink, data)

    async def _set(self, state: PauseState | None, now: float) -> None:
        if self.state:
            self._metrics.sink_paused.labels(self._sink, self.state.reason).set(0)
        self.state = state
        if state:
            self._metrics.sink_paused.labels(self._sink, state.reason).set(1)
        try:
            await self._outbox.set_pause(self._sink, state, now)
        except OutboxError as error:
            log.warning("pause not stored", sink=self._sink, error=str(error))
