"""Every metric bridge exports (DESIGN.md §2.8): made once, all series at 0 from the start.

Labels are closed sets: names from the config and words from this file, never an id or an error text.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from bridge.delivery import REASONS

RECONNECT_REASONS = ("ended", "transient", "rate_limited", "refused", "rejected", "recycle")
GAP_CAUSES = ("trimmed", "no_store")
LATENCY_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 21600, 86400),
)  # seconds: a local broker answers in one millisecond, a dead sink recovers after a day


class Metrics:
    """The counters and gauges that parts of bridge move themselves.

    What promise 6 counts (received, duplicate, accepted, delivered, ...) is not here: those are rows
    of the store, shown by `ops`.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        source, sink, rule = ("source",), ("sink",), ("rule",)

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...]) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        self.source_connected = gauge(
            "bridge_source_connected", "1 while a stream of the source is open.", source
        )
        self.source_reconnects = counter(
            "bridge_source_reconnects_total", "Streams opened anew, by cause.", ("source", "reason")
        )
        self.source_last_event = gauge(
            "bridge_source_last_event_timestamp_seconds", "When the last event came.", source
        )
        self.source_lag = gauge(
            "bridge_source_lag_seconds",
            "Age of the last live event when it came, by the server's clock.",
            source,
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
        self.rule_matches = counter(
            "bridge_rule_matches_total", "Events the rule matched, repeats aside.", rule
        )
        self.rule_errors = counter(
            "bridge_rule_errors_total", "Events the rule could not be judged on.", rule
        )
        self.delivery_failures = counter(
            "bridge_delivery_failures_total", "Attempts that failed, by cause.", ("sink", "reason")
        )
        self.delivery_latency = Histogram(
            "bridge_delivery_latency_seconds",
            "Time one attempt took.",
            sink,
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.end_to_end_latency = Histogram(
            "bridge_end_to_end_latency_seconds",
            "From receipt to the receiver's confirmation.",
            sink,
            buckets=LATENCY_BUCKETS,
            registry=registry,
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
        self.store_bytes = gauge("bridge_store_bytes", "Bytes in use: pages and write-ahead log.", ())
        self.build_info = gauge("bridge_build_info", "Always 1.", ("version",))
        self.config_hash = gauge("bridge_config_hash", "A number made from the running config.", ())
        self.reload_successful = gauge(
            "bridge_config_last_reload_successful", "1 if the last load of the config succeeded.", ()
        )
        self.reload_time = gauge(
            "bridge_config_last_reload_success_timestamp_seconds", "When the config was loaded.", ()
        )

    def prepare(self, *, sources: Iterable[str], sinks: Iterable[str], rules: Iterable[str]) -> None:
        """Make every series of these names, at 0."""
        for name in sources:
            for metric in (
                self.source_connected,
                self.source_last_event,
                self.source_lag,
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
            self.delivery_latency.labels(name)
            self.end_to_end_latency.labels(name)
            self.outbox_oldest_age.labels(name)
            for reason in REASONS:
                self.delivery_failures.labels(name, reason)
                self.sink_paused.labels(name, reason)
                self.sink_pause_seconds.labels(name, reason)
        for name in rules:
            self.rule_matches.labels(name)
            self.rule_errors.labels(name)
