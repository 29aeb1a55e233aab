"""Three nats-servers that keep each stream three times; the one that leads is killed in the middle."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from bridge.errors import OutboxError, StartError
from bridge.outbox.jetstream.outbox import JetStreamOutbox
from bridge.outbox.verify import verify
from tests.contract.outboxes import CRM, batch, done, due, intake
from tests.integration.test_nats import opened
from tests.nats import NatsCluster, nats_cluster

pytestmark = [pytest.mark.integration, pytest.mark.anyio, pytest.mark.timeout(300)]

T = TypeVar("T")

ELECTED_WITHIN = 60.0  # seconds
BATCH = 10


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def insisted(call: Callable[[], Awaitable[T]]) -> T:
    """As `Ingest` and `Settling` do: again, until it is stored."""
    with anyio.fail_after(ELECTED_WITHIN * 2):
        while True:
            with suppress(OutboxError, StartError):
                return await call()
            await anyio.sleep(0.1)
    raise AssertionError


async def leader(outbox: JetStreamOutbox, kind: str) -> str:
    info = await insisted(lambda: outbox._desk.link.info(outbox._desk.stream(kind)))
    found: str = info["cluster"].get("leader", "")
    return found


async def copied(outbox: JetStreamOutbox, kind: str) -> list[dict[str, Any]]:
    """Who keeps the stream and its durable consumers, whose copies elect a leader of their own."""
    link, stream = outbox._desk.link, outbox._desk.stream(kind)
    names = (await link.api(f"CONSUMER.NAMES.{stream}"))["consumers"] or ()
    consumers = [await link.consumer(stream, name) for name in names]
    durable = [each for each in consumers if each["config"].get("durable_name")]
    return [each["cluster"] for each in (await link.info(stream), *durable)]


async def until_led(outbox: JetStreamOutbox) -> None:
    """All copies of all that is kept are up to date again: the next kill is again the only loss."""
    with anyio.fail_after(ELECTED_WITHIN):
        for kind in ("events", "deliveries", "settled"):
            while True:
                with suppress(OutboxError):
                    if all(is_whole(each) for each in await copied(outbox, kind)):
                        break
                await anyio.sleep(0.1)


def is_whole(cluster: Mapping[str, Any]) -> bool:
    copies = cluster.get("replicas") or ()
    return bool(cluster.get("leader")) and len(copies) == 2 and all(each["current"] for each in copies)


async def take_in(outbox: JetStreamOutbox, prefix: str, count: int, killed: Callable[[], None]) -> int:
    """Events in batches; *killed* is called after half of them. Returns how many were new."""
    new = 0
    for number in range(0, count, BATCH):
        if number == count // 2:
            killed()
        found = batch(*(intake(f"{prefix}{n}", CRM) for n in range(number, number + BATCH)))
        new += sum((await insisted(lambda found=found: outbox.accept(found))).fresh)  # type: ignore[misc]
    return new


async def deliver(outbox: JetStreamOutbox, delivered: list[str], stop: anyio.Event) -> None:
    """All there is, until *stop* is set and nothing more comes."""
    while True:
        found = await insisted(lambda: due(outbox, limit=16))
        delivered += [each.event.unique_id for each in found]
        if found:
            await insisted(lambda found=found: outbox.settle([done(each) for each in found]))  # type: ignore[misc]
        elif stop.is_set():
            return
        await anyio.sleep(0.01)


async def round_of(
    cluster: NatsCluster, a: JetStreamOutbox, b: JetStreamOutbox, kind: str, prefix: str
) -> None:
    """*a* takes in, *b* delivers, and the leader of the stream *kind* dies."""
    delivered: list[str] = []
    stop = anyio.Event()
    victim = cluster.servers[await leader(a, kind)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(deliver, b, delivered, stop)
        new = await take_in(a, prefix, 200, victim.kill)
        with anyio.fail_after(ELECTED_WITHIN):
            while len(set(delivered)) < 200:
                await anyio.sleep(0.1)
        stop.set()
    assert new == 200
    assert set(delivered) == {f"{prefix}{n}" for n in range(200)}
    victim.start()
    await until_led(a)


async def test_a_leader_that_is_killed_costs_nothing(tmp_path: Path) -> None:
    """Of each stream in turn: what is taken in is delivered, counted once, and the sums hold."""
    with nats_cluster(tmp_path) as cluster:
        a_url, b_url = (cluster.url(replicas=3, ack_wait="3s", lease="3s", replica=name) for name in "ab")

        async def work() -> None:
            async with (
                opened(a_url) as a,
                opened(b_url) as b,
            ):
                assert (await a._desk.link.info("bridge-events"))["config"]["num_replicas"] == 3
                for kind in ("events", "deliveries", "settled"):
                    await round_of(cluster, a, b, kind, kind)
                await insisted(a.replicas.write_down)
                await insisted(b.replicas.write_down)
                assert await insisted(lambda: verify(a)) == []
                totals = [each.sink_totals()["crm"] for each in (a, b)]
                assert totals[0].accepted + totals[1].accepted == 600
                assert totals[0].delivered + totals[1].delivered == 600
                with anyio.fail_after(ELECTED_WITHIN):
                    while a.sink_totals()["crm"].waiting:  # of the other one as of a second ago
                        await anyio.sleep(0.1)

        await insisted(work)
