"""What happens at `max_size`: who goes first, what is told, and what is never lost silently."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from bridge.delivery import Route
from bridge.errors import OutboxError
from bridge.event import Event
from bridge.outbox import Batch, DeadLetterFilter, Intake
from bridge.outbox.sqlite import SqliteOutbox
from bridge.outbox.verify import verify
from tests.contract.outboxes import CRM, NOW, OPS, dead, done, due, ids_due, later
from tests.unit.test_outbox_file import store

pytestmark = pytest.mark.anyio

MIB = 1 << 20
BODY = b'{"name":"a.b","data":"%s"}' % (b"x" * 1300)


async def fill(
    outbox: SqliteOutbox, numbers: range, *routes: Route, prefix: str = "u", step: int = 100
) -> int:
    """Accept events of recorded size; returns how many deliveries had to go for them."""
    dropped = 0
    for start in range(numbers.start, numbers.stop, step):
        intakes = [
            Intake("eu1", Event("a.b", "", 0, f"{prefix}{n:06d}", (), BODY), NOW + n, True, routes)
            for n in range(start, min(start + step, numbers.stop))
        ]
        accepted = await outbox.accept(Batch(intakes))
        dropped += sum(accepted.dropped.values())
    return dropped


async def test_below_max_size_nothing_goes(tmp_path: Path) -> None:
    """Also not because of the write-ahead log, which is brought into the file first."""
    async with store(tmp_path / "bridge.db", max_size=4 * MIB) as outbox:
        assert await fill(outbox, range(1500), CRM) == 0
        assert await outbox.bytes_used() <= 4 * MIB
        assert await verify(outbox) == []


async def test_the_oldest_go_and_are_told(tmp_path: Path) -> None:
    """As many as it takes, counted as dropped; their trace says so; the newest stay."""
    async with store(tmp_path / "bridge.db", max_size=4 * MIB) as outbox:
        dropped = await fill(outbox, range(4000), CRM)
        totals = outbox.sink_totals()["crm"]
        assert 1000 < dropped < 2000
        assert (totals.accepted, totals.dropped, totals.waiting) == (4000, dropped, 4000 - dropped)
        waiting = [each.event.unique_id for each in await due(outbox, now=NOW + 9999, limit=9999)]
        assert waiting == [f"u{n:06d}" for n in range(dropped, 4000)]
        trace = await outbox.trace(f"u{dropped - 1:06d}")
        assert trace is not None
        assert [each.state for each in trace.deliveries] == ["dropped"]
        assert await outbox.bytes_used() <= 4.5 * MIB
        assert await verify(outbox) == []


async def test_dead_letters_go_before_what_waits(tmp_path: Path) -> None:
    """All of them, before any delivery."""
    async with store(tmp_path / "bridge.db", max_size=4 * MIB) as outbox:
        await fill(outbox, range(1000), CRM)
        await outbox.settle([dead(each) for each in await due(outbox, now=NOW + 9999)])
        dropped = await fill(outbox, range(1000, 2300), OPS)
        crm, ops = outbox.sink_totals()["crm"], outbox.sink_totals()["ops"]
        assert (crm.dropped, ops.dropped) == (dropped, 0)
        assert 0 < dropped < 1000
        letters = await outbox.dead_letters(DeadLetterFilter(), limit=1)
        assert letters[0].unique_id == f"u{dropped:06d}"
        await fill(outbox, range(2300, 5000), OPS)
        assert outbox.sink_totals()["crm"].dead == 0
        assert outbox.sink_totals()["ops"].dropped > 0
        assert await verify(outbox) == []


async def test_traces_go_first(tmp_path: Path) -> None:
    """They are only to look at."""
    async with store(tmp_path / "bridge.db", max_size=MIB) as outbox:
        number = 0
        while not await fill(outbox, range(number, number + 200), CRM):
            number += 200
            found = await due(outbox, now=NOW + 1e6, limit=9999)
            await outbox.settle([done(each) for each in found[:-20]])
            assert number < 50_000
        trace = await outbox.trace("u000000")
        assert trace is not None
        assert trace.deliveries == ()


@pytest.mark.parametrize(("healthy", "full"), [(OPS, CRM), (CRM, OPS)])
async def test_the_fullest_sink_pays(tmp_path: Path, healthy: Route, full: Route) -> None:
    """A dead sink costs a healthy one nothing."""
    async with store(tmp_path / "bridge.db", max_size=4 * MIB) as outbox:
        await fill(outbox, range(100), healthy)
        await fill(outbox, range(100, 4000), full)
        assert outbox.sink_totals()[full.sink].dropped > 1000
        assert outbox.sink_totals()[healthy.sink].dropped == 0
        assert len(await ids_due(outbox, healthy.sink, NOW + 9999)) == 100
        assert await verify(outbox) == []


async def test_who_waited_behind_a_dropped_one_has_its_turn(tmp_path: Path) -> None:
    """With `order: entity`, the first that is still there."""
    async with store(tmp_path / "bridge.db", max_size=2 * MIB) as outbox:
        await fill(outbox, range(10), Route("r", "crm", "device:a"))
        (head,) = await due(outbox, now=NOW + 9999)
        await outbox.settle([later(head, NOW + 1e6)])
        await fill(outbox, range(10, 4000), Route("r", "crm", "device:a"))
        (head,) = await due(outbox, now=NOW + 9999, limit=5)
        dropped = outbox.sink_totals()["crm"].dropped
        assert dropped > 10
        assert head.event.unique_id == f"u{dropped:06d}"


async def test_block_takes_nothing_more(tmp_path: Path) -> None:
    """Nothing is dropped; settling goes on and makes room."""
    async with store(tmp_path / "bridge.db", max_size=2 * MIB, overflow="block") as outbox:
        with pytest.raises(OutboxError, match="has reached max_size") as told:
            await fill(outbox, range(4000), CRM)
        assert told.value.full
        accepted = outbox.sink_totals()["crm"].accepted
        assert 500 < accepted < 2000
        with pytest.raises(OutboxError, match="has reached max_size"):
            await fill(outbox, range(accepted, 4000), CRM)
        await outbox.settle([done(each) for each in (await due(outbox, now=NOW + 9999))[:500]])
        assert await fill(outbox, range(accepted, accepted + 100), CRM) == 0
        assert outbox.sink_totals()["crm"].dropped == 0
        assert await verify(outbox) == []


async def test_a_batch_bigger_than_the_store_is_told_too(tmp_path: Path) -> None:
    """Its own oldest deliveries go."""
    async with store(tmp_path / "bridge.db", max_size=MIB) as outbox:
        assert await fill(outbox, range(2000), CRM, step=2000) > 1000
        assert outbox.sink_totals()["crm"].waiting > 0
        assert await verify(outbox) == []


@pytest.mark.parametrize(
    "many", [20_000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
async def test_thousands_of_dead_letters_are_retried_while_events_flow(tmp_path: Path, many: int) -> None:
    """In steps: what is accepted meanwhile does not wait for all of them."""
    async with store(tmp_path / "bridge.db") as outbox:
        await fill(outbox, range(many), CRM, step=2000)
        while found := await due(outbox, now=NOW + many, limit=2000):
            await outbox.settle([dead(each) for each in found])
        between: list[int] = []

        async def flow() -> None:
            number = many
            while not between or outbox.sink_totals()["crm"].dead:
                await fill(outbox, range(number, number + 1), OPS)
                between.append(outbox.sink_totals()["crm"].dead)
                number += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flow)
            assert await outbox.retry_dead_letters(DeadLetterFilter(), NOW) == many
        assert len({count for count in between if 0 < count < many}) > many // 1000 // 2
        assert outbox.sink_totals()["crm"].waiting == many
        assert await verify(outbox) == []
