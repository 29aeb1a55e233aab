"""What a real nats-server does not allow: told at the start in one line, or later and not tried for ever."""

from __future__ import annotations

from pathlib import Path

import anyio
import msgspec
import pytest

from bridge.delivery import Route
from bridge.errors import OutboxError, StartError
from bridge.event import Event
from bridge.outbox import Batch, DeadLetterFilter, Intake, SinkTotals
from bridge.outbox.jetstream.hollow import hollow
from bridge.outbox.jetstream.outbox import JetStreamOutbox
from bridge.outbox.jetstream.questions import Questions
from bridge.outbox.verify import verify
from tests.contract.outboxes import CRM, NOW, OPS, batch, done, due, event, ids_due, intake
from tests.integration.test_nats import new_stream, opened, replica
from tests.nats import nats_server

pytestmark = [pytest.mark.integration, pytest.mark.anyio, pytest.mark.timeout(60)]

GIB = 1 << 30
ALL = DeadLetterFilter()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def account(limits: str) -> str:
    """A config in which everybody is a user of one account with *limits*."""
    return f"accounts {{ A {{ jetstream: {limits}, users: [{{user: u, password: p}}] }} }}\nno_auth_user: u"


@pytest.mark.parametrize(
    ("more", "asked", "told"),
    [
        (
            account("{max_file: 1GB}"),
            "",
            "max_size has twice its size reserved, 8 GiB for each of 1 copies: lower it",
        ),
        (
            "jetstream { max_file_store: 1GB }",
            "",
            "insufficient storage resources available; max_size has twice",
        ),
        (account("{max_streams: 3}"), "", "maximum number of streams reached; .*bridge needs 8 streams"),
        (account("{max_consumers: 2}"), "", "the account may have 2 consumers a stream; bridge needs 32"),
        (account("{max_ack_pending: 100}"), "", "max_ack_pending is 100; bridge needs 10000"),
        (account("disabled"), "", "JetStream not enabled for account; check JetStream"),
        ("max_payload: 4KB", "", "max_payload is 4096 bytes; bridge needs 131072"),
        ("", "&replicas=3", "replicas > 1 not supported in non-clustered mode"),
    ],
)
async def test_what_the_server_does_not_allow_is_told_at_the_start(
    tmp_path: Path, more: str, asked: str, told: str
) -> None:
    """In one line that says what to change, with the default max_size of 4 GiB."""
    with nats_server(tmp_path, more) as server, pytest.raises(StartError, match=rf"^[^\n]*{told}[^\n]*$"):
        async with opened(server.url() + asked, max_size=4 * GIB):
            pass


async def test_room_is_reserved_for_deliveries_where_there_is_room(tmp_path: Path) -> None:
    """Twice max_size; where the account wants a size of each stream, each gets one."""
    for number, (limits, kinds) in enumerate(
        [("enabled", {"deliveries"}), ("{max_bytes_required: true}", {"deliveries", "events", "settled"})]
    ):
        with nats_server(tmp_path / str(number), account(limits)) as server:
            async with opened(server.url(), max_size=1 << 20) as outbox:
                for kind in ("deliveries", "events", "settled"):
                    config = (await outbox._desk.link.info(f"bridge-{kind}"))["config"]
                    assert config["max_bytes"] == (2 << 20 if kind in kinds else -1)
                    assert config["discard"] == ("old" if kind == "settled" else "new")


def ten(first: int) -> Batch:
    return batch(*(intake(f"u{number}", CRM) for number in range(first, first + 10)))


async def fill(outbox: JetStreamOutbox) -> None:
    for number in range(0, 1000, 10):
        await outbox.accept(ten(number))


async def test_an_account_that_is_full_takes_nothing_and_loses_nothing(tmp_path: Path) -> None:
    """`accept` says that it is full; what was accepted is delivered once there is room again."""
    with nats_server(tmp_path, account("{max_file: 200KB}")) as server:
        async with opened(server.url()) as outbox:
            with pytest.raises(OutboxError) as told:
                await fill(outbox)
            assert told.value.full
            taken = outbox.source_totals()["eu1"].accepted // 10 * 10
            assert 0 < taken < 1000
        server.more = account("{max_file: 200MB}")
        server.restart()
        async with opened(server.url()) as outbox:
            await outbox.accept(ten(taken))
            with anyio.fail_after(20):
                while len(found := await due(outbox)) < taken + 10:
                    await anyio.sleep(0.1)
            await outbox.settle([done(each) for each in found])
            assert {each.event.unique_id for each in found} == {f"u{number}" for number in range(taken + 10)}
            assert await verify(outbox) == []


def large(unique_id: str, *routes: Route, size: int) -> Intake:
    body = b'{"name":"as.up.data.forward","unique_id":"%s","data":"%s"}' % (unique_id.encode(), b"x" * size)
    small = event(unique_id)
    return Intake("eu1", Event(small.name, small.time, small.time_ns, unique_id, (), body), NOW, True, routes)


@pytest.mark.parametrize("size", [(1 << 20) - 40_000, (1 << 20) - 100, 1 << 20, 16 << 20])
async def test_an_event_larger_than_a_message_may_be_is_a_dead_letter_and_stops_nothing(size: int) -> None:
    """One line in the log, one dead letter a route, without the data; what comes with it is delivered."""
    async with replica(new_stream()) as outbox:
        accepted = await outbox.accept(
            Batch([intake("u1", CRM), large("u2", CRM, OPS, size=size), intake("u3", CRM)])
        )
        assert accepted.fresh == (True, True, True)
        fits = size == (1 << 20) - 40_000
        assert await ids_due(outbox) == (["u1", "u2", "u3"] if fits else ["u1", "u3"])
        again = await outbox.accept(Batch([large("u2", CRM, OPS, size=size)]))
        assert again.fresh == (False,)
        letters = await outbox.dead_letters(ALL, limit=9)
        if not fits:
            assert [(each.unique_id, each.sink, each.reason) for each in letters] == [
                ("u2", "crm", "rejected"),
                ("u2", "ops", "rejected"),
            ]
            assert "is larger than max_payload of nats-server" in letters[0].error
            assert str(size) in letters[0].error or f"{size}"[:3] in letters[0].error
            assert outbox.sink_totals()["ops"] == SinkTotals(accepted=1, dead=1, died=1)
            assert await outbox.drop_dead_letters(ALL, NOW) == 2
        assert await verify(outbox) == []


async def test_a_message_that_is_too_large_never_ends_the_connection() -> None:
    """nats-py does not count the headers, and the server closes the connection for them."""
    stream = new_stream()
    async with replica(stream):
        pass
    async with replica(stream) as outbox:
        link = outbox._desk.link
        with pytest.raises(OutboxError, match="larger than"):
            await link.publish(f"{stream}.events.x", b"x" * (1 << 20), {"Bridge": "{}"})
        assert (await link.info(f"{stream}-events"))["state"]["messages"] == 0
        assert link.client.stats["reconnects"] == 0


def test_what_is_kept_of_a_large_event_says_what_it_was() -> None:
    """Name, time and identifiers; garbage and identifiers without end leave the name."""
    ids = [{"gateway_ids": {"gateway_id": "gw"}}]
    body = msgspec.json.encode({"name": "n", "identifiers": ids, "data": "x" * 9999, "unique_id": "u"})
    assert msgspec.json.decode(hollow(body, "n")) == {"name": "n", "identifiers": ids, "unique_id": "u"}
    assert msgspec.json.decode(hollow(b"{" * 9999, "n")) == {"name": "n"}
    many = msgspec.json.encode({"name": "n", "identifiers": ids * 999})
    assert msgspec.json.decode(hollow(many, "n")) == {"name": "n"}


async def test_very_much_is_walked_through_and_not_listed() -> None:
    """Page after page, each delivery once, also where the one the last page ended with is gone meanwhile."""
    async with replica(new_stream()) as outbox:
        asked = Questions(outbox._desk, much=100)
        for number in range(0, 600, 100):
            await outbox.accept(batch(*(intake(f"u{number + n}", CRM, OPS) for n in range(100))))
        for sink, count in (("crm", 600), (None, 1200)):
            rows, after = list[int](), 0
            while page := await asked.waiting(sink, None, after, 70):
                rows += [each.row for each in page]
                after = page[-1].row
            assert len(rows) == len(set(rows)) == count
        first = await asked.waiting("crm", None, 0, 10)
        assert [each.unique_id for each in first] == [f"u{n}" for n in range(10)]
        assert len(await asked.show("u599")) == 2
        jump = await asked.waiting("crm", None, first[4].row, 1)
        assert jump[0].row == first[5].row
