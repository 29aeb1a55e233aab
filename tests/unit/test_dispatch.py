"""A dispatcher on virtual time, over the real outbox and a sink that answers as told."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
import structlog.testing
import trio

from bridge.delivery import Delivered, Delivery, Failure, Outcome, Pause, Rejected, RetryLater, Route
from bridge.dispatch import Dispatcher
from bridge.dispatch.gathering import READY_BYTES
from bridge.dispatch.settling import CALM, LINGER
from bridge.errors import OutboxError
from bridge.event import Entity, Event
from bridge.metrics import Metrics
from bridge.outbox import Accepted, Batch, DeadLetterFilter, Due, Intake, Outbox
from bridge.outbox.queries import DUE_BYTES
from bridge.outbox.sqlite import open_outbox
from bridge.retry import RetryPolicy

T = TypeVar("T")
pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]

POLICY = RetryPolicy(initial=5, max=3600, give_up_after=86400)


@dataclass
class Disk:
    """An offload in place; refuses while *full*."""

    full: bool = False
    writes: int = 0

    async def __call__(self, call: Callable[[], T]) -> T:
        await anyio.lowlevel.checkpoint()
        if self.full:
            raise OutboxError("disk full", full=True)
        self.writes += 1
        return call()


@dataclass
class ToldSink:
    """Answers with *answers* in turn, the last one for ever; each takes *seconds*."""

    answers: list[Outcome]
    seconds: float = 0.1
    max_in_flight: int = 4
    name: str = "crm"
    calls: list[tuple[float, str]] = field(default_factory=list)
    running: int = 0
    most: int = 0

    async def send(self, delivery: Delivery) -> Outcome:
        self.calls.append((trio.current_time(), delivery.event.unique_id))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await anyio.sleep(self.seconds)
        finally:
            self.running -= 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class NotAsked:
    async def __call__(self, *_: object, **__: object) -> Due:
        raise AssertionError("the store was asked")


OK = Delivered(200)
AWAY = RetryLater(Failure("connect", "connection refused"))
WRONG = Pause(Failure("auth", "HTTP 401", 401))


def now() -> float:
    return 1_000_000.0 + trio.current_time()


@asynccontextmanager
async def store(path: Path, disk: Disk) -> AsyncIterator[Outbox]:
    async with open_outbox(
        path / "bridge.db",
        durability="process",
        dedup_window=1000.0,
        dead_letter_retention=1e9,
        trace_retention=1e9,
        offload_write=disk,
        offload_read=Disk(),
    ) as outbox:
        yield outbox


async def fill(
    outbox: Outbox, ids: Sequence[str], *, key: str | None = None, name: str = "as.up.data.forward"
) -> Accepted:
    body = b'{"name":"%s"}' % name.encode()
    intakes = [
        Intake("eu1", Event(name, "", 0, each, (), body), now(), True, (Route("r", "crm", key),))
        for each in ids
    ]
    return await outbox.accept(Batch(intakes))


def dispatcher(sink: ToldSink, outbox: Outbox, metrics: Metrics | None = None) -> Dispatcher:
    return Dispatcher(sink, outbox, POLICY, metrics or Metrics(), now=now, chance=lambda: 0.5)


@asynccontextmanager
async def running(each: Dispatcher) -> AsyncIterator[Dispatcher]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(each.run)
        await anyio.wait_all_tasks_blocked()
        yield each
        each.stop()


async def test_what_waits_is_delivered_once(tmp_path: Path) -> None:
    """And is gone from the queue."""
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, ["1", "2", "3"])
        sink = ToldSink([OK])
        async with running(dispatcher(sink, outbox)):
            await anyio.sleep(10)
        assert sorted(unique_id for _, unique_id in sink.calls) == ["1", "2", "3"]
        assert outbox.sink_totals()["crm"].delivered == 3
        assert outbox.sink_totals()["crm"].waiting == 0


async def test_a_wake_is_enough_to_start(tmp_path: Path) -> None:
    """A new delivery does not wait for a timer."""
    async with store(tmp_path, Disk()) as outbox:
        sink = ToldSink([OK])
        each = dispatcher(sink, outbox)
        async with running(each):
            await anyio.sleep(5)
            await fill(outbox, ["1"])
            each.wake()
            await anyio.sleep(1)
        assert [at for at, _ in sink.calls] == [5.0]


async def test_what_is_handed_over_is_sent_once_and_without_a_read(tmp_path: Path) -> None:
    """The store is not asked for what it has just been given."""
    async with store(tmp_path, Disk()) as outbox:
        sink = ToldSink([OK])
        each = dispatcher(sink, outbox)
        async with running(each):
            await anyio.sleep(5)
            outbox.due = NotAsked()  # type: ignore[method-assign]
            each.hand((await fill(outbox, ["1", "2"])).ready["crm"])
            await anyio.sleep(1)
            del outbox.due
            each.wake()
            await anyio.sleep(1)
        assert [(at, unique_id) for at, unique_id in sink.calls] == [(5.0, "1"), (5.0, "2")]
        assert outbox.sink_totals()["crm"].waiting == 0


async def test_what_is_handed_over_while_others_are_in_flight_needs_no_read(tmp_path: Path) -> None:
    """As long as nothing waits on the disk alone."""
    async with store(tmp_path, Disk()) as outbox:
        sink = ToldSink([OK], seconds=1.0, max_in_flight=1)
        each = dispatcher(sink, outbox)
        ids = [f"{number:02}" for number in range(50)]
        async with running(each):
            await anyio.sleep(1)
            outbox.due = NotAsked()  # type: ignore[method-assign]
            for unique_id in ids:
                assert each.is_caught_up
                each.hand((await fill(outbox, [unique_id])).ready["crm"])
            await anyio.sleep(20)
            del outbox.due
            await anyio.sleep(40)
        assert [unique_id for _, unique_id in sink.calls] == ids


async def test_what_is_handed_over_does_not_overtake_what_waits(tmp_path: Path) -> None:
    """Seventeen large ones are held ready, and the last three read in their turn."""
    async with store(tmp_path, Disk()) as outbox:
        sink = ToldSink([OK], seconds=1.0, max_in_flight=1)
        each = dispatcher(sink, outbox)
        ids = [f"{number:02}" for number in range(20)]
        async with running(each):
            await anyio.sleep(1)
            for unique_id in ids:
                each.hand((await fill(outbox, [unique_id], name="a" * (1 << 20))).ready["crm"])
            assert not each.is_caught_up
            await anyio.sleep(5)
            each.hand((await fill(outbox, ["late"])).ready["crm"])
            await anyio.sleep(30)
            assert each.is_caught_up
        assert [unique_id for _, unique_id in sink.calls] == [*ids, "late"]


async def test_what_is_read_ahead_is_bounded_in_bytes(tmp_path: Path) -> None:
    """Of a backlog of large events not all that have a place are held, and each comes in its turn."""
    large, count = 1 << 20, 80
    async with store(tmp_path, Disk()) as outbox:
        ids = [f"{number:02}" for number in range(count)]
        for unique_id in ids:
            await fill(outbox, [unique_id], name="a" * large)
        sink = ToldSink([OK], seconds=1.0, max_in_flight=16)
        async with running(dispatcher(sink, outbox)) as each:
            for _ in range(count // 16):
                await anyio.sleep(1)
                assert each._gathering.bytes <= READY_BYTES + DUE_BYTES + 2 * large
            await anyio.sleep(5)
        assert [unique_id for _, unique_id in sink.calls] == ids


async def test_what_is_handed_over_does_not_go_past_a_pause(tmp_path: Path) -> None:
    """It waits on the disk, as what is read."""
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, ["1"])
        sink = ToldSink([WRONG, WRONG, OK], seconds=0.0)
        each = dispatcher(sink, outbox)
        async with running(each):
            await anyio.sleep(1)
            each.hand((await fill(outbox, ["2", "3"])).ready["crm"])
            await anyio.sleep(1)
            assert [unique_id for _, unique_id in sink.calls] == ["1"]
            await anyio.sleep(600)
        assert sorted(unique_id for _, unique_id in sink.calls[1:]) == ["1", "1", "2", "3"]


async def test_what_was_read_before_it_was_handed_over_is_not_sent_twice(tmp_path: Path) -> None:
    """A read may find it on the disk before whoever stored it comes to say so."""
    async with store(tmp_path, Disk()) as outbox:
        sink = ToldSink([OK], seconds=2.0)
        each = dispatcher(sink, outbox)
        async with running(each):
            await anyio.sleep(5)
            ready = (await fill(outbox, ["1"])).ready["crm"]
            each.wake()
            await anyio.sleep(1)
            each.hand(ready)
            await anyio.sleep(10)
        assert len(sink.calls) == 1


async def test_what_is_handed_over_while_it_is_read_is_not_sent_twice(tmp_path: Path) -> None:
    """A read that takes its time brings it too."""
    async with store(tmp_path, Disk()) as outbox:
        sink = ToldSink([OK])
        each = dispatcher(sink, outbox)
        read = outbox.due

        async def slow(name: str, **asked: Any) -> Due:
            found = await read(name, **asked)
            await anyio.sleep(1)
            return found

        async with running(each):
            await anyio.sleep(5)
            outbox.due = slow  # type: ignore[method-assign, assignment]
            ready = (await fill(outbox, ["1"])).ready["crm"]
            each.wake()
            await anyio.sleep(0.5)
            each.hand(ready)
            await anyio.sleep(10)
        assert len(sink.calls) == 1


async def test_no_more_than_max_in_flight_run_at_once(tmp_path: Path) -> None:
    """And that many do."""
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, [str(n) for n in range(100)])
        sink = ToldSink([OK], max_in_flight=7)
        async with running(dispatcher(sink, outbox)):
            await anyio.sleep(60)
        assert (sink.most, len(sink.calls)) == (7, 100)


async def test_a_failed_delivery_comes_back_after_its_wait(tmp_path: Path) -> None:
    """Half of 5 s, half of 10 s after the failures."""
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, ["1"])
        sink = ToldSink([AWAY, AWAY, OK], seconds=0.0)
        async with running(dispatcher(sink, outbox)):
            await anyio.sleep(60)
        assert [round(at, 2) for at, _ in sink.calls] == [0.0, 2.5, 7.5]
        assert outbox.sink_totals()["crm"].retried == 2


async def test_a_failing_delivery_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """The slot is free while it waits."""
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, ["1", "2", "3"])
        sink = ToldSink([AWAY, OK], seconds=0.01, max_in_flight=1)
        async with running(dispatcher(sink, outbox)):
            await anyio.sleep(1)
            assert [unique_id for _, unique_id in sink.calls] == ["1", "2", "3"]


async def test_a_retry_falls_due_while_others_are_in_flight(tmp_path: Path) -> None:
    """The timer for it is not forgotten when there was no room for more than what came since."""
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, ["retry"])
        sink = ToldSink([AWAY, OK], seconds=1.0, max_in_flight=4)
        each = dispatcher(sink, outbox)
        async with running(each):
            await anyio.sleep(1.5)
            await fill(outbox, [str(n) for n in range(12)])
            each.wake()
            await anyio.sleep(8)
        assert [round(at, 1) for at, unique_id in sink.calls if unique_id == "retry"] == [0.0, 4.5]


async def test_a_retry_without_a_wait_is_not_forgotten(tmp_path: Path) -> None:
    """Full jitter may draw zero."""
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, ["1"])
        sink = ToldSink([AWAY, OK])
        each = Dispatcher(sink, outbox, POLICY, Metrics(), now=now, chance=lambda: 0.0)
        async with running(each):
            await anyio.sleep(1)
        assert len(sink.calls) == 2


async def test_a_clock_set_back_delays_nothing_for_long(tmp_path: Path) -> None:
    """A due time further ahead than `retry.max` is due now."""
    offset = 0.0
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, ["1"])
        sink = ToldSink([AWAY, AWAY, AWAY, OK], seconds=0.0)
        each = Dispatcher(sink, outbox, POLICY, Metrics(), now=lambda: now() + offset, chance=lambda: 0.9)
        async with running(each):
            await anyio.sleep(1)
            offset = -2 * POLICY.max
            await anyio.sleep(120)
        assert len(sink.calls) == 4


async def test_dead_letters_are_told_when_they_begin_and_not_each(tmp_path: Path) -> None:
    """A receiver that refuses everything makes one warning, and another only after a calm."""
    refused = Rejected(Failure("client_error", "HTTP 400", 400))
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, [str(n) for n in range(20)])
        each = dispatcher(ToldSink([refused]), outbox)
        with structlog.testing.capture_logs() as logged:
            async with running(each):
                await anyio.sleep(60)
                await fill(outbox, ["late"])
                each.wake()
                await anyio.sleep(1)
        assert outbox.sink_totals()["crm"].dead == 21
    told = [line for line in logged if line["event"] == "dead letter" and line["log_level"] == "warning"]
    assert len(told) == 2


async def test_a_wrong_sink_is_paused_and_probed_with_one(tmp_path: Path) -> None:
    """Nothing waiting is tried while the token is wrong; afterwards all of it arrives."""
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, [str(n) for n in range(20)])
        sink = ToldSink([WRONG, WRONG, WRONG, WRONG, WRONG, OK], max_in_flight=4)
        each = dispatcher(sink, outbox)
        async with running(each):
            await anyio.sleep(2)
            assert len(sink.calls) == 4
            assert each.pause is not None
            await anyio.sleep(3600)
            assert each.pause is None
        assert outbox.sink_totals()["crm"].delivered == 20
        assert outbox.sink_totals()["crm"].dead == 0
        assert await outbox.pauses() == {}


async def test_probes_come_ever_more_rarely_up_to_an_hour(tmp_path: Path) -> None:
    """One delivery an hour is what a dead token costs."""
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, ["1", "2"])
        sink = ToldSink([WRONG], seconds=0.0, max_in_flight=1)
        async with running(dispatcher(sink, outbox)):
            await anyio.sleep(3 * 86400)
        waits = [
            later - earlier for (earlier, _), (later, _) in zip(sink.calls, sink.calls[1:], strict=False)
        ]
        assert all(b >= a for a, b in itertools.pairwise(waits))
        assert 1800 <= waits[-1] <= 3600
        assert outbox.sink_totals()["crm"].waiting == 2


async def test_the_receiver_names_the_length_of_the_pause(tmp_path: Path) -> None:
    """Retry-After: 30."""
    asked = Pause(Failure("rate_limited", "HTTP 429", 429), 30.0)
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, ["1", "2"])
        sink = ToldSink([asked, OK], seconds=0.0, max_in_flight=1)
        async with running(dispatcher(sink, outbox)):
            await anyio.sleep(60)
        assert [round(at, 2) for at, _ in sink.calls] == [0.0, 30.0, 30.0]


async def test_a_pause_survives_a_restart(tmp_path: Path) -> None:
    """A crash loop must not hammer a receiver that asked for rest."""
    asked = Pause(Failure("rate_limited", "HTTP 429", 429), 30.0)
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, ["1"])
        async with running(dispatcher(ToldSink([asked], seconds=0.0), outbox)):
            await anyio.sleep(1)
        sink = ToldSink([OK])
        async with running(dispatcher(sink, outbox)):
            await anyio.sleep(60)
        assert [at for at, _ in sink.calls] == [30.0]


async def test_a_rejected_message_is_a_dead_letter_at_once(tmp_path: Path) -> None:
    """With what the receiver said."""
    no = Rejected(Failure("client_error", "HTTP 400", 400, "bad field"))
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, ["1"])
        async with running(dispatcher(ToldSink([no]), outbox)):
            await anyio.sleep(1)
        (letter,) = await outbox.dead_letters(DeadLetterFilter(), limit=10)
        assert (letter.reason, letter.status, letter.response) == ("client_error", 400, "bad field")


async def test_nothing_new_is_sent_while_settling_fails(tmp_path: Path) -> None:
    """What was sent and cannot be settled would be repeated: so it stays at max_in_flight."""
    disk = Disk()
    async with store(tmp_path, disk) as outbox:
        await fill(outbox, [str(n) for n in range(50)])
        disk.full = True
        sink = ToldSink([OK], max_in_flight=4)
        async with running(dispatcher(sink, outbox)):
            await anyio.sleep(100)
            assert len(sink.calls) == 4
            disk.full = False
            await anyio.sleep(100)
        assert len(sink.calls) == 50
        assert outbox.sink_totals()["crm"].delivered == 50


async def test_stop_lets_what_is_in_flight_end(tmp_path: Path) -> None:
    """And begins nothing."""
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, [str(n) for n in range(50)])
        sink = ToldSink([OK], seconds=5.0, max_in_flight=4)
        async with running(dispatcher(sink, outbox)):
            await anyio.sleep(1)
        assert len(sink.calls) == 4
        assert outbox.sink_totals()["crm"].delivered == 4


async def test_a_bug_in_a_sink_is_a_failed_attempt(tmp_path: Path) -> None:
    """Logged and tried again: one sink cannot take the process down."""

    class Buggy(ToldSink):
        async def send(self, delivery: Delivery) -> Outcome:
            await super().send(delivery)
            raise KeyError("oops")

    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, ["1"])
        sink = Buggy([OK])
        async with running(dispatcher(sink, outbox)):
            await anyio.sleep(10)
        assert len(sink.calls) >= 2
        assert outbox.sink_totals()["crm"].waiting == 1


async def test_the_outcome_is_counted_by_reason(tmp_path: Path) -> None:
    """Closed labels only."""
    metrics = Metrics()
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, ["1"])
        async with running(dispatcher(ToldSink([AWAY, OK], seconds=0.0), outbox, metrics)):
            await anyio.sleep(60)
    failures = metrics.registry.get_sample_value(
        "bridge_delivery_failures_total", {"sink": "crm", "reason": "connect"}
    )
    assert failures == 1.0


@dataclass
class Told:
    """What was reported."""

    reports: list[tuple[str, Mapping[str, object]]] = field(default_factory=list)

    def __call__(
        self, name: str, about: str, data: Mapping[str, object], entities: Iterable[Entity] = ()
    ) -> None:
        self.reports.append((name, data))


@dataclass
class Choosy(ToldSink):
    """Answers *answer* to the events in *bad*, and takes the others."""

    bad: frozenset[str] = frozenset()
    answer: Outcome = AWAY

    async def send(self, delivery: Delivery) -> Outcome:
        await super().send(delivery)
        return self.answer if delivery.event.unique_id in self.bad else OK


async def test_one_entity_keeps_its_order_while_others_go_on(tmp_path: Path) -> None:
    """A head that fails holds up its own entity only, and never more than one of it is in flight."""
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, ["a1", "a2", "a3"], key="device:a")
        await fill(outbox, ["b1", "b2", "b3"], key="device:b")
        sink = Choosy([OK], bad=frozenset({"a1"}))
        async with running(dispatcher(sink, outbox)):
            await anyio.sleep(2)
            assert [each for _, each in sink.calls] == ["a1", "b1", "b2", "b3"]
            sink.bad = frozenset()
            await anyio.sleep(10)
        assert [each for _, each in sink.calls if each[0] == "a"] == ["a1", "a1", "a2", "a3"]


async def test_the_next_of_an_entity_does_not_wait_for_a_timer(tmp_path: Path) -> None:
    """As soon as the one before is settled."""
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, [str(n) for n in range(20)], key="device:a")
        sink = ToldSink([OK], seconds=0.1)
        async with running(dispatcher(sink, outbox)):
            await anyio.sleep(2.5)
        assert [each for _, each in sink.calls] == [str(n) for n in range(20)]


async def test_order_survives_a_restart_and_a_poisoned_head(tmp_path: Path) -> None:
    """The head becomes a dead letter and lets the others pass."""
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, ["a1", "a2"], key="device:a")
        async with running(dispatcher(ToldSink([AWAY], seconds=0.0), outbox)):
            await anyio.sleep(1)
        sink = Choosy([OK], bad=frozenset({"a1"}))
        async with running(dispatcher(sink, outbox)):
            await anyio.sleep(POLICY.give_up_after * 1.2)
        assert [each for _, each in sink.calls][-1] == "a2"
        assert {each for _, each in sink.calls[:-1]} == {"a1"}
        (letter,) = await outbox.dead_letters(DeadLetterFilter(), limit=10)
        assert (letter.unique_id, letter.reason) == ("a1", "expired")


async def test_a_pause_and_its_end_are_told_once(tmp_path: Path) -> None:
    """However many probes it took."""
    told = Told()
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, ["1"])
        sink = ToldSink([WRONG, WRONG, WRONG, OK])
        each = Dispatcher(sink, outbox, POLICY, Metrics(), now=now, chance=lambda: 0.5, tell=told)
        async with running(each):
            await anyio.sleep(3600)
    assert [name for name, _ in told.reports] == ["bridge.sink.paused", "bridge.sink.resumed"]
    assert told.reports[0][1]["reason"] == "auth"


async def test_a_dead_letter_is_told_unless_it_was_a_report_itself(tmp_path: Path) -> None:
    """Or one broken sink would report its reports for ever."""
    told = Told()
    no = Rejected(Failure("client_error", "HTTP 400", 400))
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, ["1"])
        await fill(outbox, ["2"], name="bridge.dead_letter")
        each = Dispatcher(ToldSink([no]), outbox, POLICY, Metrics(), now=now, chance=lambda: 0.5, tell=told)
        async with running(each):
            await anyio.sleep(1)
    assert [(name, data["event_id"]) for name, data in told.reports] == [("bridge.dead_letter", "1")]


async def test_a_sink_that_cannot_keep_up_is_asked_for_less(tmp_path: Path) -> None:
    """And for all it may bear again, once it answers."""
    slow = RetryLater(Failure("timeout", "no answer"))
    async with store(tmp_path, Disk()) as outbox:
        await fill(outbox, [str(n) for n in range(600)])
        sink = ToldSink([slow], seconds=10.0, max_in_flight=16)
        policy = RetryPolicy(initial=1, max=2)
        each = Dispatcher(sink, outbox, policy, Metrics(), now=now, chance=lambda: 0.5, adaptive=True)
        async with running(each):
            await anyio.sleep(55)
            assert sink.running == 1
            sink.answers, sink.seconds = [OK], 0.1
            await anyio.sleep(30)
            assert outbox.sink_totals()["crm"].waiting == 0
        assert sink.most == 16


async def test_a_busy_sink_commits_once_half_of_what_runs_has_ended(tmp_path: Path) -> None:
    """Not for the first of them; those that are left then need not be as many."""
    async with store(tmp_path, Disk()) as outbox:
        sink = ToldSink([OK], seconds=0.1, max_in_flight=8)
        async with running(dispatcher(sink, outbox)) as each:
            each.hand((await fill(outbox, ["first"])).ready["crm"])
            await anyio.sleep(CALM / 2)
            for number in range(8):
                each.hand((await fill(outbox, [f"{number}"])).ready["crm"])
                await anyio.sleep(0.001)
            await anyio.sleep(0.0945)
            assert outbox.sink_totals()["crm"].delivered == 1
            await anyio.sleep(0.001)
            assert outbox.sink_totals()["crm"].delivered == 5
            await anyio.sleep(0.002)
            assert outbox.sink_totals()["crm"].delivered == 7
            await anyio.sleep(2 * LINGER)
            assert outbox.sink_totals()["crm"].delivered == 9


async def test_settlements_nobody_waits_for_share_a_commit(tmp_path: Path) -> None:
    """The first after a calm, one of an entity, one that failed, one of half the slots is stored at once."""
    disk = Disk()
    async with store(tmp_path, disk) as outbox:
        sink = ToldSink([OK], seconds=0.0, max_in_flight=8)
        async with running(dispatcher(sink, outbox)) as each:
            for round in (1, 2):
                await anyio.sleep(CALM)
                each.hand((await fill(outbox, [f"{round}"])).ready["crm"])
                await anyio.sleep(0.001)
                assert outbox.sink_totals()["crm"].delivered == round
            for number in range(3, 6):
                each.hand((await fill(outbox, [f"{number}"])).ready["crm"])
                await anyio.sleep(0.001)
            before = disk.writes
            assert outbox.sink_totals()["crm"].delivered == 2
            await anyio.sleep(2 * LINGER)
            assert (disk.writes - before, outbox.sink_totals()["crm"].delivered) == (1, 5)
            await fill(outbox, ["6"], key="device:plant-a/meter-1")
            each.wake()
            await anyio.sleep(0.001)
            assert outbox.sink_totals()["crm"].delivered == 6
