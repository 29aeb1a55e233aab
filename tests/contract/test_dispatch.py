"""A dispatcher over each outbox, in real time: what is promised of deliveries does not depend on the store.

tests/unit/test_dispatch.py goes further on virtual time, which nats-py does not know.
"""

from __future__ import annotations

import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from bridge.delivery import Delivered, Delivery, Failure, Outcome, Pause, Rejected, RetryLater, Route
from bridge.dispatch import Dispatcher
from bridge.metrics import Metrics
from bridge.outbox import DeadLetterFilter, Outbox, SinkTotals
from bridge.outbox.jetstream.address import parse
from bridge.outbox.jetstream.outbox import open_jetstream
from bridge.outbox.sqlite import open_outbox, threads
from bridge.retry import RetryPolicy
from bridge.sinks import BatchLimits
from tests.contract.outboxes import CRM, batch, intake
from tests.nats import shared_server

pytestmark = pytest.mark.anyio

POLICY = RetryPolicy(initial=0.2, max=0.5, give_up_after=3600.0)
OK = Delivered(200)
AWAY = RetryLater(Failure("connect", "connection refused"))
WRONG = Pause(Failure("auth", "HTTP 401", 401))
BAD = Rejected(Failure("client_error", "HTTP 400", 400))
HOUR = 3600.0  # seconds: longer than any of these tests


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


Open = Callable[[], AbstractAsyncContextManager[Outbox]]
"""The store, again and again the same."""


@pytest.fixture(params=["nats", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    stream = f"t{uuid.uuid4().hex[:12]}"

    @asynccontextmanager
    async def sqlite() -> AsyncIterator[Outbox]:
        async with (
            threads() as write,
            threads() as read,
            open_outbox(
                tmp_path / "bridge.db",
                durability="process",
                offload_write=write,
                offload_read=read,
                dedup_window=HOUR,
                dead_letter_retention=HOUR,
                trace_retention=HOUR,
            ) as outbox,
        ):
            yield outbox

    @asynccontextmanager
    async def nats() -> AsyncIterator[Outbox]:
        async with open_jetstream(
            parse(shared_server().url(stream, replica="a")),
            dedup_window=HOUR,
            dead_letter_retention=HOUR,
            trace_retention=HOUR,
        ) as outbox:
            yield outbox

    return nats if request.param == "nats" else sqlite


@dataclass
class Receiver:
    """Answers each event with its *answers* in turn, the last one for ever; takes up to *batch* at once."""

    answers: dict[str, list[Outcome]] = field(default_factory=dict)
    usual: Outcome = OK
    name: str = "crm"
    max_in_flight: int = 4
    batch: int = 1
    calls: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def batch_limits(self) -> BatchLimits:
        return BatchLimits(max_events=self.batch, max_wait=0.05)

    @property
    def got(self) -> list[str]:
        return [each for call in self.calls for each in call]

    async def send(self, delivery: Delivery) -> Outcome:
        return (await self.send_batch([delivery]))[0]

    async def send_batch(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        self.calls.append(tuple(each.event.unique_id for each in deliveries))
        await anyio.sleep(0.01)
        return [self._answer(each.event.unique_id) for each in deliveries]

    def _answer(self, unique_id: str) -> Outcome:
        answers = self.answers.get(unique_id, [self.usual])
        return answers.pop(0) if len(answers) > 1 else answers[0]


@asynccontextmanager
async def dispatching(receiver: Receiver, outbox: Outbox) -> AsyncIterator[Dispatcher]:
    each = Dispatcher(receiver, outbox, POLICY, Metrics(), now=time.time, chance=random.Random(1).random)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(each.run)
        yield each
        each.stop()


async def take_in(outbox: Outbox, *ids: str, route: Route = CRM) -> None:
    await outbox.accept(batch(*(intake(each, route, at=time.time()) for each in ids)))


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.01)


def totals(outbox: Outbox) -> SinkTotals:
    return outbox.sink_totals().get("crm", SinkTotals())


async def test_what_waits_and_what_comes_is_delivered_once(store: Open) -> None:
    """Before the dispatcher ran, and while it runs."""
    receiver = Receiver()
    async with store() as outbox:
        await take_in(outbox, "u1", "u2")
        async with dispatching(receiver, outbox) as each:
            await until(lambda: totals(outbox).delivered == 2)
            await take_in(outbox, "u3")
            each.wake()
            await until(lambda: totals(outbox).delivered == 3)
    assert sorted(receiver.got) == ["u1", "u2", "u3"]


async def test_a_failed_delivery_comes_again_and_holds_up_no_other(store: Open) -> None:
    """As often as it takes, with the attempts counted."""
    receiver = Receiver({"u1": [AWAY, AWAY, OK]})
    async with store() as outbox, dispatching(receiver, outbox) as each:
        await take_in(outbox, "u1", "u2")
        each.wake()
        await until(lambda: totals(outbox).delivered == 2)
        assert totals(outbox).retried == 2
    assert Counter(receiver.got) == {"u1": 3, "u2": 1}


async def test_a_rejected_delivery_is_a_dead_letter_and_can_be_tried_again(store: Open) -> None:
    """At once, with its reason; tried again it is the same delivery."""
    receiver = Receiver({"u1": [BAD, OK]})
    async with store() as outbox, dispatching(receiver, outbox) as each:
        await take_in(outbox, "u1", "u2")
        each.wake()
        await until(lambda: totals(outbox).dead == 1 and totals(outbox).delivered == 1)
        (letter,) = await outbox.dead_letters(DeadLetterFilter(), limit=9)
        assert (letter.unique_id, letter.reason, letter.status) == ("u1", "client_error", 400)
        assert await outbox.retry_dead_letters(DeadLetterFilter(), time.time()) == 1
        each.wake()
        await until(lambda: totals(outbox).delivered == 2)
        assert totals(outbox) == SinkTotals(accepted=2, delivered=2, died=1)


async def test_a_wrong_sink_is_paused_over_a_restart_and_probed_with_one(store: Open) -> None:
    """Nothing else is sent meanwhile; the pause ends with the first probe that succeeds."""
    receiver = Receiver(usual=WRONG)
    async with store() as outbox:
        await take_in(outbox, *(f"u{n}" for n in range(10)))
        async with dispatching(receiver, outbox) as each:
            await until(lambda: each.pause is not None and each.pause.probes >= 1)
        first = len(receiver.calls)
        assert first <= receiver.max_in_flight + 4
    async with store() as outbox, dispatching(receiver, outbox) as each:
        await until(lambda: each.pause is not None)
        receiver.usual = OK
        await until(lambda: totals(outbox).delivered == 10)
        assert each.pause is None
        assert await outbox.pauses() == {}
        assert await outbox.paused_seconds("crm", time.time()) > 0


async def test_an_entity_keeps_its_order_while_others_go_on(store: Open) -> None:
    """Also where the first of it fails for a while."""
    receiver = Receiver({"a0": [AWAY, OK]})
    async with store() as outbox, dispatching(receiver, outbox) as each:
        await take_in(outbox, "a0", "a1", "a2", route=Route("r", "crm", "device:a"))
        await take_in(outbox, "b0", "b1", route=Route("r", "crm", "device:b"))
        each.wake()
        await until(lambda: totals(outbox).delivered == 5)
    assert [name for name in receiver.got if name[0] == "a"] == ["a0", "a0", "a1", "a2"]
    assert [name for name in receiver.got if name[0] == "b"] == ["b0", "b1"]
    assert receiver.got.index("b1") < receiver.got.index("a1")


async def test_a_batch_is_settled_one_by_one(store: Open) -> None:
    """Several at once, each with an outcome of its own."""
    receiver = Receiver({"u1": [AWAY, OK], "u2": [BAD]}, batch=8)
    async with store() as outbox:
        await take_in(outbox, *(f"u{n}" for n in range(8)))
        async with dispatching(receiver, outbox):
            await until(lambda: totals(outbox).delivered == 7 and totals(outbox).dead == 1)
    assert len(receiver.calls[0]) == 8
    assert Counter(receiver.got)["u1"] == 2
