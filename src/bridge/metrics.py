"""Every metric bridge exports (DESIGN.md §2.8): made once, all series at 0 from the start.

Labels are closed sets: names from the config and words from this file, never an id or an error text.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from itertools import accumulate, product
from types import MappingProxyType
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from bridge.delivery import REASONS

RECONNECT_REASONS = ("ended", "transient", "rate_limited", "refused", "rejected", "recycle")
ALERT_STATES: tuple[Literal["pending", "firing"], ...] = ("pending", "firing")
NOTIFICATION_OUTCOMES = ("queued", "superseded", "delivered", "dead")
ENTITY_KINDS = ("device", "gateway", "application", "other")
GAP_CAUSES = ("trimmed", "no_store")
LATENCY_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 21600, 86400),
)  # seconds: a local broker answers in one millisecond, a dead sink recovers after a day


EXEMPLAR_LIMIT = 100  # characters; OpenMetrics 1.0 allows 128 with the label's name


def exemplar(unique_id: str) -> dict[str, str] | None:
    """What leads from a point in a graph to `bridge trace`; None if the id is too long for that."""
    return {"unique_id": unique_id} if len(unique_id) <= EXEMPLAR_LIMIT else None


class Numbers(Collector):
    """A metric with one label: numbers in a dict, where a series of the library has 600 bytes and a lock."""

    def __init__(
        self, kind: type[CounterMetricFamily | GaugeMetricFamily], name: str, text: str, label: str
    ) -> None:
        self._kind, self._name, self._text, self._label = kind, name, text, label
        self.of = defaultdict[str, float](float)

    def describe(self) -> Iterable[Metric]:
        yield self._family()

    def collect(self) -> Iterable[Metric]:
        family = self._family()
        for value, number in self.of.items():
            family.add_metric((value,), number)
        yield family

    def _family(self) -> CounterMetricFamily | GaugeMetricFamily:
        return self._kind(self._name, self._text, labels=(self._label,))


class Buckets:
    """What one sink took so far; observing costs a quarter of what the library's histogram takes."""

    __slots__ = ("_counts", "_examples", "_sum")

    def __init__(self) -> None:
        self._counts = [0] * (len(LATENCY_BUCKETS) + 1)
        self._examples: list[Exemplar | None] = [None] * len(self._counts)
        self._sum = 0.0

    def observe(self, seconds: float, example: dict[str, str] | None = None) -> None:
        at = bisect_left(LATENCY_BUCKETS, seconds)
        self._counts[at] += 1
        self._sum += seconds
        if example:
            self._examples[at] = Exemplar(example, seconds, time.time())

    def add_to(self, family: HistogramMetricFamily, sink: str) -> None:
        bounds = map(floatToGoString, (*LATENCY_BUCKETS, math.inf))
        counted = zip(bounds, accumulate(self._counts), self._examples, strict=True)
        buckets: list[Any] = [
            (le, count, example) if example else (le, count) for le, count, example in counted
        ]
        family.add_metric((sink,), buckets, self._sum)


class Latencies(Collector):
    """A histogram in seconds with a series for each sink."""

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        self._name, self._text = name, text
        self.of = defaultdict[str, Buckets](Buckets)
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        yield self._family()

    def collect(self) -> Iterable[Metric]:
        family = self._family()
        for sink, buckets in self.of.items():
            buckets.add_to(family, sink)
        yield family

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name, self._text, labels=("sink",))


class Dropped(Numbers):
    """How often `sample` left out what a rule matched, which is intentional; nothing else is dropped."""

    def __init__(self) -> None:
        text = "Events a rule matched and did not send: left out by sample (intentional), or lost."
        super().__init__(CounterMetricFamily, "bridge_events_dropped_total", text, "rule")

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=(self._label, "intentional"))
        for rule, number in self.of.items():
            family.add_metric((rule, "true"), number)
            family.add_metric((rule, "false"), 0)
        yield family


class Metrics:
    """The counters and gauges that parts of bridge move themselves.

    What promise 6 counts (received, duplicate, accepted, delivered, ...) is not here: those are rows
    of the store, shown by `ops`.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._alert_sinks: Mapping[str, Collection[str]] = {}
        source, sink = ("source",), ("sink",)

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...]) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        def numbers(
            kind: type[CounterMetricFamily | GaugeMetricFamily], name: str, text: str, label: str
        ) -> Numbers:
            made = Numbers(kind, name, text, label)
            registry.register(made)
            return made

        self.source_connected = gauge(
            "bridge_source_connected", "1 while a stream of the source is open.", source
        )
        self.source_entities = gauge(
            "bridge_source_entities", "Entities this process follows; replicas divide them.", source
        )
        self.source_reconnects = counter(
            "bridge_source_reconnects_total", "Streams opened anew, by cause.", ("source", "reason")
        )
        self.source_last_event = numbers(
            GaugeMetricFamily,
            "bridge_source_last_event_timestamp_seconds",
            "When the last event came.",
            "source",
        )
        self.source_lag = numbers(
            GaugeMetricFamily,
            "bridge_source_lag_seconds",
            "Age of the last live event when it came, by the server's clock.",
            "source",
        )
        self.source_blocked = counter(
            "bridge_source_blocked_seconds_total", "Time reading waited for a full buffer.", source
        )
        self.source_frame_errors = counter(
            "bridge_source_frame_errors_total",
            "Frames that were no event and were skipped.",
            source,
        )
        self.source_sparse = counter(
            "bridge_source_sparse_events_total",
            "Replayed events whose body the server no longer had.",
            source,
        )
        self.source_refused = gauge(
            "bridge_source_refused", "1 while the key is refused or has lost rights that rules need.", source
        )
        self.source_gaps = counter(
            "bridge_source_gaps_total",
            "Breaks after which events are missing for certain or most likely.",
            ("source", "cause"),
        )
        self.source_unproven = gauge(
            "bridge_source_unproven",
            "Entities whose history could not prove that nothing was lost in the last break.",
            source,
        )
        self.source_recovered = counter(
            "bridge_source_recovered_events_total",
            "Events that only the server's history brought.",
            source,
        )
        self.source_reread_ratio = gauge(
            "bridge_source_reread_ratio",
            "Share of the entities whose history is read again before it can be trimmed.",
            source,
        )
        self.source_excluded = gauge(
            "bridge_source_excluded", "Entities the server refuses a stream for.", source
        )
        self.source_opaque = counter(
            "bridge_source_opaque_data_total",
            "Data of types this version does not know, passed as base64 (gRPC).",
            source,
        )
        self.source_names_refused = counter(
            "bridge_source_names_refused_total", "Event names the server does not know.", source
        )
        self.rule_matches = numbers(
            CounterMetricFamily,
            "bridge_rule_matches_total",
            "Events the rule matched, repeats aside.",
            "rule",
        )
        self.rule_errors = numbers(
            CounterMetricFamily,
            "bridge_rule_errors_total",
            "Events the rule could not be judged on.",
            "rule",
        )
        self.events_dropped = Dropped()
        registry.register(self.events_dropped)
        self.alerts = gauge("bridge_alerts", "Keys of each alert, by state.", ("alert", "state"))
        self.alert_notifications = counter(
            "bridge_alert_notifications_total",
            "Notifications stored, and what became of them.",
            ("alert", "sink", "outcome"),
        )
        self.alert_late = counter(
            "bridge_alert_late_events_total",
            "Events that came too late to change the state of an alert.",
            ("alert",),
        )
        self.silent_entities = gauge(
            "bridge_silent_entities", "Entities that are missed by an alert of kind absent.", ("kind",)
        )
        self.entity_flaps = counter(
            "bridge_entity_flaps_total", "Times something was down and up again before it counted.", ("kind",)
        )
        self.delivery_failures = counter(
            "bridge_delivery_failures_total", "Attempts that failed, by cause.", ("sink", "reason")
        )
        self.delivery_latency = Latencies(
            "bridge_delivery_latency_seconds", "Time one attempt took.", registry
        )
        self.end_to_end_latency = Latencies(
            "bridge_end_to_end_latency_seconds", "From receipt to the receiver's confirmation.", registry
        )
        self.sink_paused = gauge(
            "bridge_sink_paused", "1 while the sink is paused for this cause.", ("sink", "reason")
        )
        self.sink_pause_seconds = counter(
            "bridge_sink_pause_seconds_total", "Time the sink was paused.", ("sink", "reason")
        )

        self.outbox_oldest_age = gauge(
            "bridge_outbox_oldest_age_seconds", "Age of the oldest delivery that waits.", sink
        )
        self.outbox_bytes = gauge(
            "bridge_outbox_bytes", "The store's bytes, shared out by the rows each sink holds in it.", sink
        )
        self.store_bytes = gauge("bridge_store_bytes", "Bytes in use: pages and write-ahead log.", ())
        self.store_limit = gauge("bridge_store_limit_bytes", "max_size.", ())
        self.store_disk = gauge("bridge_store_disk_bytes", "Size of the file system the store is on.", ())
        self.store_disk_free = gauge("bridge_store_disk_free_bytes", "What is free on it.", ())
        self.replicas = gauge(
            "bridge_replicas", "Processes that share the store, this one included; 0 where it is a file.", ()
        )
        self.build_info = gauge("bridge_build_info", "Always 1.", ("version",))
        self.config_hash = gauge("bridge_config_hash", "A number made from the running config.", ())
        self.reload_successful = gauge(
            "bridge_config_last_reload_successful", "1 if the last load of the config succeeded.", ()
        )
        self.reload_time = gauge(
            "bridge_config_last_reload_success_timestamp_seconds", "When the config was loaded.", ()
        )

    def prepare(
        self,
        *,
        sources: Iterable[str],
        sinks: Iterable[str],
        rules: Iterable[str],
        alerts: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> None:
        """Make every series of these names, at 0; *alerts* with the sinks each may tell."""
        self._alert_sinks = alerts
        for alert, told in alerts.items():
            self.alert_late.labels(alert)
            for state in ALERT_STATES:
                self.alerts.labels(alert, state)
            for sink, outcome in product(told, NOTIFICATION_OUTCOMES):
                self.alert_notifications.labels(alert, sink, outcome)
        for kind in ENTITY_KINDS:
            self.silent_entities.labels(kind)
            self.entity_flaps.labels(kind)
        for name in sources:
            self.source_last_event.of[name] += 0
            self.source_lag.of[name] += 0
            for metric in (
                self.source_connected,
                self.source_entities,
                self.source_blocked,
                self.source_frame_errors,
                self.source_sparse,
                self.source_refused,
                self.source_unproven,
                self.source_recovered,
                self.source_reread_ratio,
                self.source_excluded,
                self.source_names_refused,
                self.source_opaque,
            ):
                metric.labels(name)
            for cause in GAP_CAUSES:
                self.source_gaps.labels(name, cause)
            for cause in RECONNECT_REASONS:
                self.source_reconnects.labels(name, cause)
        for name in sinks:
            self.delivery_latency.of[name]
            self.end_to_end_latency.of[name]
            self.outbox_oldest_age.labels(name)
            self.outbox_bytes.labels(name)
            for reason in REASONS:
                self.delivery_failures.labels(name, reason)
                self.sink_paused.labels(name, reason)
                self.sink_pause_seconds.labels(name, reason)
        for name in rules:
            self.rule_matches.of[name] += 0
            self.rule_errors.of[name] += 0
            self.events_dropped.of[name] += 0

    def notified(self, rule: str, sink: str, outcome: str, count: int = 1) -> None:
        """Count what became of a notification, if *rule* is an alert that tells *sink*."""
        if sink in self._alert_sinks.get(rule, ()):
            self.alert_notifications.labels(rule, sink, outcome).inc(count)
