"""A reload of one replica is one of all: each loads its own file again."""

from __future__ import annotations

import random
from pathlib import Path

import anyio
import httpx
import pytest

from bridge.receiver import receive
from bridge.standin import ALL, World, serve
from tests.integration.test_kill import TOKEN
from tests.integration.test_nats_replicas import RULES, Replicas
from tests.nats import nats_server

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


async def asked_to_reload(replicas: Replicas, name: str) -> int:
    async with httpx.AsyncClient(trust_env=False, headers={"Authorization": "Bearer t0ken"}) as client:
        return (await client.post(f"{replicas.running[name].url}/-/reload")).status_code


async def loads(replicas: Replicas, name: str, count: int, told: bytes = b'"config loaded"') -> None:
    """Until it has said so as often."""
    with anyio.fail_after(20):
        while replicas.running[name].log.read_bytes().count(told) < count:
            await anyio.sleep(0.05)


@pytest.mark.timeout(60)
async def test_a_reload_of_one_is_a_reload_of_all(tmp_path: Path) -> None:
    """Asked for once, done by everybody, not again and again; a mistake is told by the one asked."""
    world = World({TOKEN: ALL}, rng=random.Random(1))
    with nats_server(tmp_path / "nats") as server:
        async with serve(world) as upstream, receive() as crm:
            replicas = Replicas(tmp_path, server)
            (tmp_path / "rules.yaml").write_text(RULES)
            replicas.configure(upstream.url, crm.url)
            try:
                await replicas.start("a", "b")
                (tmp_path / "rules.yaml").write_text(RULES.replace("everything", "all"))
                assert await asked_to_reload(replicas, "a") == 200
                await loads(replicas, "b", 1)
                (tmp_path / "rules.yaml").write_text("rules: 1")
                assert await asked_to_reload(replicas, "b") != 200
                (tmp_path / "rules.yaml").write_text(RULES)
                assert await asked_to_reload(replicas, "b") == 200
                for name in ("a", "b"):
                    await loads(replicas, name, 2)
                await anyio.sleep(0.5)  # what would be loaded once more
                logs = [each.log.read_bytes() for each in replicas.running.values()]
                assert [each.count(b'"config loaded"') for each in logs] == [2, 2]
            finally:
                replicas.end()
