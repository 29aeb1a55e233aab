"""The order of shutdown: sources stop, what they had read is stored, what is in flight ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import anyio
import pytest
import trio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from bridge.event import Event
from bridge.ingest import Ingest
from bridge.pipeline import flow
from bridge.sources import Arrival, Reading

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]


@dataclass
class Story:
    lines: list[str] = field(default_factory=list)

    def tell(self, what: str) -> None:
        self.lines.append(f"{trio.current_time():.0f} {what}")


@dataclass
class Reading10:
    """A source that has read ten events, and reads on until it is cancelled."""

    story: Story

    async def run(self, into: MemoryObjectSendStream[Reading]) -> None:
        for number in range(10):
            await into.send(Arrival("eu1", Event("a.b", "", 0, str(number), (), b"{}"), 0.0))
        try:
            await anyio.sleep_forever()
        finally:
            self.story.tell("source stops")


@dataclass
class SlowIngest:
    """Takes a second for each reading."""

    story: Story

    async def run(self, readings: MemoryObjectReceiveStream[Reading]) -> None:
        stored = 0
        async for _ in readings:
            await anyio.sleep(1.0)
            stored += 1
        self.story.tell(f"{stored} stored")


@dataclass
class Delivering:
    """A dispatcher whose last delivery takes *seconds* after it is told to stop."""

    story: Story
    seconds: float
    stopping: anyio.Event = field(default_factory=anyio.Event)

    async def run(self) -> None:
        await self.stopping.wait()
        try:
            await anyio.sleep(self.seconds)
        except BaseException:
            self.story.tell("dispatcher is cut off")
            raise
        self.story.tell("dispatcher ends")

    def stop(self) -> None:
        self.stopping.set()


async def stopped_after(seconds: float, delivery: float, drain: float) -> list[str]:
    story, stop = Story(), anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_stop, seconds, stop)
        ingest = cast(Ingest, SlowIngest(story))
        await flow([Reading10(story)], ingest, [Delivering(story, delivery)], stop, drain=drain)
    story.tell("over")
    return story.lines


async def _stop(seconds: float, stop: anyio.Event) -> None:
    await anyio.sleep(seconds)
    stop.set()


async def test_what_was_read_is_stored_and_what_is_in_flight_ends() -> None:
    """In this order, and no later than it takes."""
    assert await stopped_after(3, delivery=12, drain=20) == [
        "3 source stops",
        "10 10 stored",
        "15 dispatcher ends",
        "15 over",
    ]


async def test_nothing_takes_longer_than_the_drain() -> None:
    """What was not stored is read again, what was not delivered is on disk."""
    assert await stopped_after(3, delivery=60, drain=5) == [
        "3 source stops",
        "8 dispatcher is cut off",
        "8 over",
    ]
