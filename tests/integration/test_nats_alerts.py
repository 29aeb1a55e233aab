"""A partition of the alerts on a real nats-server: its owner killed at any write, and shut out by another."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import anyio
import pytest

from bridge.alerts.parts import SECOND
from bridge.delivery import Route
from bridge.errors import OutboxError
from bridge.ingest import Ingest, Notification
from bridge.metrics import Metrics
from bridge.outbox import Batch, Intake
from bridge.outbox.jetstream.judged import CHUNK, Commit, Told
from bridge.outbox.jetstream.outbox import JetStreamOutbox
from bridge.outbox.jetstream.sights import PAGE, Logged
from bridge.outbox.verify import verify
from bridge.redact import Redactor
from bridge.replicas.owning import Owner
from bridge.replicas.passing import BEAT_AT, Passing
from bridge.rules import RuleSet
from bridge.sources import Arrival, Reading, Tick
from tests.alerting import START, device, event
from tests.contract.outboxes import NOW, Crash, done, due
from tests.integration.test_nats import Kill, new_stream, replica
from tests.partitions import PARTS, Logs, Reader, fill, owner_on
from tests.unit.test_owning import ALERTS, EXPECTED, HERE, SCRIPT

pytestmark = [pytest.mark.integration, pytest.mark.anyio, pytest.mark.timeout(60)]

WRITES = 13  # of an owner that is left alone


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def owner(outbox: JetStreamOutbox) -> Owner:
    async def announce(notices: Sequence[Notification]) -> None:
        intakes = [Intake("alerts", each.event, NOW, True, (Route(each.alert, "ops"),)) for each in notices]
        await outbox.accept(Batch(intakes))

    return owner_on(outbox, HERE, ALERTS, announce)


async def judged(outbox: JetStreamOutbox) -> None:
    """All that is there, and stored."""
    found = owner(outbox)
    judge = await found.begin()
    while await found.step(judge):
        pass


async def publish(outbox: JetStreamOutbox) -> None:
    logs = Logs()
    fill(logs, [Reader("a", logs, ALERTS)], SCRIPT)
    messages = [(HERE, each.body, f"m{each.number}") for each in logs.messages[HERE]]
    await outbox.publish_sights(messages)
    await outbox.publish_sights(messages)


@pytest.mark.parametrize("step", range(WRITES + 1))
async def test_a_kill_at_any_write_of_an_owner_loses_and_repeats_no_notification(step: int) -> None:
    """The next one does again what was committed: each is accepted once, in order, and the sums hold."""
    stream, kill = new_stream(), Kill(1000)
    async with replica(stream, "reader") as outbox:
        await publish(outbox)
    with suppress(Crash, BaseExceptionGroup):
        async with replica(stream, watch=kill) as outbox:
            kill.begin()
            kill.step = step
            outbox.is_killed = True
            await judged(outbox)
    assert (kill.writes > step) == (step < WRITES)
    async with replica(stream, "b") as outbox:
        await judged(outbox)
        found: list[str] = []
        with anyio.fail_after(20):
            while len(found) < len(EXPECTED):
                deliveries = await due(outbox, "ops")
                found += [each.event.unique_id for each in deliveries]
                await outbox.settle([done(each) for each in deliveries])
        assert Counter(found) == Counter(EXPECTED)
        assert (await outbox.accounts()).sources["alerts"].accepted == len(EXPECTED)
        with anyio.fail_after(20):
            while await verify(outbox):
                await anyio.sleep(0.1)


async def read(outbox: JetStreamOutbox, boot: str, ids: str) -> None:
    """A reader takes in a join that failed for each of *ids*, and says how far it is."""
    passing = Passing(outbox.name, boot, outbox.publish_sights, lambda: frozenset(PARTS), lambda each: each)
    passing.configure(ALERTS)
    ingest = Ingest(
        outbox,
        lambda: RuleSet.of(()),
        Redactor.of([]),
        Metrics(),
        lambda _sinks, _ready: None,
        alerting=passing,
        hand_over=passing.hand_over,
    )
    joins = [event("ns.up.join.drop", number, device("m1"), id=id) for number, id in enumerate(ids)]
    ticks = [Tick(START + 60 * SECOND, {}, frozenset(PARTS)) for _ in range(BEAT_AT)]
    readings: list[Reading] = [*(Arrival("eu1", each, START / SECOND) for each in joins), *ticks]
    send, receive = anyio.create_memory_object_stream[Reading](len(readings))
    for each in readings:
        send.send_nowait(each)
    send.close()
    async with receive:
        await ingest.run(receive)


@pytest.mark.parametrize("step", range(0, 18, 2))
async def test_a_reader_killed_at_any_write_loses_no_sight_and_none_counts_twice(step: int) -> None:
    """Who follows it reads the same again: two joins are still two, and with the third there are three."""
    stream, kill = new_stream(), Kill(1000)
    with suppress(Crash, BaseExceptionGroup):
        async with replica(stream, "a", watch=kill) as outbox:
            kill.begin()
            kill.step = step
            outbox.is_killed = True
            await read(outbox, "a1", "xy")
    async with replica(stream, "b") as outbox:
        await read(outbox, "b1", "xy")
        await judged(outbox)
        assert not await due(outbox, "ops")
        await read(outbox, "b2", "xyz")
        await judged(outbox)
        with anyio.fail_after(20):
            while not (found := await due(outbox, "ops")):
                await anyio.sleep(0.05)
        assert [each.rule for each in found] == ["joins"]
        assert (await outbox.accounts()).sources["eu1"].accepted == 3


async def test_an_owner_that_was_stopped_is_shut_out() -> None:
    """Whatever it was about to write: the commit, a row, who fires; nothing of it happens."""
    stream = new_stream()
    async with replica(stream, "a") as one, replica(stream, "b") as other:
        stopped, then = one.judged(3), other.judged(3)
        await stopped.take()
        row = ("track", "down", "gw-1")
        await stopped.commit(Commit(5, ((*row, "[1]"),)))
        await stopped.write([(*row, "[1]")])
        await stopped.show(b"[]")
        commit, rows = await then.take()
        assert (commit.through, rows) == (5, {row: b"[1]"})
        await then.write([(*row, "[1]")])
        await then.show(b"[]")
        for write in (stopped.commit(Commit(6)), stopped.write([(*row, "[0]")]), stopped.show(b"[1]")):
            with pytest.raises(OutboxError):
                await write
        assert [each async for each in other.judged_rows("")] == [(row, b"[1]")]
        await then.commit(Commit(7, ((*row, None),)))
        await then.write([(*row, None)])
        with pytest.raises(OutboxError):
            await stopped.write([("track", "down", "gw-1", "[0]")])
        assert (await one.judged(3).take())[0].through == 7


async def test_a_commit_may_be_larger_than_a_message() -> None:
    """What is told and what has changed at once, in several parts; compressed where that helps."""

    noise = random.Random(1).randbytes(8 * CHUNK).hex()
    commit = Commit(
        9, (("group", "down", "all", noise[: 2 * CHUNK]),), (Told("down", "all", ("ops",), noise),)
    )
    stream = new_stream()
    async with replica(stream, "a") as one, replica(stream, "b") as other:
        store = one.judged(0)
        await store.take()
        await store.commit(commit)
        found, _ = await other.judged(0).take()
        assert found == commit
        assert (await one.judged(0).take())[0] == commit


async def test_a_log_is_read_in_order_from_what_is_kept() -> None:
    """By pages, while it is written; each partition its own; what is let go of is gone for who reads next."""
    stream = new_stream()
    async with replica(stream) as outbox:
        many = PAGE * 2 + 10
        await outbox.publish_sights([(n % 2, b"%d" % n, f"m{n}") for n in range(2 * many)])
        log = outbox.sight_log(1)
        await log.open()
        found: list[Logged] = []
        while page := await log.read():
            found += page
        assert [int(each.body) for each in found] == list(range(1, 2 * many, 2))
        assert [each.number for each in found] == sorted(each.number for each in found)
        await outbox.publish_sights([(1, b"last", "last")])
        assert [each.body for each in await log.read()] == [b"last"]
        await log.forget(found[-1].number)
        await log.open()
        assert [each.body for each in await log.read()] == [found[-1].body, b"last"]
        await log.close()
        with pytest.raises(OutboxError):
            await log.read()
