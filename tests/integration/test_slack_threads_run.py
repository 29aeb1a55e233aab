"""Threads of alerts in Slack over a kill of `bridge run`: stand-in, the real process, a stand-in of Slack."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from bridge.receiver import Received, Reply, receive
from bridge.standin import ALL, World
from bridge.standin import serve as serve_standin
from tests.integration.process import running, until, until_connected

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.timeout(120)]

TOKEN = "NNSXS.AAAAAAAA.BBBBBBBB"
CONFIG = """\
sources:
  eu1: {{type: tts, url: "{tts}", api_key: {token}, overlap: 1s, identifiers: [{{gateway: gw-yard}}]}}
sinks:
  ops: {{type: slack, token: xoxb-1, channel: "#alerts", api_url: "{slack}", allow_private_networks: true}}
rules: [rules.yaml]
admin: {{listen: "127.0.0.1:0"}}
log: {{format: json}}
"""
RULES = """\
alerts:
  - name: gateway-gone
    kind: state
    down: {name: gs.gateway.disconnect}
    up: {name: gs.gateway.connect}
    by: gateway
    summary: "{{ ids.path }} is offline"
    send: [ops]
"""


async def test_a_recovery_finds_its_thread_after_a_kill(tmp_path: Path) -> None:
    """The reply goes below the message of the process before, which is edited."""
    calls: list[tuple[str, dict[str, Any]]] = []
    numbers = itertools.count(1)

    def answer(got: Received) -> Reply:
        calls.append((got.path.rpartition("/")[2], json.loads(got.body)))
        said = {"ok": True, "channel": "C024BE91L", "ts": f"1503435956.{next(numbers):06}"}
        return Reply(200, body=json.dumps(said).encode())

    world, ids = World({TOKEN: ALL}), {"gateway_ids": {"gateway_id": "gw-yard"}}
    async with serve_standin(world) as upstream, receive(on_delivery=answer) as slack:
        text = CONFIG.format(tts=upstream.url, slack=slack.url, token=TOKEN)
        (tmp_path / "bridge.yaml").write_text(text)
        (tmp_path / "rules.yaml").write_text(RULES)
        async with running(tmp_path) as bridge:
            await until_connected(bridge)
            world.emit("gs.gateway.disconnect", ids)
            await until(bridge, lambda status: status["sinks"]["ops"]["delivered"] == 1)
            bridge.kill()
        (tmp_path / "bridge.log").unlink()
        async with running(tmp_path) as bridge:
            await until_connected(bridge)
            world.emit("gs.gateway.connect", ids)
            with anyio.fail_after(40):
                while len(calls) < 3:
                    await anyio.sleep(0.05)
    first, edit, reply = calls
    assert first == ("chat.postMessage", first[1] | {"channel": "#alerts"})
    assert "thread_ts" not in first[1]
    assert edit[0] == "chat.update"
    assert (edit[1]["channel"], edit[1]["ts"]) == ("C024BE91L", "1503435956.000001")
    assert edit[1]["text"] == ":white_check_mark: :satellite: Resolved: gw-yard is offline"
    assert reply[0] == "chat.postMessage"
    assert reply[1]["thread_ts"] == "1503435956.000001"
