"""A day of virtual time between the source and a server that drops, trims, cuts and restarts, many seeds.

The server is the stand-in's world with the history and the channels of the real one. The promise: nothing is
lost that history could have covered, and every other loss is announced as a gap.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from bridge.event import Entity, nanoseconds
from bridge.sources.plan import key
from bridge.standin.history import History, Record
from tests.unit.following import Rig, rig
from tests.upstreams import WorldStream, happened

pytestmark = [pytest.mark.anyio, pytest.mark.sim, pytest.mark.usefixtures("virtual_time")]

DAY = 86_400.0  # seconds
RECYCLE, OVERLAP = 240.0, 10.0  # seconds
READ_WITHIN = 1.5 * RECYCLE  # seconds in which every entity is read again
FULL_SOON, ROOM = 50, 15.0  # after so many events it is read again, within so many seconds

APPS = [Entity("application", f"plant-{each}") for each in "ab"]
DEVICES = [Entity("device", f"plant-a/meter-{number:02}") for number in range(6)]
GATEWAYS = [Entity("gateway", f"gw-{number}") for number in range(4)]
PROPAGATING, LOCAL = "as.up.data.forward", "ns.up.data.drop"


@dataclass
class TrackedHistory(History):
    """Remembers when an entry left."""

    trimmed: dict[tuple[Entity, str], float] = field(default_factory=dict)

    def add(self, each: Record) -> None:
        now = anyio.current_time()
        before = {entity: list(self.lists.get(entity, ())) for entity in each.entities if self._full(entity)}
        super().add(each)
        for entity, entries in before.items():
            kept = {other.unique_id for other in self.lists[entity]}
            for other in entries:
                if other.unique_id not in kept:
                    self.trimmed[entity, other.unique_id] = now

    def _full(self, entity: Entity) -> bool:
        return len(self.lists.get(entity, ())) >= 199


@dataclass(frozen=True, slots=True)
class Published:
    id: str
    entity: Entity
    name: str
    at: float
    made: float
    """Unix seconds by the event itself, which comes late."""


@dataclass
class Day:
    """One seeded day."""

    seed: int
    rng: random.Random
    it: Rig
    followed: list[Entity]
    published: list[Published] = field(default_factory=list)
    carried: list[tuple[float, float, frozenset[Entity]]] = field(default_factory=list)
    """When a stream was open, and for whom."""
    trace: list[str] = field(default_factory=list)
    live: set[str] = field(default_factory=set)
    """Ids that live streams brought: within less than it takes to open another."""
    _heard: dict[Entity, list[float]] = field(default_factory=dict)

    def publish(self, entity: Entity) -> None:
        name = PROPAGATING if entity.kind == "device" and self.rng.random() < 0.7 else LOCAL
        if entity.kind != "device":
            name = "gs.status.receive" if entity.kind == "gateway" else "application.update"
        late = self.rng.choice([0.0, 0.0, self.rng.uniform(0, 3)])
        at = self.it.world.clock() - late
        id = happened(self.it.world, name, entity, at)
        self.published.append(Published(id, entity, name, anyio.current_time(), at))

    async def traffic(self, entity: Entity, pause: float) -> None:
        while True:
            await anyio.sleep(self.rng.expovariate(1 / pause))
            self.publish(entity)

    async def bursts(self) -> None:
        while True:
            await anyio.sleep(self.rng.expovariate(1 / (DAY / 8)))
            entity = self.rng.choice([*DEVICES, *GATEWAYS])
            size, seconds = self.rng.choice([(60, 2.0), (300, 0.5), (300, 60.0), (1500, 0.0), (1500, 20.0)])
            self.note("burst", entity, size, seconds)
            for _ in range(size):
                self.publish(entity)
                if seconds:
                    await anyio.sleep(seconds / size)

    async def trouble(self) -> None:
        """Cuts, silence, restarts of the server; lossy streams for a while."""
        upstream = self.it.upstream
        while True:
            await anyio.sleep(self.rng.expovariate(1 / (DAY / 16)))
            what = self.rng.choice(["cut", "silence", "stop", "one", "drops"])
            self.note(what)
            match what:
                case "cut":
                    upstream.cut()
                case "silence":
                    upstream.silence()
                case "stop":
                    upstream.stop()
                    await anyio.sleep(self.rng.choice([2.0, 30.0, 600.0, 3600.0]))
                    upstream.start()
                case "one" if upstream.streams:
                    self.rng.choice(upstream.ordered).silent = True
                case "drops":
                    for stream in upstream.ordered:
                        stream.lossy = self.rng.choice([0.05, 0.5])
                case _:
                    pass

    def note(self, *words: object) -> None:
        self.trace.append(f"{anyio.current_time():.3f} " + " ".join(map(str, words)))

    # The judge

    def heard(self) -> dict[Entity, list[float]]:
        """When each entity was heard of live, which is what the source can count."""
        if not self._heard:
            came = {each.event.unique_id: each.received for each in reversed(self.it.store.arrivals)}
            zero = self.it.world.clock() - anyio.current_time()
            for each in self.published:
                for entity in self.carriers(each):
                    times = self._heard.setdefault(entity, [])
                    if came.get(each.id, math.inf) - zero - each.at < 0.009:
                        times.append(each.at)
                        self.live.add(each.id)
        return self._heard

    def carriers(self, event: Published) -> Iterator[Entity]:
        if event.entity in self.followed:
            yield event.entity
        if event.name == PROPAGATING:
            parent = Entity("application", event.entity.id.partition("/")[0])
            if parent in self.followed:
                yield parent

    def lost(self) -> list[Published]:
        got = set(self.it.store.ids)
        return [each for each in self.published if each.id not in got and any(self.carriers(each))]

    def was_coverable(self, event: Published) -> str:
        """Why history could have covered *event*; '' if it could not."""
        history = self.it.world.history
        assert isinstance(history, TrackedHistory)
        for entity in self.carriers(event):
            until = history.trimmed.get((entity, event.id), math.inf)
            seconds = self.carried_seconds(entity, event.at, min(until, DAY))
            if seconds >= READ_WITHIN:
                return f"{entity} had it for {seconds:.0f} s of connected time"
            heard = self.heard()[entity]
            place = bisect_right(heard, event.at) + FULL_SOON
            if place < len(heard):
                seconds = self.carried_seconds(entity, heard[place], min(until, DAY))
                if seconds > ROOM:
                    return f"{entity} had it {seconds:.0f} s after {FULL_SOON} more came"
        return ""

    def carried_seconds(self, entity: Entity, since: float, until: float) -> float:
        spans = sorted(
            (a, b) for a, b, entities in self.carried if entity in entities and b > since and a < until
        )
        total, end = 0.0, since
        for a, b in spans:
            begin = max(a, end)
            if b > begin:
                total += max(0.0, min(b, until) - begin)
                end = b
        return total

    def was_dropped(self, event: Published) -> bool:
        """Did the live streams not bring *event*, although one was open or so that history trimmed it?

        It may have come all the same, by the history of its device or of its application.
        """
        self.heard()
        history = self.it.world.history
        assert isinstance(history, TrackedHistory)
        return event.id not in self.live and any(
            (each, event.id) in history.trimmed or self.carried_seconds(each, event.at, event.at + 1) > 0.9
            for each in self.carriers(event)
        )

    def is_in(self, event: Published, gap: dict[str, Any]) -> bool:
        since, until = nanoseconds(gap["from"]) / 1e9, nanoseconds(gap["to"]) / 1e9
        named = any(key(each) in gap["entities"] for each in self.carriers(event))
        return named and since <= event.made <= until


def watch(day: Day) -> None:
    """Note when streams are open, by the only door they come through."""
    upstream = day.it.upstream
    began: dict[WorldStream, float] = {}

    def opened(stream: WorldStream) -> None:
        began[stream] = anyio.current_time()

    def closed(stream: WorldStream) -> None:
        day.carried.append((began.pop(stream), anyio.current_time(), frozenset(stream.entities)))

    upstream.on_open, upstream.on_close = opened, closed


async def a_day(seed: int) -> Day:
    rng = random.Random(seed)
    few = seed % 3 == 0
    followed = [*GATEWAYS[:3], APPS[0]] if few else [*APPS, *DEVICES, *GATEWAYS]
    it = rig(*APPS, *DEVICES, *GATEWAYS)
    it.world.history = TrackedHistory()
    it.upstream.rng = rng
    day = Day(seed, rng, it, followed)
    watch(day)
    identifiers: list[dict[str, str]] = [{each.kind: each.id} for each in followed]
    names = ["/^as|^gs|^ns|^app/"] if seed % 2 else []
    async with anyio.create_task_group() as tasks:
        for number, entity in enumerate([*APPS, *DEVICES, *GATEWAYS]):
            tasks.start_soon(day.traffic, entity, (60.0, 300.0, 1800.0, 7200.0)[number % 4])
        tasks.start_soon(day.bursts)
        tasks.start_soon(day.trouble)
        while anyio.current_time() < DAY:
            left = DAY - anyio.current_time()
            alive = left if left < 3600 else min(left, rng.expovariate(1 / (DAY / 4)))
            async with it.following(identifiers, names):
                await anyio.sleep(alive)
            day.note("bridge restarts")
            await anyio.sleep(rng.choice([0.5, 20.0, 900.0]))
        tasks.cancel_scope.cancel()
    it.upstream.start()
    async with it.following(identifiers, names):
        await anyio.sleep(2 * RECYCLE)
    return day


QUICK = 6
SEEDS = [pytest.param(seed, marks=() if seed < QUICK else pytest.mark.slow) for seed in range(54)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.timeout(120)
async def test_a_day_loses_nothing_that_history_has_and_tells_the_rest(seed: int) -> None:
    """Every loss is in a gap that was told, none stayed in history long enough to be read, and no gap is told
    where the server dropped nothing."""
    day = await a_day(seed)
    gaps = day.it.store.gaps()
    lost = day.lost()
    silent = [each for each in lost if not any(day.is_in(each, gap) for gap in gaps)]
    wasted = [(each, why) for each in lost if (why := day.was_coverable(each))]
    doubt = lost + [each for each in day.published if day.was_dropped(each)]
    empty = [gap for gap in gaps if not any(day.is_in(each, gap) for each in doubt)]
    assert len(day.published) > 2_000
    assert not wasted, (wasted[:3], day.trace)
    assert not empty, (empty, day.trace)
    assert not silent, (len(silent), silent[:3], gaps, day.trace)
