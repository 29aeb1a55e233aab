"""Batches put together, on virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from bridge.delivery import Delivered, Delivery, Failure, Outcome, Pause, Rejected, RetryLater
from bridge.dispatch import Dispatcher
from bridge.dispatch.gathering import READY, READY_BYTES, Gathering, room
from bridge.event import Event
from bridge.metrics import Metrics
from bridge.outbox import DeadLetterFilter
from bridge.sinks import BatchLimits
from tests.unit.test_dispatch import POLICY, Disk, fill, now, store

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]


def delivery(row: int, size: int = 10) -> Delivery:
    event = Event("a", "", 0, f"{row}", (), b"x" * size)
    return Delivery(row, f"d_{row}", event, "eu1", "r", "crm", 1, 0.0)


def rows(batch: Sequence[Delivery]) -> list[int]:
    return [each.row for each in batch]


async def test_what_is_ready_goes_together() -> None:
    """Up to `max_events`, in order, the rest in the next."""
    gathering = Gathering(BatchLimits(3))
    gathering.put(delivery(n) for n in range(7))
    assert [rows(await gathering.take()) for _ in range(3)] == [[0, 1, 2], [3, 4, 5], [6]]


async def test_without_a_wait_nobody_waits() -> None:
    """What is ready goes at once."""
    gathering = Gathering(BatchLimits(3))
    gathering.put([delivery(1)])
    began = trio.current_time()
    assert rows(await gathering.take()) == [1]
    assert trio.current_time() == began


async def test_the_first_waits_for_others_as_long_as_it_may() -> None:
    """And not longer; a full batch goes at once."""
    gathering = Gathering(BatchLimits(3, 1.0))
    async with anyio.create_task_group() as tasks:

        async def come() -> None:
            for n in range(7):
                gathering.put([delivery(n)])
                await anyio.sleep(0.4)

        tasks.start_soon(come)
        took: list[tuple[float, list[int]]] = []
        for _ in range(3):
            batch = await gathering.take()
            took.append((round(trio.current_time(), 1), rows(batch)))
    began = took[0][0]
    assert [(round(at - began, 1), batch) for at, batch in took] == [
        (0, [0, 1, 2]),
        (1.2, [3, 4, 5]),
        (2.6, [6]),
    ]


async def test_a_batch_ends_where_its_bytes_do() -> None:
    """One that is larger goes alone; it does not wait for others that would not fit."""
    gathering = Gathering(BatchLimits(10, 60.0, 100))
    gathering.put(delivery(n, size) for n, size in enumerate([40, 40, 40, 500, 10, 95]))
    began = trio.current_time()
    assert [rows(await gathering.take()) for _ in range(4)] == [[0, 1], [2], [3], [4]]
    assert trio.current_time() == began


async def test_a_batch_may_be_larger_than_what_is_held() -> None:
    """Then it ends there: nothing more is read, and waiting for it would take all its time."""
    gathering = Gathering(BatchLimits(10, 60.0, 3 * READY_BYTES))
    gathering.put([delivery(1, READY_BYTES - 1), delivery(2, 1)])
    began = trio.current_time()
    assert rows(await gathering.take()) == [1, 2]
    assert trio.current_time() == began


async def test_slots_that_wait_do_not_take_a_batch_apart() -> None:
    """One gathers, the others stand behind it."""
    gathering = Gathering(BatchLimits(4, 1.0))
    found: list[list[int]] = []

    async def slot() -> None:
        while batch := await gathering.take():
            found.append(rows(batch))

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(slot)
        await anyio.sleep(0.1)
        for n in range(8):
            gathering.put([delivery(n)])
            await anyio.sleep(0.01)
        await anyio.sleep(2)
        gathering.close()
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7]]


async def test_at_the_end_what_is_ready_still_goes() -> None:
    """Without waiting out the time; then nothing."""
    gathering = Gathering(BatchLimits(4, 60.0))
    began = trio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gathering.take)
        await anyio.sleep(0.1)
        gathering.put([delivery(1)])
        await anyio.sleep(0.1)
        gathering.close()
    assert await gathering.take() == []
    assert trio.current_time() - began < 1


@given(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0, 2)), max_size=30),
    st.integers(1, 5),
    st.floats(0, 1),
    st.integers(1, 4),
)
def test_nothing_is_lost_or_repeated(
    arrivals: list[tuple[int, float]], most: int, wait: float, slots: int
) -> None:
    """Whenever deliveries come, whoever takes them, whenever time runs out."""
    found: list[int] = []
    gathering = Gathering(BatchLimits(most, wait, 100))

    async def slot() -> None:
        while batch := await gathering.take():
            assert len(batch) <= most
            assert len(batch) == 1 or sum(len(each.event.body) for each in batch) <= 100
            found.extend(rows(batch))
            await anyio.sleep(0.3)

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(slots):
                tasks.start_soon(slot)
            for n, (size, pause) in enumerate(arrivals):
                gathering.put([delivery(n, size)])
                await anyio.sleep(pause)
            gathering.close()

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
    assert sorted(found) == list(range(len(arrivals)))
    assert slots > 1 or found == sorted(found)


# Through a dispatcher, over the real outbox


TENS = BatchLimits(10, 0.5)
OK = Delivered(200)


@dataclass
class Bulk:
    """Takes batches; *bad* ids are rejected; *answer* is the outcome of all others."""

    batch_limits: BatchLimits = TENS
    answer: Outcome = OK
    bad: frozenset[str] = frozenset()
    max_in_flight: int = 2
    name: str = "crm"
    batches: list[list[str]] = field(default_factory=list)

    async def send(self, delivery: Delivery) -> Outcome:
        return (await self.send_batch([delivery]))[0]

    async def send_batch(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        await anyio.sleep(0.1)
        ids = [each.event.unique_id for each in deliveries]
        self.batches.append(ids)
        wrong = Rejected(Failure("client_error", "HTTP 422", 422))
        return [wrong if each in self.bad else self.answer for each in ids]


IDS = [f"{n:03}" for n in range(25)]


async def ran(sink: Bulk, directory: Path, seconds: float = 5.0) -> tuple[int, int, int]:
    """Delivered, dead and waiting after *seconds*."""
    async with store(directory, Disk()) as outbox:
        await fill(outbox, IDS)
        dispatcher = Dispatcher(sink, outbox, POLICY, Metrics(), now=now, chance=lambda: 0.5)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(dispatcher.run)
            await anyio.sleep(seconds)
            dispatcher.stop()
        totals = outbox.sink_totals()["crm"]
        dead = await outbox.dead_letters(DeadLetterFilter(), limit=100)
        assert {each.unique_id for each in dead} == sink.bad
        return totals.delivered, totals.dead, totals.waiting


async def test_a_dispatcher_sends_and_settles_batches(tmp_path: Path) -> None:
    """All of them, each once, ten at a time."""
    sink = Bulk()
    assert await ran(sink, tmp_path) == (25, 0, 0)
    assert sorted(map(len, sink.batches)) == [5, 10, 10]
    assert sorted(each for batch in sink.batches for each in batch) == IDS


async def test_of_a_batch_each_delivery_has_its_own_end(tmp_path: Path) -> None:
    """Delivered and dead letters side by side."""
    assert await ran(Bulk(bad=frozenset({"003", "017"})), tmp_path) == (23, 2, 0)


async def test_a_batch_that_pauses_the_sink_is_probed_with_one(tmp_path: Path) -> None:
    """Half-open: not ten deliveries at a door that is shut."""
    sink = Bulk(answer=Pause(Failure("auth", "HTTP 401", 401)))
    assert await ran(sink, tmp_path, 60) == (0, 0, 25)
    probes = sink.batches[2:]
    assert probes
    assert all(len(batch) == 1 for batch in probes)


async def test_a_batch_that_fails_comes_again(tmp_path: Path) -> None:
    """Each by its own due time."""
    sink = Bulk(answer=RetryLater(Failure("server_error", "HTTP 500", 500)))
    assert await ran(sink, tmp_path, 20) == (0, 0, 25)
    assert sum(map(len, sink.batches)) > 50


@pytest.mark.parametrize(
    ("max_in_flight", "max_events", "ahead", "held"),
    [
        (1, 1, 4, 16),
        (64, 1, 4, 256),
        (64, 1, 16, 1024),
        (1000, 1, 16, READY),
        (1, 100, 4, 400),
        (64, 10_000, 4, READY),
    ],
)
def test_what_is_held_ready_is_enough_and_bounded(
    max_in_flight: int, max_events: int, ahead: int, held: int
) -> None:
    """For as many rounds of all places as the store says."""
    assert room(Bulk(BatchLimits(max_events), max_in_flight=max_in_flight), ahead) == held
