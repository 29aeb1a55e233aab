"""Every series operators build on: there with its labels, at 0 from the start.

The table is FIELD.md §4 as DESIGN.md §2.8 reads it. None of these may be removed or renamed once released.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bridge.delivery import REASONS
from bridge.metrics import GAP_CAUSES, RECONNECT_REASONS
from bridge.receiver import receive
from bridge.standin import ALL, World, serve
from tests.integration.process import Bridge, running, until, until_connected
from tests.recordings import RECORDED
from tests.servers import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.timeout(60)]

IDLE = f"""
sources:
  eu1:
    type: tts
    url: http://127.0.0.1:{free_port()}
    api_key: NNSXS.A.B
    identifiers: [{{application: plant-a}}]
  file: {{type: replay, path: empty.ndjson}}
sinks:
  crm: {{type: webhook, url: "http://127.0.0.1:{free_port()}/", allow_private_networks: true}}
rules: [rules.yaml]
admin: {{listen: "127.0.0.1:0"}}
log: {{format: json}}
"""
BUSY = """
sources:
  file: {{type: replay, path: {path}, speed: max}}
sinks:
  crm: {{type: webhook, url: {url}, allow_private_networks: true}}
rules: [rules.yaml]
admin: {{listen: "127.0.0.1:0"}}
log: {{format: json}}
"""
RULES = """
rules:
  - {name: all, match: {}, send: [crm]}
  - {name: some, match: {name: as.up.data.forward}, sample: 1/2, send: [crm], allow: {shadowed: wanted here}}
alerts:
  - {name: down, kind: state, down: {name: gs.gateway.disconnect}, by: gateway, send: [crm]}
"""

SOURCE: dict[str, tuple[str, ...]] = {"source": ("eu1", "file")}
SINK: dict[str, tuple[str, ...]] = {"sink": ("crm",)}
RULE: dict[str, tuple[str, ...]] = {"rule": ("all", "some")}
FAILURES = (
    *("client_error", "auth", "rate_limited", "server_error", "timeout", "dns", "tls", "connect"),
    *("template", "blocked_address", "other", "redirect", "expired", "rejected"),
)
TABLE: dict[str, dict[str, tuple[str, ...]]] = {
    "bridge_source_events_received_total": SOURCE,
    "bridge_source_connected": SOURCE,
    "bridge_source_entities": SOURCE,
    "bridge_source_reconnects_total": SOURCE | {"reason": RECONNECT_REASONS},
    "bridge_source_last_event_timestamp_seconds": SOURCE,
    "bridge_source_lag_seconds": SOURCE,
    "bridge_source_gaps_total": SOURCE | {"cause": GAP_CAUSES},
    "bridge_source_sparse_events_total": SOURCE,
    "bridge_source_blocked_seconds_total": SOURCE,
    "bridge_source_frame_errors_total": SOURCE,
    "bridge_source_recovered_events_total": SOURCE,
    "bridge_source_reread_ratio": SOURCE,
    "bridge_source_unproven": SOURCE,
    "bridge_events_duplicate_total": SOURCE,
    "bridge_events_unmatched_total": SOURCE,
    "bridge_events_accepted_total": SOURCE,
    "bridge_rule_matches_total": RULE,
    "bridge_rule_errors_total": RULE,
    "bridge_events_dropped_total": RULE | {"intentional": ("true", "false")},
    "bridge_deliveries_accepted_total": SINK,
    "bridge_deliveries_total": SINK | {"outcome": ("delivered", "retried", "dead", "dropped")},
    "bridge_delivery_failures_total": SINK | {"reason": FAILURES},
    "bridge_delivery_latency_seconds_count": SINK,
    "bridge_end_to_end_latency_seconds_count": SINK,
    "bridge_outbox_rows": SINK,
    "bridge_outbox_oldest_age_seconds": SINK,
    "bridge_outbox_bytes": SINK,
    "bridge_sink_paused": SINK | {"reason": FAILURES},
    "bridge_sink_pause_seconds_total": SINK | {"reason": FAILURES},
    "bridge_dead_letters": SINK,
    "bridge_silent_entities": {"kind": ("device", "gateway")},
    "bridge_entity_flaps_total": {"kind": ("device", "gateway")},
    "bridge_alerts": {"alert": ("down",), "state": ("pending", "firing")},
    "bridge_alert_notifications_total": {"alert": ("down",), "sink": ("crm",)},
    "bridge_config_hash": {},
    "bridge_config_last_reload_successful": {},
    "bridge_config_last_reload_success_timestamp_seconds": {},
    "bridge_build_info": {"version": ()},
    "bridge_replicas": {},
    "bridge_store_bytes": {},
    "bridge_store_limit_bytes": {},
    "bridge_store_disk_bytes": {},
    "bridge_store_disk_free_bytes": {},
}
STATES = ("bridge_config", "bridge_build", "bridge_store")
"""Beginnings of names that are not at 0 from the start, because they say how things are."""

Series = dict[str, dict[tuple[tuple[str, str], ...], float]]


async def series_of(bridge: Bridge) -> Series:
    found: Series = {}
    for family in text_string_to_metric_families(await bridge.metrics()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


async def test_every_series_is_there_at_0_from_the_start(tmp_path: Path) -> None:
    """Also those of things that have never happened: `increase` sees the first one."""
    (tmp_path / "bridge.yaml").write_text(IDLE)
    (tmp_path / "rules.yaml").write_text(RULES)
    (tmp_path / "empty.ndjson").write_text("")
    async with running(tmp_path) as bridge:
        found = await series_of(bridge)
    for name, labels in TABLE.items():
        assert name in found, name
        for series in found[name]:
            assert {key for key, _ in series} >= labels.keys(), name
        for label, values in labels.items():
            present = {dict(series)[label] for series in found[name]}
            assert present >= set(values), name
        if not name.startswith(STATES):
            moving = {series: value for series, value in found[name].items() if value}
            assert all(
                "connect" in dict(series).values() or "eu1" in dict(series).values() for series in moving
            )
    assert set(REASONS) == set(FAILURES)


async def test_what_sampling_leaves_out_is_counted_and_looked_at(tmp_path: Path) -> None:
    """matched + dropped is every uplink, and an event that only sampling left out is not unmatched."""
    async with receive() as receiver:
        config = BUSY.format(path=RECORDED / "apps.sse", url=receiver.url)
        (tmp_path / "bridge.yaml").write_text(config)
        (tmp_path / "rules.yaml").write_text(RULES.replace("match: {}", "match: {name: as.down.*.nothing}"))
        async with running(tmp_path) as bridge:
            await until(
                bridge,
                lambda status: (
                    status["sources"]["file"]["finished"] and status["sinks"]["crm"]["delivered"] > 0
                ),
            )
            await until(bridge, lambda status: not status["sinks"]["crm"]["waiting"])
            found = await series_of(bridge)
    matched = found["bridge_rule_matches_total"][("rule", "some"),]
    dropped = found["bridge_events_dropped_total"][("intentional", "true"), ("rule", "some")]
    accepted = found["bridge_events_accepted_total"][("source", "file"),]
    assert matched > 0
    assert dropped > 0
    assert matched + dropped == accepted


FOLLOWED = """
sources:
  eu1:
    type: tts
    url: {url}
    api_key: t0ken
    identifiers: [{{application: plant-a}}, {{application: plant-b}}]
sinks:
  crm: {{type: webhook, url: "http://127.0.0.1:{closed}/", allow_private_networks: true}}
rules: [rules.yaml]
admin: {{listen: "127.0.0.1:0"}}
log: {{format: json}}
"""


async def test_a_source_that_a_reload_opened_anew_counts_as_connected(tmp_path: Path) -> None:
    """Its old streams end after the new ones are open, and do not take them with them."""
    eu1 = (("source", "eu1"),)
    async with serve(World({"t0ken": ALL})) as upstream:
        (tmp_path / "bridge.yaml").write_text(FOLLOWED.format(url=upstream.url, closed=free_port()))
        rules = tmp_path / "rules.yaml"
        rules.write_text("rules: [{name: all, match: {name: as.up.data.forward}, send: crm}]")
        async with running(tmp_path) as bridge:
            await until_connected(bridge)
            before = (await bridge.status())["config_hash"]
            rules.write_text("rules: [{name: all, match: {name: as.down.data.forward}, send: crm}]")
            bridge.process.send_signal(signal.SIGHUP)
            await until(bridge, lambda status: status["config_hash"] != before)
            await until_connected(bridge)
            found = await series_of(bridge)
    assert found["bridge_source_connected"][eu1] == 1
    assert found["bridge_source_entities"][eu1] == 2
