"""One timer keeps the deadlines of all answers."""

from __future__ import annotations

import asyncio

import pytest

from bridge.sinks.mqtt.overdue import Overdue

pytestmark = pytest.mark.anyio
SHORT, LONG = 0.02, 60.0  # seconds


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_each_answer_has_its_own_deadline_in_whatever_order() -> None:
    """One that is watched later and due sooner does not wait for the others."""
    loop = asyncio.get_running_loop()
    overdue = Overdue()
    late, soon, sooner = (loop.create_future() for _ in range(3))
    overdue.watch(late, loop.time() + LONG)
    overdue.watch(soon, loop.time() + 2 * SHORT)
    overdue.watch(sooner, loop.time() + SHORT)
    for each in (sooner, soon):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(each), LONG)
    assert not late.done()


async def test_an_answer_that_came_is_left_alone() -> None:
    """Also when its deadline passes, and when whoever waited has gone."""
    loop = asyncio.get_running_loop()
    overdue = Overdue()
    came, gone, missing = (loop.create_future() for _ in range(3))
    for each in (came, gone, missing):
        overdue.watch(each, loop.time() + SHORT)
    came.set_result("ack")
    gone.cancel()
    with pytest.raises(TimeoutError):
        await missing
    assert came.result() == "ack"
    assert gone.cancelled()


async def test_answers_that_came_take_no_memory() -> None:
    """Ten thousand a second for the ten seconds of a timeout would be a hundred thousand."""
    loop = asyncio.get_running_loop()
    overdue = Overdue()
    for _ in range(1000):
        answer = loop.create_future()
        overdue.watch(answer, loop.time() + LONG)
        answer.set_result(None)
    assert len(overdue._watched) == 1
