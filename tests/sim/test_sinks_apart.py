"""One sink never hurts another, on virtual time: what a bad neighbour costs a healthy sink in waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import anyio
import pytest
import trio

from bridge.delivery import Delivered, Delivery, Failure, Outcome, Pause, RetryLater, Route
from bridge.dispatch import Dispatcher
from bridge.event import Event
from bridge.metrics import Metrics
from bridge.outbox import Batch, Intake
from bridge.outbox.sqlite import SqliteOutbox, open_outbox
from bridge.retry import RetryPolicy

T = TypeVar("T")
pytestmark = [pytest.mark.sim, pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]

COMMIT = 0.002  # seconds a disk sync takes
EVENTS = 500
EVERY = 0.05  # seconds between events


async def disk(call: Callable[[], T]) -> T:
    await anyio.sleep(COMMIT)
    return call()


def now() -> float:
    return 1_000_000.0 + trio.current_time()


@dataclass
class Answering:
    """A receiver that answers *outcome* after *seconds*, and writes down how old each delivery was then."""

    name: str
    outcome: Outcome
    seconds: float
    max_in_flight: int = 64
    ages: list[float] = field(default_factory=list)

    async def send(self, delivery: Delivery) -> Outcome:
        await anyio.sleep(self.seconds)
        self.ages.append(now() - delivery.received)
        return self.outcome


BAD = (
    Answering("busy", Pause(Failure("rate_limited", "HTTP 429", 429), 30.0), 0.01),
    Answering("hangs", RetryLater(Failure("timeout", "no answer")), 10.0),
    Answering("resets", RetryLater(Failure("connect", "reset")), 0.0),
    Answering("slow", Delivered(200), 8.0),
)


@asynccontextmanager
async def store(path: Path) -> AsyncIterator[SqliteOutbox]:
    async with open_outbox(
        path,
        durability="process",
        dedup_window=1e6,
        dead_letter_retention=1e6,
        trace_retention=1e6,
        offload_write=disk,
        offload_read=disk,
        reserve=4096,
    ) as outbox:
        yield outbox


async def p99(path: Path, sinks: Mapping[str, Answering]) -> float:
    """Of the ages at which the sink `healthy` gets EVENTS events, beside the others of *sinks*."""
    async with store(path) as outbox, anyio.create_task_group() as tasks:
        dispatchers = [
            Dispatcher(sink, outbox, RetryPolicy(), Metrics(), now=now, chance=lambda: 0.5, adaptive=True)
            for sink in sinks.values()
        ]
        for each in dispatchers:
            tasks.start_soon(each.run)
        routes = tuple(Route("all", name) for name in sinks)
        for number in range(EVENTS):
            event = Event("a.b", "", 0, str(number), (), b'{"name":"a.b"}')
            await outbox.accept(Batch([Intake("eu1", event, now(), True, routes)]))
            for each in dispatchers:
                each.wake()
            await anyio.sleep(EVERY)
        await anyio.sleep(5)
        tasks.cancel_scope.cancel()
    ages = sorted(sinks["healthy"].ages)
    assert len(ages) == EVENTS
    return ages[int(EVENTS * 0.99)]


async def test_four_bad_sinks_cost_a_healthy_one_nothing_but_their_share_of_the_disk(tmp_path: Path) -> None:
    """Its p99 is within 1.5 times its p99 alone: commits are shared, slots and pauses are not."""
    alone = await p99(tmp_path / "alone.db", {"healthy": Answering("healthy", Delivered(200), 0.01)})
    healthy = Answering("healthy", Delivered(200), 0.01)
    beside = await p99(tmp_path / "beside.db", {"healthy": healthy} | {sink.name: sink for sink in BAD})

    assert alone < 0.05
    assert beside <= 1.5 * alone
