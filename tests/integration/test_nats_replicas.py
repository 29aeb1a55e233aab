"""Several `bridge run` on one nats-server: killed, stopped beyond their leases, the server restarted."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
import httpx
import msgspec
import pytest

from bridge.config import load
from bridge.control import opened_store
from bridge.delivery import Route
from bridge.event import rfc3339
from bridge.ids import ulid
from bridge.outbox.exchange import from_line
from bridge.outbox.jetstream.address import parse
from bridge.outbox.jetstream.outbox import open_reader
from bridge.outbox.verify import verify
from bridge.receiver import Received, Reply, receive
from bridge.standin import ALL, World, serve
from tests.contract.outboxes import CRM, OPS, batch, dead, done, due, intake
from tests.integration.process import Bridge, announced, run, start, until_connected
from tests.integration.test_kill import TOKEN, devices, fresh
from tests.nats import NatsServer, nats_server

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

LEASE, ACK_WAIT = 2.0, 3.0  # seconds
IN_FLIGHT = 16
NAMES = ("a", "b", "c")

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
rules: [rules.yaml]
outbox: {outbox}
admin: {{listen: "127.0.0.1:0", token: t0ken}}
log: {{format: json}}
"""

RULES = """
rules:
  - name: everything
    match: {}
    send: [crm]
"""

ALERTS = """
alerts:
  - name: gateway-down
    kind: state
    down: {name: gs.gateway.disconnect}
    up: {name: gs.gateway.connect}
    by: gateway
    send: [crm]
"""


@dataclass
class Replicas:
    """The processes by their names."""

    folder: Path
    server: NatsServer
    running: dict[str, Bridge] = field(default_factory=dict)
    kills: int = 0

    def configure(self, tts: str, crm: str, devices: str = "") -> None:
        text = CONFIG.format(tts=tts, token=TOKEN, crm=crm, devices=devices, outbox=self.server.url())
        (self.folder / "bridge.yaml").write_text(text)

    def url(self, name: str) -> str:
        return self.server.url("bridge", lease=f"{LEASE:g}s", ack_wait=f"{ACK_WAIT:g}s", replica=name)

    async def start(self, *names: str) -> None:
        for name in names:
            log = self.folder / f"{name}.log"
            since = log.stat().st_size if log.exists() else 0
            bridge = start(self.folder, log=f"{name}.log", env={"BRIDGE_OUTBOX": self.url(name)})
            bridge.token = "t0ken"
            self.running[name] = await announced(bridge, since=since)

    def kill(self, name: str) -> None:
        self.running.pop(name).kill()
        self.kills += 1

    def send(self, name: str, signum: signal.Signals) -> None:
        os.kill(self.running[name].process.pid, signum)

    async def who_reads(self, but: str = "") -> list[str]:
        """Those with the source open; *but* is not asked: it may be stopped."""
        asked = {name: each for name, each in self.running.items() if name != but}
        return [name for name, each in asked.items() if (await each.status())["sources"]]

    async def until_read(self, within: float = 30.0, but: str = "") -> str:
        """Who reads, once one does that is not *but*."""
        with anyio.fail_after(within):
            while not (found := await self.who_reads(but)):
                await anyio.sleep(0.05)
        return found[0]

    async def _asked(self, name: str) -> dict[str, list[dict[str, str]]]:
        async with httpx.AsyncClient(trust_env=False, headers={"Authorization": "Bearer t0ken"}) as client:
            answer = await client.get(f"{self.running[name].url}/api/alerts")
            found: dict[str, list[dict[str, str]]] = answer.json()
            return found

    async def silences(self, name: str) -> list[dict[str, str]]:
        return (await self._asked(name))["silences"]

    async def alerts(self, name: str) -> list[dict[str, str]]:
        """What one of them shows of all."""
        return (await self._asked(name))["alerts"]

    async def until_shown(self, name: str, keys: list[str]) -> None:
        """Until one of them shows that these are firing."""
        with anyio.fail_after(60):
            while {each["key"] for each in await self.alerts(name) if each["state"] == "firing"} != set(keys):
                await anyio.sleep(0.1)

    async def accepted_alerts(self) -> int:
        """Notifications that are stored, by the sums of all replicas."""
        async with open_reader(parse(self.server.url("bridge"))) as store:
            return (await store.accounts()).sources["alerts"].accepted

    async def until_divided(self, entities: int, replicas: int) -> None:
        """Until so many follow so many entities, each some and all together each once."""
        found: list[int] = []
        with anyio.move_on_after(40):
            while len(found) != replicas or sum(found) != entities:
                states = [(await each.status())["sources"].get("eu1") for each in self.running.values()]
                found = [each["entities"] for each in states if each and each["connected"]]
                await anyio.sleep(0.1)
            return
        raise AssertionError(found)

    async def until_follows(self, name: str, entities: int) -> None:
        """Until one of them follows so many."""
        with anyio.fail_after(40):
            while True:
                found = (await self.running[name].status())["sources"].get("eu1")
                if found and found["connected"] and found["entities"] == entities:
                    return
                await anyio.sleep(0.05)

    async def paused(self, *, any_of_them: bool = False) -> bool:
        """Does each say (or any of them) that the sink is paused?"""
        states = [
            (await each.status())["sinks"]["crm"]["paused"] is not None for each in self.running.values()
        ]
        return any(states) if any_of_them else all(states)

    def end(self) -> None:
        for each in self.running.values():
            if each.process.poll() is None:
                each.process.send_signal(signal.SIGCONT)
                each.kill()

    async def sums(self) -> list[str]:
        async with open_reader(parse(self.server.url("bridge"))) as store:
            return await verify(store)


async def settles(condition: Callable[[], bool], within: float, what: Callable[[], object]) -> None:
    with anyio.move_on_after(within):
        while not condition():
            await anyio.sleep(0.1)
        return
    raise AssertionError(f"not within {within} s: {what()}")


async def calm(replicas: Replicas) -> None:
    """Until the sums hold; they are of several streams, so not while something is under way."""
    found = ["?"]
    with anyio.move_on_after(30):
        while found:
            await anyio.sleep(0.5)
            found = await replicas.sums()
    assert found == []


@pytest.mark.timeout(120)
async def test_a_dead_replicas_part_of_a_source_is_taken_over(tmp_path: Path) -> None:
    """Stopped and back, or killed: the other follows everybody within some leases, with alerts or without."""
    world = World({TOKEN: ALL}, rng=random.Random(1))
    names = [f"gw-{n}" for n in range(12)]
    everybody = len(names) + 2
    with nats_server(tmp_path / "nats") as server:
        async with serve(world) as upstream, receive() as crm:
            replicas = Replicas(tmp_path, server)
            (tmp_path / "rules.yaml").write_text(RULES + ALERTS)
            replicas.configure(upstream.url, crm.url, "\n".join(f"      - gateway: {name}" for name in names))
            try:
                await replicas.start("a", "b")
                await replicas.until_divided(everybody, 2)
                replicas.send("a", signal.SIGSTOP)
                began = time.monotonic()
                await replicas.until_follows("b", everybody)
                took = time.monotonic() - began
                replicas.send("a", signal.SIGCONT)
                print(f"taken over in {took:.1f} s at a lease of {LEASE:g} s")
                assert LEASE * 0.5 < took < LEASE * 3
                await replicas.until_divided(everybody, 2)
                replicas.kill("b")
                began = time.monotonic()
                await replicas.until_follows("a", everybody)
                assert time.monotonic() - began < LEASE * 3
            finally:
                replicas.end()


@pytest.mark.timeout(120)
async def test_the_entities_of_a_source_are_divided_and_taken_over(tmp_path: Path) -> None:
    """Each replica follows its part, all of them everything; a dead one's part goes to the others."""
    rng = random.Random(1)
    world = World({TOKEN: ALL}, rng=rng)
    posted: set[str] = set()
    names = [f"gw-{n}" for n in range(30)]
    with nats_server(tmp_path / "nats") as server:
        async with (
            serve(world) as upstream,
            receive(on_delivery=lambda got: posted.add(json.loads(got.body)["unique_id"])) as crm,
        ):
            replicas = Replicas(tmp_path, server)
            (tmp_path / "rules.yaml").write_text(RULES)
            replicas.configure(upstream.url, crm.url, "\n".join(f"      - gateway: {name}" for name in names))
            try:
                await replicas.start(*NAMES)
                await replicas.until_divided(len(names) + 2, 3)
                published = set[str]()
                for name in names:
                    published.add(await publish_one(world, gateway(name, "connect", rng)))
                replicas.kill("b")
                for name in names:
                    published.add(await publish_one(world, gateway(name, "disconnect", rng)))
                await replicas.until_divided(len(names) + 2, 2)
                await settles(lambda: published <= posted, 30, lambda: len(published - posted))
                await calm(replicas)
            finally:
                replicas.end()


async def publish_one(world: World, body: bytes) -> str:
    world.publish(body)
    unique_id: str = json.loads(body)["unique_id"]
    return unique_id


def gateway(name: str, what: str, rng: random.Random) -> bytes:
    """An event of one gateway, now."""
    ns = time.time_ns()
    event = {
        "name": f"gs.gateway.{what}",
        "time": rfc3339(ns),
        "identifiers": [{"gateway_ids": {"gateway_id": name, "eui": "58A0CBFFFE800001"}}],
        "unique_id": ulid(ns, rng),
    }
    return msgspec.json.encode(event)


@pytest.mark.timeout(240)
async def test_alerts_of_three_replicas_are_told_once_whatever_happens_to_them(tmp_path: Path) -> None:
    """Stopped beyond a lease and back, killed, the server restarted: each state is told, under one id.

    What was announced again is counted as a duplicate: accepted is what was told.
    """
    rng = random.Random(20261124)
    world = World({TOKEN: ALL}, rng=rng)
    told: list[tuple[str, str, str]] = []
    names = [f"gw-{n}" for n in range(24)]
    everything = set[str]()
    with nats_server(tmp_path / "nats") as server:
        async with serve(world) as upstream, receive(on_delivery=partial(note, told)) as crm:
            replicas = Replicas(tmp_path, server)
            (tmp_path / "rules.yaml").write_text(ALERTS)
            replicas.configure(upstream.url, crm.url, "\n".join(f"      - gateway: {name}" for name in names))
            try:
                await replicas.start(*NAMES)
                for trouble in ("stop", "kill", "restart"):
                    await replicas.until_divided(len(names) + 2, 3)
                    for name in names:
                        world.publish(gateway(name, "disconnect", rng))
                        await anyio.sleep(rng.uniform(0.0, 0.2))
                    if trouble == "stop":
                        replicas.send("a", signal.SIGSTOP)
                        await replicas.until_shown("b", names)
                        replicas.send("a", signal.SIGCONT)
                    elif trouble == "kill":
                        replicas.kill("b")
                        await replicas.start("b")
                    else:
                        server.restart()
                    await until_told(told, names, "firing")
                    assert {each["key"] for each in await replicas.alerts("c")} == set(names)
                    for name in names:
                        world.publish(gateway(name, "connect", rng))
                    await until_told(told, names, "resolved")
                    told_now, ids = list(told), {unique_id for _, _, unique_id in told}
                    told.clear()
                    everything |= ids
                    assert Counter((name, state) for name, state, _ in set(told_now)) == Counter(
                        (name, state) for name in names for state in ("firing", "resolved")
                    ), told_now
                    assert len(told_now) - len(ids) <= IN_FLIGHT
                await calm(replicas)
                assert await replicas.accepted_alerts() == len(everything)
                listed = run("alerts", "list", "--json", "-c", "bridge.yaml", cwd=tmp_path)
                assert listed.stdout == "", listed.stdout
            finally:
                replicas.end()


INHIBITED = """
alerts:
  - name: gateway-down
    kind: state
    down: {name: gs.gateway.disconnect}
    up: {name: gs.gateway.connect}
    by: gateway
    send: [crm]
  - name: device-silent
    kind: absent
    match: {name: as.up.data.forward}
    by: device
    for: 12s
    inhibited_by: {alert: gateway-down, when: last_heard_by}
    send: [crm]
"""


APPLICATION = {"application_id": "plant-a"}


def uplink(device: str, heard_by: str, rng: random.Random) -> bytes:
    ns = time.time_ns()
    event = {
        "name": "as.up.data.forward",
        "time": rfc3339(ns),
        "identifiers": [
            {"device_ids": {"device_id": device, "application_ids": {"application_id": "plant-a"}}}
        ],
        "data": {"uplink_message": {"rx_metadata": [{"gateway_ids": {"gateway_id": heard_by}}]}},
        "unique_id": ulid(ns, rng),
    }
    return msgspec.json.encode(event)


@pytest.mark.timeout(120)
async def test_an_alert_inhibits_those_that_other_replicas_judge(tmp_path: Path) -> None:
    """Whose gateway is down is not told as silent, wherever both are judged; who was heard by another is."""
    rng = random.Random(1)
    world = World({TOKEN: ALL}, rng=rng)
    told = list[tuple[str, str]]()

    def heard(got: Received) -> None:
        data = json.loads(got.body)["data"]
        told.append((data["alert"], data["key"]))

    names = [f"gw-{n}" for n in range(10)]
    with nats_server(tmp_path / "nats") as server:
        async with serve(world) as upstream, receive(on_delivery=heard) as crm:
            replicas = Replicas(tmp_path, server)
            (tmp_path / "rules.yaml").write_text(INHIBITED)
            replicas.configure(upstream.url, crm.url, "\n".join(f"      - gateway: {name}" for name in names))
            try:
                await replicas.start("a", "b")
                await replicas.until_divided(len(names) + 2, 2)
                for name in names:
                    world.publish(uplink(f"of-{name}", name, rng))
                    world.publish(uplink(f"near-{name}", "gw-up", rng))
                    world.publish(gateway(name, "disconnect", rng))
                await settles(lambda: len(told) >= 2 * len(names), 60, lambda: told)
                assert {key for alert, key in told if alert == "gateway-down"} == set(names)
                silent = {key for alert, key in told if alert == "device-silent"}
                assert silent == {f"plant-a/near-{name}" for name in names}
                shown = {each["key"]: each["suppressed"] for each in await replicas.alerts("a")}
                assert all(shown[f"plant-a/of-{name}"] == "inhibited" for name in names), shown
            finally:
                replicas.end()


@pytest.mark.timeout(120)
async def test_alerts_that_are_taken_out_of_the_rules_end(tmp_path: Path) -> None:
    """With a reload of all replicas, though it leaves no alert that anybody would have to judge."""
    rng = random.Random(1)
    world = World({TOKEN: ALL}, rng=rng)
    told = list[tuple[str, str, str]]()
    names = ["gw-1", "gw-2", "gw-3"]
    with nats_server(tmp_path / "nats") as server:
        async with serve(world) as upstream, receive(on_delivery=partial(note, told)) as crm:
            replicas = Replicas(tmp_path, server)
            (tmp_path / "rules.yaml").write_text(ALERTS)
            replicas.configure(upstream.url, crm.url, "\n".join(f"      - gateway: {name}" for name in names))
            try:
                await replicas.start("a", "b")
                await replicas.until_divided(len(names) + 2, 2)
                for name in names:
                    world.publish(gateway(name, "disconnect", rng))
                await until_told(told, names, "firing")
                (tmp_path / "rules.yaml").write_text("rules: []")
                for name in ("a", "b"):
                    replicas.send(name, signal.SIGHUP)
                await until_told(told, names, "resolved")
                with anyio.fail_after(30):
                    while run("alerts", "list", "-c", "bridge.yaml", cwd=tmp_path).stdout:
                        await anyio.sleep(0.5)
                assert len(told) == 2 * len(names)
            finally:
                replicas.end()


def note(told: list[tuple[str, str, str]], got: Received) -> None:
    """Gateway, status and id of a notification."""
    event = json.loads(got.body)
    if event["name"].startswith("bridge.alert."):
        name = event["identifiers"][0]["gateway_ids"]["gateway_id"]
        told.append((name, event["name"].rpartition(".")[2], event["unique_id"]))


async def until_told(told: list[tuple[str, str, str]], names: list[str], state: str) -> None:
    with anyio.fail_after(60):
        while {name for name, each, _ in told if each == state} != set(names):
            await anyio.sleep(0.1)


@pytest.mark.timeout(120)
async def test_a_pause_of_one_is_a_pause_of_all_and_commands_see_the_same(tmp_path: Path) -> None:
    """A receiver that wants no more is not asked by the others; `queue` and `dead-letters` tell it."""
    world = World({TOKEN: ALL}, rng=random.Random(1))
    rng = random.Random(1)
    with nats_server(tmp_path / "nats") as server:
        async with serve(world) as upstream, receive(answer=Reply(401)) as crm:
            replicas = Replicas(tmp_path, server)
            (tmp_path / "rules.yaml").write_text(RULES)
            (tmp_path / "bridge.yaml").write_text(
                CONFIG.format(
                    tts=upstream.url, token=TOKEN, crm=crm.url, devices=devices(), outbox=server.url()
                )
            )
            try:
                await replicas.start("a", "b")
                reader = await replicas.until_read()
                await until_connected(replicas.running[reader])
                body = next(fresh(rng))
                world.publish(body)
                with anyio.fail_after(30):
                    while not await replicas.paused():
                        await anyio.sleep(0.02)
                unique_id = json.loads(body)["unique_id"]
                waits = run("queue", "list", "--json", "-c", "bridge.yaml", cwd=tmp_path)
                assert json.loads(waits.stdout)["unique_id"] == unique_id
                assert '"waiting"' in run("trace", unique_id, "--json", cwd=tmp_path).stdout
                crm.answer = Reply()
                with anyio.fail_after(30):
                    while await replicas.paused(any_of_them=True) or await replicas.sums():
                        await anyio.sleep(0.1)
                assert run("queue", "list", "--json", cwd=tmp_path).stdout == ""
                assert '"delivered"' in run("trace", unique_id, "--json", cwd=tmp_path).stdout
                assert run("verify", cwd=tmp_path).returncode == 0
            finally:
                replicas.end()


@pytest.mark.timeout(120)
async def test_a_command_changes_what_all_replicas_share(tmp_path: Path) -> None:
    """A dead letter is listed, tried again and delivered, while they run; a silence reaches all of them."""
    world = World({TOKEN: ALL}, rng=random.Random(1))
    rng = random.Random(1)
    with nats_server(tmp_path / "nats") as server:
        async with serve(world) as upstream, receive(answer=Reply(400)) as crm:
            replicas = Replicas(tmp_path, server)
            (tmp_path / "rules.yaml").write_text(RULES + ALERTS)
            replicas.configure(upstream.url, crm.url, devices())
            try:
                await replicas.start("a", "b")
                reader = await replicas.until_read()
                await until_connected(replicas.running[reader])
                world.publish(next(fresh(rng)))
                with anyio.fail_after(30):
                    while not (letters := run("dead-letters", "list", "--json", cwd=tmp_path).stdout):
                        await anyio.sleep(0.2)
                crm.answer = Reply()
                told = run("dead-letters", "retry", json.loads(letters)["id"], cwd=tmp_path)
                assert told.returncode == 0, told.stderr
                with anyio.fail_after(30):
                    while len(crm.deliveries) < 2 or await replicas.sums():
                        await anyio.sleep(0.1)
                assert run("dead-letters", "list", cwd=tmp_path).stdout == ""
                told = run(
                    "silence", "add", "alertname=gateway-down", "--for", "1h", "--comment", "x", cwd=tmp_path
                )
                assert told.returncode == 0, told.stderr
                with anyio.fail_after(30):
                    while not all([await replicas.silences(name) for name in ("a", "b")]):
                        await anyio.sleep(0.1)
            finally:
                replicas.end()


@pytest.mark.timeout(60)
async def test_a_queue_moves_from_a_file_to_nats_and_back(tmp_path: Path) -> None:
    """What waits and what is dead is the same after each move; what is known is not taken twice."""
    (tmp_path / "rules.yaml").write_text(RULES)
    text = "outbox: {outbox}\nsinks: {{crm: {{type: webhook, url: https://crm}}}}\nrules: rules.yaml\n"
    config = tmp_path / "bridge.yaml"
    ordered = Route("r", "crm", "device:a")
    with nats_server(tmp_path / "nats") as server:
        config.write_text(text.format(outbox="sqlite:one.db"))
        async with opened_store(
            load(config, {}).model_copy(update={"outbox": f"sqlite:{tmp_path}/one.db"})
        ) as one:
            intakes = [
                intake("u1", CRM, OPS),
                intake("u2", CRM),
                intake("u3", ordered),
                intake("u4", ordered),
            ]
            await one.accept(batch(*intakes, intake("u5", CRM)))
            found = {each.event.unique_id: each for each in await due(one)}
            await one.settle([dead(found["u2"]), done(found["u5"])])
        exported = []
        for number, outbox in enumerate(("sqlite:one.db", server.url("moved"), "sqlite:two.db")):
            config.write_text(text.format(outbox=outbox))
            if number:
                for expected in (
                    "4 events imported: 4 deliveries wait, 1 dead letters",
                    "4 events were known",
                ):
                    told = run("queue", "import", f"{number - 1}.jsonl", cwd=tmp_path)
                    assert expected in told.stdout, told.stdout + told.stderr
                assert run("verify", cwd=tmp_path).returncode == 0
            told = run("queue", "export", f"{number}.jsonl", cwd=tmp_path)
            assert told.returncode == 0, told.stderr
            exported.append(
                [comparable(line) for line in (tmp_path / f"{number}.jsonl").read_bytes().splitlines()]
            )
        assert exported[0] == exported[1] == exported[2]
        assert len(exported[0]) == 4


def comparable(line: bytes) -> object:
    """Without what an import sets anew: when it came, and when it is due."""
    read = from_line(line)
    deliveries = [
        (e.rule, e.sink, e.state, e.order_key, e.reason, e.error, e.status, e.due is None)
        for e in read.deliveries
    ]
    return read.unique_id, read.source, bytes(read.event), deliveries
