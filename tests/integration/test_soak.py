"""Ten minutes at a steady pace, with trouble on both sides: memory, files and the store stay as they are.

`SOAK_MINUTES` makes it longer or shorter.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from bridge.event import Entity
from bridge.receiver import Received, Receiver, Reply, receive
from bridge.standin import ALL, Server, World, serve
from tests.integration.process import Bridge, running, until_connected, violations

MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(int(MINUTES * 60) + 240),
]

KEY = "NNSXS.SOAK.SECRET"
APP = Entity("application", "plant-a")
RATE = 100  # events/s
EVERY = 2.0  # seconds between samples
KEPT = "15s"  # what is kept for days by default: so that it comes and goes many times in here
CONFIG = """
sources:
  eu1:
    type: tts
    url: {source}
    api_key: {key}
    identifiers: [{{application: plant-a}}]
    recycle: 20s
    overlap: 1s
sinks:
  crm:
    type: webhook
    url: {crm}/crm
    allow_private_networks: true
    retry: {{initial: 200ms, max: 2s}}
  archive:
    type: webhook
    url: {crm}/archive
    allow_private_networks: true
    batch: {{max_events: 50}}
    retry: {{initial: 200ms, max: 2s}}
rules: [rules.yaml]
dedup_window: {kept}
trace_retention: {kept}
dead_letter_retention: {kept}
admin: {{listen: "127.0.0.1:0"}}
log: {{format: json}}
"""
RULES = """
rules:
  - {name: everything, match: {}, send: [crm, archive]}
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """MB in memory, open files, MB on disk."""

    memory: float
    files: int
    store: float


@dataclass
class Trouble:
    """One request in fifty fails in one of five ways."""

    chance: random.Random = field(default_factory=lambda: random.Random(9))

    def answer(self, _: Received) -> Reply | None:
        if self.chance.random() > 0.02:
            return None
        return self.chance.choice(
            [Reply(503), Reply(500, body=b"x" * 100_000), Reply(reset=True), Reply(413), Reply(delay=0.5)]
        )


def sample(bridge: Bridge, folder: Path) -> Sample:
    pid = bridge.process.pid
    status = Path(f"/proc/{pid}/status").read_text()
    return Sample(
        int(status.partition("VmRSS:")[2].split()[0]) / 1024,
        len(list(Path(f"/proc/{pid}/fd").iterdir())),
        sum(each.stat().st_size for each in folder.glob("bridge.db*") if each.suffix != ".reserve") / 1e6,
    )


async def publish(world: World, until: float) -> None:
    """Events of a hundred devices, at RATE."""
    number, began = 0, time.monotonic()
    while time.monotonic() < until:
        device = {"device_id": f"meter-{number % 100}", "application_ids": {"application_id": "plant-a"}}
        data = {"uplink_message": {"f_port": 1, "frm_payload": "AQ==" * 200, "f_cnt": number}}
        world.emit("as.up.data.forward", {"device_ids": device}, data=data)
        number += 1
        await anyio.sleep(max(0.0, began + number / RATE - time.monotonic()))


async def disturb(server: Server, crm: Receiver, until: float) -> None:
    """All streams break now and then; what the receiver has got is forgotten."""
    while time.monotonic() < until:
        await anyio.sleep(45.0)
        crm.deliveries.clear()
        server.cut()


async def test_nothing_grows(tmp_path: Path) -> None:
    """Of the samples after the first third, the last are like the first."""
    world, samples = World({KEY: ALL}, entities=[APP]), list[Sample]()
    async with serve(world) as server, receive(on_delivery=Trouble().answer) as crm:
        config = CONFIG.format(source=server.url, key=KEY, crm=crm.url, kept=KEPT)
        (tmp_path / "bridge.yaml").write_text(config)
        (tmp_path / "rules.yaml").write_text(RULES)
        async with running(tmp_path) as bridge:
            await until_connected(bridge)
            until = time.monotonic() + MINUTES * 60
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(publish, world, until)
                tasks.start_soon(disturb, server, crm, until)
                while time.monotonic() < until:
                    samples.append(sample(bridge, tmp_path))
                    await anyio.sleep(EVERY)
            status = await bridge.status()
            accepted = status["sinks"]["crm"]["accepted"]
    assert accepted > MINUTES * 60 * RATE * 0.3, "the pace was not kept"
    assert await violations(tmp_path / "bridge.db") == []
    assert grown(samples) == {}, json.dumps([[s.memory, s.files, s.store] for s in samples])


def grown(samples: list[Sample]) -> dict[str, tuple[float, float]]:
    """What is larger at the end than in the second quarter, beyond what it varies by."""
    second, last = samples[len(samples) // 4 : len(samples) // 2], samples[-len(samples) // 4 :]
    found = {}
    for name, allowed in (("memory", 8.0), ("files", 12.0), ("store", 8.0)):
        before, after = (statistics.median(getattr(each, name) for each in part) for part in (second, last))
        if after > before * 1.05 + allowed:
            found[name] = before, after
    return found
