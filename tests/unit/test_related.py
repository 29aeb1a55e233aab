"""`attach: related`: which chain is asked for, what is attached, and that it never holds up a delivery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.decode import event as decoded
from bridge.delivery import Delivered, Delivery, Outcome
from bridge.errors import SourceError
from bridge.event import Event
from bridge.redact import Redactor
from bridge.related import BYTES, CACHED, EVENTS, FRESH, Related, attached, attaching, bounded, chain_ids
from bridge.sinks import BatchLimits, BatchSink
from tests.recordings import documents, json_bytes

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]

UPLINK = "gs:uplink:01"


def made(number: int, *ids: str, **more: Any) -> Event:
    event = {
        "name": f"e{number}",
        "time": f"2026-01-02T03:04:{number % 60:02d}Z",
        "unique_id": f"id{number:05d}",
    }
    return decoded(json_bytes(event | {"correlation_ids": list(ids)} | more))


def delivery(event: Event, rule: str = "asks", source: str = "eu1") -> Delivery:
    return Delivery(1, f"d_{event.unique_id}", event, source, rule, "crm", 1, 0.0)


def names(event: Event) -> list[str]:
    return [each["name"] for each in event.document()["related"]]


@dataclass(slots=True)
class Server:
    """Answers by correlation id, and counts how often it was asked."""

    chains: dict[str, list[Event]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    failure: SourceError | None = None
    seconds: float = 0.0

    async def find(self, source: str, id: str) -> Sequence[bytes]:
        self.asked.append((source, id))
        await anyio.sleep(self.seconds)
        if self.failure:
            raise self.failure
        return [each.body for each in reversed(self.chains.get(id, []))]


@pytest.fixture
def server() -> Server:
    return Server({UPLINK: [made(number, UPLINK) for number in range(4)]})


@pytest.fixture
def related(server: Server) -> Related:
    return Related(server.find, attaches=lambda rule: rule == "asks", redact=lambda event: event)


async def test_the_others_of_the_chain_are_attached_in_their_order(related: Related) -> None:
    """Oldest first, without the event itself."""
    sent = await related.prepare(delivery(made(2, UPLINK)))

    assert names(sent.event) == ["e0", "e1", "e3"]
    assert sent.event.unique_id == "id00002"


async def test_a_rule_that_does_not_ask_gets_the_very_same_delivery(related: Related, server: Server) -> None:
    """And the server is left alone."""
    plain = delivery(made(2, UPLINK), rule="other")

    assert await related.prepare(plain) is plain
    assert server.asked == []


async def test_an_event_without_correlation_ids_gets_an_empty_list(related: Related, server: Server) -> None:
    """Templates find the field in any case."""
    sent = await related.prepare(delivery(made(9)))

    assert names(sent.event) == []
    assert server.asked == []


async def test_many_deliveries_ask_once(related: Related, server: Server) -> None:
    """At the same time, and while the answer is fresh."""
    server.seconds = 0.5
    sent: list[Delivery] = []

    async def send() -> None:
        sent.append(await related.prepare(delivery(made(2, UPLINK))))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(send)
    await send()
    await anyio.sleep(FRESH + 1)
    await send()

    assert [names(each.event) for each in sent] == [["e0", "e1", "e3"]] * 22
    assert len(server.asked) == 2


async def test_sources_do_not_share_answers(related: Related, server: Server) -> None:
    """Each is asked for its own."""
    for source in ("eu1", "nam1"):
        await related.prepare(delivery(made(2, UPLINK), source=source))

    assert server.asked == [("eu1", UPLINK), ("nam1", UPLINK)]


async def test_a_failure_sends_the_event_without_and_is_not_repeated_at_once(
    related: Related, server: Server
) -> None:
    """A server without a store is not asked for each delivery; later it is tried again."""
    server.failure = SourceError("no store", kind="rejected")
    for number in range(5):
        sent = await related.prepare(delivery(made(number, UPLINK)))
        assert names(sent.event) == []
    assert len(server.asked) == 1

    server.failure = None
    await anyio.sleep(601)
    sent = await related.prepare(delivery(made(2, UPLINK)))
    assert names(sent.event) == ["e0", "e1", "e3"]


async def test_a_rate_limit_is_obeyed(related: Related, server: Server) -> None:
    """No question before the server's seconds are over."""
    server.failure = SourceError("slow down", kind="rate_limited", retry_after=7)
    await related.prepare(delivery(made(0, UPLINK)))
    server.failure = None
    await anyio.sleep(6)
    await related.prepare(delivery(made(0, UPLINK)))
    assert len(server.asked) == 1

    await anyio.sleep(2)
    await related.prepare(delivery(made(0, UPLINK)))
    assert len(server.asked) == 2


async def test_a_server_that_hangs_holds_up_one_delivery_for_two_seconds(
    related: Related, server: Server
) -> None:
    """Those behind it do not wait again."""
    server.seconds = 1000
    began = anyio.current_time()
    for number in range(50):
        await related.prepare(delivery(made(number, UPLINK)))

    assert anyio.current_time() - began < 2.1


async def test_what_must_not_be_stored_is_not_attached_either(server: Server) -> None:
    """The paths of `redact` count for each attached event."""
    server.chains[UPLINK] = [made(1, UPLINK, data={"key": "hush"}, remote_ip="10.0.0.1")]
    redactor = Redactor.of(["data.key", "remote_ip"])
    related = Related(server.find, attaches=lambda rule: True, redact=redactor.redact)
    sent = await related.prepare(delivery(made(2, UPLINK)))

    assert b"hush" not in sent.event.body
    assert b"10.0.0.1" not in sent.event.body


async def test_the_cache_does_not_grow(related: Related, server: Server) -> None:
    """The last chains are kept, the first are asked for again."""
    chains = [f"gs:uplink:{number}" for number in range(2 * CACHED)]
    for number, id in enumerate([*chains, chains[-1], chains[0]]):
        await related.prepare(delivery(made(number, id)))

    assert [id for _, id in server.asked] == [*chains, chains[0]]


@pytest.mark.parametrize(
    ("ids", "asked"),
    [
        (["as:downlink:1", "gs:uplink:1", "ns:downlink:1"], ("gs:uplink:1", "as:downlink:1")),
        (["gs:conn:1", "gs:uplink:1", "rpc:/x:1"], ("gs:uplink:1",)),
        (["rpc:/x:1"], ("rpc:/x:1",)),
        (["gs:conn:1"], ()),
        (["own:1", "gs:conn:1"], ("own:1",)),
        ([], ()),
    ],
)
async def test_the_widest_chains_are_asked_for(ids: list[str], asked: tuple[str, ...]) -> None:
    """One uplink, and not everything of the gateway's connection."""
    assert chain_ids(made(0, *ids)) == asked


async def test_a_recorded_uplink_finds_its_way_through_all_servers() -> None:
    """`as.up.data.forward` of the recordings: the chain of its id has gs, ns and as."""
    events = [decoded(json_bytes(each)) for each in documents("devices.sse")]
    up = next(each for each in events if each.name == "as.up.data.forward")
    (id, *_) = chain_ids(up)
    chain = [each for each in events if id in each.document().get("correlation_ids", [])]
    found = attached(up, bounded(each.body for each in chain)).document()["related"]

    assert {each["name"].partition(".")[0] for each in found} == {"ns", "as"}
    assert up.unique_id not in {each["unique_id"] for each in found}


async def test_what_is_attached_is_bounded() -> None:
    """In number and in bytes, whatever the server answers."""
    assert len(bounded(made(number).body for number in range(1000))) == EVENTS
    big = [made(number, data={"x": "y" * 100_000}) for number in range(10)]
    assert sum(len(each.body) for each in bounded(each.body for each in big)) <= BYTES
    assert bounded([b"not json", made(1).body]) == (made(1),)


@given(
    spaces=st.text(" \t\r\n", max_size=3),
    numbers=st.lists(st.integers(0, 59), max_size=6),
    data=st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2),
)
def test_the_event_stays_what_it_was(spaces: str, numbers: list[int], data: dict[str, str]) -> None:
    """Attaching adds one field and changes no other."""
    event = decoded(json_bytes({"name": "x", "unique_id": "u", "data": data}) + spaces.encode())
    document = attached(event, map(made, numbers)).document()
    found = document.pop("related")

    assert document == event.document()
    assert [each["unique_id"] for each in found] == sorted({made(number).unique_id for number in numbers})


@dataclass(slots=True)
class Receiver:
    """A sink that keeps what it was given."""

    got: list[Event] = field(default_factory=list)
    name: str = "crm"
    max_in_flight: int = 1

    async def send(self, delivery: Delivery) -> Outcome:
        self.got.append(delivery.event)
        return Delivered()


@dataclass(slots=True)
class BatchReceiver(Receiver):
    batch_limits: BatchLimits = field(default_factory=lambda: BatchLimits(10))

    async def send_batch(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        self.got += [each.event for each in deliveries]
        return [Delivered() for _ in deliveries]


async def test_a_sink_gets_its_deliveries_with_the_chain(related: Related) -> None:
    """One by one and in batches, in their order, and a sink is a batch sink only if it was one."""
    one, many = Receiver(), BatchReceiver()
    single, batch = attaching(one, related), attaching(many, related)
    await single.send(delivery(made(1, UPLINK)))
    assert not isinstance(single, BatchSink)
    assert isinstance(batch, BatchSink)
    given = [delivery(made(1, UPLINK)), delivery(made(2, UPLINK), rule="other"), delivery(made(3, UPLINK))]
    outcomes = await batch.send_batch(given)

    assert names(one.got[0]) == ["e0", "e2", "e3"]
    assert (single.name, batch.max_in_flight, batch.batch_limits.max_events) == ("crm", 1, 10)
    assert outcomes == [Delivered()] * 3
    assert [each.unique_id for each in many.got] == ["id00001", "id00002", "id00003"]
    assert ["related" in msgspec.json.decode(each.body) for each in many.got] == [True, False, True]
