"""A whole tenant over HTTP: 200 gateways and 10,000 devices, some forbidden, some deleted while it runs."""

from __future__ import annotations

import math
import random
import resource
import time

import anyio
import pytest

from bridge.event import Entity
from bridge.metrics import Metrics
from bridge.sources import Reading
from bridge.sources.api import HttpApi
from bridge.sources.follow import TtsSource
from bridge.sources.http import HttpUpstream, http_client
from bridge.sources.models import TtsSourceConfig
from bridge.sources.registry import propagates
from bridge.standin import World, serve
from bridge.standin.rights import Key
from tests.integration.test_http_source import until
from tests.unit.following import Store
from tests.upstreams import happened

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

TOKEN = "NNSXS.TENANT.SECRET"
APPS = [Entity("application", f"plant-{number:03}") for number in range(100)]
DEVICES = [Entity("device", f"{app.id}/meter-{number:03}") for app in APPS for number in range(100)]
GATEWAYS = [Entity("gateway", f"gw-{number:03}") for number in range(200)]
FORBIDDEN = {*APPS[::20], *GATEWAYS[::20]}
"""Listed, for the owner of the key is a collaborator, but the key has no right on them: 5 %."""


def tenant() -> World:
    on: dict[Entity, tuple[str, ...]] = {
        each: ("RIGHT_APPLICATION_LINK" if each.kind == "application" else "RIGHT_GATEWAY_LINK",)
        for each in FORBIDDEN
    }
    on |= {each: tuple[str, ...]() for each in [*APPS, *GATEWAYS] if each not in FORBIDDEN}
    rights = (
        *("RIGHT_APPLICATION_INFO", "RIGHT_APPLICATION_DEVICES_READ", "RIGHT_APPLICATION_TRAFFIC_READ"),
        *("RIGHT_GATEWAY_INFO", "RIGHT_GATEWAY_STATUS_READ", "RIGHT_GATEWAY_TRAFFIC_READ"),
        *("RIGHT_USER_INFO", "RIGHT_USER_APPLICATIONS_LIST", "RIGHT_USER_GATEWAYS_LIST"),
    )
    key = Key.of(Entity("user", "operator"), *rights, on=on)
    return World({TOKEN: key}, entities=[*APPS, *DEVICES, *GATEWAYS])


def is_visible(each: Entity) -> bool:
    owner = Entity("application", each.id.partition("/")[0]) if each.kind == "device" else each
    return owner not in FORBIDDEN


async def test_every_visible_entity_of_a_large_tenant_is_followed() -> None:
    """Within seconds, by few streams and little memory; 1 % deleted while it runs disturb nobody."""
    world = tenant()
    visible = {each for each in [*APPS, *DEVICES, *GATEWAYS] if is_visible(each)}
    assert len(visible) == 95 + 9_500 + 190

    async with serve(world) as server:
        config = TtsSourceConfig.model_validate(
            {
                "type": "tts",
                "url": server.url,
                "api_key": TOKEN,
                "identifiers": [{"application": "*", "devices": "*"}, {"gateway": "*"}],
                "recycle": "30s",
                "overlap": "1s",
            }
        )
        store, metrics = Store(), Metrics()
        metrics.prepare(sources=["eu1"], sinks=(), rules=())

        async def cursors() -> dict[str, int]:
            return {}

        async def recent(identifier: str) -> tuple[str, ...]:
            return ()

        def followed() -> set[Entity]:
            return {each for stream in world.subscriptions for each in stream.request.entities}

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        send, receive = anyio.create_memory_object_stream[Reading](math.inf)
        async with (
            http_client(config.url, TOKEN, config.tls) as client,
            send,
            receive,
            anyio.create_task_group() as tasks,
        ):
            source = TtsSource(
                "eu1",
                config,
                HttpUpstream(client),
                HttpApi(client),
                metrics,
                cursors=cursors,
                recent_ids=recent,
                wait=lambda attempt: 0.2 * attempt,
                now=time.time,
                rng=random.Random(0),
                propagates=propagates(),
            )

            async def storing() -> None:
                async for reading in receive:
                    store.take(reading)

            tasks.start_soon(storing)
            began = time.monotonic()
            tasks.start_soon(source.run, send)
            await until(lambda: followed() >= visible, 60)
            took = time.monotonic() - began
            status = source.status()
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            print(f"\nstart {took:.1f} s, {status.streams} streams, {grown:.0f} MiB")
            assert status.ready
            assert took < 30
            assert status.streams <= 40
            assert grown < 200
            assert {who for who, _ in status.excluded} == {str(each) for each in FORBIDDEN}

            sent = {
                happened(world, "ns.up.data.drop", each)
                for each in random.Random(1).sample(DEVICES, 300)
                if is_visible(each)
            }
            sent |= {happened(world, "gs.status.receive", each) for each in GATEWAYS if is_visible(each)}
            await until(lambda: sent <= set(store.ids), 30)

            gone = [
                each for each in random.Random(2).sample(sorted(visible), 100) if each.kind != "application"
            ]
            streams = set(world.subscriptions)
            for each in gone:
                world.delete(each)
            left = visible - set(gone)
            await until(lambda: source.status().entities <= len(visible) + len(FORBIDDEN) - len(gone), 40)
            assert followed() >= left
            await until(lambda: not streams & world.subscriptions, 90)
            assert followed() >= left
            sent = {
                happened(world, "ns.up.data.drop", each) for each in sorted(left) if each.kind == "device"
            }
            await until(lambda: sent <= set(store.ids), 60)
            assert source.status().ready
            assert store.gaps() == []
            tasks.cancel_scope.cancel()
