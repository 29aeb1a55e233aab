"""Ingest over the real store on virtual time: one transaction a batch, whatever the disk does."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import anyio
import pytest
import trio

from bridge.delivery import Delivery
from bridge.errors import OutboxError
from bridge.event import DeviceIds, Event, Identifiers
from bridge.ingest import BATCH_LIMIT, Ingest, batch, intake
from bridge.metrics import Metrics
from bridge.outbox.sqlite import SqliteOutbox, open_outbox
from bridge.own import own_event
from bridge.redact import Redactor
from bridge.rulefile import parse
from bridge.rules import RuleSet
from bridge.sources import Arrival, Reading, Started

T = TypeVar("T")
pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]

RULES = RuleSet.of(
    parse(
        """
rules:
  - name: uplinks
    match: {name: as.up.data.forward}
    send: [crm, broker]
  - name: all
    match: {}
    send: [crm]
""",
        "rules.yaml",
        sinks={"crm", "broker"},
    ).rules
)
METER = Identifiers(device_ids=DeviceIds("meter-01"))


@dataclass
class Disk:
    """An offload in place that counts its calls, and refuses them while *full*."""

    full: bool = False
    calls: int = 0

    async def __call__(self, call: Callable[[], T]) -> T:
        await anyio.sleep(0.01)
        if self.full:
            raise OutboxError("disk full", full=True)
        self.calls += 1
        return call()


@dataclass
class Woken:
    sinks: list[frozenset[str]] = field(default_factory=list)

    def __call__(self, sinks: frozenset[str], ready: Mapping[str, Sequence[Delivery]]) -> None:
        self.sinks.append(sinks)


def event(unique_id: str, name: str = "as.up.data.forward") -> Event:
    body = b'{"name":"%s","unique_id":"%s","data":{"key":"secret"}}' % (name.encode(), unique_id.encode())
    return Event(name, "", 0, unique_id, (METER,), body)


def arrival(
    unique_id: str, name: str = "as.up.data.forward", cursors: Mapping[str, int] | None = None
) -> Arrival:
    return Arrival("eu1", event(unique_id, name), trio.current_time(), cursors or {})


@asynccontextmanager
async def store(path: Path, disk: Disk) -> AsyncIterator[SqliteOutbox]:
    async with open_outbox(
        path / "bridge.db",
        durability="process",
        dedup_window=1000.0,
        dead_letter_retention=1e9,
        trace_retention=1e9,
        offload_write=disk,
        offload_read=Disk(),
        reserve=4096,
    ) as outbox:
        yield outbox


async def ingested(ingest: Ingest, readings: Sequence[Reading], pause: float = 0.0) -> None:
    """*readings* handed over *pause* seconds apart, and stored."""
    send, receive = anyio.create_memory_object_stream[Reading](10_000)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ingest.run, receive)
        async with send:
            for reading in readings:
                await send.send(reading)
                if pause:
                    await anyio.sleep(pause)
    receive.close()


def make(outbox: SqliteOutbox, metrics: Metrics | None = None) -> tuple[Ingest, Woken]:
    woken = Woken()
    redactor = Redactor.of(["data.key"])
    return Ingest(outbox, lambda: RULES, redactor, metrics or Metrics(), woken), woken


async def test_what_rules_want_is_stored_and_its_sinks_are_woken(tmp_path: Path) -> None:
    """A delivery a rule and sink; an event nobody wants is counted only."""
    metrics = Metrics()
    async with store(tmp_path, Disk()) as outbox:
        ingest, woken = make(outbox, metrics)
        await ingested(ingest, [arrival("1"), arrival("2", "ns.up.data.receive")])
        totals = outbox.sink_totals()
        assert (totals["crm"].waiting, totals["broker"].waiting) == (3, 1)
        assert outbox.source_totals()["eu1"].accepted == 2
        assert frozenset().union(*woken.sinks) == {"crm", "broker"}
    matches = metrics.registry.get_sample_value("bridge_rule_matches_total", {"rule": "all"})
    assert matches == 2.0


async def test_a_repeat_is_a_duplicate_and_no_match(tmp_path: Path) -> None:
    """Across batches and within one."""
    metrics = Metrics()
    async with store(tmp_path, Disk()) as outbox:
        ingest, _ = make(outbox, metrics)
        await ingested(ingest, [arrival("1"), arrival("1")])
        await ingested(ingest, [arrival("1")])
        assert outbox.source_totals()["eu1"].duplicate == 2
        assert outbox.sink_totals()["crm"].accepted == 2
    assert metrics.registry.get_sample_value("bridge_rule_matches_total", {"rule": "all"}) == 1.0


async def test_what_came_while_the_disk_was_busy_is_one_transaction(tmp_path: Path) -> None:
    """And no transaction has more than its limit."""
    disk = Disk()
    async with store(tmp_path, disk) as outbox:
        ingest, _ = make(outbox)
        await ingested(ingest, [arrival(str(n)) for n in range(BATCH_LIMIT + 10)])
        assert disk.calls <= 3
        assert outbox.source_totals()["eu1"].received == BATCH_LIMIT + 10


async def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    """Nothing is skipped, cursors stand still meanwhile, and it is known that nothing can be stored."""
    disk = Disk(full=True)
    async with store(tmp_path, disk) as outbox:
        ingest, _ = make(outbox)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ingested, ingest, [arrival("1", cursors={"application:a": 7}), arrival("2")])
            await anyio.sleep(100)
            assert not ingest.storing
            assert await outbox.cursors("eu1") == {}
            disk.full = False
        assert ingest.storing
        assert await outbox.cursors("eu1") == {"application:a": 7}
        assert outbox.source_totals()["eu1"].accepted == 2


async def test_what_is_stored_is_redacted_but_rules_saw_it(tmp_path: Path) -> None:
    """Only if it is stored at all."""
    redactor = Redactor.of(["data.key"])
    stored = intake(arrival("1"), RULES.rules, redactor, frozenset())
    unwanted = intake(arrival("1"), (), redactor, frozenset())
    assert b"secret" not in stored.event.body
    assert unwanted.event.body == event("1").body


async def test_only_ordered_sinks_get_an_order_key() -> None:
    """The device of the event."""
    stored = intake(arrival("1"), RULES.rules[:1], Redactor.of([]), frozenset({"broker"}))
    assert {route.sink: route.order_key for route in stored.routes} == {
        "crm": None,
        "broker": "device:/meter-01",
    }


async def test_an_own_event_does_not_go_to_the_sink_it_is_about() -> None:
    """The others get it."""
    paused = own_event("bridge.sink.paused", ns=0, rng=random.Random(1), data={"sink": "crm"})
    both = [rule for rule in RULES.rules if rule.name == "uplinks"]
    stored = intake(Arrival("bridge", paused, 0.0), both, Redactor.of([]), frozenset())
    assert [route.sink for route in stored.routes] == ["broker"]
    assert stored.matched


async def test_an_overflow_is_told_but_not_of_own_events(tmp_path: Path) -> None:
    """Or a full store would fill itself."""
    told: list[tuple[str, Mapping[str, object]]] = []

    def tell(name: str, about: str, data: Mapping[str, object], entities: object = ()) -> None:
        told.append((name, data))

    async with open_outbox(
        tmp_path / "bridge.db",
        durability="process",
        dedup_window=1000.0,
        dead_letter_retention=1e9,
        trace_retention=1e9,
        offload_write=Disk(),
        offload_read=Disk(),
        reserve=4096,
        max_size=400_000,
    ) as outbox:
        ingest, _ = make(outbox)
        ingest.tell = tell
        await ingested(ingest, [arrival(f"{n:030d}") for n in range(3000)])
    assert {name for name, _ in told} == {"bridge.outbox.overflow"}
    assert {data["sink"] for _, data in told} <= {"crm", "broker"}


def test_a_batch_moves_each_cursor_to_its_furthest() -> None:
    """And a start is only a start."""
    readings: list[Reading] = [
        Started("eu1", {"application:a": 1, "gateway:g": 2}),
        Arrival("eu1", event("1"), 0.0, {"application:a": 9}),
        Arrival("eu1", event("2"), 0.0, {"application:a": 5}),
        Arrival("eu1", event("3"), 0.0),
    ]
    made = batch(readings, [])
    assert made.cursors == {("eu1", "application:a"): 9}
    assert made.starts == {("eu1", "application:a"): 1, ("eu1", "gateway:g"): 2}
    assert made.recent == {("eu1", "application:a"): ["1", "2"]}


async def test_what_alerts_see_is_handed_over_before_the_event_is_stored(tmp_path: Path) -> None:
    """Or a kill in between would lose the alert: the event would be known when it comes again."""
    stored: list[int] = []
    fails = [OutboxError("not connected"), None, None]

    async with store(tmp_path, Disk()) as outbox:
        ingest, _ = make(outbox)

        async def hand_over() -> None:
            totals = outbox.source_totals().get("eu1")
            stored.append(totals.received if totals else 0)
            if error := fails.pop(0):
                raise error

        ingest.hand_over = hand_over
        await ingested(ingest, [arrival("1")])
        await ingested(ingest, [arrival("2")])
    assert stored == [0, 0, 1]
