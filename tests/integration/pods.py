"""The Deployment of the chart, run: three pods on a real nats-server, each with a host name of its own."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from bridge.event import rfc3339
from bridge.ids import ulid
from bridge.receiver import Received, receive
from bridge.standin import ALL, World, serve
from tests.integration.helm import Manifest, environment_of, mounted, pod_of, rendered, workload
from tests.integration.process import Bridge, announced, start
from tests.nats import NatsServer, nats_server
from tests.servers import Mosquitto, mosquitto, need

TOKEN = "NNSXS.PODS.TEST"
GATEWAYS = tuple(f"gw-{n}" for n in range(24))
RIGHTS = ("$JS.API.>", "$JS.ACK.>", "$KV.bridge-state.>", "$KV.bridge-shared.>", "bridge.>", "_INBOX.>")
"""What the README says that the user needs."""
BOTH = f"{{publish: {json.dumps(RIGHTS)}, subscribe: {json.dumps(RIGHTS)}}}"
LOGIN = f'authorization {{ users: [{{user: bridge, password: "p@ss/w:#rd", permissions: {BOTH}}}] }}'
SECRETS = {
    "bridge": {"TTS_API_KEY": TOKEN},
    "nats-login": {"username": "bridge", "password": "p%40ss%2Fw%3A%23rd"},
}
LONG = "lorawan-event-router-for-all-of-the-northern-plants"
"""The name of the release: pods of the Deployment differ only after its first 48 characters."""


def values(
    upstream: str, crm: str, broker: str, server: NatsServer, sinks: Mapping[str, Any]
) -> dict[str, Any]:
    """With *sinks* besides crm and broker; every event goes to all of them."""
    gateways = [{"gateway": name} for name in GATEWAYS]
    return {
        "image.repository": "bridge",
        "fullnameOverride": LONG,
        "replicaCount": 3,
        "existingSecret": "bridge",
        "outbox.nats": {
            "servers": [f"nats://127.0.0.1:{server.port}"],
            "replicas": 1,
            "options": {"lease": "2s", "ack_wait": "3s"},
            "existingSecret": "nats-login",
            "usernameKey": "username",
            "passwordKey": "password",
        },
        "config": {
            "sources": {
                "eu1": {
                    "type": "tts",
                    "url": upstream,
                    "api_key": "${env:TTS_API_KEY}",
                    "identifiers": gateways,
                }
            },
            "sinks": {
                "crm": {"type": "webhook", "url": crm, "allow_private_networks": True},
                "broker": {"type": "mqtt", "url": broker},
                **sinks,
            },
            "max_size": "64MiB",
            "log": {"format": "json"},
        },
        "rules": {"all.yaml": {"rules": [{"name": "all", "match": {}, "send": ["crm", "broker", *sinks]}]}},
    }


def pod_names(deployment: Manifest) -> list[str]:
    """As the API server makes them: the ReplicaSet's name, cut so that with five more it is a host name."""
    base = f"{deployment['metadata']['name']}-6b7f9c8d5d-"[:58]
    return [f"{base}{end}" for end in ("4xk2p", "9wqzt", "mm7hd")]


def apart(name: str) -> list[str]:
    """Before a command that is to run as a container does: under a host name of its own, as process 1."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    return [
        *(need("unshare"), *user, "--uts", "--pid", "--fork", "--kill-child"),
        *("sh", "-c", 'hostname "$0" && exec "$@"', name),
    ]


class Pods:
    """The replicas of one Deployment by their names."""

    def __init__(self, manifests: list[Manifest], folder: Path) -> None:
        self.names = pod_names(workload(manifests))
        self.running: dict[str, Bridge] = {}
        self.config = mounted(manifests, folder / "etc")
        self.container = pod_of(manifests)["containers"][0]
        self.folder = folder

    async def start(self, name: str) -> None:
        folder = self.folder / name
        folder.mkdir()
        arguments = ["-c", str(self.config), "--watch"]
        bridge = start(folder, arguments=arguments, env=self.environment(self.container), prefix=apart(name))
        self.running[name] = bridge
        await announced(bridge)

    def environment(self, container: Mapping[str, Any]) -> dict[str, str]:
        """The pod's, and as all of them are on this machine, ports of their own."""
        found = environment_of(container, SECRETS)
        assert found.pop("BRIDGE_CONFIG") == "/etc/bridge/bridge.yaml"
        return found | {"BRIDGE_ADMIN__LISTEN": "127.0.0.1:0", "BRIDGE_ADMIN__METRICS_LISTEN": "127.0.0.1:0"}

    def terminate(self, name: str) -> int:
        """As the kubelet ends a container; returns the exit code of its process 1."""
        bridge = self.running.pop(name)
        above = bridge.process.pid
        inside = int(Path(f"/proc/{above}/task/{above}/children").read_text().split()[0])
        os.kill(inside, signal.SIGTERM)
        return bridge.process.wait(60)

    async def figures(self, name: str) -> list[float]:
        """The one figure of a metric by each replica; of a source or a sink it is eu1's or broker's."""
        wanted = re.compile(rf'^{name}(\{{(source="eu1"|sink="broker"[^}}]*)\}})? ([0-9.e+]+)$', re.M)
        found = []
        for each in self.running.values():
            told = wanted.search(await each.metrics())
            assert told is not None, name
            found.append(float(told[3]))
        return found

    async def until_empty(self) -> None:
        """Until each says that nothing waits for the broker, and none says less than nothing meanwhile."""
        with anyio.fail_after(20):
            while any(await self.figures("bridge_outbox_rows")):
                await anyio.sleep(0.1)

    async def until_divided(self) -> None:
        """Until they know of each other, and follow every gateway once, each of them some."""
        count, seen = len(self.running), object()
        with anyio.move_on_after(40):
            while True:
                replicas = await self.figures("bridge_replicas")
                followed = await self.figures("bridge_source_entities")
                seen = replicas, followed
                if set(replicas) == {count} and sum(followed) == len(GATEWAYS) and all(followed):
                    return
                await anyio.sleep(0.1)
        raise AssertionError(seen)


@contextmanager
def deployed(manifests: list[Manifest], folder: Path) -> Iterator[Pods]:
    pods = Pods(manifests, folder)
    try:
        yield pods
    finally:
        for each in pods.running.values():
            each.kill()


def connects(name: str, rng: random.Random) -> tuple[str, bytes]:
    """A gateway that connects now: the event's unique_id and body."""
    ns = time.time_ns()
    event = {
        "name": "gs.gateway.connect",
        "time": rfc3339(ns),
        "identifiers": [{"gateway_ids": {"gateway_id": name, "eui": "58A0CBFFFE800001"}}],
        "unique_id": ulid(ns, rng),
    }
    return str(event["unique_id"]), msgspec.json.encode(event)


@dataclass
class Site:
    """The Things Stack, NATS and a broker, and the pods between them."""

    world: World
    server: NatsServer
    broker: Mosquitto
    manifests: list[Manifest]
    pods: Pods
    posted: set[str]
    """The unique_ids that crm has got."""

    async def all_arrive(self) -> None:
        """One event of every gateway gets to crm, whichever replica follows it."""
        events = [connects(name, self.world.rng) for name in GATEWAYS]
        for _, body in events:
            self.world.publish(body)
        missing = {unique_id for unique_id, _ in events}
        with anyio.move_on_after(40):
            while missing - self.posted:
                await anyio.sleep(0.1)
        assert not missing - self.posted


@asynccontextmanager
async def site(folder: Path, sinks: Mapping[str, Any] | None = None) -> AsyncIterator[Site]:
    """With all pods of the Deployment running; skips the test where pods cannot have names of their own."""
    probe = subprocess.run([*apart("probe"), "true"], capture_output=True, check=False, timeout=20)
    if probe.returncode:
        pytest.skip(f"integration: no namespaces can be made here: {probe.stderr.decode()}")
    world, posted = World({TOKEN: ALL}, rng=random.Random(1)), set[str]()

    def heard(got: Received) -> None:
        posted.add(json.loads(got.body)["unique_id"])

    with nats_server(folder / "nats", LOGIN) as server, mosquitto(folder / "broker") as broker:
        async with serve(world) as upstream, receive(on_delivery=heard) as crm:
            manifests = rendered(values(upstream.url, crm.url, broker.url(), server, sinks or {}))
            with deployed(manifests, folder) as pods:
                assert workload(manifests)["spec"]["replicas"] == len(pods.names)
                for name in pods.names:
                    await pods.start(name)
                await pods.until_divided()
                yield Site(world, server, broker, manifests, pods, posted)
