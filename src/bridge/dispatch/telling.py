"""What attempts lead to beside the store: metrics, log lines once for each reason, own events, traces."""

from __future__ import annotations

import math

import structlog

from bridge.delivery import Dead, Delivered, Delivery, Failure, Later, RetryLater, Settlement
from bridge.event import entities
from bridge.metrics import Metrics, exemplar
from bridge.report import Tell, is_own
from bridge.tracing import Trace

log = structlog.get_logger()

CALM = 30.0  # seconds without a failure after which a sink counts as well again, for the log
SLOW = 1.0  # seconds of an attempt from which on each is an example in the metrics


class Telling:
    """Of one sink; *tell* takes own events, *trace* every attempt."""

    def __init__(self, sink: str, metrics: Metrics, tell: Tell, trace: Trace) -> None:
        self._sink = sink
        self._metrics = metrics
        self._tell = tell
        self._trace = trace
        self._last_failure: float | None = None
        self._last_dead = -math.inf
        self._example_due = -math.inf
        self._latency = metrics.delivery_latency.of[sink]
        self._end_to_end = metrics.end_to_end_latency.of[sink]

    def observe(self, settled: Settlement, now: float) -> None:
        name, delivery = self._sink, settled.delivery
        outcome, decided = settled.outcome, settled.verdict
        self._trace(settled, now)
        example = self._example(settled)
        self._latency.observe(settled.duration, example)
        if not isinstance(decided, Later):
            self._metrics.notified(delivery.rule, name, "dead" if isinstance(decided, Dead) else "delivered")
        if isinstance(outcome, Delivered):
            self._end_to_end.observe(max(0.0, now - delivery.received), example)
            if self._last_failure is not None and now - self._last_failure > CALM:
                self._last_failure = None
                log.info("deliveries succeed again", sink=name)
            return
        failure = outcome.failure
        self._metrics.delivery_failures.labels(name, failure.reason).inc()
        if isinstance(decided, Dead):
            tell = log.warning if now - self._last_dead > CALM else log.debug
            tell("dead letter", sink=name, delivery=delivery.id, reason=decided.reason, error=failure.error)
            self._last_dead = now
            self._tell_dead(delivery, decided, failure)
        elif isinstance(outcome, RetryLater) and isinstance(decided, Later):
            if self._last_failure is None:
                log.warning("deliveries fail", sink=name, reason=failure.reason, error=failure.error)
            self._last_failure = now

    def _example(self, settled: Settlement) -> dict[str, str] | None:
        """Of what is slow always, else one a second: it costs more than the rest of an observation."""
        ended = settled.started + settled.duration
        if settled.duration < SLOW and ended < self._example_due:
            return None
        self._example_due = ended + 1.0
        return exemplar(settled.delivery.event.unique_id)

    def _tell_dead(self, delivery: Delivery, decided: Dead, failure: Failure) -> None:
        """Not of own events: one that cannot be delivered would make the next."""
        if is_own(delivery.event):
            return
        name = self._sink
        data = {
            "sink": name,
            "rule": delivery.rule,
            "reason": decided.reason,
            "error": failure.error,
            "delivery": delivery.id,
            "event": delivery.event.name,
            "event_id": delivery.event.unique_id,
        }
        self._tell("bridge.dead_letter", f"{name} {decided.reason}", data, entities(delivery.event))
