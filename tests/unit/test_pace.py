"""`rate_limit`: requests a second, on virtual time."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.sinks.pace import Pace, per_second

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]


@pytest.mark.parametrize(("text", "rate"), [("50/s", 50.0), ("90/m", 1.5), ("36 / h", 0.01), ("0.5/s", 0.5)])
def test_a_rate_is_written_with_its_unit(text: str, rate: float) -> None:
    """Per second, minute or hour."""
    assert per_second(text) == rate


@pytest.mark.parametrize(
    "wrong", ["50", 50, "fast", "0/s", "-1/s", "50/d", "50/", "/s", "", None, "1e3/s", True]
)
def test_anything_else_is_told(wrong: object) -> None:
    """With an example."""
    with pytest.raises(ValueError, match="write a rate such as 50/s"):
        per_second(wrong)


async def passed(pace: Pace, turns: int, tasks: int = 1) -> list[float]:
    """When each of *turns* turns came, taken by *tasks* at once."""
    times: list[float] = []

    async def take(count: int) -> None:
        for _ in range(count):
            await pace.turn()
            times.append(anyio.current_time())

    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(take, turns // tasks)
    return times


@pytest.mark.parametrize("tasks", [1, 10])
async def test_turns_come_evenly(tasks: int) -> None:
    """200 at 50/s take four seconds, whoever takes them; no second has many more than 50."""
    times = await passed(Pace(50.0), 200, tasks)
    assert times[-1] - times[0] == pytest.approx(199 / 50, abs=0.03)
    for start in times:
        assert sum(start <= each < start + 1 for each in times) <= 52


async def test_a_calm_is_not_saved_up() -> None:
    """After a minute without requests the rate holds from the first."""
    pace = Pace(10.0)
    await pace.turn()
    await anyio.sleep(60)
    times = await passed(pace, 20)
    assert times[-1] - times[0] == pytest.approx(1.9, abs=0.03)


async def test_a_burst_is_let_through_after_a_calm() -> None:
    """Three at once, then one a second; a calm of three seconds allows it again."""
    pace = Pace(1.0, burst=3)
    began = anyio.current_time()
    times = [each - began for each in await passed(pace, 5)]
    assert times == pytest.approx([0, 0, 0, 1, 2], abs=0.03)
    await anyio.sleep(3)
    assert [pace.take() for _ in range(4)] == [True, True, True, False]


async def test_without_a_rate_nobody_waits() -> None:
    """Not even for the event loop."""
    began = anyio.current_time()
    await passed(Pace(None), 1000)
    assert anyio.current_time() == began
    assert Pace(None).take()


async def test_a_cancelled_waiter_does_not_hold_up_the_others() -> None:
    """Its place stays empty: no later than it would have been."""
    pace = Pace(1.0)
    await pace.turn()
    with anyio.move_on_after(0.1):
        await pace.turn()
    began = anyio.current_time()
    await pace.turn()
    assert anyio.current_time() - began <= 2.0


@given(st.floats(0.01, 1000), st.integers(1, 20), st.lists(st.floats(0, 5), max_size=60))
def test_the_rate_holds_for_any_arrivals(rate: float, burst: int, gaps: list[float]) -> None:
    """In any stretch of time: no more than the burst and what the rate gives, and the timers' grain."""
    clock = [0.0]
    pace = Pace(rate, burst, clock=lambda: clock[0])
    taken: list[float] = []
    for gap in gaps:
        clock[0] += gap
        if pace.take():
            taken.append(clock[0])
    for i, start in enumerate(taken):
        for j, end in enumerate(taken[i:], 1):
            assert j <= burst + rate * (end - start + 0.02) + 1 + 1e-6


async def test_a_release_ends_the_waiting_and_gives_the_places_back() -> None:
    """Who waits when a receiver asks for rest is not sent then; who comes later waits one interval."""
    pace = Pace(1.0)
    turns: list[tuple[float, bool]] = []

    async def wait() -> None:
        turns.append((anyio.current_time() - began, await pace.turn()))

    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(wait)
        await anyio.sleep(0.5)
        pace.release()
    assert sorted(came for _, came in turns) == [False] * 9 + [True]
    assert anyio.current_time() - began == 0.5
    assert await pace.turn()
    assert anyio.current_time() - began <= 1.5
