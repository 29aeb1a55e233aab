"""The alerts as metrics, when somebody asks for them."""

from __future__ import annotations

from bridge.metrics import ALERT_STATES, ENTITY_KINDS, Metrics
from bridge.ops.parts import Alerts


def publish(metrics: Metrics, alerting: Alerts) -> None:
    """Set the gauges to what is, and move the counters by what has happened since the last call."""
    tally = alerting.tally
    for alert in alerting.alerts.alerts:
        for state in ALERT_STATES:
            metrics.alerts.labels(alert.name, state).set(tally.phases[alert.name, state])
        metrics.alert_late.labels(alert.name).inc(tally.late.pop(alert.name, 0))
    silent = dict.fromkeys(ENTITY_KINDS, 0)
    for by, count in alerting.silent().items():
        silent[kind(by)] += count
    for each, count in silent.items():
        metrics.silent_entities.labels(each).set(count)
    for by in list(tally.flaps):
        metrics.entity_flaps.labels(kind(by)).inc(tally.flaps.pop(by))


def kind(by: str) -> str:
    """The label that stands for what an alert goes by: a closed set."""
    return by if by in ENTITY_KINDS else "other"
