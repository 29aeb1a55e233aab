"""What every outbox does for alerts: states in the transaction of their cause, notifications superseded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.delivery import Route
from bridge.outbox import Batch, SinkTotals
from tests.contract.outboxes import DEDUP, KINDS, NOW, Opened, batch, done, due, ids_due, intake

pytestmark = pytest.mark.anyio

DOWN = Route("gateway-down", "crm", None, "gateway-down/gw-yard")
ROW = ("track", "gateway-down", "gw-yard")


@pytest.fixture(params=sorted(KINDS))
async def opened(
    request: pytest.FixtureRequest, tmp_path: Path, virtual_time: object
) -> AsyncIterator[Opened]:
    each = await KINDS[request.param](tmp_path)
    yield each
    assert await each.sums() == []
    await each.close()


async def test_a_newer_notification_takes_the_place_of_one_that_waits(opened: Opened) -> None:
    """Dropped and counted; those of other keys, other sinks and rules wait on."""
    other = DOWN._replace(supersedes="gateway-down/gw-roof")
    ops = DOWN._replace(sink="ops")
    first = await opened.outbox.accept(
        batch(intake("u1", DOWN, ops), intake("u2", other), intake("u3", Route("r", "crm")))
    )
    second = await opened.outbox.accept(batch(intake("u4", DOWN)))

    assert not first.superseded
    assert second.superseded == {("gateway-down", "crm"): 1}
    outbox = await opened.crash()
    assert await ids_due(outbox) == ["u2", "u3", "u4"]
    assert await ids_due(outbox, "ops") == ["u1"]
    assert outbox.sink_totals()["crm"] == SinkTotals(accepted=4, dropped=1, waiting=3)
    trace = await outbox.trace("u1")
    assert trace is not None
    assert {each.sink: each.state for each in trace.deliveries} == {"ops": "waiting", "crm": "dropped"}


async def test_of_one_batch_the_last_notification_of_a_key_waits(opened: Opened) -> None:
    """Firing and resolved at once, after bridge was away."""
    accepted = await opened.outbox.accept(batch(intake("u1", DOWN), intake("u2", DOWN)))

    assert accepted.superseded == {("gateway-down", "crm"): 1}
    assert await ids_due(opened.outbox) == ["u2"]


async def test_what_is_being_sent_while_it_is_superseded_is_passed_over(opened: Opened) -> None:
    """Its settlement finds nothing, and the sums hold."""
    await opened.outbox.accept(batch(intake("u1", DOWN)))
    (sending,) = await due(opened.outbox)
    await opened.outbox.accept(batch(intake("u2", DOWN)))
    await opened.outbox.settle([done(sending)])

    assert opened.outbox.sink_totals()["crm"] == SinkTotals(accepted=2, dropped=1, waiting=1)


async def test_the_next_of_an_order_key_has_its_turn_when_the_head_is_superseded(opened: Opened) -> None:
    """The new one waits behind what came in between."""
    ordered = DOWN._replace(order_key="gateway:gw-yard")
    between = Route("r", "crm", "gateway:gw-yard")
    for number, route in enumerate((ordered, between, ordered)):
        await opened.outbox.accept(batch(intake(f"u{number}", route)))

    assert await ids_due(opened.outbox) == ["u1"]


async def test_states_are_kept_replaced_and_forgotten(opened: Opened) -> None:
    """With what has caused them, all or nothing."""
    await opened.outbox.accept(
        Batch([intake("u1", DOWN)], alerts={ROW: b'{"a":1}', ("group", "x", "y"): b"{}"})
    )
    assert sorted(await opened.outbox.alert_states()) == [("group", "x", "y", b"{}"), (*ROW, b'{"a":1}')]
    await opened.outbox.accept(Batch(alerts={ROW: '{"a":"é"}'.encode(), ("group", "x", "y"): None}))

    outbox = await opened.crash()
    assert await outbox.alert_states() == [(*ROW, '{"a":"é"}'.encode())]
    assert await outbox.alert_states("group") == []


async def test_what_is_fresh_is_what_accept_would_take(opened: Opened) -> None:
    """Known ids, repeats within the question, ids from before the window."""
    await opened.outbox.accept(batch(intake("u1", matched=True), intake("u2", DOWN)))
    late = NOW + DEDUP + 1
    asked = [intake("u1", matched=True), intake("u3", matched=True), intake("u3", matched=True)]
    old = [intake("u1", matched=True, at=late), intake("u2", matched=True, at=late)]

    assert await opened.outbox.fresh(asked) == (False, True, False)
    assert await opened.outbox.fresh(old) == (True, False), "u2 still waits"
    assert (await opened.outbox.accept(Batch(asked))).fresh == (False, True, False)
