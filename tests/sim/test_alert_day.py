"""A day of a network with trouble: what a person gets is a handful of messages, each true (issue 7)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import pytest

from bridge.alerts.engine import Alerting
from bridge.alerts.groups import Notice
from bridge.alerts.parts import SECOND
from bridge.alerts.sights import Sight
from tests.alerting import START, alert_set, device, event, gateway

pytestmark = pytest.mark.sim

ALERTS = alert_set("""
alerts:
  - name: gateway-down
    kind: state
    down: {name: gs.gateway.disconnect}
    up: {any: [{name: gs.gateway.connect},
               {name: gs.gateway.connection.stats, data: {disconnected_at: [{exists: false}]}}]}
    silent: 5m
    by: gateway
    for: 5m
    group_by: [alertname]
    repeat_interval: 1d
    send: [ops]
  - name: gateway-flapping
    kind: threshold
    match: {name: gs.gateway.disconnect}
    by: gateway
    count: 6
    within: 1h
    group_by: [alertname]
    group_interval: 6h
    repeat_interval: 1d
    send: [ops]
  - name: device-silent
    kind: absent
    match: {name: as.up.data.forward}
    by: device
    for: 3x
    inhibited_by: {alert: gateway-down, when: last_heard_by}
    group_by: [application]
    repeat_interval: 1d
    send: [ops]
""")

HOUR = 3600.0
DAY = 24 * HOUR
GATEWAYS, FLAPPING, SITE = 500, 10, 40
OUTAGE = (9 * HOUR, 11 * HOUR)
DEAD = 6 * HOUR  # when one device stops for good


@dataclass(frozen=True, order=True)
class Happening:
    at: float
    name: str
    id: str
    heard: str = ""


def stats(rng: random.Random) -> Iterator[Happening]:
    """Every gateway tells of itself every minute, unless it is down."""
    for number in range(GATEWAYS):
        id, first = f"gw-{number:03}", rng.uniform(0, 60)
        yield Happening(first, "gs.gateway.connect", id)
        is_flapping, is_out = number < FLAPPING, number >= GATEWAYS - SITE
        for minute in range(24 * 60):
            at = first + 1 + 60 * minute
            if not (is_out and OUTAGE[0] <= at < OUTAGE[1]):
                yield Happening(at, "gs.gateway.connection.stats", id)
        if is_out:
            yield Happening(OUTAGE[0] + rng.uniform(0, 20), "gs.gateway.disconnect", id)
            yield Happening(OUTAGE[1] + rng.uniform(0, 20), "gs.gateway.connect", id)
        if is_flapping:
            for flap in range(60):
                at = 14 * HOUR + 60 * flap + rng.uniform(0, 30)
                yield Happening(at, "gs.gateway.disconnect", id)
                yield Happening(at + rng.uniform(1, 20), "gs.gateway.connect", id)


def uplinks(rng: random.Random) -> Iterator[Happening]:
    """Each device of the site sends every half an hour or so, heard by one of its gateways only."""
    for number in range(2000):
        id, heard = f"dev-{number:04}", f"gw-{GATEWAYS - SITE + number % SITE:03}"
        at = rng.uniform(0, 1800)
        while at < DAY:
            is_out = OUTAGE[0] <= at < OUTAGE[1] + 20
            if not is_out and not (number == 7 and at > DEAD):
                yield Happening(at, "as.up.data.forward", id, heard)
            at += 1800 * rng.uniform(0.95, 1.05)


def observed(
    happening: Happening, known: dict[tuple[str, str], list[Sight]], engine: Alerting
) -> list[Sight]:
    """Decoding and matching are done once for each name and entity: this is about a day, not about speed."""
    key = happening.name, happening.id
    if key not in known:
        ids = device(happening.id) if happening.heard else gateway(happening.id)
        heard = [{"gateway_ids": {"gateway_id": happening.heard}}]
        data = {"uplink_message": {"rx_metadata": heard}} if happening.heard else {}
        known[key] = engine.look(event(happening.name, 0.0, ids, data))
    ns = START + round(happening.at * SECOND)
    return [
        sight._replace(seen=msgspec.structs.replace(sight.seen, time=ns, id=str(ns))) for sight in known[key]
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_day_with_an_outage_is_told_in_a_handful_of_messages() -> None:
    """500 gateways, ten of them flapping, 40 out for two hours with 2,000 devices behind them."""
    rng = random.Random(7)
    engine = Alerting()
    engine.configure(ALERTS, 10 * SECOND)
    known: dict[tuple[str, str], list[Sight]] = {}
    told: list[tuple[float, Notice]] = []
    for happening in sorted([*stats(rng), *uplinks(rng)]):
        now = START + round(happening.at * SECOND)
        while (due := engine.next_tick()) is not None and due <= now:
            told += [((engine.now - START) / SECOND, each) for each in engine.tick(max(due, engine.now), {})]
        engine.observe("eu1", observed(happening, known, engine), now)
        engine.rows()
    counts = Counter((each.alert.name, each.status) for _, each in told)

    assert len(told) <= 8
    assert counts["gateway-down", "firing"] == 2, "the outage, and five minutes of gateways coming back"
    assert counts["gateway-down", "resolved"] == 1
    members = next(each for _, each in told if each.alert.name == "gateway-down").document["data"]["group"]
    assert {each["key"] for each in members["members"]} == {
        f"gw-{each:03}" for each in range(GATEWAYS - SITE, GATEWAYS)
    }
    silent = [each for _, each in told if each.alert.name == "device-silent"]
    assert [each.document["data"]["summary"].split(":")[0] for each in silent] == ["plant-a/dev-0007"]
    flapping = [each for _, each in told if each.alert.name == "gateway-flapping" and each.status == "firing"]
    keys = {member["key"] for each in flapping for member in each.document["data"]["group"]["members"]}
    assert keys == {f"gw-{each:03}" for each in range(FLAPPING)}
