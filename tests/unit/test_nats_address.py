"""What may stand behind `outbox: nats://`, and what a message says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.delivery import Route
from bridge.outbox import Intake
from bridge.outbox.jetstream.address import Address, is_nats, parse
from bridge.outbox.jetstream.books import Books, Counting
from bridge.outbox.jetstream.routing import taken_of
from bridge.outbox.jetstream.wire import (
    HEADER,
    Decision,
    Place,
    Subjects,
    Taken,
    Waits,
    header,
    place_of,
    read,
)
from tests.contract.outboxes import NOW, event


def test_an_address_has_servers_credentials_and_options() -> None:
    """Several servers are separated by commas; a port may be left out."""
    found = parse("nats://bridge:s%40cret@a:4223,b,[::1]:4224?stream=plant&replicas=3&ack_wait=1m&lease=5s")
    assert found == Address(
        servers=("nats://a:4223", "nats://b:4222", "nats://[::1]:4224"),
        user="bridge",
        password="s@cret",
        stream="plant",
        replicas=3,
        ack_wait=60.0,
        lease=5.0,
    )
    assert parse("tls://nats.example").servers == ("tls://nats.example:4222",)


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("nats://", "write nats://host:4222"),
        ("nats://a:99999", "a server is host:port"),
        ("nats://a,,b", "a server is host:port"),
        ("nats://a/bridge", "the stream is ?stream=bridge"),
        ("nats://a?steam=x", "unknown option"),
        ("nats://a?stream=a.b", "stream is letters"),
        ("nats://a?replicas=7", "replicas is 1 to 5"),
        ("nats://a?ack_wait=soon", "ack_wait is a duration"),
        ("nats://a?storage=tape", "storage is file or memory"),
    ],
)
def test_a_mistake_is_told_with_what_to_write(url: str, advice: str) -> None:
    """And without the value, which may hold a password."""
    with pytest.raises(ValueError, match=r"^[^@]*$") as told:
        parse(url)
    assert advice in str(told.value)


def test_a_file_is_no_address() -> None:
    """`sqlite:` stays what it is."""
    assert not is_nats("sqlite:bridge.db")
    assert is_nats("nats://a")
    assert is_nats("tls://a")


@given(
    sink=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    number=st.integers(1, 1 << 40),
    n=st.integers(0, 99),
    keys=st.tuples(st.none() | st.text(), st.none() | st.text()),
)
def test_a_delivery_is_found_again_by_its_subject(
    sink: str, number: int, n: int, keys: tuple[str | None, str | None]
) -> None:
    """Whatever its sink is called and its keys are; a subject has no blanks and seven tokens."""
    place = Place(sink, number, n)
    subjects = Subjects("bridge")
    found = [subjects.settled(place), subjects.dead(place), subjects.attempts(place)]
    try:
        found.append(subjects.delivery(place, *keys))
    except UnicodeEncodeError:
        pass
    else:
        assert found[-1].count(".") == 6
    for each in found:
        assert place_of(each) == place
        assert not set(each) & set(" \t\r\n*>")
    assert Place.at(sink, place.row) == place


@given(st.builds(Waits, unique_id=st.text(), source=st.just("eu1"), received=st.just(NOW), rule=st.text(),
                 sink=st.just("crm"), order_key=st.none() | st.text(), error=st.text()))  # fmt: skip
def test_what_a_message_says_is_read_again(waits: Waits) -> None:
    """In one ASCII line, whatever the texts are."""
    try:
        written = header(waits)
    except UnicodeEncodeError:
        return
    assert written[HEADER].isascii()
    assert written[HEADER].isprintable()
    assert read(written, Waits) == waits


def test_a_route_that_is_no_text_is_refused_before_anything_is_stored() -> None:
    """As SQLite refuses it."""
    bad = Intake("eu1", event("u1"), NOW, True, (Route("\ud800", "crm"),))
    with pytest.raises(UnicodeEncodeError):
        taken_of(bad, "a")


def test_a_page_never_claims_what_is_still_under_way() -> None:
    """A publish that has begun may have got any number beyond those known then."""
    counting = Counting()
    first, second = counting.begin(), counting.begin()
    counting.end(second, 7)
    ledger = counting.ledger()
    assert (ledger.through, ledger.beyond) == (0, (7,))
    assert not counting.has(5)
    counting.end(first, 5)
    assert (counting.ledger().through, counting.ledger().beyond) == (7, ())
    assert counting.has(6)


def test_the_sums_of_a_page_are_those_of_its_messages() -> None:
    """Accepted, put off, dead, tried again, delivered."""
    books = Books("a")
    routes = Route("r", "crm"), Route("r", "ops"), Route("s", "crm")
    books.accepted(taken_of(Intake("eu1", event("u1"), NOW, True, routes), "a"))
    for state in ("dead", "waiting", "delivered"):
        books.decided(Decision(state=state, by="a", at=NOW, rule="r", sink="crm"))
    totals = books.sink_totals()
    assert (totals["crm"].accepted, totals["crm"].delivered, totals["crm"].waiting, totals["crm"].died) == (
        *(2, 1, 1, 1),
    )
    assert (totals["crm"].dead, totals["ops"].waiting) == (0, 1)
    assert Books("a", books.page()).sink_totals() == totals
    assert isinstance(read(header(taken_of(Intake("eu1", event("u1"), NOW, True), "a")), Taken), Taken)


def test_without_the_extra_one_line_says_what_to_install(tmp_path: Path) -> None:
    """Exit code 2, no traceback of an import."""
    (tmp_path / "bridge.yaml").write_text("outbox: nats://127.0.0.1:4222\nrules: []\n")
    script = "import sys; sys.modules['nats'] = None; from bridge.cli import main; main()"
    told = subprocess.run(
        [sys.executable, "-c", script, "verify"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == "outbox: nats: needs the extra: pip install 'tts-event-bridge[nats]'\n"
