"""SIGKILL at random moments: a real process, a real broker, a real HTTP receiver, a failing upstream."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import anyio
import msgspec
import pytest

from bridge.event import rfc3339
from bridge.ids import ulid
from bridge.receiver import receive
from bridge.standin import ALL, World, serve
from bridge.standin.faults import Cut, Duplicate, ErrorFrame, Reorder
from tests.integration.listening import UNLIMITED, subscribed, until_arrived
from tests.integration.process import announced, start, until_settled, violations
from tests.recordings import documents
from tests.servers import mosquitto

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.timeout(300)]

KILLS = 30
PER_SECOND = 100.0
OUTSTANDING = 90  # events the receiver has not had yet: of a hundred an entity the server keeps all
AT_LEAST = 1500  # events
IN_FLIGHT = {"crm": 16, "broker": 20}
TOKEN = "NNSXS.AAAAAAAA.BBBBBBBB"

CONFIG = """
sources:
  eu1:
    type: tts
    url: {tts}
    api_key: {token}
    overlap: 5s
    identifiers:
      - application: plant-a
      - application: plant-b
{devices}
sinks:
  crm:
    type: webhook
    url: {crm}
    max_in_flight: 16
    allow_private_networks: true
    retry: {{initial: 200ms, max: 1s}}
  broker:
    type: mqtt
    url: {broker}
    topic: "events/{{{{ ids.path or 'none' }}}}"
    max_in_flight: 20
    retry: {{initial: 200ms, max: 1s}}
rules: [rules.yaml]
admin: {{listen: "127.0.0.1:0"}}
log: {{format: json}}
"""

RULES = """
rules:
  - name: everything
    match: {}
    send: [crm, broker]
"""


def fresh(rng: random.Random) -> Iterator[bytes]:
    """Recorded device events without end, each with an id and a time of its own."""
    recorded = [each for each in documents("devices.sse") if "device_ids" in each["identifiers"][0]]
    for event in itertools.cycle(recorded):
        ns = time.time_ns()
        yield msgspec.json.encode(event | {"unique_id": ulid(ns, rng), "time": rfc3339(ns)})


async def publish(
    world: World, rng: random.Random, published: list[str], posted: list[str], stop: anyio.Event
) -> None:
    """As fast as the server can still keep what bridge, killed again and again, has not read."""
    for body in fresh(rng):
        while len(published) - len(set(posted)) > OUTSTANDING and not stop.is_set():
            await anyio.sleep(0.05)
        if stop.is_set():
            return
        published.append(json.loads(body)["unique_id"])
        world.publish(body)
        await anyio.sleep(rng.expovariate(PER_SECOND))


def devices() -> str:
    found = {
        (ids["application_ids"]["application_id"], ids["device_id"])
        for event in documents("devices.sse")
        for ids in [each.get("device_ids") for each in event["identifiers"]]
        if ids
    }
    return "\n".join(f"      - device: {application}/{device}" for application, device in sorted(found))


def trouble(rng: random.Random) -> tuple[Cut | ErrorFrame, ...]:
    """How a stream ends by itself, if it does: torn in the middle of an event, or with an error."""
    after = rng.randrange(20, 400)
    return rng.choice(((), (Cut(after, rng.random()),), (ErrorFrame(after),)))


async def test_thirty_kills_lose_nothing(tmp_path: Path) -> None:
    """Nothing is missing at either receiver; repeats ≤ what was in flight at the kills; the sums hold."""
    rng = random.Random(20261124)
    everywhere = (Duplicate(0.05), Reorder(8, 0.05))
    world = World({TOKEN: ALL}, rng=rng)
    published: list[str] = []
    posted: list[str] = []

    with mosquitto(tmp_path / "mosquitto", config=UNLIMITED) as broker:
        async with (
            serve(world) as upstream,
            receive(on_delivery=lambda got: posted.append(json.loads(got.body)["unique_id"])) as crm,
            subscribed(broker, "events/#") as arrived,
            anyio.create_task_group() as tasks,
        ):
            config = CONFIG.format(
                tts=upstream.url, token=TOKEN, crm=crm.url, broker=broker.url(), devices=devices()
            )
            (tmp_path / "bridge.yaml").write_text(config)
            (tmp_path / "rules.yaml").write_text(RULES)
            stop = anyio.Event()
            world.faults.always = everywhere
            bridge = await announced(start(tmp_path))
            tasks.start_soon(publish, world, rng, published, posted, stop)
            for _ in range(KILLS):
                world.faults.on_open(*everywhere, *trouble(rng))
                await anyio.sleep(rng.uniform(0.05, 1.0))
                bridge.kill()
                seen = bridge.log.stat().st_size
                bridge = await announced(start(tmp_path), since=seen)
            with anyio.fail_after(60):
                while len(published) < AT_LEAST:
                    await anyio.sleep(0.1)
            stop.set()
            world.faults.opens.clear()
            await until_settled(bridge, {"crm": len(published), "broker": len(published)})
            assert bridge.terminate() == 0
            await until_arrived(set(published), arrived)

    assert set(published) - set(posted) == set()
    assert set(published) - set(arrived) == set()
    assert repeats(posted) <= KILLS * IN_FLIGHT["crm"]
    assert repeats(arrived) <= KILLS * IN_FLIGHT["broker"]
    assert await violations(tmp_path / "bridge.db") == []


def repeats(ids: list[str]) -> int:
    return sum(count - 1 for count in Counter(ids).values())
