"""The show of issue 10: three replicas on one nats-server, and whatever can happen to them.

One is killed, one is stopped beyond its lease, the server is restarted, and the third, in a network namespace
of its own, is cut off: from NATS alone (it still reads and sends then), or from everything.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from bridge.receiver import Received, receive
from bridge.standin import ALL, World, serve
from tests.integration.process import announced, run, start
from tests.integration.test_kill import TOKEN, devices, publish
from tests.integration.test_nats_replicas import (
    ACK_WAIT,
    ALERTS,
    IN_FLIGHT,
    LEASE,
    RULES,
    Replicas,
    calm,
    gateway,
    settles,
)
from tests.nats import NatsServer, cable, nats_server
from tests.netns import Namespace, namespace

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

APART = "c"  # the replica in the namespace
NAMES = ("a", "b", APART)
SLACK = 2.0  # seconds between a post and its settlement, at most, on a machine with too few cores
ANYBODY = ""
GATEWAYS = tuple(f"gw-{number}" for number in range(4))


@dataclass(frozen=True, slots=True)
class Post:
    """What the receiver got, at monotonic seconds, and from which replica."""

    at: float
    replica: str
    delivery: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """From *begin* to *end*, monotonic seconds, *replica* (or ANYBODY) could not settle what it posted."""

    what: str
    replica: str
    begin: float
    end: float

    @property
    def in_flight(self) -> int:
        """Deliveries that may have been."""
        return IN_FLIGHT if self.replica else IN_FLIGHT * len(NAMES)

    def explains(self, post: Post) -> bool:
        return self.replica in (ANYBODY, post.replica) and self.begin - SLACK <= post.at <= self.end + SLACK


@dataclass
class Story:
    """What was published, what came of it, and what was done to the replicas meanwhile."""

    published: list[str] = field(default_factory=list)
    posted: list[str] = field(default_factory=list)
    posts: dict[str, list[Post]] = field(default_factory=lambda: defaultdict(list))
    """By delivery id."""
    troubles: list[Trouble] = field(default_factory=list)
    notified: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    """Gateway and state to the unique_ids of notifications, each once, in their order."""
    flaps: int = 0

    def got(self, request: Received) -> None:
        self.posts[request.id].append(Post(time.monotonic(), request.headers["x-replica"], request.id))
        event = json.loads(request.body)
        name, unique_id = event["name"], event["unique_id"]
        if not name.startswith("bridge."):
            self.posted.append(unique_id)
        elif name.startswith("bridge.alert."):
            gateway_id = event["identifiers"][0]["gateway_ids"]["gateway_id"]
            told = self.notified[gateway_id, name.rpartition(".")[2]]
            if unique_id not in told:
                told.append(unique_id)

    @property
    def repeats(self) -> int:
        return sum(len(each) - 1 for each in self.posts.values())

    def explained(self) -> tuple[Counter[Trouble], list[list[Post]]]:
        """How many repeats were in flight in each trouble, and the posts of deliveries of which none was."""
        counts, unexplained = Counter[Trouble](), list[list[Post]]()
        for posts in self.posts.values():
            reasons = (next((each for each in self.troubles if each.explains(post)), None) for post in posts)
            in_flight = [each for each in reasons if each is not None]
            counts.update(in_flight[: len(posts) - 1])
            if len(in_flight) < len(posts) - 1:
                unexplained.append(posts)
        return counts, unexplained

    def told(self) -> str:
        counts = Counter(each.what for each in self.troubles)
        troubles = ", ".join(f"{count} x {what}" for what, count in sorted(counts.items()))
        return (
            f"{len(self.published)} events, {self.flaps} alerts begun and ended, {troubles}:"
            f" {self.repeats} repeats, all of them in flight then"
        )


class Chaos:
    """Does something to one of the replicas, or to the server."""

    def __init__(self, replicas: Replicas, story: Story, apart: Apart, rng: random.Random) -> None:
        self._replicas = replicas
        self._story = story
        self._apart = apart
        self._rng = rng

    async def kill(self, name: str) -> None:
        at = time.monotonic()
        self._replicas.kill(name)
        self._story.troubles.append(Trouble("kill -9", name, at, at))
        await self._apart.start(self._replicas, name)

    async def stop(self, name: str) -> None:
        at = time.monotonic()
        self._replicas.send(name, signal.SIGSTOP)
        await anyio.sleep(max(LEASE, ACK_WAIT) * 1.5)
        self._replicas.send(name, signal.SIGCONT)
        self._story.troubles.append(Trouble("stop", name, at, time.monotonic()))

    async def cut_off(self) -> None:
        wires = ("nats",) if self._rng.random() < 0.6 else ("nats", "rest")
        at = time.monotonic()
        self._apart.namespace.pull(*wires)
        await anyio.sleep(max(LEASE, ACK_WAIT) * self._rng.uniform(1.5, 4.0))
        self._apart.namespace.plug(*wires)
        healed = time.monotonic() + max(
            LEASE, ACK_WAIT
        )  # until packets are sent again, and what hung is over
        self._story.troubles.append(Trouble(f"cut off from {' and '.join(wires)}", APART, at, healed))

    async def restart_server(self) -> None:
        at = time.monotonic()
        self._replicas.server.restart()
        self._story.troubles.append(Trouble("restart of NATS", ANYBODY, at, time.monotonic()))


@dataclass(frozen=True, slots=True)
class Apart:
    """The namespace and what a replica in it has to know; the others are on this side."""

    namespace: Namespace
    env: dict[str, str]

    async def start(self, replicas: Replicas, name: str) -> None:
        log = replicas.folder / f"{name}.log"
        since = log.stat().st_size if log.exists() else 0
        env = {"BRIDGE_SINKS__CRM__HEADERS": f"{{X-Replica: {name}}}"}
        if name == APART:
            env |= self.env
            bridge = start(replicas.folder, log=log.name, env=env, prefix=self.namespace.prefix)
        else:
            bridge = start(replicas.folder, log=log.name, env=env | {"BRIDGE_OUTBOX": replicas.url(name)})
        bridge.token = "t0ken"
        replicas.running[name] = await announced(bridge, since=since)


@asynccontextmanager
async def apart(
    made: Namespace, server: NatsServer, replicas: Replicas, tts: int, crm: int
) -> AsyncIterator[Apart]:
    """The ports of the servers, reached over the wires of *made*."""
    near, rest = made.wires["nats"], made.wires["rest"]
    async with (
        cable(server.port, near.here) as nats,
        cable(tts, rest.here) as events,
        cable(crm, rest.here) as sent,
    ):
        url = replicas.url(APART).replace(f"127.0.0.1:{server.port}", f"{near.here}:{nats.port}")
        env = {
            "BRIDGE_OUTBOX": url,
            "BRIDGE_SOURCES__EU1__URL": f"http://{rest.here}:{events.port}",
            "BRIDGE_SINKS__CRM__URL": f"http://{rest.here}:{sent.port}",
        }
        yield Apart(made, env)


async def chaos(tmp_path: Path, seconds: float, seed: int) -> Story:
    """Trouble for so long, and then everything has arrived and is accounted for."""
    rng, story = random.Random(seed), Story()
    world = World({TOKEN: ALL}, rng=rng)
    with namespace() as made, nats_server(tmp_path / "nats") as server:
        async with (
            serve(world) as upstream,
            receive(on_delivery=story.got) as crm,
            anyio.create_task_group() as tasks,
        ):
            replicas = Replicas(tmp_path, server)
            (tmp_path / "rules.yaml").write_text(RULES + ALERTS)
            gateways = "".join(f"\n      - gateway: {name}" for name in GATEWAYS)
            replicas.configure(upstream.url, crm.url, devices() + gateways)
            async with apart(made, server, replicas, upstream.port, crm.port) as far:
                stop = anyio.Event()
                try:
                    for name in NAMES:
                        await far.start(replicas, name)
                    await replicas.until_read(but=APART)
                    tasks.start_soon(publish, world, rng, story.published, story.posted, stop)
                    async with anyio.create_task_group() as flapping:
                        for name in GATEWAYS:
                            flapping.start_soon(flap, world, story, name, rng, stop)
                        await trouble(Chaos(replicas, story, far, rng), seconds, rng)
                        stop.set()
                    await settles(
                        lambda: set(story.published) <= set(story.posted),
                        60,
                        lambda: (len(story.published), len(set(story.posted))),
                    )
                    await calm(replicas)
                    told = run("verify", "-c", "bridge.yaml", cwd=tmp_path)
                    assert told.returncode == 0, told.stdout + told.stderr
                finally:
                    stop.set()
                    replicas.end()
    return story


async def trouble(chaos: Chaos, seconds: float, rng: random.Random) -> None:
    """Each kind of it within a round, in any order, round after round until the time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        acts = ["kill", "stop", "kill", "cut", "kill", "restart", "kill", "stop"]
        rng.shuffle(acts)
        for act in acts:
            await anyio.sleep(rng.uniform(1.0, 3.0))
            match act:
                case "kill":
                    await chaos.kill(rng.choice(NAMES))
                case "stop":
                    await chaos.stop(rng.choice(NAMES))
                case "cut":
                    await chaos.cut_off()
                case "restart":
                    await chaos.restart_server()


async def flap(world: World, story: Story, name: str, rng: random.Random, stop: anyio.Event) -> None:
    """A gateway goes away and comes back; each time that has to be told before it goes on."""
    while not stop.is_set():
        for what, state in (("disconnect", "firing"), ("connect", "resolved")):
            told = story.notified[name, state]
            before = len(told)
            world.publish(gateway(name, what, rng))
            with anyio.fail_after(90):
                while len(told) == before:
                    await anyio.sleep(0.1)
            await anyio.sleep(rng.uniform(0.0, 2.0))
        story.flaps += 1


def judged(story: Story, seconds: float) -> None:
    print(story.told())
    assert len(story.published) > seconds * 5
    counts, unexplained = story.explained()
    assert unexplained == [], story.troubles
    assert [(each, count) for each, count in counts.items() if count > each.in_flight] == []
    assert story.flaps > 0
    assert sum(map(len, story.notified.values())) == 2 * story.flaps  # none lost, none under two ids


@pytest.mark.timeout(240)
async def test_three_replicas_lose_nothing_whatever_happens_to_them(tmp_path: Path) -> None:
    """Nothing is missing, each repeat was in flight in some trouble, the sums over all replicas hold."""
    judged(await chaos(tmp_path, 20.0, 20261124), 20.0)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_three_replicas_for_five_minutes(tmp_path: Path) -> None:
    """The same for longer."""
    judged(await chaos(tmp_path, 300.0, 10), 300.0)
