"""The slack sink against a receiver that speaks like Slack."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from bridge.delivery import Delivered, Delivery, Pause, Rejected, RetryLater
from bridge.event import Event
from bridge.receiver import Received, Receiver, Reply, receive
from bridge.sinks.slack import BURST, Slack, SlackConfig, open_slack

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

OK = Reply(200, body=b"ok")
API_OK = Reply(200, body=b'{"ok":true}')
TOKEN = "xoxb-17653672481-19874698323-pdFZKVeTuE8sk7oOcHrzqqgy"


def delivery(number: int = 1, data: Any = None, name: str = "a.b") -> Delivery:
    body = json.dumps({"name": name, "data": data}).encode()
    return Delivery(
        number, f"d_{number}", Event(name, "", 0, f"{number}", (), body), "eu1", "r", "ops", 1, 0.0
    )


def hook(server: Receiver, **keys: Any) -> AbstractAsyncContextManager[Slack]:
    return opened(webhook_url=f"{server.url}/services/T0/B0/x", **keys)


def opened(**keys: Any) -> AbstractAsyncContextManager[Slack]:
    return open_slack("ops", SlackConfig.model_validate({"type": "slack"} | keys), now=time.time)


def texts(server: Receiver) -> list[str]:
    return [json.loads(got.body)["text"] for got in server.deliveries]


async def test_a_message_to_an_incoming_webhook() -> None:
    """The text, and nothing from an event that Slack would act on."""
    async with receive(answer=OK) as server, hook(server, text="<!here> {{ data.x }}") as sink:
        assert await sink.send(delivery(1, {"x": "<!channel> & <http://evil|ok>"})) == Delivered(200)
    (got,) = server.deliveries
    assert json.loads(got.body) == {"text": "<!here> &lt;!channel&gt; &amp; &lt;http://evil|ok&gt;"}
    assert got.path == "/services/T0/B0/x"
    assert got.id == "d_1"


async def test_a_message_by_the_web_api() -> None:
    """`chat.postMessage` with the token as bearer; the delivery id in the message's metadata."""
    async with (
        receive(answer=API_OK) as server,
        opened(token=TOKEN, channel="C1", api_url=f"{server.url}/api/", allow_private_networks=True) as sink,
    ):
        assert await sink.send(delivery()) == Delivered(200)
    (got,) = server.deliveries
    assert got.path == "/api/chat.postMessage"
    assert got.headers["authorization"] == f"Bearer {TOKEN}"
    assert json.loads(got.body) == {
        "text": ":satellite: a.b",
        "channel": "C1",
        "metadata": {"event_type": "bridge_delivery", "event_payload": {"delivery_ids": "d_1"}},
    }


async def test_the_guard_stands_before_api_url() -> None:
    """As for a webhook (DESIGN.md §2.6)."""
    async with (
        receive(answer=API_OK) as server,
        opened(token=TOKEN, channel="C1", api_url=f"{server.url}/api") as sink,
    ):
        outcome = await sink.send(delivery())
    assert isinstance(outcome, Pause)
    assert outcome.failure.reason == "blocked_address"
    assert server.deliveries == []


async def test_a_webhook_url_never_leads_to_metadata() -> None:
    """It may be a private server's, but link-local stays shut."""
    async with opened(webhook_url="http://169.254.169.254/latest") as sink:
        outcome = await sink.send(delivery())
    assert isinstance(outcome, Pause)
    assert outcome.failure.reason == "blocked_address"


async def test_a_template_that_fails_makes_a_dead_letter() -> None:
    """And asks Slack nothing."""
    async with receive(answer=OK) as server, hook(server, text="{{ data.nope }}") as sink:
        outcome = await sink.send(delivery(1, {"x": 1}))
    assert isinstance(outcome, Rejected)
    assert outcome.failure.reason == "template"
    assert server.deliveries == []


async def test_a_burst_becomes_a_few_messages_and_a_digest() -> None:
    """Slack's limit a channel: the first ones singly, the rest in one, and all of them delivered."""
    deliveries = [delivery(number, {"n": number}, f"ev.{number % 2}") for number in range(20)]
    async with receive(answer=OK) as server, hook(server, text="event {{ data.n }}") as sink:
        started = time.monotonic()
        outcomes = await sink.send_batch(deliveries)
        took = time.monotonic() - started
    assert outcomes == [Delivered(200)] * 20
    said = texts(server)
    assert said[:BURST] == [f"event {number}" for number in range(BURST)]
    assert len(said) == BURST + 1
    head, *lines = said[BURST].splitlines()
    assert head == "*17 messages in one*, so as to keep to the channel's rate: 9 × ev.1, 8 × ev.0"
    assert lines == [f"• event {number}" for number in range(BURST, 20)]
    assert took > 0.8


async def test_singles_keep_the_pace() -> None:
    """After the burst one message a second, or what `rate_limit` says."""
    async with receive(answer=OK) as server, hook(server, rate_limit="10/s") as sink:
        started = time.monotonic()
        for number in range(BURST + 4):
            await sink.send(delivery(number))
        took = time.monotonic() - started
    assert len(server.deliveries) == BURST + 4
    assert took > 0.35


async def test_a_calm_channel_gets_single_messages() -> None:
    """A batch within the burst is no digest."""
    async with receive(answer=OK) as server, hook(server) as sink:
        await sink.send_batch([delivery(1), delivery(2, name="c.d")])
    assert texts(server) == [":satellite: a.b", ":satellite: c.d"]


async def test_without_a_rate_nothing_is_folded() -> None:
    """`rate_limit: null`: the dispatcher is told not to batch."""
    async with receive(answer=OK) as server, hook(server, rate_limit=None) as sink:
        assert sink.batch_limits.max_events == 1


async def test_in_a_digest_only_the_guilty_is_rejected() -> None:
    """By halves: the others are delivered."""

    def picky(got: Received) -> Reply:
        return Reply(400, body=b"invalid_payload") if b"event 13" in got.body else OK

    deliveries = [delivery(number, {"n": number}) for number in range(20)]
    async with (
        receive(on_delivery=picky) as server,
        hook(server, text="event {{ data.n }}", rate_limit="1000/s") as sink,
    ):
        outcomes = await sink.send_batch(deliveries)
    assert [number for number, each in enumerate(outcomes) if not isinstance(each, Delivered)] == [13]
    assert isinstance(outcomes[13], Rejected)


async def test_a_failed_template_leaves_the_digest_whole() -> None:
    """One dead letter; the others are told of."""
    deliveries = [delivery(number, {"n": number} if number != 5 else {}) for number in range(10)]
    async with receive(answer=OK) as server, hook(server, text="event {{ data.n }}") as sink:
        outcomes = await sink.send_batch(deliveries)
    assert kinds(outcomes) == [Delivered] * 5 + [Rejected] + [Delivered] * 4
    assert texts(server)[-1].startswith("*6 messages in one*")


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(429, {"Retry-After": "30"}), Pause),
        (Reply(500), RetryLater),
        (Reply(404, body=b"no_service"), Pause),
    ],
)
async def test_when_slack_is_away_the_rest_is_not_tried(reply: Reply, kind: type) -> None:
    """One request tells it; the others share its outcome and wait in the outbox."""
    async with receive(answer=reply) as server, hook(server) as sink:
        outcomes = await sink.send_batch([delivery(number) for number in range(10)])
    assert kinds(outcomes) == [kind] * 10
    assert len(server.deliveries) == 1


def kinds(outcomes: Sequence[object]) -> list[type]:
    return [type(outcome) for outcome in outcomes]
