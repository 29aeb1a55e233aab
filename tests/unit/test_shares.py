"""What one of several replicas takes on: leases, entities, a part of a rate limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.alerts.partition import PARTITIONS
from bridge.config import Config, load
from bridge.event import Entity
from bridge.replicas import SHARDS, lease_names, of_replica, parts_of
from bridge.sources.plan import shard

SOURCES = """
sources:
  eu1: {type: tts, url: https://eu1.example, api_key: k, identifiers: [{gateway: "*"}]}
  lab: {type: replay, path: recorded.sse}
sinks:
  crm: {type: webhook, url: https://crm.example, rate_limit: 60/s}
  lamp: {type: mqtt, url: mqtt://broker.example}
  lit: {type: mqtt, url: mqtt://broker.example, status_topic: b/lit}
rules: [rules.yaml]
outbox: nats://a:4222
"""
RULES = "rules: [{name: everything, match: {}, send: [crm]}]"
ALERT = """
alerts:
  - name: down
    kind: state
    down: {name: gs.gateway.disconnect}
    up: {name: gs.gateway.connect}
    by: gateway
    send: [crm]
"""


def config(folder: Path, rules: str) -> Config:
    (folder / "rules.yaml").write_text(rules)
    (folder / "bridge.yaml").write_text(SOURCES)
    return load(folder / "bridge.yaml", {})


def test_the_parts_of_a_source_are_leased_whether_or_not_there_are_alerts(tmp_path: Path) -> None:
    """And a recording as a whole."""
    for rules in (RULES, RULES + ALERT):
        found = config(tmp_path, rules)
        assert lease_names(found)[0] == [*(f"eu1/{n}" for n in range(SHARDS)), "lab"]
        assert parts_of("lab", found) == ["lab"]


def test_alerts_are_leased_in_partitions_of_their_own(tmp_path: Path) -> None:
    """Where there are any; no source can have the name of one."""
    assert lease_names(config(tmp_path, RULES))[1] == []
    assert lease_names(config(tmp_path, RULES + ALERT))[1] == [f"alerts {n}" for n in range(PARTITIONS)]


def test_an_application_and_its_devices_are_in_one_part() -> None:
    """The same on every replica; many applications are in many parts."""
    application = Entity("application", "plant-a")
    assert {shard(Entity("device", f"plant-a/m{n}"), SHARDS) for n in range(50)} == {
        shard(application, SHARDS)
    }
    assert len({shard(Entity("gateway", f"gw-{n}"), SHARDS) for n in range(200)}) == SHARDS


@pytest.mark.parametrize(("replicas", "rate"), [(1, 60.0), (3, 20.0)])
def test_a_rate_limit_is_the_sinks(tmp_path: Path, replicas: int, rate: float) -> None:
    """Each replica keeps to its part; a sink without one is left alone."""
    sinks = config(tmp_path, RULES).sinks
    assert getattr(of_replica(sinks["crm"], replicas), "rate_limit", None) == rate
    assert of_replica(sinks["lit"], replicas) == sinks["lit"]


def test_a_replica_speaks_of_itself_only_where_it_was_asked_to(tmp_path: Path) -> None:
    """A retained `offline` of one that left would say that all have."""
    sinks = config(tmp_path, RULES).sinks
    assert getattr(of_replica(sinks["lamp"], 1), "status_topic", "") is None
    assert getattr(of_replica(sinks["lit"], 3), "status_topic", "") == "b/lit"
