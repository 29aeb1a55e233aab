"""Every outbox keeps every sentence of its contract (bridge/outbox/__init__.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from bridge.delivery import Delivered, Done, Failure, Later, Pause, Route, Settlement, delivery_id
from bridge.outbox import Batch, DeadLetterFilter, Outbox, PauseState, SinkTotals, SourceTotals
from tests.contract.outboxes import (
    BROKEN,
    CRM,
    DEDUP,
    HORIZON,
    KINDS,
    LETTERS,
    NOW,
    OPS,
    TRACES,
    Opened,
    batch,
    dead,
    done,
    due,
    event,
    ids_due,
    intake,
    later,
)

pytestmark = pytest.mark.anyio

ALL = DeadLetterFilter()
KEY = ("eu1", "application plant-a")
MINUTE = 60_000_000_000  # ns


@pytest.fixture(params=sorted(KINDS))
async def opened(
    request: pytest.FixtureRequest, tmp_path: Path, virtual_time: object
) -> AsyncIterator[Opened]:
    each = await KINDS[request.param](tmp_path)
    yield each
    assert await each.sums() == []
    await each.close()


@pytest.fixture
def outbox(opened: Opened) -> Outbox:
    return opened.outbox


async def now_and_after_a_crash(opened: Opened) -> AsyncIterator[Outbox]:
    """What is asserted of each holds of what is on disk."""
    yield opened.outbox
    yield await opened.crash()


async def test_what_a_rule_wanted_waits_for_its_sink(outbox: Outbox) -> None:
    """With everything a dispatcher needs, under the id that DESIGN.md §2.4 gives it."""
    accepted = await outbox.accept(batch(intake("u1", CRM)))
    assert accepted.fresh == (True,)
    assert accepted.sinks == {"crm"}
    assert not accepted.dropped
    (delivery,) = await due(outbox)
    assert delivery.id == delivery_id("u1", "r", "crm")
    assert delivery.event == event("u1")
    assert (delivery.source, delivery.rule, delivery.sink) == ("eu1", "r", "crm")
    assert (delivery.attempt, delivery.received, delivery.tried_since) == (1, NOW, None)


async def test_what_is_ready_is_what_would_be_due(outbox: Outbox) -> None:
    """All that a sink got, or nothing of it: what has to wait for others comes by `due` alone."""
    behind = Route("r", "crm", order_key="device:plant-a/meter-1")
    told = Route("r", "crm", supersedes="r/gateway-7")
    for number, routes in enumerate([(CRM, OPS), (CRM, CRM), (CRM, behind), (CRM, told)]):
        accepted = await outbox.accept(batch(intake(f"u{number}", *routes)))
        for sink, ready in accepted.ready.items():
            new = [each for each in await due(outbox, sink) if each.event.unique_id == f"u{number}"]
            assert list(ready) == new
        assert number < 2 or "crm" not in accepted.ready


async def test_a_rule_and_sink_named_twice_make_one_delivery(outbox: Outbox) -> None:
    """They would have the same id."""
    await outbox.accept(batch(intake("u1", CRM, CRM, Route("other", "crm"))))
    assert {delivery.rule for delivery in await due(outbox)} == {"r", "other"}
    assert outbox.sink_totals()["crm"].accepted == 2


async def test_one_event_for_two_sinks_is_two_deliveries(outbox: Outbox) -> None:
    """Settled one by one; each sink sees only its own."""
    await outbox.accept(batch(intake("u1", CRM, OPS)))
    await outbox.settle([done((await due(outbox))[0])])
    assert await ids_due(outbox, "crm") == []
    assert await ids_due(outbox, "ops") == ["u1"]


@pytest.mark.parametrize("gap", [0.0, DEDUP])
async def test_an_id_is_a_duplicate_within_the_window(outbox: Outbox, gap: float) -> None:
    """Also long after it was delivered, from whatever source, matched or not."""
    await outbox.accept(batch(intake("u1", CRM)))
    await outbox.settle([done((await due(outbox))[0])])
    again = [
        intake("u1", CRM, at=NOW + gap),
        intake("u1", OPS, at=NOW + gap, source="us1"),
        intake("u1", at=NOW + gap),
    ]
    accepted = await outbox.accept(batch(*again))
    assert accepted.fresh == (False, False, False)
    assert accepted.sinks == frozenset()
    assert await ids_due(outbox) == []


async def test_after_the_window_an_id_is_new(outbox: Outbox) -> None:
    """The window counts from when it was received, and starts again."""
    await outbox.accept(batch(intake("u1", CRM)))
    await outbox.settle([done((await due(outbox))[0])])
    accepted = await outbox.accept(batch(intake("u1", CRM, at=NOW + DEDUP + 1)))
    assert accepted.fresh == (True,)
    accepted = await outbox.accept(batch(intake("u1", CRM, at=NOW + DEDUP + 2)))
    assert accepted.fresh == (False,)


@pytest.mark.parametrize("tidied", [False, True])
async def test_an_id_that_waits_stays_known(outbox: Outbox, tidied: bool) -> None:
    """As delivery or as dead letter: it is not sent beside itself."""
    await outbox.accept(batch(intake("waits", CRM), intake("dead", CRM)))
    await outbox.settle([dead((await due(outbox))[1])])
    late = NOW + DEDUP + 1
    if tidied:
        await outbox.tidy(late)
    accepted = await outbox.accept(batch(intake("waits", CRM, at=late), intake("dead", CRM, at=late)))
    assert accepted.fresh == (False, False)


async def test_a_repeat_within_a_batch_is_a_duplicate(outbox: Outbox) -> None:
    """Two streams may bring the same event at once."""
    accepted = await outbox.accept(batch(intake("u1", CRM), intake("u2", CRM), intake("u1", OPS)))
    assert accepted.fresh == (True, True, False)
    assert await ids_due(outbox, "ops") == []


async def test_an_unmatched_event_leaves_no_id(outbox: Outbox) -> None:
    """Only its count; a rule that wants it when it comes again gets it."""
    accepted = await outbox.accept(batch(intake("u1"), intake("u1")))
    assert accepted.fresh == (True, True)
    accepted = await outbox.accept(batch(intake("u1", CRM)))
    assert accepted.fresh == (True,)
    assert outbox.source_totals()["eu1"] == SourceTotals(received=3, unmatched=2, accepted=1)


async def test_a_match_without_routes_is_accepted(outbox: Outbox) -> None:
    """An alert looked at it, or sampling left it out: it is known, and nothing waits."""
    await outbox.accept(batch(intake("u1", matched=True)))
    accepted = await outbox.accept(batch(intake("u1", matched=True)))
    assert accepted.fresh == (False,)
    assert outbox.source_totals()["eu1"] == SourceTotals(received=2, duplicate=1, accepted=1)
    trace = await outbox.trace("u1")
    assert trace is not None
    assert (trace.name, trace.source, trace.received, trace.deliveries) == (
        "as.up.data.forward",
        "eu1",
        NOW,
        (),
    )


async def test_an_accept_that_fails_leaves_nothing(opened: Opened, outbox: Outbox) -> None:
    """Ids, bodies, deliveries, cursors and totals are all or nothing."""
    good, bad = intake("u1", CRM), intake("u2", Route("no UTF-8: \ud800", "crm"))
    with pytest.raises(UnicodeEncodeError):
        await outbox.accept(Batch([good, bad], cursors={KEY: MINUTE}))
    async for each in now_and_after_a_crash(opened):
        assert await ids_due(each) == []
        assert await each.cursors("eu1") == {}
        assert not each.source_totals()
        assert not each.sink_totals()
    again = await opened.crash()
    assert (await again.accept(batch(good))).fresh == (True,)


async def test_due_gives_the_oldest_due_first(outbox: Outbox) -> None:
    """Not more than asked for."""
    for number in (3, 1, 2):
        await outbox.accept(batch(intake(f"u{number}", CRM, at=NOW - 10 + number)))
    found = await outbox.due("crm", now=NOW, horizon=HORIZON, limit=2, taken=())
    assert [delivery.event.unique_id for delivery in found.deliveries] == ["u1", "u2"]
    assert found.next_due == NOW - 10 + 3


async def test_due_leaves_out_what_is_taken(outbox: Outbox) -> None:
    """Another slot has it in hand."""
    await outbox.accept(batch(intake("u1", CRM), intake("u2", CRM)))
    first, _ = await due(outbox)
    found = await outbox.due("crm", now=NOW, horizon=HORIZON, limit=10, taken=[first.row])
    assert [delivery.event.unique_id for delivery in found.deliveries] == ["u2"]
    assert found.next_due is None


async def test_due_tells_when_the_next_one_falls_due(outbox: Outbox) -> None:
    """So that the dispatcher sleeps until then, and for ever when none waits."""
    assert (await outbox.due("crm", now=NOW, horizon=HORIZON, limit=9, taken=())).next_due is None
    await outbox.accept(batch(intake("u1", CRM), intake("u2", CRM)))
    first, second = await due(outbox)
    await outbox.settle([later(first, NOW + 30), later(second, NOW + 60)])
    found = await outbox.due("crm", now=NOW, horizon=HORIZON, limit=9, taken=())
    assert (found.deliveries, found.next_due) == ((), NOW + 30)
    found = await outbox.due("crm", now=NOW + 30, horizon=HORIZON, limit=9, taken=())
    assert [delivery.attempt for delivery in found.deliveries] == [2]
    assert found.next_due == NOW + 60


async def test_a_clock_that_jumped_back_holds_up_nothing_for_ever(outbox: Outbox) -> None:
    """Due further ahead than the horizon is due now; nearer than that it waits."""
    await outbox.accept(batch(intake("far", CRM, at=NOW), intake("near", CRM, at=NOW - 3000)))
    assert await ids_due(outbox, now=NOW - HORIZON - 1) == ["far"]


async def test_what_is_settled_does_not_come_back(opened: Opened, outbox: Outbox) -> None:
    """Neither now nor after a crash."""
    await outbox.accept(batch(intake("u1", CRM)))
    await outbox.settle([done((await due(outbox))[0])])
    async for each in now_and_after_a_crash(opened):
        assert await ids_due(each) == []
        assert each.sink_totals()["crm"] == SinkTotals(accepted=1, delivered=1)


async def test_what_is_not_settled_comes_back_after_a_crash(opened: Opened, outbox: Outbox) -> None:
    """The same delivery in all its parts, the retry time included."""
    await outbox.accept(batch(intake("u1", CRM), intake("u2", CRM)))
    await outbox.settle([later((await due(outbox))[1], NOW + 5)])
    before = await due(outbox, now=NOW + 5)
    assert await due(await opened.crash(), now=NOW + 5) == before


async def test_later_keeps_attempt_and_first_try(outbox: Outbox) -> None:
    """`give_up_after` counts from the first attempt."""
    await outbox.accept(batch(intake("u1", CRM)))
    await outbox.settle([later((await due(outbox))[0], NOW + 5)])
    (delivery,) = await due(outbox, now=NOW + 5)
    assert (delivery.attempt, delivery.tried_since) == (2, NOW)
    assert outbox.sink_totals()["crm"] == SinkTotals(accepted=1, waiting=1, retried=1)


@pytest.mark.parametrize("verdict", [done, dead, lambda each: later(each, NOW)])
async def test_a_settled_delivery_is_passed_over(outbox: Outbox, verdict: object) -> None:
    """The totals count it once, whatever comes second; also within one call."""
    assert callable(verdict)
    await outbox.accept(batch(intake("u1", CRM)))
    (delivery,) = await due(outbox)
    await outbox.settle([done(delivery), verdict(delivery)])
    await outbox.settle([verdict(delivery)])
    assert outbox.sink_totals()["crm"] == SinkTotals(accepted=1, delivered=1)


async def test_a_late_settlement_does_not_touch_what_came_after(outbox: Outbox) -> None:
    """A row is never used again: neither by a new delivery nor by a dead letter."""
    await outbox.accept(batch(intake("u1", CRM)))
    (first,) = await due(outbox)
    await outbox.settle([dead(first)])
    assert await outbox.drop_dead_letters(ALL, NOW) == 1
    await outbox.accept(batch(intake("u2", CRM)))
    await outbox.settle([done(first)])
    assert await ids_due(outbox) == ["u2"]
    await outbox.settle([dead((await due(outbox))[0])])
    assert [each.unique_id for each in await outbox.dead_letters(ALL, limit=9)] == ["u2"]


async def test_a_dead_letter_says_why(opened: Opened, outbox: Outbox) -> None:
    """All that `dead-letters list` shows, and the whole answer."""
    await outbox.accept(batch(intake("u1", CRM)))
    await outbox.settle([later((await due(outbox))[0], NOW + 5, at=NOW + 1)])
    await outbox.settle([dead((await due(outbox, now=NOW + 5))[0], at=NOW + 6)])
    async for each in now_and_after_a_crash(opened):
        (letter,) = await each.dead_letters(ALL, limit=9)
        assert letter.id == delivery_id("u1", "r", "crm")
        assert (letter.sink, letter.rule, letter.name, letter.unique_id) == (
            *("crm", "r", "as.up.data.forward", "u1"),
        )
        assert (letter.reason, letter.attempts, letter.first, letter.last) == (
            *("expired", 2, NOW + 1, NOW + 6),
        )
        assert (letter.status, letter.error, letter.response) == (500, "HTTP 500", "sorry" * 500)
        assert await ids_due(each) == []


async def test_dead_letters_come_in_pages_oldest_first(outbox: Outbox) -> None:
    """Each page begins after the id with which the last one ended."""
    await outbox.accept(batch(*(intake(f"u{n}", CRM) for n in range(5))))
    await outbox.settle([dead(each) for each in reversed(await due(outbox))])
    first = await outbox.dead_letters(ALL, limit=3)
    rest = await outbox.dead_letters(ALL, limit=3, after=first[-1].id)
    assert [each.unique_id for each in first + rest] == ["u0", "u1", "u2", "u3", "u4"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (DeadLetterFilter(), ["u0", "u1", "u2"]),
        (DeadLetterFilter(ids=[delivery_id("u1", "r", "crm"), "d_other"]), ["u1"]),
        (DeadLetterFilter(ids=[]), []),
        (DeadLetterFilter(sink="ops"), ["u2"]),
        (DeadLetterFilter(rule="r"), ["u0", "u1", "u2"]),
        (DeadLetterFilter(rule="other"), []),
        (DeadLetterFilter(reason="expired"), ["u0", "u1", "u2"]),
        (DeadLetterFilter(reason="auth"), []),
        (DeadLetterFilter(since=NOW + 1), ["u1", "u2"]),
        (DeadLetterFilter(since=NOW + 1, sink="crm"), ["u1"]),
    ],
)
async def test_dead_letters_are_chosen(outbox: Outbox, wanted: DeadLetterFilter, found: list[str]) -> None:
    """Fields are ANDed, None matches all; the same for listing, retrying and dropping."""
    await outbox.accept(batch(intake("u0", CRM), intake("u1", CRM), intake("u2", OPS)))
    await outbox.settle([dead(each, at=NOW + n) for n, each in enumerate(await due(outbox))])
    await outbox.settle([dead(each, at=NOW + 2) for each in await due(outbox, "ops")])
    assert [each.unique_id for each in await outbox.dead_letters(wanted, limit=9)] == found
    assert await outbox.retry_dead_letters(wanted, NOW + 9) == len(found)
    assert {*await ids_due(outbox, now=NOW + 9), *await ids_due(outbox, "ops", NOW + 9)} == {*found}


async def test_a_retried_dead_letter_is_the_same_delivery(outbox: Outbox) -> None:
    """Attempt 1 again, due at once, counted as waiting."""
    await outbox.accept(batch(intake("u1", CRM)))
    (before,) = await due(outbox)
    await outbox.settle([dead(before)])
    assert await outbox.retry_dead_letters(ALL, NOW + 50) == 1
    assert await ids_due(outbox, now=NOW + 49) == []
    (after,) = await due(outbox, now=NOW + 50)
    assert after == before
    assert await outbox.dead_letters(ALL, limit=9) == []
    assert outbox.sink_totals()["crm"] == SinkTotals(accepted=1, waiting=1, died=1)


async def test_a_dropped_dead_letter_is_gone_and_counted(outbox: Outbox) -> None:
    """Its trace says so."""
    await outbox.accept(batch(intake("u1", CRM)))
    await outbox.settle([dead((await due(outbox))[0])])
    assert await outbox.drop_dead_letters(ALL, NOW + 5) == 1
    assert await outbox.dead_letters(ALL, limit=9) == []
    assert await outbox.retry_dead_letters(ALL, NOW) == 0
    assert outbox.sink_totals()["crm"] == SinkTotals(accepted=1, dropped=1, died=1)
    trace = await outbox.trace("u1")
    assert trace is not None
    assert [(each.state, each.at) for each in trace.deliveries] == [("dropped", NOW + 5)]


async def test_of_one_entity_the_next_waits_for_the_one_before(opened: Opened, outbox: Outbox) -> None:
    """In the order received, through retries, restarts, and the end of a poisoned one; others go on."""
    a, b = Route("r", "crm", "device:a"), Route("r", "crm", "device:b")
    await outbox.accept(batch(intake("a1", a), intake("a2", a), intake("b1", b)))
    await outbox.accept(batch(intake("a3", a, at=NOW - 5), intake("x", CRM, at=NOW + 1)))
    (a1, b1) = await due(outbox)
    assert (a1.event.unique_id, b1.event.unique_id) == ("a1", "b1")
    assert (await outbox.due("crm", now=NOW, horizon=HORIZON, limit=9, taken=[a1.row, b1.row])) == (
        await outbox.due("crm", now=NOW, horizon=HORIZON, limit=9, taken=[b1.row, a1.row])
    )
    await outbox.settle([later(a1, NOW + 30), done(b1)])
    again = await opened.crash()
    assert await ids_due(again, now=NOW + 2) == ["x"]
    assert await ids_due(again, now=NOW + 30) == ["x", "a1"]
    await again.settle([dead((await due(again, now=NOW + 30))[1])])
    assert await ids_due(again) == ["a2"]
    await again.settle([done((await due(again))[0])])
    assert await ids_due(again) == ["a3"]


async def test_order_keys_of_two_sinks_have_nothing_to_do_with_each_other(outbox: Outbox) -> None:
    """One sink never holds up another."""
    routes = Route("r", "crm", "device:a"), Route("r", "ops", "device:a")
    await outbox.accept(batch(intake("u1", *routes), intake("u2", *routes)))
    await outbox.settle([done((await due(outbox, "ops"))[0])])
    assert await ids_due(outbox, "ops") == ["u2"]
    assert await ids_due(outbox, "crm") == ["u1"]


async def test_a_retried_dead_letter_waits_its_turn(outbox: Outbox) -> None:
    """The one of its entity that is in flight is not overtaken."""
    a = Route("r", "crm", "device:a")
    await outbox.accept(batch(*(intake(f"a{n}", a) for n in range(4))))
    for _ in range(2):
        await outbox.settle([dead((await due(outbox))[0])])
    assert await outbox.retry_dead_letters(ALL, NOW) == 2
    order = []
    while found := await due(outbox):
        assert len(found) == 1
        order.append(found[0].event.unique_id)
        await outbox.settle([done(found[0])])
    assert order == ["a2", "a0", "a1", "a3"]


async def test_cursors_only_move_forward(opened: Opened, outbox: Outbox) -> None:
    """A start counts only where there is no cursor yet."""
    other = ("eu1", "gateway gw-1")
    await outbox.accept(Batch(cursors={KEY: 5 * MINUTE}, starts={other: MINUTE, KEY: MINUTE}))
    await outbox.accept(Batch(cursors={KEY: 3 * MINUTE}, starts={other: 9 * MINUTE}))
    await outbox.accept(Batch(cursors={("us1", "user admin"): MINUTE}))
    async for each in now_and_after_a_crash(opened):
        assert await each.cursors("eu1") == {KEY[1]: 5 * MINUTE, other[1]: MINUTE}
        assert await each.cursors("us1") == {"user admin": MINUTE}
        assert await each.cursors("none") == {}


async def test_a_cursor_may_claim_any_year(outbox: Outbox) -> None:
    """A server's clock may be wrong beyond what 64 bits hold."""
    far = 253_402_300_799 * 10**9
    await outbox.accept(Batch(cursors={KEY: far}, starts={("eu1", "x"): -far}))
    found = await outbox.cursors("eu1")
    assert found["x"] < 0 < found[KEY[1]]


async def test_the_last_ids_are_kept_beside_a_cursor(opened: Opened, outbox: Outbox) -> None:
    """Newest last, over batches; the continuity proof."""
    assert await outbox.recent_ids(*KEY) == ()
    await outbox.accept(Batch(cursors={KEY: 1}, recent={KEY: ["u1", "u2"]}))
    await outbox.accept(Batch(cursors={KEY: 2}, recent={KEY: [f"u{n}" for n in range(3, 6)]}))
    assert await outbox.recent_ids(*KEY) == ("u1", "u2", "u3", "u4", "u5")
    await outbox.accept(Batch(cursors={KEY: 3}, recent={KEY: [f"v{n}" for n in range(100)]}))
    async for each in now_and_after_a_crash(opened):
        ids = await each.recent_ids(*KEY)
        assert ids[-1] == "v99"
        assert len(ids) >= 2


async def test_the_oldest_waiting_one_is_told(outbox: Outbox) -> None:
    """By when it was received, however far its retry is put off."""
    assert await outbox.oldest("crm") is None
    await outbox.accept(batch(intake("u1", CRM, at=NOW), intake("u2", CRM, at=NOW + 5)))
    first, second = await due(outbox, now=NOW + 5)
    await outbox.settle([later(first, NOW + 3000)])
    assert await outbox.oldest("crm") == NOW
    await outbox.settle([done(first)])
    assert await outbox.oldest("crm") == NOW + 5
    await outbox.settle([dead(second)])
    assert await outbox.oldest("crm") is None


async def test_a_pause_is_kept(opened: Opened, outbox: Outbox) -> None:
    """Begun, renewed and ended; only ended ones and the running one count, a clock that jumps nothing."""
    pause = PauseState("auth", "HTTP 401", NOW, NOW + 60, 0)
    await outbox.set_pause("crm", pause, NOW)
    assert await outbox.pauses() == {"crm": pause}
    assert await outbox.paused_seconds("crm", NOW + 10) == 10
    renewed = replace(pause, until=NOW + 600, probes=1)
    await outbox.set_pause("crm", renewed, NOW + 60)
    again = await opened.crash()
    assert await again.pauses() == {"crm": renewed}
    await again.set_pause("crm", None, NOW + 70)
    await again.set_pause("crm", None, NOW + 90)
    assert await again.pauses() == {}
    assert await again.paused_seconds("crm", NOW + 100) == 70
    assert await again.paused_seconds("ops", NOW) == 0
    await again.set_pause("crm", replace(pause, since=NOW + 1000), NOW + 1000)
    assert await again.paused_seconds("crm", NOW + 500) == 70


async def test_attempts_are_kept_once_one_failed(outbox: Outbox) -> None:
    """With status, duration, error and the first bytes of the answer; none of a first try that arrived."""
    await outbox.accept(batch(intake("u1", CRM, OPS)))
    await outbox.settle([done((await due(outbox, "ops"))[0])])
    await outbox.settle([later((await due(outbox))[0], NOW + 5)])
    trace = await outbox.trace("u1")
    assert trace is not None
    waiting, delivered = sorted(trace.deliveries, key=lambda each: each.sink)
    assert (delivered.state, delivered.at, delivered.attempts) == ("delivered", NOW + 0.25, ())
    assert (waiting.state, waiting.due) == ("waiting", NOW + 5)
    await outbox.settle([done((await due(outbox, now=NOW + 5))[0], at=NOW + 6)])
    trace = await outbox.trace("u1")
    assert trace is not None
    (settled,) = (each for each in trace.deliveries if each.sink == "crm")
    assert settled.state == "delivered"
    failed, arrived = settled.attempts
    assert (failed.number, failed.at, failed.duration, failed.outcome) == (1, NOW, 0.25, "retried")
    assert (failed.reason, failed.status, failed.error) == ("server_error", 500, "HTTP 500")
    assert failed.response
    assert failed.response.startswith("sorry")
    assert (arrived.number, arrived.outcome, arrived.status) == (2, "delivered", 200)


async def test_the_last_twenty_attempts_are_kept(outbox: Outbox) -> None:
    """One that ended in a pause has the number of the next."""
    await outbox.accept(batch(intake("u1", CRM)))
    for number in range(30):
        (delivery,) = await due(outbox, now=NOW + number)
        outcome = Pause(Failure("auth", "HTTP 401", 401)) if number == 29 else BROKEN
        again = delivery.attempt + (number < 29)
        await outbox.settle(
            [Settlement(delivery, NOW + number, 0.1, outcome, Later(NOW + number, again, NOW))]
        )
    trace = await outbox.trace("u1")
    assert trace is not None
    (waiting,) = trace.deliveries
    assert [each.number for each in waiting.attempts] == list(range(11, 31))
    assert waiting.attempts[-1].outcome == "paused"


async def test_an_event_nobody_knows_has_no_trace(outbox: Outbox) -> None:
    """Never accepted."""
    await outbox.accept(batch(intake("u1")))
    assert await outbox.trace("u1") is None


async def test_tidy_forgets_ids_after_the_window(outbox: Outbox) -> None:
    """And not a moment before."""
    await outbox.accept(batch(intake("old", CRM), intake("new", CRM, at=NOW + 1)))
    await outbox.settle([done(each, at=NOW) for each in await due(outbox, now=NOW + 1)])
    await outbox.tidy(NOW + DEDUP + 0.5)
    assert await outbox.trace("old") is None
    assert await outbox.trace("new") is not None


async def test_tidy_forgets_traces_after_their_retention(outbox: Outbox) -> None:
    """What still waits keeps its attempts."""
    await outbox.accept(batch(intake("u1", CRM, OPS)))
    await outbox.settle([done((await due(outbox))[0]), later((await due(outbox, "ops"))[0], NOW + 5)])
    await outbox.tidy(NOW + TRACES)
    trace = await outbox.trace("u1")
    assert trace is not None
    assert len(trace.deliveries) == 2
    await outbox.tidy(NOW + TRACES + 1)
    trace = await outbox.trace("u1")
    assert trace is not None
    assert [(each.sink, len(each.attempts)) for each in trace.deliveries] == [("ops", 1)]


async def test_tidy_drops_dead_letters_after_their_retention(outbox: Outbox) -> None:
    """Counted from the last attempt."""
    await outbox.accept(batch(intake("old", CRM), intake("new", CRM)))
    first, second = await due(outbox)
    await outbox.settle([dead(first, at=NOW), dead(second, at=NOW + 1)])
    await outbox.tidy(NOW + LETTERS + 0.5)
    assert [each.unique_id for each in await outbox.dead_letters(ALL, limit=9)] == ["new"]
    assert outbox.sink_totals()["crm"] == SinkTotals(accepted=2, dead=1, dropped=1, died=2)


async def test_tidy_lets_go_of_nothing_that_waits(outbox: Outbox) -> None:
    """However old."""
    await outbox.accept(batch(intake("u1", CRM)))
    await outbox.tidy(NOW + 1e9)
    assert await ids_due(outbox, now=NOW + 1e9) == ["u1"]


async def test_much_of_everything_is_let_go_of_in_one_round(outbox: Outbox) -> None:
    """More than one step of each."""
    many = 2500
    await outbox.accept(batch(*(intake(f"u{n}", CRM) for n in range(many))))
    found = await due(outbox, limit=many)
    await outbox.settle([done(each) for each in found[: many // 2]])
    await outbox.settle([dead(each) for each in found[many // 2 :]])
    assert await outbox.retry_dead_letters(ALL, NOW) == many // 2
    await outbox.settle([dead(each) for each in await due(outbox, limit=many)])
    await outbox.tidy(NOW + LETTERS + 1)
    await outbox.tidy(NOW + LETTERS + TRACES + 2)
    assert await outbox.trace("u0") is None
    assert await outbox.trace(f"u{many - 1}") is None
    assert outbox.sink_totals()["crm"] == SinkTotals(
        accepted=many, delivered=many // 2, dropped=many // 2, died=many
    )


async def test_bytes_are_told(outbox: Outbox) -> None:
    """More after than before."""
    before = await outbox.bytes_used()
    await outbox.accept(batch(*(intake(f"u{n}", CRM) for n in range(1000))))
    assert 0 < before < await outbox.bytes_used()


async def test_a_delivered_verdict_without_status_is_fine(outbox: Outbox) -> None:
    """MQTT has none."""
    await outbox.accept(batch(intake("u1", CRM)))
    (delivery,) = await due(outbox)
    await outbox.settle([Settlement(delivery, NOW, 0.1, Delivered(), Done())])
    assert outbox.sink_totals()["crm"].delivered == 1


async def test_nothing_to_do_is_no_mistake(outbox: Outbox) -> None:
    """An empty batch, no settlements."""
    accepted = await outbox.accept(Batch())
    assert (accepted.fresh, accepted.sinks) == ((), frozenset())
    await outbox.settle([])


async def test_a_sink_remembers_what_it_wants(opened: Opened, outbox: Outbox) -> None:
    """Rows of its own, replaced and forgotten by key, over a crash too."""
    await outbox.keep("ops", {"a": b'{"ts":"1"}', "b": b"2"})
    await outbox.keep("crm", {"a": b"3"})
    await outbox.keep("ops", {"a": b"4", "b": None, "c": b"5"})
    async for each in now_and_after_a_crash(opened):
        assert await each.recall("ops") == {"a": b"4", "c": b"5"}
        assert await each.recall("crm") == {"a": b"3"}
        assert await each.recall("lamp") == {}


async def test_what_is_fresh_is_told_beforehand(outbox: Outbox) -> None:
    """As `accept` would say it of known, waiting and new ones, also twice in one batch; nothing changes."""
    await outbox.accept(batch(intake("known", CRM), intake("waits", CRM), intake("unmatched")))
    await outbox.settle([done((await due(outbox))[0])])
    for at in (NOW, NOW + DEDUP, NOW + DEDUP + 1):
        asked = [intake(each, CRM, at=at) for each in ("known", "waits", "unmatched", "new", "new", "known")]
        told = await outbox.fresh(asked)
        assert told == (at > NOW + DEDUP, False, True, True, False, False)
        assert await outbox.fresh(asked) == told
    assert (await outbox.accept(batch(*asked))).fresh == told


async def test_what_alerts_remember_is_kept(opened: Opened, outbox: Outbox) -> None:
    """Written with the events that caused it, replaced, forgotten, and there after a crash."""
    row, other = ("track", "gateway-down", "gateway:gw-1"), ("group", "gateway-down", "")
    await outbox.accept(Batch([intake("u1", CRM)], alerts={row: b'{"since":1}', other: b"{}"}))
    await outbox.accept(Batch(alerts={row: b'{"since":2,"name":"\xc3\xa9"}', other: None}))
    async for each in now_and_after_a_crash(opened):
        assert await each.alert_states() == [(*row, b'{"since":2,"name":"\xc3\xa9"}')]


async def test_a_newer_notification_takes_the_place_of_one_that_waits(opened: Opened, outbox: Outbox) -> None:
    """Of the same key and sink, counted as dropped; also within one batch, and not for other keys."""
    first = Route("gateway-down", "crm", None, "gateway-down gw-1")
    other = Route("gateway-down", "crm", None, "gateway-down gw-2")
    accepted = await outbox.accept(batch(intake("n1", first), intake("o1", other)))
    assert not accepted.superseded
    accepted = await outbox.accept(batch(intake("n2", first), intake("n3", first)))
    assert accepted.superseded == {("gateway-down", "crm"): 2}
    async for each in now_and_after_a_crash(opened):
        assert await ids_due(each) == ["o1", "n3"]
        assert each.sink_totals()["crm"] == SinkTotals(accepted=4, dropped=2, waiting=2)
        trace = await each.trace("n1")
        assert trace is not None
        assert [delivery.state for delivery in trace.deliveries] == ["dropped"]


async def test_what_waits_can_be_looked_through(outbox: Outbox) -> None:
    """In the order received, in pages, by sink and by rule."""
    await outbox.accept(batch(*(intake(f"u{n}", CRM, OPS, Route("s", "crm")) for n in range(2))))
    found = await outbox.waiting(None, None, limit=100)
    assert [(each.unique_id, each.sink, each.rule) for each in found] == [
        *(("u0", "crm", "r"), ("u0", "ops", "r"), ("u0", "crm", "s")),
        *(("u1", "crm", "r"), ("u1", "ops", "r"), ("u1", "crm", "s")),
    ]
    rest = await outbox.waiting("crm", "r", after=found[0].row, limit=100)
    assert [each.unique_id for each in rest] == ["u1"]
