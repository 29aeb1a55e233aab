"""SIGTERM in the middle of work: what is in flight ends, what waits stays, nothing is sent twice."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import anyio
import msgspec
import pytest

from bridge.receiver import Received, Reply, receive
from tests.integration.process import Bridge, announced, start, until, violations
from tests.recordings import documents

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.timeout(90)]

EVENTS = 300

CONFIG = """
sources:
  file: {{type: replay, path: events.ndjson, speed: max, verbatim: true}}
sinks:
  crm:
    type: webhook
    url: {crm}
    max_in_flight: 8
    allow_private_networks: true
rules: [rules.yaml]
shutdown_timeout: {drain}
admin: {{listen: "127.0.0.1:0"}}
log: {{format: json}}
"""

RULES = "rules: [{name: everything, match: {}, send: [crm]}]"


def write(folder: Path, crm: str, drain: str) -> None:
    (folder / "bridge.yaml").write_text(CONFIG.format(crm=crm, drain=drain))
    (folder / "rules.yaml").write_text(RULES)
    events = list(documents("devices.sse"))[:EVENTS]
    (folder / "events.ndjson").write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in events))


async def terminated(bridge: Bridge) -> tuple[int, float]:
    """Exit code, and seconds from SIGTERM to the end; the receiver goes on answering meanwhile."""
    began = time.monotonic()
    return await anyio.to_thread.run_sync(bridge.terminate), time.monotonic() - began


async def test_what_is_in_flight_ends_and_the_rest_waits(tmp_path: Path) -> None:
    """After a second start everything has arrived, each exactly once."""
    posted: list[str] = []
    slow = Reply(delay=0.2)

    def got(received: Received) -> Reply:
        posted.append(received.id)
        return slow

    async with receive(on_delivery=got) as crm:
        write(tmp_path, crm.url, "20s")
        bridge = await announced(start(tmp_path))
        await until(bridge, lambda status: status["sinks"]["crm"]["delivered"] >= 20)
        code, took = await terminated(bridge)
        assert (code, took < 15.0) == (0, True)
        assert len(posted) < EVENTS

        slow = Reply()
        bridge = await announced(start(tmp_path, log="second.log"))
        await until(bridge, lambda status: status["sinks"]["crm"]["delivered"] == EVENTS)
        assert (await terminated(bridge))[0] == 0

    assert set(Counter(posted).values()) == {1}
    assert len(posted) == EVENTS
    assert await violations(tmp_path / "bridge.db") == []


async def test_a_receiver_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """After `shutdown_timeout` it is over; what it held is on disk."""
    async with receive(answer=Reply(hang=True)) as crm:
        write(tmp_path, crm.url, "1s")
        bridge = await announced(start(tmp_path))
        await until(bridge, lambda status: status["sinks"]["crm"]["waiting"] == EVENTS)
        code, took = await terminated(bridge)

    assert code == 0
    assert 0.9 < took < 15.0
    assert await violations(tmp_path / "bridge.db") == []
