"""A source on virtual time with everything that came out of it, for tests of `bridge.sources`."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

from bridge.event import Entity, Event
from bridge.metrics import Metrics
from bridge.sources import Arrival, Reading, Started
from bridge.sources.follow import TtsSource
from bridge.sources.models import TtsSourceConfig
from bridge.sources.registry import propagates
from bridge.standin import ALL, World
from bridge.standin.world import Rights
from tests.upstreams import TOKEN, WorldApi, WorldUpstream, virtual_clock

APP = Entity("application", "plant-a")
UP = "as.up.data.forward"


@dataclass
class Store:
    """What an outbox would keep of a source: the contract of `Batch`, without a disk."""

    cursors: dict[str, int] = field(default_factory=dict)
    recent: dict[str, list[str]] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    """Of everything that arrived, repeats included."""
    arrivals: list[Arrival] = field(default_factory=list)

    def take(self, reading: Reading) -> None:
        if not isinstance(reading, Arrival | Started):
            return
        for identifier, at in reading.cursors.items():
            if isinstance(reading, Started):
                self.cursors.setdefault(identifier, at)
            else:
                self.cursors[identifier] = max(at, self.cursors.get(identifier, 0))
                kept = [*self.recent.get(identifier, ()), reading.event.unique_id]
                self.recent[identifier] = kept[-8:]
        if isinstance(reading, Arrival):
            self.arrivals.append(reading)
            self.ids.append(reading.event.unique_id)

    def own(self, name: str) -> list[Event]:
        return [each.event for each in self.arrivals if each.event.name == name]

    def gaps(self) -> list[dict[str, Any]]:
        return [each.document()["data"] for each in self.own("bridge.source.gap")]


@dataclass
class Rig:
    world: World
    upstream: WorldUpstream
    api: WorldApi
    store: Store = field(default_factory=Store)
    metrics: Metrics = field(default_factory=Metrics)
    source: TtsSource = field(init=False)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"source": "eu1", **labels}) or 0.0

    @asynccontextmanager
    async def following(
        self,
        identifiers: Sequence[dict[str, str]],
        names: Sequence[str] = (),
        needed: Sequence[frozenset[str]] | None = None,
        **options: object,
    ) -> AsyncIterator[TtsSource]:
        """The source running, with what it reads going into `store`, until the context is left."""
        config = TtsSourceConfig.model_validate(
            {"type": "tts", "url": "https://tts.example", "api_key": TOKEN, "identifiers": list(identifiers)}
            | options
        )
        self.metrics.prepare(sources=["eu1"], sinks=(), rules=())
        self.source = TtsSource(
            "eu1",
            config,
            self.upstream,
            self.api,
            self.metrics,
            cursors=self._cursors,
            recent_ids=self._recent,
            wait=lambda attempt: min(60.0, 0.5 * 2.0**attempt),
            now=virtual_clock,
            rng=random.Random(0),
            names=names,
            propagates=propagates(),
            needed=needed,
        )
        send, receive = anyio.create_memory_object_stream[Reading](math.inf)

        async def storing() -> None:
            async for reading in receive:
                self.store.take(reading)

        async with receive, anyio.create_task_group() as tasks:
            self.upstream.tasks = tasks
            tasks.start_soon(storing)
            tasks.start_soon(self.source.run, send)
            try:
                yield self.source
            finally:
                tasks.cancel_scope.cancel()
                send.close()

    async def _cursors(self) -> dict[str, int]:
        return dict(self.store.cursors)

    async def _recent(self, identifier: str) -> tuple[str, ...]:
        return tuple(self.store.recent.get(identifier, ()))


def rig(*entities: Entity, rights: Rights = ALL, **options: Any) -> Rig:
    world = World({TOKEN: rights}, entities=entities or [APP], clock=virtual_clock, **options)
    upstream = WorldUpstream(world)
    return Rig(world, upstream, WorldApi(upstream))


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for *condition*; fails after *seconds* of virtual time."""
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.05)
