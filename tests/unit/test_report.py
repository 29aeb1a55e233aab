"""bridge's own events on their way into the store."""

from __future__ import annotations

import random

import anyio
import pytest
import trio

from bridge.event import Entity, entities
from bridge.own import own_event
from bridge.report import SelfReport, spared
from bridge.sources import Arrival, Reading

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]


def now() -> float:
    return 1_000_000.0 + trio.current_time()


async def told(report: SelfReport, seconds: float) -> list[Arrival]:
    """What came in that time."""
    send, receive = anyio.create_memory_object_stream[Reading](100)
    async with send, receive, anyio.create_task_group() as tasks:
        tasks.start_soon(report.run, send)
        await anyio.sleep(seconds)
        tasks.cancel_scope.cancel()
        count = receive.statistics().current_buffer_used
        found = [receive.receive_nowait() for _ in range(count)]
    return [reading for reading in found if isinstance(reading, Arrival)]


async def test_a_report_is_an_event_at_once() -> None:
    """With its data and whom it is about."""
    report = SelfReport(now, random.Random(1))
    report.tell("bridge.dead_letter", "crm", {"sink": "crm", "reason": "expired"}, [Entity("gateway", "gw")])
    (arrival,) = await told(report, 0.1)
    document = arrival.event.document()
    assert arrival.source == "bridge"
    assert document["name"] == "bridge.dead_letter"
    assert document["data"] == {"sink": "crm", "reason": "expired", "count": 1}
    assert entities(arrival.event) == (Entity("gateway", "gw"),)


async def test_a_thousand_reports_about_the_same_are_one() -> None:
    """With how many they were: a broken template must not double the traffic."""
    report = SelfReport(now, random.Random(1))
    for number in range(1000):
        report.tell("bridge.dead_letter", "crm", {"delivery": number})
    report.tell("bridge.dead_letter", "other", {"delivery": 0})
    found = [arrival.event.document()["data"] for arrival in await told(report, 5)]
    assert found == [{"delivery": 999, "count": 1000}, {"delivery": 0, "count": 1}]


async def test_a_report_in_the_next_second_is_another_event() -> None:
    """Under an id of its own."""
    report = SelfReport(now, random.Random(1))
    send, receive = anyio.create_memory_object_stream[Reading](100)
    async with send, receive, anyio.create_task_group() as tasks:
        tasks.start_soon(report.run, send)
        for _ in range(3):
            report.tell("bridge.sink.paused", "crm", {})
            await anyio.sleep(1.5)
        tasks.cancel_scope.cancel()
        ids = {receive.receive_nowait().event.unique_id for _ in range(3)}  # type: ignore[union-attr]
    assert len(ids) == 3


def test_an_own_event_spares_the_sink_it_is_about() -> None:
    """And no other event spares anybody."""
    rng = random.Random(1)
    assert spared(own_event("bridge.sink.paused", ns=0, rng=rng, data={"sink": "crm"})) == "crm"
    assert spared(own_event("bridge.source.gap", ns=0, rng=rng, data={"source": "eu1"})) == ""
