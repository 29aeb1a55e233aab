"""How long nobody follows what a killed replica has followed, by the length of the lease.

    python -m tests.bench.bench_takeover [seconds of a lease]...

Three replicas of `bridge run`, a stand-in with 30 gateways, a nats-server. One replica is killed, and each
gateway says something right then: what is measured is when the last of that has been delivered.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import anyio

from bridge.receiver import Received, receive
from bridge.standin import ALL, World, serve
from tests.integration.test_kill import TOKEN
from tests.integration.test_nats_replicas import NAMES, RULES, Replicas, gateway, publish_one
from tests.nats import nats_server

LEASES = (2.0, 5.0, 15.0)  # seconds
GATEWAYS = [f"gw-{number}" for number in range(30)]
KILLS = 3  # of each length


@dataclass
class Leased(Replicas):
    lease: float = 15.0

    def url(self, name: str) -> str:
        return self.server.url("bridge", lease=f"{self.lease:g}s", ack_wait="30s", replica=name)


def note(posted: dict[str, float], got: Received) -> None:
    posted.setdefault(json.loads(got.body)["unique_id"], time.monotonic())


async def measured(folder: Path, lease: float) -> list[float]:
    rng = random.Random(1)
    world, posted = World({TOKEN: ALL}, rng=rng), dict[str, float]()
    took: list[float] = []
    with nats_server(folder / "nats") as server:
        async with (
            serve(world) as upstream,
            receive(on_delivery=lambda got: note(posted, got)) as crm,
        ):
            replicas = Leased(folder, server, lease=lease)
            (folder / "rules.yaml").write_text(RULES)
            replicas.configure(
                upstream.url, crm.url, "\n".join(f"      - gateway: {name}" for name in GATEWAYS)
            )
            try:
                await replicas.start(*NAMES)
                for kill in range(KILLS):
                    await replicas.until_divided(len(GATEWAYS) + 2, len(NAMES))
                    name = NAMES[kill % len(NAMES)]
                    replicas.kill(name)
                    began = time.monotonic()
                    said = [await publish_one(world, gateway(each, "connect", rng)) for each in GATEWAYS]
                    while not all(each in posted for each in said):
                        await anyio.sleep(0.02)
                    took.append(max(posted[each] for each in said) - began)
                    await replicas.start(name)
            finally:
                replicas.end()
    return took


def main(leases: list[float]) -> None:
    for lease in leases:
        with tempfile.TemporaryDirectory() as folder:
            took = anyio.run(measured, Path(folder), lease)
        print(f"lease {lease:4g} s: taken over in {', '.join(f'{each:.1f}' for each in took)} s")


if __name__ == "__main__":
    main([float(each) for each in sys.argv[1:]] or list(LEASES))
