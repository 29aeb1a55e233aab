"""Alerts of the real command against the stand-in: told once, over a kill, with silences and lists."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from bridge.receiver import Received, receive
from bridge.standin import ALL, World
from bridge.standin import serve as serve_standin
from tests.integration.process import Bridge, announced, run, start, until_connected, violations

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.timeout(120)]

TOKEN = "NNSXS.AAAAAAAA.BBBBBBBB"
ADMIN = "s3cret-admin-token"
CONFIG = """\
sources:
  eu1:
    {{type: tts, url: "{tts}", api_key: {token}, overlap: 1s,
     identifiers: [{{gateway: gw-yard}}, {{gateway: gw-roof}}]}}
sinks:
  crm: {{type: webhook, url: "{crm}", allow_private_networks: true, retry: {{initial: 100ms, max: 200ms}}}}
rules: [rules.yaml]
admin: {{listen: "127.0.0.1:0", token: {admin}}}
log: {{format: json}}
"""
RULES = """\
rules: []
alerts:
  - name: gateway-down
    kind: state
    down: {name: gs.gateway.disconnect}
    up: {any: [{name: gs.gateway.connect},
               {name: gs.gateway.connection.stats, data: {disconnected_at: [{exists: false}]}}]}
    by: gateway
    for: 3s
    labels: {severity: page}
    summary: "{{ ids.path }} is {{ status }} since {{ since }}"
    send: [crm]
"""


class Told:
    """What the receiver got, as (status, key)."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def note(self, got: Received) -> None:
        self.events.append(json.loads(got.body))

    @property
    def words(self) -> list[tuple[str, str]]:
        return [(each["data"]["status"], each["data"]["key"]) for each in self.events]

    async def until(self, count: int, within: float = 40.0) -> None:
        with anyio.move_on_after(within):
            while len(self.events) < count:
                await anyio.sleep(0.05)
        assert len(self.events) >= count, self.words


def written(folder: Path, tts: str, crm: str) -> None:
    (folder / "bridge.yaml").write_text(CONFIG.format(tts=tts, crm=crm, token=TOKEN, admin=ADMIN))
    (folder / "rules.yaml").write_text(RULES)


@asynccontextmanager
async def life(folder: Path) -> AsyncIterator[Bridge]:
    """One life of the process, with a log of its own."""
    bridge = start(folder, log=f"{len(list(folder.glob('*.log')))}.log")
    try:
        yield await announced(bridge)
    finally:
        if bridge.process.poll() is None:
            bridge.kill()


def ids(gateway: str) -> dict[str, Any]:
    return {"gateway_ids": {"gateway_id": gateway}}


async def asked(bridge: Bridge, path: str) -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(bridge.url + path, headers={"Authorization": f"Bearer {ADMIN}"})
        found: dict[str, Any] = answer.json()
        return found


async def until_state(bridge: Bridge, state: str) -> dict[str, Any]:
    with anyio.fail_after(30):
        while True:
            found = (await asked(bridge, "/api/alerts"))["alerts"]
            if found and found[0]["state"] == state:
                one: dict[str, Any] = found[0]
                return one
            await anyio.sleep(0.05)


async def test_an_alert_is_told_once_over_a_kill_and_resolved(tmp_path: Path) -> None:
    """Killed while pending, and again when it was told: firing once, resolved once, sums that hold."""
    world, told = World({TOKEN: ALL}), Told()
    async with serve_standin(world) as upstream, receive(on_delivery=told.note) as crm:
        written(tmp_path, upstream.url, crm.url)
        async with life(tmp_path) as bridge:
            bridge.token = ADMIN
            await until_connected(bridge)
            world.emit("gs.gateway.connect", ids("gw-yard"))
            world.emit("gs.gateway.disconnect", ids("gw-yard"))
            await until_state(bridge, "pending")
            bridge.kill()
        async with life(tmp_path) as bridge:
            bridge.token = ADMIN
            await told.until(1)
            state = await until_state(bridge, "firing")
            bridge.kill()
        async with life(tmp_path) as bridge:
            bridge.token = ADMIN
            await until_connected(bridge)
            listed = run("alerts", "list", "--json", cwd=tmp_path)
            world.emit("gs.gateway.connect", ids("gw-yard"))
            await told.until(2)
            metrics = await bridge.metrics()
        sums = await violations(tmp_path / "bridge.db")

    assert told.words == [("firing", "gw-yard"), ("resolved", "gw-yard")]
    firing = told.events[0]
    assert firing["name"] == "bridge.alert.firing"
    assert firing["identifiers"] == [ids("gw-yard")]
    assert firing["data"]["labels"] == {
        "alertname": "gateway-down",
        "gateway": "gw-yard",
        "severity": "page",
    }
    assert firing["data"]["summary"].startswith("gw-yard is firing since 20")
    assert [each["name"] for each in firing["data"]["events"]] == ["gs.gateway.disconnect"]
    assert (state["alert"], state["key"]) == ("gateway-down", "gw-yard")
    assert json.loads(listed.stdout)["state"] == "firing", listed.stderr
    assert (
        'bridge_alert_notifications_total{alert="gateway-down",outcome="delivered",sink="crm"} 1.0' in metrics
    )
    assert 'bridge_alerts{alert="gateway-down",state="firing"} 0.0' in metrics
    assert sums == []


async def test_what_a_gateway_did_while_bridge_was_away_is_asked_for(tmp_path: Path) -> None:
    """A gateway server that crashes emits nothing: the statistics say who is not connected any more."""
    world, told = World({TOKEN: ALL}), Told()
    async with serve_standin(world) as upstream, receive(on_delivery=told.note) as crm:
        written(tmp_path, upstream.url, crm.url)
        async with life(tmp_path) as bridge:
            bridge.token = ADMIN
            await until_connected(bridge)
            world.emit("gs.gateway.connect", ids("gw-yard"))
            await anyio.sleep(0)
            with anyio.fail_after(20):
                while not (await bridge.status())["sources"]["eu1"]["accepted"]:
                    await anyio.sleep(0.05)
            bridge.kill()
        world.stats.pop("gw-yard", None)
        async with life(tmp_path) as bridge:
            bridge.token = ADMIN
            await told.until(1)

    assert told.words == [("firing", "gw-yard")]


async def test_a_silence_keeps_a_notification_back_until_it_ends(tmp_path: Path) -> None:
    """Added and ended by command while bridge runs."""
    world, told = World({TOKEN: ALL}), Told()
    async with serve_standin(world) as upstream, receive(on_delivery=told.note) as crm:
        written(tmp_path, upstream.url, crm.url)
        async with life(tmp_path) as bridge:
            bridge.token = ADMIN
            await until_connected(bridge)
            added = run("silence", "add", "gateway=gw-yard", "--comment", "new roof", cwd=tmp_path)
            world.emit("gs.gateway.disconnect", ids("gw-yard"))
            world.emit("gs.gateway.disconnect", ids("gw-roof"))
            await told.until(1)
            found = {each["key"]: each for each in (await asked(bridge, "/api/alerts"))["alerts"]}
            listed = run("silence", "list", cwd=tmp_path)
            ended = run("silence", "expire", added.stdout.strip(), cwd=tmp_path)
            await told.until(2)

    assert added.returncode == 0, added.stderr
    assert found["gw-yard"]["suppressed"] == "silenced"
    assert found["gw-roof"]["suppressed"] == ""
    assert 'gateway="gw-yard"' in listed.stdout
    assert "new roof" in listed.stdout
    assert ended.returncode == 0, ended.stderr
    assert told.words == [("firing", "gw-roof"), ("firing", "gw-yard")]
