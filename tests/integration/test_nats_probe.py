"""Several dispatchers of one sink on a real nats-server: who sends what, and who tries a paused sink."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from bridge.delivery import Delivered, Delivery, Failure, Outcome, Pause
from bridge.dispatch import Dispatcher
from bridge.metrics import Metrics
from bridge.outbox import PauseState
from bridge.outbox.jetstream.outbox import JetStreamOutbox
from bridge.retry import RetryPolicy
from tests.contract.outboxes import CRM, batch, due, intake
from tests.integration.test_nats import WITHIN, new_stream, nothing, replica, waits_for

pytestmark = [pytest.mark.integration, pytest.mark.anyio, pytest.mark.timeout(60)]

POLICY = RetryPolicy(initial=0.2, max=1.0, give_up_after=3600.0)
WRONG = Pause(Failure("auth", "HTTP 401", 401))
PAUSE = PauseState("auth", "HTTP 401", 1000.0, 1000.5)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Refusing:
    """A receiver that wants nothing as long as it *refuses*; *asked* is when it was asked, and by whom."""

    name = "crm"

    def __init__(self) -> None:
        self.refuses = True
        self.asked: list[tuple[float, str]] = []

    def sink(self, replica: str) -> RefusingSink:
        return RefusingSink(self, replica)


class RefusingSink:
    name = "crm"
    max_in_flight = 1

    def __init__(self, receiver: Refusing, replica: str) -> None:
        self._receiver = receiver
        self._replica = replica

    async def send(self, delivery: Delivery) -> Outcome:
        self._receiver.asked.append((time.monotonic(), self._replica))
        await anyio.sleep(0.05)
        return WRONG if self._receiver.refuses else Delivered(200)


@asynccontextmanager
async def dispatching(stream: str, names: str, receiver: Refusing) -> AsyncIterator[list[JetStreamOutbox]]:
    """A replica with a dispatcher for each of *names*."""
    async with AsyncExitStack() as stack:
        outboxes = [
            await stack.enter_async_context(replica(stream, name, ack_wait="5s", lease="3s"))
            for name in names
        ]
        tasks = await stack.enter_async_context(anyio.create_task_group())
        for name, outbox in zip(names, outboxes, strict=True):
            each = Dispatcher(
                receiver.sink(name),
                outbox,
                POLICY,
                Metrics(),
                now=time.time,
                chance=random.Random(name).random,
            )
            outbox.paused = lambda _sink, pause, each=each: each.learn(pause)  # type: ignore[misc]
            outbox.arrived = lambda _sinks, each=each: each.wake()  # type: ignore[misc]
            stack.callback(each.stop)
            tasks.start_soon(each.run)
        yield outboxes


async def test_a_paused_sink_is_tried_by_one_of_all_replicas() -> None:
    """Each pause of the sequence is ended or renewed by one attempt, whoever makes it."""
    receiver = Refusing()
    async with dispatching(new_stream(), "abc", receiver) as outboxes:
        for number, outbox in enumerate(outboxes):
            await outbox.accept(batch(*(intake(f"u{number}-{n}", CRM, at=time.time()) for n in range(10))))
        with anyio.fail_after(WITHIN):
            while not (pause := (await outboxes[0].pauses()).get("crm")) or pause.probes < 4:
                await anyio.sleep(0.02)
        before = len(receiver.asked)
        receiver.refuses = False
        with anyio.fail_after(WITHIN):
            while sum(each.sink_totals()["crm"].delivered for each in outboxes) < 30:
                await anyio.sleep(0.05)
    first = before - pause.probes
    assert 1 <= first <= 3, receiver.asked  # one for each replica that had not yet heard of the pause
    assert len(receiver.asked) <= before + 1 + 30


async def test_a_probe_of_a_dead_replica_is_made_by_another() -> None:
    """Of one that lives it is not; the next one is anybody's again."""
    stream = new_stream()
    async with replica(stream, "b") as b:
        async with replica(stream, "a") as a:
            await a.set_pause("crm", PAUSE, 1000.0)
            assert await a.may_probe("crm", PAUSE)
            assert await a.may_probe("crm", PAUSE)
            await b.replicas.beat()
            assert not await b.may_probe("crm", PAUSE)
            a.is_killed = True
        with anyio.fail_after(WITHIN):
            while not await b.may_probe("crm", PAUSE):
                await anyio.sleep(0.05)


async def test_a_pause_nobody_has_told_is_learned_before_the_probe() -> None:
    """The message about it was lost with the connection."""
    async with replica(new_stream()) as outbox:
        told: list[tuple[str, PauseState | None]] = []
        outbox.paused = lambda sink, pause: told.append((sink, pause))
        assert not await outbox.may_probe("crm", PAUSE)
        assert told == [("crm", None)]


async def test_what_was_held_too_long_is_not_sent() -> None:
    """A replica that stood still beyond ack_wait asks before it sends: it may be another's by now."""
    stream = new_stream()
    async with replica(stream, "a") as a:
        await a.accept(batch(intake("u1", CRM)))
        (held,) = await due(a)
        await anyio.sleep(0.6)  # more than ack_wait: signs of life are given
        assert a.holds(held)
        a._handing.keep_alive = nothing  # type: ignore[method-assign]  # stands still, as under SIGSTOP
        with anyio.fail_after(WITHIN):
            while a.holds(held):
                await anyio.sleep(0.05)
        async with replica(stream, "b") as b:
            (given,) = await waits_for(b, "crm", 1)
            assert b.holds(given)
            assert not a.holds(held)
