"""`redundancy: 2` on NATS: two replicas follow each entity, and when one dies nobody waits for its lease."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from bridge.receiver import receive
from bridge.standin import ALL, World, serve
from tests.integration.test_kill import TOKEN
from tests.integration.test_nats_replicas import (
    ALERTS,
    LEASE,
    NAMES,
    RULES,
    Replicas,
    calm,
    gateway,
    publish_one,
    settles,
)
from tests.nats import nats_server

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

GATEWAYS = [f"gw-{number}" for number in range(30)]
ENTITIES = len(GATEWAYS) + 2  # and two applications


@pytest.mark.timeout(120)
async def test_what_two_replicas_follow_has_no_gap_when_one_dies(tmp_path: Path) -> None:
    """All is followed twice and delivered once; what is said at the kill comes before the lease ends."""
    rng = random.Random(1)
    world, posted = World({TOKEN: ALL}, rng=rng), Counter[str]()
    with nats_server(tmp_path / "nats") as server:
        async with (
            serve(world) as upstream,
            receive(on_delivery=lambda got: posted.update([json.loads(got.body)["unique_id"]])) as crm,
        ):
            replicas = Replicas(tmp_path, server)
            (tmp_path / "rules.yaml").write_text(RULES + ALERTS)
            replicas.configure(
                upstream.url, crm.url, "".join(f"      - gateway: {name}\n" for name in GATEWAYS)
            )
            config = (tmp_path / "bridge.yaml").read_text()
            (tmp_path / "bridge.yaml").write_text(
                config.replace("overlap: 5s", "overlap: 5s\n    redundancy: 2")
            )
            try:
                await replicas.start(*NAMES)
                await replicas.until_divided(2 * ENTITIES, 3)
                first = [await publish_one(world, gateway(name, "connect", rng)) for name in GATEWAYS]
                await settles(lambda: set(first) <= set(posted), 30, lambda: len(posted))
                await calm(replicas)
                replicas.kill("b")
                began = time.monotonic()
                said = [await publish_one(world, gateway(name, "connect", rng)) for name in GATEWAYS]
                await settles(lambda: set(said) <= set(posted), LEASE * 0.75, lambda: len(posted))
                print(f"all that was said at the kill had come after {time.monotonic() - began:.2f} s")
                await replicas.until_divided(2 * ENTITIES, 2)
                replicas.kill("c")
                await replicas.until_divided(ENTITIES, 1)
                await calm(replicas)
            finally:
                replicas.end()
    assert {posted[each] for each in (*first, *said)} == {1}
