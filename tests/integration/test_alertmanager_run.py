"""From gateways that fall to a person who is told: stand-in, `bridge run`, a real Alertmanager."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from bridge.event import Entity
from bridge.receiver import Receiver, receive
from bridge.standin import ALL, World
from bridge.standin import serve as serve_standin
from bridge.standin.player import play
from tests.alertmanagers import alertmanager
from tests.integration.process import running, until, until_connected, violations
from tests.recordings import RECORDED

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.timeout(120)]

TOKEN = "NNSXS.AAAAAAAA.BBBBBBBB"
FASTER = 30  # times: the three minutes of the recording are six seconds
CONFIG = """\
sources:
  eu1: {{type: tts, url: "{tts}", api_key: {token}, overlap: 1s, identifiers: [{{gateway: "*"}}]}}
sinks:
  am: {{type: alertmanager, url: "{am}"}}
rules: [rules.yaml]
admin: {{listen: "127.0.0.1:0"}}
log: {{format: json}}
"""
RULES = """\
alerts:
  - name: gateway-gone
    kind: state
    down: {name: gs.gateway.disconnect}
    up: {any: [{name: gs.gateway.connect},
               {name: gs.gateway.connection.stats, data: {disconnected_at: [{exists: false}]}}]}
    by: gateway
    for: 2s
    labels: {severity: page}
    summary: "{{ ids.path }} has been offline since {{ since }}"
    send: [am]
"""


def told(person: Receiver) -> list[dict[str, Any]]:
    return [json.loads(got.body) for got in person.deliveries]


def firing(found: list[dict[str, Any]]) -> set[str]:
    return {each["labels"]["gateway"] for each in found}


async def test_the_recorded_flaps_end_in_one_message_for_three_gateways(tmp_path: Path) -> None:
    """Five flaps send nothing; a kill of bridge and an Alertmanager that lost everything change nothing."""
    gateways = [Entity("gateway", name) for name in ("gw-yard", "gw-roof", "gw-field")]
    world = World({TOKEN: ALL}, entities=gateways)
    async with serve_standin(world) as upstream, receive() as person:
        with alertmanager(tmp_path / "am", person.url) as server:
            text = CONFIG.format(tts=upstream.url, am=server.url, token=TOKEN)
            (tmp_path / "bridge.yaml").write_text(text)
            (tmp_path / "rules.yaml").write_text(RULES)
            async with running(tmp_path) as bridge:
                await until_connected(bridge)
                await play(world, RECORDED / "gateway_flap.sse", FASTER)
                alerts = await server.until(["gateway-gone"] * 3, within=40)
                status = await until(bridge, lambda status: not status["sinks"]["am"]["waiting"])
                assert status["alerts"] == {"pending": 0, "firing": 3}
                bridge.kill()
            server.forget()
            (tmp_path / "bridge.log").unlink()
            async with running(tmp_path) as bridge:
                await until_connected(bridge)
                await server.until(["gateway-gone"] * 3, within=40)
                for gateway in gateways:
                    ids = {"gateway_ids": {"gateway_id": gateway.id}}
                    world.emit("gs.gateway.connect", ids)
                await server.until([], within=40)
                status = await until(bridge, lambda status: status["sinks"]["am"]["delivered"] == 6)
                with anyio.fail_after(20):
                    while told(person)[-1]["status"] != "resolved":
                        await anyio.sleep(0.05)
    assert firing(alerts) == {"gw-yard", "gw-roof", "gw-field"}
    (yard,) = (each for each in alerts if each["labels"]["gateway"] == "gw-yard")
    assert yard["labels"] == {"alertname": "gateway-gone", "gateway": "gw-yard", "severity": "page"}
    assert yard["annotations"]["summary"].startswith("gw-yard has been offline since 20")
    assert status["sinks"]["am"]["accepted"] == 6
    assert {each["status"] for each in told(person)[-1]["alerts"]} == {"resolved"}
    assert await violations(tmp_path / "bridge.db") == []
