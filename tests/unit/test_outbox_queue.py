"""What `bridge queue` and `bridge verify` say of a store, and a store carried from one machine to another."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.delivery import Route, delivery_id
from bridge.errors import OutboxError
from bridge.event import Event
from bridge.outbox import Batch, DeadLetterFilter, Intake, PauseState, SinkTotals, SourceTotals, queue
from bridge.outbox.exchange import Exported, ExportedDelivery, from_line, one_line, to_line
from bridge.outbox.file import connect
from bridge.outbox.sqlite import SqliteOutbox
from bridge.outbox.verify import Accounts, verify, violations
from tests.contract.outboxes import CRM, NOW, OPS, batch, dead, done, due, intake, later
from tests.unit.test_outbox_file import store

pytestmark = pytest.mark.anyio

A = Route("ordered", "crm", "device:a")


async def filled(outbox: SqliteOutbox) -> None:
    """u1 put off at crm and waiting at ops, u2 dead, u3 delivered, u4 and u5 of one entity."""
    await outbox.accept(batch(intake("u1", CRM, OPS), intake("u2", CRM), intake("u3", CRM)))
    await outbox.accept(batch(intake("u4", A, at=NOW + 4), intake("u5", A, at=NOW + 5)))
    found = {each.event.unique_id: each for each in await due(outbox)}
    await outbox.settle([later(found["u1"], NOW + 60), dead(found["u2"]), done(found["u3"])])


async def test_the_queues_are_told(tmp_path: Path) -> None:
    """How many wait, since when, and the pause."""
    async with store(tmp_path / "bridge.db") as outbox:
        await filled(outbox)
        pause = PauseState("auth", "HTTP 401", NOW, NOW + 60)
        await outbox.set_pause("ops", pause, NOW)
        assert await outbox.read(queue.queues) == [
            queue.Queue("crm", 3, 1, NOW, None),
            queue.Queue("ops", 1, 0, NOW, pause),
        ]


async def test_what_waits_is_listed_in_the_order_received(tmp_path: Path) -> None:
    """Over all sinks, with why; by sink, by rule, in pages."""
    async with store(tmp_path / "bridge.db") as outbox:
        await filled(outbox)
        found = await outbox.read(queue.waiting)
        assert [(each.unique_id, each.sink) for each in found] == [
            *(("u1", "crm"), ("u1", "ops"), ("u4", "crm"), ("u5", "crm")),
        ]
        first, _, fourth, fifth = found
        assert first.id == delivery_id("u1", "r", "crm")
        assert (first.attempt, first.due, first.error) == (2, NOW + 60, "HTTP 500")
        assert (first.name, first.received) == ("as.up.data.forward", NOW)
        assert (fourth.due, fifth.due, fifth.order_key) == (NOW + 4, None, "device:a")
        assert [each.sink for each in await outbox.read(lambda db: queue.waiting(db, "ops"))] == ["ops"]
        ordered = await outbox.read(lambda db: queue.waiting(db, rule="ordered"))
        assert [each.unique_id for each in ordered] == ["u4", "u5"]
        page = await outbox.read(lambda db: queue.waiting(db, after=first.row, limit=2))
        assert [each.unique_id for each in page] == ["u1", "u4"]


@pytest.mark.parametrize("identifier", ["u1", delivery_id("u1", "r", "crm")])
async def test_one_delivery_is_shown(tmp_path: Path, identifier: str) -> None:
    """By its id or its event's, with its attempts and what would be sent."""
    async with store(tmp_path / "bridge.db") as outbox:
        await filled(outbox)
        found = await outbox.read(lambda db: queue.show(db, identifier))
        assert found[0].waiting.sink == "crm"
        assert [(each.number, each.status) for each in found[0].attempts] == [(1, 500)]
        assert b'"unique_id":"u1"' in found[0].body
        assert len(found) == (2 if identifier == "u1" else 1)
        assert await outbox.read(lambda db: queue.show(db, "u3")) == []
        assert await outbox.read(lambda db: queue.show(db, "d_nobody")) == []


async def test_a_whole_store_has_nothing_to_tell(tmp_path: Path) -> None:
    """Also one in which everything was done."""
    async with store(tmp_path / "bridge.db") as outbox:
        assert await outbox.read(queue.check) == []
        await filled(outbox)
        assert await outbox.read(queue.check) == []


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("DELETE FROM events WHERE unique_id = 'u1'", "2 deliveries have no body"),
        ("DELETE FROM events WHERE unique_id = 'u2'", "1 dead letters have no body"),
        ("UPDATE events SET open = open + 1", "4 bodies are kept for another number of deliveries than"),
        ("UPDATE deliveries SET due = NULL", "1 entities have not exactly one delivery whose turn it is"),
        ("DELETE FROM seen WHERE unique_id = 'u1'", "1 events wait whose id is not known"),
        ("DELETE FROM deliveries WHERE sink = 'ops'", "sink ops: waiting is 1, but there are 0"),
    ],
)
async def test_what_does_not_fit_together_is_told(tmp_path: Path, damage: str, told: str) -> None:
    """Each in a sentence."""
    path = tmp_path / "bridge.db"
    async with store(path) as outbox:
        await filled(outbox)
    with closing(connect(path, "process")) as db:
        db.execute(damage)
    async with store(path) as outbox:
        assert told in " | ".join(await outbox.read(queue.check))


def test_each_sum_that_does_not_hold_is_a_sentence() -> None:
    """And only those."""
    accounts = Accounts(
        sources={"eu1": SourceTotals(5, 1, 1, 2), "us1": SourceTotals(3, 1, 1, 1)},
        sinks={"crm": SinkTotals(accepted=9, delivered=4, dead=1, dropped=1, waiting=2), "ops": SinkTotals()},
        waiting={"crm": 2, "lost": 1},
        dead={"crm": 3},
    )
    assert list(violations(accounts)) == [
        "source eu1: received 5 is not duplicate 1 + unmatched 1 + accepted 2",
        "sink crm: accepted 9 is not delivered 4 + dead 1 + dropped 1 + waiting 2",
        "sink crm: dead is 1, but there are 3",
        "sink lost: waiting is 0, but there are 1",
    ]


async def exported(outbox: SqliteOutbox) -> list[Exported]:
    lines, after = [], 0
    while True:
        page, last = await outbox.read(lambda db, after=after: queue.exported(db, after))  # type: ignore[misc]
        lines += page
        if last is None:
            return lines
        after = last


async def test_a_store_is_carried_to_another_machine(tmp_path: Path) -> None:
    """What waits waits there, as attempt 1; what is dead is dead; the order of entities stays."""
    async with store(tmp_path / "from.db") as outbox:
        await filled(outbox)
        lines = [to_line(each) for each in await exported(outbox)]
    assert len(lines) == 4
    async with store(tmp_path / "to.db") as outbox:
        await outbox.accept(batch(intake("own", CRM), intake("u4", OPS)))
        imported = await outbox.take_in([from_line(each) for each in lines], NOW + 100)
        assert imported == queue.Imported(events=3, duplicates=1, deliveries=3, dead_letters=1)
        found = await due(outbox, now=NOW + 100)
        assert [(each.event.unique_id, each.attempt) for each in found] == [("own", 1), ("u1", 1), ("u5", 1)]
        (letter,) = await outbox.dead_letters(DeadLetterFilter(), limit=9)
        assert (letter.id, letter.reason, letter.attempts) == (delivery_id("u2", "r", "crm"), "expired", 1)
        assert (letter.first, letter.status, letter.response) == (NOW, 500, "sorry" * 500)
        assert await outbox.read(queue.check) == []
        assert await outbox.take_in([from_line(each) for each in lines], NOW + 101) == queue.Imported(
            duplicates=4
        )
        assert await outbox.retry_dead_letters(DeadLetterFilter(), NOW + 101) == 1
        assert await verify(outbox) == []


async def test_more_than_a_page_is_carried(tmp_path: Path) -> None:
    """Every event once."""
    async with store(tmp_path / "from.db") as outbox:
        await outbox.accept(batch(*(intake(f"u{n}", CRM) for n in range(1201))))
        lines = await exported(outbox)
    assert len({line.unique_id for line in lines}) == len(lines) == 1201


async def test_an_import_beyond_max_size_is_blocked(tmp_path: Path) -> None:
    """As accepting is."""
    body = b'{"name":"a.b","x":"%s"}' % (b"x" * 3000)
    line = Exported.of("u1", "eu1", NOW, body, [ExportedDelivery(rule="r", sink="crm")])
    lines = [msgspec.structs.replace(line, unique_id=f"u{n}") for n in range(500)]
    async with store(tmp_path / "bridge.db", max_size=1 << 20, overflow="block") as outbox:
        with pytest.raises(OutboxError, match="max_size"):
            await outbox.take_in(lines, NOW)
        assert await verify(outbox) == []


texts = st.text(st.characters(codec="utf-8"), max_size=20)


@given(
    unique_id=texts,
    rule=texts,
    key=st.none() | texts,
    due=st.none() | st.floats(0, 1e10),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | texts,
        lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    ),
    indent=st.sampled_from([None, 2]),
)
def test_a_line_comes_back_as_it_was(
    unique_id: str, rule: str, key: str | None, due: float | None, value: object, indent: int | None
) -> None:
    """One line, whatever is in it."""
    body = json.dumps({"data": value}, indent=indent).encode()
    deliveries = [
        ExportedDelivery(rule=rule, sink="crm", order_key=key, due=due),
        ExportedDelivery(rule=rule, sink="ops", state="dead", reason="auth", status=401, response=rule),
    ]
    exported = Exported.of(unique_id, "eu1", NOW, body, deliveries)
    line = to_line(exported)
    assert line.count(b"\n") == 1
    again = from_line(line)
    assert (again.unique_id, again.deliveries) == (unique_id, tuple(deliveries))
    assert json.loads(bytes(again.event)) == {"data": value}


def test_a_body_on_one_line_is_kept_byte_for_byte() -> None:
    """Numbers and spaces as they came."""
    body = b'{"b": 1.0,  "a":12345678901234567890}'
    assert one_line(body) is body


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"nonsense", b"[]", b"{}", b'{"unique_id":"secret"}', b"\xff"),
        b'{"unique_id":"u","source":"s","received":1,"deliveries":[],"event":7}',
        b'{"unique_id":"u","source":"s","received":1,"deliveries":'
        b'[{"rule":"r","sink":"s","state":"dead","reason":"secret"}],"event":{}}',
    ],
)
def test_another_line_is_refused(line: bytes) -> None:
    """Without repeating what is in it."""
    with pytest.raises(ValueError, match="is no line of `bridge queue export`") as told:
        from_line(line)
    assert "secret" not in str(told.value)


def bridge(folder: Path, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """A queue command, as `python -m bridge` runs it."""
    return subprocess.run(
        [sys.executable, "-m", "bridge", *arguments],
        cwd=folder,
        input=given,
        capture_output=True,
        check=False,
        timeout=20,
    )


CONFIG = """
sources: {file: {type: replay, path: events.ndjson}}
sinks: {crm: {type: webhook, url: "https://example.com/"}, ops: {type: webhook, url: "https://example.com/"}}
rules: [rules.yaml]
"""


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    (tmp_path / "bridge.yaml").write_text(CONFIG)
    (tmp_path / "rules.yaml").write_text("rules: [{name: r, match: {}, send: [crm, ops]}]")
    (tmp_path / "events.ndjson").touch()
    async with store(tmp_path / "bridge.db") as outbox:
        await filled(outbox)
    return tmp_path


@pytest.mark.timeout(90)
async def test_the_commands(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """list, show, check, verify, export and import, for people and for pipes."""
    listed = bridge(folder, "queue", "list", "--json")
    found = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [each["why"] for each in found] == [
        *("HTTP 500", "not yet tried", "not yet tried", "waits for the one before it"),
    ]
    people = bridge(folder, "queue", "list", "--sink", "crm", "--limit", "1")
    assert people.stdout.startswith(
        b"crm: 3 waiting, the oldest since 2026-11-23T21:09:06Z; 1 dead letters\n"
    )
    assert b"(1 shown; --limit 0 for all)" in people.stderr
    shown = bridge(folder, "queue", "show", found[0]["id"], "--json")
    assert json.loads(shown.stdout)["attempts"][0]["error"] == "HTTP 500"
    assert bridge(folder, "queue", "show", "nobody").returncode == 1
    checked = bridge(folder, "queue", "check")
    assert (checked.returncode, checked.stdout) == (0, b"the store is whole\n")
    sums = bridge(folder, "verify")
    assert sums.returncode == 0
    assert b"sink crm: accepted 5 = delivered 1 + dead 1 + dropped 0 + waiting 3\n" in sums.stdout
    out = bridge(folder, "queue", "export")
    assert out.returncode == 0
    other = tmp_path_factory.mktemp("other")
    for name in ("bridge.yaml", "rules.yaml", "events.ndjson"):
        (other / name).write_bytes((folder / name).read_bytes())
    taken = bridge(other, "queue", "import", "-", given=out.stdout)
    assert taken.stdout == b"4 events imported: 4 deliveries wait, 1 dead letters; 0 events were known\n"
    wrong = bridge(other, "queue", "import", "-", given=out.stdout + b"nonsense\n")
    assert wrong.returncode == 2
    assert b"standard input:5: is no line of `bridge queue export`" in wrong.stderr
    assert bridge(other, "queue", "check").returncode == 0


async def test_a_sum_that_does_not_hold_is_an_exit_code(folder: Path) -> None:
    """1: the thing asked for is not so."""
    with closing(connect(folder / "bridge.db", "process")) as db:
        db.execute("UPDATE totals SET value = value + 1 WHERE name = 'crm' AND what = 'delivered'")
    for command in (("verify",), ("queue", "check")):
        found = bridge(folder, *command)
        assert found.returncode == 1
        assert b"sink crm: accepted 5 is not delivered 2 + dead 1" in found.stdout + found.stderr


async def test_no_import_into_a_running_bridge(folder: Path) -> None:
    """Its lock is taken."""
    async with store(folder / "bridge.db"):
        found = bridge(folder, "queue", "import", "-")
    assert found.returncode == 3
    assert b"bridge is running on this store; stop it, import, and start it again" in found.stderr


async def test_a_body_that_is_damaged_is_told_as_a_dead_letter(tmp_path: Path) -> None:
    """It comes out as an event without a name, which no format can render, instead of stopping its sink."""
    async with store(tmp_path / "bridge.db") as outbox:
        await outbox.accept(
            Batch([Intake("eu1", Event("a.b", "", 0, "u1", (), b"\xff{"), NOW, True, (CRM,))])
        )
        (delivery,) = await due(outbox)
        assert (delivery.event.name, delivery.event.body) == ("", b"\xff{")
