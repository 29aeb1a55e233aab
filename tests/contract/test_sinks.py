"""The contract of sinks: every kind passes these tests, unchanged (DESIGN.md §1.4, §2.5)."""

from __future__ import annotations

import pkgutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from importlib import import_module
from pathlib import Path

import anyio
import pytest

import tests.contract
from bridge.delivery import Delivered, Delivery, Outcome, Pause, Rejected, RetryLater
from bridge.event import Event
from bridge.sinks import Sink
from tests.contract.harness import SHORT, Harness, Make

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

BODY = b'{"name":"as.up.data.forward","time":"2026-11-23T21:09:06Z","unique_id":"01","data":{"a":1}}'
SOON = 3.0  # seconds for what takes milliseconds, on a busy machine


def makers() -> list[Make]:
    """The harnesses of every `*_harness` module beside this one."""
    found: list[Make] = []
    for module in sorted(each.name for each in pkgutil.iter_modules(tests.contract.__path__)):
        if module.endswith("_harness"):
            found += import_module(f"tests.contract.{module}").HARNESSES
    return found


@pytest.fixture(params=makers(), ids=lambda make: str(make.__name__))
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    async with request.param(tmp_path) as made:
        yield made


def delivery(number: int = 1) -> Delivery:
    event = Event("as.up.data.forward", "2026-11-23T21:09:06Z", 0, f"{number:02}", (), BODY)
    return Delivery(number, f"d_{number:026}", event, "eu1", "rule-1", "sut", 1, 1_700_000_000.0)


async def until(condition: Callable[[], bool], what: str, within: float = 10.0) -> None:
    with anyio.move_on_after(within):
        while not condition():
            await anyio.sleep(0.01)
        return
    pytest.fail(f"{what} did not happen within {within} s")


async def delivered(sink: Sink, number: int, within: float = 10.0) -> None:
    """Return once *sink* delivers again: its connection may still be coming back."""
    with anyio.move_on_after(within):
        while not isinstance(await sink.send(delivery(number)), Delivered):
            await anyio.sleep(0.05)
        return
    pytest.fail(f"delivery {number} was not delivered within {within} s")


async def test_what_is_acknowledged_has_arrived_once_with_its_id(harness: Harness) -> None:
    """Promise 4: ack means ack; the receiver can tell repeats by the delivery id."""
    async with harness.open() as sink:
        outcomes = [await sink.send(delivery(number)) for number in range(1, 6)]
    assert all(isinstance(outcome, Delivered) for outcome in outcomes)
    assert harness.arrived() == [delivery(number).id for number in range(1, 6)]


async def test_another_attempt_carries_the_same_id(harness: Harness) -> None:
    """Across attempts, and across a new opening of the sink as after a restart."""
    for _ in range(2):
        async with harness.open() as sink:
            await delivered(sink, 1)
            await delivered(sink, 1)
    assert harness.arrived() == [delivery(1).id] * 4


async def test_opening_does_not_need_the_receiver(harness: Harness) -> None:
    """A sink whose receiver is away opens, says later, and works once it is there."""
    await harness.go_down()
    with anyio.fail_after(SOON):
        async with harness.open(timeout=SHORT) as sink:
            assert isinstance(await sink.send(delivery()), RetryLater)
    await harness.heal()
    async with harness.open() as sink:
        await delivered(sink, 1)
    assert set(harness.arrived()) == {delivery(1).id}


async def test_a_receiver_that_comes_back_is_found_without_opening_again(harness: Harness) -> None:
    """Down in the middle of traffic: later; up again: delivered."""
    async with harness.open(timeout=SHORT) as sink:
        await delivered(sink, 1)
        await harness.go_down()
        assert isinstance(await sink.send(delivery(2)), RetryLater)
        await harness.heal()
        await delivered(sink, 3)
    assert delivery(3).id in harness.arrived()


async def test_no_answer_is_no_success_and_ends_in_time(harness: Harness) -> None:
    """What is not acknowledged is tried again, within the timeout and not much later."""
    await harness.hang()
    async with harness.open(timeout=SHORT) as sink:
        with anyio.fail_after(SHORT + SOON):
            outcome = await sink.send(delivery())
    assert isinstance(outcome, RetryLater)
    assert outcome.failure.reason == "timeout"


async def test_a_broken_connection_is_no_success(harness: Harness) -> None:
    """Whether the message was read before the reset nobody knows: it comes again."""
    async with harness.open(timeout=SHORT) as sink:
        await harness.reset()
        assert isinstance(await sink.send(delivery(1)), RetryLater)
        await harness.heal()
        await delivered(sink, 2)


async def test_a_receiver_in_trouble_is_asked_later(harness: Harness) -> None:
    """Its trouble is not this message's fault, nor the configuration's."""
    await harness.fail()
    async with harness.open(timeout=SHORT) as sink:
        assert isinstance(await sink.send(delivery()), RetryLater)


async def test_a_refused_login_pauses_the_sink(harness: Harness) -> None:
    """The rows wait until somebody corrects the key: no dead letters over a weekend."""
    await harness.deny()
    async with harness.open(timeout=SHORT) as sink:
        outcome = await sink.send(delivery(1))
        assert isinstance(outcome, Pause)
        assert outcome.failure.reason == "auth"
        assert outcome.seconds is None
        await harness.heal()
        await delivered(sink, 1)


async def test_a_wrong_message_is_rejected_and_alone(harness: Harness) -> None:
    """It becomes a dead letter; the next message is not hurt."""
    await harness.refuse()
    async with harness.open() as sink:
        outcome = await sink.send(delivery(1))
        await harness.heal()
        await delivered(sink, 2)
    assert isinstance(outcome, Rejected)


async def test_a_named_time_pauses_the_sink_for_it(harness: Harness) -> None:
    """Too fast: the receiver said when to come again; one that names no time gets this one later."""
    names_a_time = await harness.limit(30)
    async with harness.open() as sink:
        outcome = await sink.send(delivery())
    assert isinstance(outcome, Pause if names_a_time else RetryLater)
    assert outcome.failure.reason == "rate_limited"
    assert not isinstance(outcome, Pause) or outcome.seconds == 30.0


async def test_sends_run_side_by_side(harness: Harness) -> None:
    """`max_in_flight` of them at once: all reach a receiver that acknowledges none."""
    await harness.hang()
    async with harness.open(timeout=20.0, max_in_flight=4) as sink, anyio.create_task_group() as tasks:
        for number in range(1, 5):
            tasks.start_soon(sink.send, delivery(number))
        await until(lambda: len(harness.arrived()) == 4, "four messages at the receiver at once")
        tasks.cancel_scope.cancel()
    assert sorted(harness.arrived()) == [delivery(number).id for number in range(1, 5)]


async def test_many_at_once_each_arrive_once(harness: Harness) -> None:
    """Acknowledgements are not mixed up between sends that run at once."""
    outcomes: dict[int, Outcome] = {}

    async def send(sink: Sink, number: int) -> None:
        outcomes[number] = await sink.send(delivery(number))

    async with harness.open(max_in_flight=8) as sink:
        for start in range(0, 40, 8):
            async with anyio.create_task_group() as tasks:
                for number in range(start, start + 8):
                    tasks.start_soon(send, sink, number)
    assert all(isinstance(outcome, Delivered) for outcome in outcomes.values())
    assert Counter(harness.arrived()) == {delivery(number).id: 1 for number in range(40)}


async def test_a_cancelled_send_leaves_the_sink_usable(harness: Harness) -> None:
    """Cancelling frees its place: as many sends as before still fit, and are acknowledged."""
    async with harness.open(timeout=20.0, max_in_flight=2) as sink:
        await harness.hang()
        async with anyio.create_task_group() as tasks:
            for number in (1, 2):
                tasks.start_soon(sink.send, delivery(number))
            await until(lambda: len(harness.arrived()) == 2, "two messages at the receiver")
            tasks.cancel_scope.cancel()
        await harness.heal()
        with anyio.fail_after(SOON * 2):
            async with anyio.create_task_group() as tasks:
                for number in (3, 4, 5):
                    tasks.start_soon(delivered, sink, number)


async def test_closing_while_sending_ends_promptly(harness: Harness) -> None:
    """Shutdown does not wait for a receiver that hangs; what was in flight was not acknowledged."""
    await harness.hang()
    outcomes: list[Outcome] = []

    async def send(sink: Sink) -> None:
        outcomes.append(await sink.send(delivery()))

    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(SOON):
            async with harness.open(timeout=20.0) as sink:
                tasks.start_soon(send, sink)
                await until(lambda: bool(harness.arrived()), "a message at the receiver")
            await until(lambda: bool(outcomes), "the end of the send")
    assert isinstance(outcomes[0], RetryLater)


async def test_no_outcome_shows_a_secret(harness: Harness) -> None:
    """Outcomes are logged and stored: tokens, passwords and secret URLs are not in them."""
    shown: list[str] = []
    async with harness.open(timeout=SHORT) as sink:
        for vex in (harness.fail, harness.deny, harness.refuse, harness.reset, harness.hang, harness.go_down):
            await harness.heal()
            await vex()
            outcome = await sink.send(delivery())
            assert not isinstance(outcome, Delivered)
            shown.append(repr(outcome) + str(outcome))
        shown.append(repr(sink) + str(sink))
    for secret in harness.secrets:
        assert secret not in "\n".join(shown)
