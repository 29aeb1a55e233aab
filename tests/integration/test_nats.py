"""The outbox on a real nats-server: kills between any two writes, several replicas, stops, restarts."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from bridge.delivery import Delivery, Route, Settlement
from bridge.errors import OutboxError, StartError
from bridge.ids import ulid
from bridge.outbox import Batch, DeadLetterFilter, SinkTotals
from bridge.outbox.jetstream.address import parse
from bridge.outbox.jetstream.link import Watch, connected, unwatched
from bridge.outbox.jetstream.outbox import JetStreamOutbox, open_jetstream, open_reader
from bridge.outbox.jetstream.pages import pages
from bridge.outbox.jetstream.routing import Router
from bridge.outbox.jetstream.shelf import HELD_LATER
from bridge.outbox.verify import verify
from tests.contract.outboxes import (
    CRM,
    NOW,
    OPS,
    Crash,
    batch,
    dead,
    done,
    due,
    ids_due,
    intake,
    later,
)
from tests.nats import NatsServer, cable, nats_server, shared_server
from tests.servers import HOST, free_port

if TYPE_CHECKING:
    from nats.aio.msg import Msg

pytestmark = [pytest.mark.integration, pytest.mark.anyio, pytest.mark.timeout(60)]

ALL = DeadLetterFilter()
KEY = ("eu1", "application plant-a")
WITHIN = 10.0  # seconds


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def new_stream() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


@asynccontextmanager
async def replica(
    stream: str,
    name: str = "a",
    *,
    server: NatsServer | None = None,
    watch: Watch = unwatched,
    max_size: int | None = None,
    overflow: str = "drop_oldest",
    **options: object,
) -> AsyncIterator[JetStreamOutbox]:
    asked = {"ack_wait": "500ms", "lease": "1s", "replica": name} | options
    url = (server or shared_server()).url(stream, **asked)
    async with opened(url, watch=watch, max_size=max_size, overflow=overflow) as outbox:
        yield outbox


@asynccontextmanager
async def opened(
    url: str, *, watch: Watch = unwatched, max_size: int | None = None, overflow: str = "drop_oldest"
) -> AsyncIterator[JetStreamOutbox]:
    """At *url*, with windows that no test outlives."""
    async with open_jetstream(
        parse(url),
        dedup_window=3600.0,
        dead_letter_retention=3600.0,
        trace_retention=3600.0,
        max_size=max_size,
        overflow=overflow,
        watch=watch,
    ) as outbox:
        yield outbox


class Kill:
    """From write number *step* (from 0) on the process is dead."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.writes = 0

    def __call__(self, _subject: str) -> None:
        self.writes += 1
        if self.writes > self.step:
            raise Crash

    def begin(self) -> None:
        self.writes = 0


async def waits_for(outbox: JetStreamOutbox, sink: str, count: int) -> Sequence[Delivery]:
    """What is due for *sink* once there are *count* of them."""
    with anyio.fail_after(WITHIN):
        while len(found := await due(outbox, sink)) < count:
            await anyio.sleep(0.05)
    return found


async def nothing_waits(outbox: JetStreamOutbox) -> None:
    """Also after everything that could come again has come again."""
    await anyio.sleep(0.7)  # more than ack_wait
    for sink in ("crm", "ops"):
        assert await ids_due(outbox, sink, NOW + 60) == []


STORED = batch(intake("u1", CRM, OPS), intake("u2", CRM))
BATCH = Batch(STORED.intakes, cursors={KEY: 5}, alerts={("track", "a", "k"): b"{}"})


@pytest.mark.parametrize("step", range(12))
async def test_a_kill_at_any_write_of_accept_loses_and_repeats_nothing(step: int) -> None:
    """The source reads the batch again, for its cursor had not moved; ids absorb what is there."""
    stream, kill = new_stream(), Kill(1000)
    with suppress(Crash, BaseExceptionGroup):
        async with replica(stream, watch=kill) as outbox:
            kill.begin()
            kill.step = step
            outbox.is_killed = True
            await outbox.accept(BATCH)
    async with replica(stream) as outbox:
        assert (await outbox.cursors("eu1") == {KEY[1]: 5}) == (kill.writes <= step)
        await outbox.accept(BATCH)
        assert await outbox.cursors("eu1") == {KEY[1]: 5}
        await outbox.settle([done(each) for each in await waits_for(outbox, "crm", 2)])
        await outbox.settle([done(each) for each in await waits_for(outbox, "ops", 1)])
        await nothing_waits(outbox)
        assert outbox.sink_totals() == {
            "crm": SinkTotals(accepted=2, delivered=2),
            "ops": SinkTotals(accepted=1, delivered=1),
        }
        assert await verify(outbox) == []


@pytest.mark.parametrize("ago", [0.0, 3000.0])
async def test_an_id_that_says_when_it_was_made_is_known_without_being_looked_for(ago: float) -> None:
    """By this replica and by others, in one batch and in the next; beyond the window it is new again."""
    stream, made = new_stream(), [ulid(int((NOW - ago) * 1e9), random.Random(n)) for n in range(3)]
    async with replica(stream, "a") as a, replica(stream, "b") as b:
        found = await a.accept(batch(*(intake(each, CRM) for each in (*made, made[0]))))
        assert found.fresh == (True, True, True, False)
        for outbox in (a, b):
            again = await outbox.accept(batch(*(intake(each, CRM, at=NOW + 60) for each in made)))
            assert again.fresh == (False, False, False)
            assert (await outbox.fresh([intake(made[0], CRM)])) == (False,)
        assert await ids_due(a) == made
        late = await b.accept(batch(intake(made[0], CRM, at=NOW + 3601), intake("new", CRM, at=NOW + 3601)))
        assert late.fresh == (False, True)  # it still waits
        await a.settle([done(each) for each in await due(a)])
        late = await b.accept(batch(intake(made[0], CRM, at=NOW + 3601)))
        assert late.fresh == (True,)


class Outage(Kill):
    """From write number *step* on the server does not answer, until `begin`."""

    def __call__(self, subject: str) -> None:
        try:
            super().__call__(subject)
        except Crash:
            raise OutboxError("no answer") from None


@pytest.mark.parametrize("step", range(12))
async def test_what_is_accepted_again_after_a_failure_in_between_is_stored_and_counted_once(
    step: int,
) -> None:
    """`Ingest` asks again until it works; what was stored is as new as before and is not stored twice."""
    outage = Outage(1000)
    async with replica(new_stream(), watch=outage) as outbox:
        outage.begin()
        outage.step = step
        failed = True
        with suppress(OutboxError):
            await outbox.accept(BATCH)
            failed = False
        outage.step = 1000
        accepted = await outbox.accept(BATCH)
        assert accepted.fresh == (failed, failed)
        await outbox.settle([done(each) for each in await waits_for(outbox, "crm", 2)])
        await outbox.settle([done(each) for each in await waits_for(outbox, "ops", 1)])
        await nothing_waits(outbox)
        assert outbox.sink_totals() == {
            "crm": SinkTotals(accepted=2, delivered=2),
            "ops": SinkTotals(accepted=1, delivered=1),
        }
        assert outbox.source_totals()["eu1"].accepted == 2
        assert await verify(outbox) == []


@pytest.mark.parametrize("step", range(8))
async def test_a_kill_never_leaves_an_event_known_that_alerts_have_not_judged(step: int) -> None:
    """Or the alert would be lost: the event that caused it comes again, and must be new until then."""
    stream, kill = new_stream(), Kill(1000)
    row = ("track", "gateway-down", "gateway:gw-1")
    caused = Batch([intake("u1", CRM), intake("n1", OPS, source="alerts")], alerts={row: b"{}"})
    with suppress(Crash):
        async with replica(stream, watch=kill) as outbox:
            kill.begin()
            kill.step = step
            outbox.is_killed = True
            await outbox.accept(caused)
    async with replica(stream) as outbox:
        (is_new,) = await outbox.fresh([intake("u1", CRM)])
        states = await outbox.alert_states()
        (is_told,) = await outbox.fresh([intake("n1", OPS)])
        assert is_new or (states and not is_told)
        assert not states or not is_told


async def test_what_was_stored_is_routed_after_a_kill_though_nothing_comes_again() -> None:
    """The event's message is the promise: killed right after it, before any delivery is stored."""
    stream, kill = new_stream(), Kill(1000)
    with suppress(Crash, BaseExceptionGroup):
        async with replica(stream, watch=kill) as outbox:
            kill.begin()
            kill.step = 2
            outbox.is_killed = True
            await outbox.accept(STORED)
    async with replica(stream, "b") as outbox:
        assert {each.event.unique_id for each in await waits_for(outbox, "crm", 2)} == {"u1", "u2"}
        assert len(await waits_for(outbox, "ops", 1)) == 1


class HastyRouter(Router):
    """The planted bug: acknowledges before the deliveries are stored."""

    async def _route(self, messages: Sequence[Msg]) -> None:
        for each in messages:
            await self._desk.link.ask(each.reply, b"+ACK")
        await super()._route(messages)


async def test_a_router_that_acknowledges_first_is_caught() -> None:
    """The test above, with the bug: what was accepted never waits."""
    stream, kill = new_stream(), Kill(1000)
    with suppress(Crash, BaseExceptionGroup):
        async with replica(stream, watch=kill) as outbox:
            outbox._router = HastyRouter(outbox._desk)
            kill.begin()
            kill.step = 2
            outbox.is_killed = True
            await outbox.accept(STORED)
    async with replica(stream, "b") as outbox:
        assert await outbox.fresh(STORED.intakes) == (False, False)
        await nothing_waits(outbox)


async def settled_with_kill(stream: str, step: int, verdict: object) -> None:
    """Two deliveries settled by *verdict*, with a kill at write number *step*."""
    assert callable(verdict)
    kill = Kill(1000)
    with suppress(Crash, BaseExceptionGroup):
        async with replica(stream, watch=kill) as outbox:
            await outbox.accept(batch(intake("u1", CRM), intake("u2", CRM)))
            found = await due(outbox)
            kill.begin()
            kill.step = step
            outbox.is_killed = True
            await outbox.settle([verdict(each) for each in found])


def put_off(delivery: Delivery) -> Settlement:
    return later(delivery, NOW + 5)


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize(
    "verdict", [done, dead, lambda each: later(each, NOW + 5)], ids=["done", "dead", "later"]
)
async def test_a_kill_at_any_write_of_settle_counts_each_delivery_once(step: int, verdict: object) -> None:
    """What was decided stays decided, what was not is due again; dead letters are whole."""
    stream = new_stream()
    await settled_with_kill(stream, step, verdict)
    async with replica(stream) as outbox:
        with anyio.fail_after(WITHIN):
            while await verify(outbox):
                await due(outbox, now=NOW + 5)
                await anyio.sleep(0.05)
        letters = await outbox.dead_letters(ALL, limit=9)
        waiting = await due(outbox, now=NOW + 5)
        totals = outbox.sink_totals()["crm"]
        assert (totals.accepted, totals.dead, totals.waiting) == (2, len(letters), len(waiting))
        assert totals.delivered == 2 - len(letters) - len(waiting)
        await outbox.settle([done(each, NOW + 6) for each in waiting])
        assert await outbox.retry_dead_letters(ALL, NOW + 7) == len(letters)
        await outbox.settle([done(each, NOW + 8) for each in await due(outbox, now=NOW + 8)])
        assert outbox.sink_totals()["crm"].delivered == 2
        assert await verify(outbox) == []


@pytest.mark.parametrize("step", range(4))
async def test_a_kill_while_a_dead_letter_is_retried_is_mended(step: int) -> None:
    """It waits, or it is dead: not both for long, and never neither."""
    stream, kill = new_stream(), Kill(1000)
    with suppress(Crash, BaseExceptionGroup):
        async with replica(stream, watch=kill) as outbox:
            await outbox.accept(batch(intake("u1", CRM)))
            await outbox.settle([dead(each) for each in await due(outbox)])
            kill.begin()
            kill.step = step
            outbox.is_killed = True
            await outbox.retry_dead_letters(ALL, NOW + 1)
    async with replica(stream) as outbox:
        await outbox.tidy(NOW + 2)
        letters, waiting = await outbox.dead_letters(ALL, limit=9), await due(outbox, now=NOW + 2)
        assert len(letters) + len(waiting) == 1
        assert await verify(outbox) == []


async def test_several_replicas_share_the_work_and_each_delivery_goes_to_one() -> None:
    """What one has taken in any may deliver; together they count everything once."""
    stream = new_stream()
    async with replica(stream, "a") as a, replica(stream, "b") as b, replica(stream, "c") as c:
        everybody = (a, b, c)
        for number, each in enumerate(everybody):
            await each.accept(batch(*(intake(f"u{number}-{n}", CRM) for n in range(20))))
        for each in everybody:
            accepted = await each.accept(batch(*(intake(f"u0-{n}", CRM) for n in range(20))))
            assert accepted.fresh == (False,) * 20
        got: list[str] = []
        while found := [await due(each, limit=7) for each in everybody]:
            if not any(found):
                break
            for each, deliveries in zip(everybody, found, strict=True):
                got += [delivery.event.unique_id for delivery in deliveries]
                await each.settle([done(delivery) for delivery in deliveries])
        assert sorted(got) == sorted(f"u{number}-{n}" for number in range(3) for n in range(20))
        assert sum(each.sink_totals()["crm"].delivered for each in everybody) == 60
        assert sum(each.source_totals()["eu1"].duplicate for each in everybody) == 60
        for each in everybody:
            await each.replicas.write_down()
        assert await verify(a) == []


async def test_of_two_that_sent_the_same_one_is_counted() -> None:
    """Stopped beyond ack_wait, then back with a success of its own: passed over."""
    stream = new_stream()
    async with replica(stream, "a") as a, replica(stream, "b") as b:
        a._handing.keep_alive = nothing  # type: ignore[method-assign]  # stands still, as under SIGSTOP
        await a.accept(batch(intake("u1", CRM)))
        (stale,) = await due(a)
        (fresh,) = await waits_for(b, "crm", 1)
        await b.settle([done(fresh, NOW + 2)])
        await a.settle([done(stale, NOW + 3)])
        await a.settle([later(stale, NOW + 4)])
        assert await ids_due(a) == []
        assert (b.sink_totals()["crm"].delivered, a.sink_totals()["crm"].delivered) == (1, 0)
        for each in (a, b):
            await each.replicas.write_down()
        assert await verify(a) == []


async def test_a_replica_that_is_cut_off_hands_its_work_over_and_never_acts_beside_another(
    tmp_path: Path,
) -> None:
    """Its deliveries and its lease go to the other one; back again it counts nothing that was counted."""
    stream, server = new_stream(), shared_server()
    async with cable(server.port) as wire:
        near = NatsServer(server.program, server.directory, wire.port)
        async with replica(stream, "a", server=near, lease="2s") as a, replica(stream, "b", lease="2s") as b:
            await a.accept(batch(intake("u1", CRM)))
            (cut,) = await due(a)
            await a.leasing.round(["eu1"])
            assert a.leasing.sure() == {"eu1"}
            wire.apart = True
            (given,) = await waits_for(b, "crm", 1)
            assert given.id == cut.id
            await b.settle([done(given, NOW + 1)])
            with anyio.fail_after(WITHIN):
                while not b.leasing.sure():
                    await b.leasing.round(["eu1"])
                    assert not (a.leasing.sure() & b.leasing.sure())
                    await anyio.sleep(0.1)
            with pytest.raises(OutboxError):
                await a.settle([done(cut, NOW + 2)])
            wire.apart = False
            with anyio.fail_after(WITHIN):
                while True:
                    with suppress(OutboxError):
                        await a.settle([done(cut, NOW + 2)])
                        assert not await a.leasing.fence("eu1")
                        break
                    await anyio.sleep(0.1)
            assert (b.sink_totals()["crm"].delivered, a.sink_totals()["crm"].delivered) == (1, 0)
            for each in (a, b):
                await each.replicas.write_down()
            assert await verify(b) == []


async def nothing() -> None:
    """Instead of a sign of life."""


async def test_the_order_of_an_entity_holds_across_replicas() -> None:
    """While one replica has the first in hand another one gets none of that entity; then it gets the next."""
    stream = new_stream()
    route = Route("r", "crm", "device:a")
    async with replica(stream, "a") as a, replica(stream, "b") as b:
        await a.accept(batch(intake("a0", route)))
        (first,) = await due(a)
        await a.accept(batch(intake("a1", route), intake("x", CRM), intake("a2", route)))
        assert await ids_due(b) == ["x"]
        await a.settle([done(first)])
        assert await ids_due(a) == []
        for expected in ("a1", "a2"):
            with anyio.fail_after(WITHIN):
                while "a" not in "".join(found := await ids_due(b)):
                    await anyio.sleep(0.05)
            assert sorted(found) == [expected, "x"]
            await b.settle([done(each) for each in await due(b) if each.order_key])
        assert await ids_due(a) == []


async def test_what_is_put_off_goes_back_to_the_server_and_comes_again(tmp_path: Path) -> None:
    """More than a replica holds; also when the server is restarted meanwhile."""
    many = HELD_LATER + 20
    with nats_server(tmp_path) as server:
        async with replica("bridge", server=server, ack_wait="2s") as outbox:
            await outbox.accept(batch(*(intake(f"u{n}", CRM) for n in range(many))))
            found = await due(outbox, limit=many)
            await outbox.settle([later(each, NOW + 3) for each in found])
            assert await ids_due(outbox) == []
            assert len(outbox._desk.shelf("crm").parked) == 20
            server.restart()
            with anyio.fail_after(30):
                got = set[str]()
                while len(got) < many:
                    with suppress(OutboxError):
                        got |= {each.id for each in await due(outbox, now=NOW + 3, limit=many)}
                    await anyio.sleep(0.1)


async def test_a_server_that_restarts_loses_nothing(tmp_path: Path) -> None:
    """Calls fail while it is away and are made again; the replica connects by itself."""
    with nats_server(tmp_path) as server:
        async with replica("bridge", server=server) as outbox:
            await outbox.accept(batch(intake("u1", CRM)))
            server.kill()
            with pytest.raises(OutboxError):
                await outbox.accept(batch(intake("u2", CRM)))
            server.start()
            with anyio.fail_after(WITHIN):
                while True:
                    with suppress(OutboxError):
                        await outbox.accept(batch(intake("u2", CRM)))
                        break
                    await anyio.sleep(0.05)
            found = await waits_for(outbox, "crm", 2)
            await outbox.settle([done(each) for each in found])
            assert outbox.sink_totals()["crm"] == SinkTotals(accepted=2, delivered=2)
            assert await verify(outbox) == []


async def test_room_is_made_or_nothing_is_taken() -> None:
    """`max_size` with both ways of `overflow`, told by the outbox."""
    async with replica(new_stream(), max_size=150_000) as outbox:
        dropped = 0
        for number in range(6):
            accepted = await outbox.accept(batch(*(intake(f"u{number}-{n}", CRM) for n in range(100))))
            dropped += accepted.dropped.get("crm", 0)
        assert dropped > 0
        assert outbox.sink_totals()["crm"].dropped == dropped
        assert await verify(outbox) == []
    async with replica(new_stream(), max_size=150_000, overflow="block") as outbox:
        await outbox.accept(batch(*(intake(f"u{n}", CRM) for n in range(100))))
        with pytest.raises(OutboxError) as told:
            await outbox.accept(batch(*(intake(f"v{n}", CRM) for n in range(200))))
        assert told.value.full


async def test_the_streams_are_as_the_address_says(tmp_path: Path) -> None:
    """Retention, storage, window; another shape of a stream is refused at start."""
    stream = new_stream()
    async with replica(stream, duplicate_window="30s"):
        pass
    async with connected(parse(shared_server().url(stream))) as link:
        kinds = {"events": "limits", "deliveries": "workqueue", "settled": "limits", "dead": "limits"}
        for kind, retention in kinds.items():
            config = (await link.info(f"{stream}-{kind}"))["config"]
            assert (config["retention"], config["storage"]) == (retention, "file")
            assert config["duplicate_window"] == 30 * 10**9
    with pytest.raises(StartError, match="another storage"):
        async with replica(stream, storage="memory"):
            pass
    with pytest.raises(StartError, match="cannot be reached"):
        async with open_reader(parse(f"nats://{HOST}:{free_port()}")):
            pass
    with pytest.raises(StartError, match="no store yet"):
        async with open_reader(parse(shared_server().url(new_stream()))):
            pass


async def test_a_second_process_under_the_same_name_ends_the_first() -> None:
    """Two would count into one page: the one that came first writes no more."""
    stream = new_stream()
    async with replica(stream) as first, replica(stream) as second:
        await second.accept(batch(intake("u1", CRM)))
        with anyio.fail_after(WITHIN):
            while not first._desk.replaced:
                await anyio.sleep(0.05)
        with pytest.raises(OutboxError, match="another bridge runs under this replica's name"):
            await first.accept(batch(intake("u2", CRM)))


async def test_totals_of_a_replica_that_is_gone_are_completed_by_another() -> None:
    """Killed before it wrote down what it had counted."""
    stream = new_stream()
    async with replica(stream, "b") as b:
        async with replica(stream, "a") as a:
            await a.accept(batch(intake("u1", CRM), intake("u2", CRM)))
            await a.settle([done((await due(a))[0])])
            a.is_killed = True
        assert await verify(b) == []
        (left,) = await waits_for(b, "crm", 1)
        await b.settle([done(left)])
        with anyio.fail_after(WITHIN):
            while b._desk.books.others.get("a", Counter())["sink", "crm", "delivered"] != 1:
                await anyio.sleep(0.1)
        assert await verify(b) == []
        assert (b.sink_totals()["crm"].waiting, b.sink_totals()["crm"].delivered) == (0, 1)


async def test_one_that_ended_in_order_is_not_looked_for_until_it_comes_back() -> None:
    """Its page is closed, and counts; under the same name it goes on counting."""
    stream = new_stream()
    async with replica(stream, "b") as b:
        for number in (1, 2):
            async with replica(stream, "a") as a:
                assert not (await pages(b._desk.shared))["a"].closed
                await a.accept(batch(intake(f"u{number}", CRM)))
            assert (await pages(b._desk.shared))["a"].closed
            await b.replicas.beat()
            assert b.sink_totals()["crm"].waiting == number
            assert await verify(b) == []


async def test_what_a_killed_server_has_kept_too_long_is_let_go_of(tmp_path: Path) -> None:
    """It may know that a delivery was acknowledged, and still have it: nobody would ever get it again."""
    with nats_server(tmp_path, oldest=True) as server:
        async with replica("bridge", server=server) as outbox:
            many = batch(*(intake(f"u{n}", CRM) for n in range(300)))
            await outbox.accept(many)
            found = await due(outbox, limit=300)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(settled_somehow, outbox, found)
                await anyio.sleep(0.03)
                server.kill()
                await anyio.to_thread.run_sync(server.start)
            with anyio.fail_after(40):
                while await messages(outbox):
                    with suppress(OutboxError):
                        await outbox.settle([done(each) for each in await due(outbox, limit=300)])
                        await outbox._handing.sweep()
                    await anyio.sleep(0.1)
            assert outbox.sink_totals()["crm"] == SinkTotals(accepted=300, delivered=300)
            assert await verify(outbox) == []


async def settled_somehow(outbox: JetStreamOutbox, found: Sequence[Delivery]) -> None:
    with suppress(OutboxError):
        await outbox.settle([done(each) for each in found])


async def messages(outbox: JetStreamOutbox) -> int:
    """Deliveries the server has; some where it does not say."""
    with suppress(OutboxError):
        return int((await outbox._desk.link.info(outbox._desk.stream("deliveries")))["state"]["messages"])
    return 1
