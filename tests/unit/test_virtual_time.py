"""What `virtual_time` promises to the simulation."""

from __future__ import annotations

import anyio
import pytest

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]

ORDERS: dict[int, list[int]] = {}


async def test_a_day_takes_no_time() -> None:
    """The clock jumps to the next deadline once nobody can run."""
    started = anyio.current_time()
    await anyio.sleep(86_400)
    assert anyio.current_time() == started + 86_400


@pytest.mark.parametrize("turn", [1, 2])
@pytest.mark.parametrize("seed", [5, 6])
async def test_the_seed_decides_who_runs_first(seed: int, turn: int) -> None:
    """Every turn of a seed gives the order of its first; another seed another one."""
    order: list[int] = []

    async def task(number: int) -> None:
        for _ in range(3):
            await anyio.sleep(1)
            order.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(task, number)
    assert ORDERS.setdefault(seed, order) == order, f"turn {turn}"
    assert len(set(map(tuple, ORDERS.values()))) == len(ORDERS)
