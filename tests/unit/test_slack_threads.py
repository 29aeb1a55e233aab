"""Alerts in Slack: one thread a key, against a stand-in that keeps a channel as Slack does."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from bridge.delivery import RESPONSE_LIMIT, Delivered, Delivery, Pause, RetryLater
from bridge.errors import OutboxError
from bridge.receiver import Received, Receiver, Reply, receive
from bridge.sinks.memory import Fleeting, Memory
from bridge.sinks.slack import BURST, Slack, SlackConfig, open_slack
from bridge.sinks.slack.answers import document, judged
from tests.notifications import member, notification

pytestmark = [pytest.mark.anyio]

TOKEN = "xoxb-17653672481-19874698323-pdFZKVeTuE8sk7oOcHrzqqgy"
NOW = 1_795_467_600.0  # unix seconds
FIRES = ":satellite: gw-yard has been offline"


@dataclass
class Channel:
    """What people see: messages by ts, and the replies to each."""

    url: str = ""
    server: Receiver | None = None
    messages: dict[str, str] = field(default_factory=dict)
    replies: dict[str, list[str]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    refuse: dict[str, str] = field(default_factory=dict)
    """Method to the error word it answers, once."""
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def handle(self, got: Received) -> Reply:
        method = got.path.rpartition("/")[2]
        self.calls.append(method)
        asked = json.loads(got.body)
        if got.headers["authorization"] != f"Bearer {TOKEN}":
            return said(ok=False, error="invalid_auth")
        if method in self.refuse:
            return said(ok=False, error=self.refuse.pop(method))
        if method == "chat.update":
            assert asked["channel"] == "C024BE91L", "chat.update wants the id, not the name"
            if asked["ts"] not in self.messages:
                return said(ok=False, error="message_not_found")
            self.messages[asked["ts"]] = asked["text"]
            return said(ok=True, channel=asked["channel"], ts=asked["ts"], text=asked["text"])
        ts = f"1503435956.{next(self.numbers):06}"
        parent = asked.get("thread_ts")
        if parent is None:
            self.messages[ts] = asked["text"]
        else:
            self.replies.setdefault(parent, []).append(asked["text"])
        return said(ok=True, channel="C024BE91L", ts=ts, message={"text": asked["text"]})

    @property
    def first(self) -> str:
        return next(iter(self.messages))


def said(**answer: object) -> Reply:
    return Reply(200, body=json.dumps(answer).encode())


@asynccontextmanager
async def slack() -> AsyncIterator[Channel]:
    channel = Channel()
    async with receive(on_delivery=channel.handle) as server:
        channel.url, channel.server = server.url, server
        yield channel


def opened(
    stand_in: Channel, memory: Memory | None = None, **keys: Any
) -> AbstractAsyncContextManager[Slack]:
    config = {
        "type": "slack",
        "token": TOKEN,
        "channel": "#alerts",
        "api_url": f"{stand_in.url}/api",
        "allow_private_networks": True,
        "rate_limit": None,
    }
    return open_slack("ops", SlackConfig.model_validate(config | keys), now=time.time, memory=memory)


def fires(at: float = 0.0, number: int = 1, key: str = "gw-yard", **more: Any) -> Delivery:
    return notification(key=key, since=NOW - 300, at=NOW + at, number=number, sink="ops", **more)


def ends(at: float, number: int = 2, key: str = "gw-yard", **more: Any) -> Delivery:
    return fires(at, number, key, status="resolved", ends=NOW + at, summary=f"{key} is back", **more)


async def test_a_thread_from_the_first_message_to_the_recovery() -> None:
    """One message in the channel: the repetition and the recovery reply to it, and recovery edits it."""
    async with slack() as channel, opened(channel) as sink:
        for each in (fires(), fires(3600, 2), ends(7200, 3)):
            assert await sink.send(each) == Delivered(200)
    assert channel.calls == ["chat.postMessage", "chat.postMessage", "chat.update", "chat.postMessage"]
    assert channel.messages == {channel.first: ":white_check_mark: :satellite: gw-yard is back"}
    assert channel.replies == {channel.first: [FIRES, ":satellite: gw-yard is back"]}


async def test_after_a_recovery_a_new_message_opens_a_new_thread() -> None:
    """The old one stays as it is."""
    async with slack() as channel, opened(channel) as sink:
        for each in (fires(), ends(60), fires(120, 3), ends(180, 4)):
            await sink.send(each)
    first, second = channel.messages
    assert {len(channel.replies[first]), len(channel.replies[second])} == {1}
    assert all(text.startswith(":white_check_mark:") for text in channel.messages.values())


async def test_keys_and_alerts_have_threads_of_their_own() -> None:
    """What is not the same incident is not in its thread; nor is a plain event."""
    plain = fires()
    async with slack() as channel, opened(channel) as sink:
        await sink.send(fires())
        await sink.send(fires(1, key="gw-roof"))
        await sink.send(fires(2, alert="battery"))
        await sink.send(ends(3, key="gw-roof"))
        assert await sink.send(plain) == Delivered(200)
    assert len(channel.messages) == 3
    assert [len(replies) for replies in channel.replies.values()] == [1]


async def test_threads_survive_a_restart() -> None:
    """By the sink's memory; another channel in the config has none of them."""
    memory = Fleeting()
    async with slack() as channel:
        async with opened(channel, memory) as sink:
            await sink.send(fires())
        async with opened(channel, memory, channel="#other") as sink:
            await sink.send(fires(30, 2))
        assert len(channel.messages) == 2
        async with opened(channel, memory, channel="#other") as sink:
            await sink.send(ends(60, 3))
    assert len(channel.messages) == 2
    assert [len(replies) for replies in channel.replies.values()] == [1]


async def test_a_delivery_that_comes_twice_is_said_once() -> None:
    """A kill between Slack's answer and the store's note of it."""
    memory = Fleeting()
    async with slack() as channel:
        for each in (fires(), fires(), ends(60), ends(60)):
            async with opened(channel, memory) as sink:
                assert await sink.send(each) == Delivered(200)
    assert len(channel.messages) == 1
    assert len(channel.replies[channel.first]) == 1


async def test_one_that_was_overtaken_opens_nothing() -> None:
    """A firing tried again after its recovery was told belongs to what is over."""
    async with slack() as channel, opened(channel) as sink:
        for each in (fires(), ends(60, 3), fires(30, 2)):
            await sink.send(each)
    assert len(channel.messages) == 1
    assert channel.messages[channel.first].startswith(":white_check_mark:")


async def test_a_group_is_one_thread() -> None:
    """While one of it fires it goes on; then it is over."""
    both = [member("gw-roof", since=NOW), member("gw-yard", since=NOW)]
    one = [member("gw-roof", since=NOW), member("gw-yard", since=NOW, ends=NOW + 60)]
    none = [member("gw-roof", since=NOW, ends=NOW + 120)]
    async with slack() as channel, opened(channel) as sink:
        await sink.send(fires(0, 1, "all", members=both))
        await sink.send(fires(60, 2, "all", members=one))
        assert channel.messages[channel.first].startswith(":satellite:")
        await sink.send(ends(120, 3, "all", members=none))
    assert list(channel.messages.values()) == [":white_check_mark: :satellite: all is back"]
    assert len(channel.replies[channel.first]) == 2


@pytest.mark.parametrize("word", ["message_not_found", "cant_update_message", "edit_window_closed"])
async def test_a_message_that_cannot_be_edited_keeps_nobody_from_being_told(word: str) -> None:
    """Somebody deleted it, or the workspace does not let old ones be edited."""
    async with slack() as channel, opened(channel) as sink:
        await sink.send(fires())
        channel.refuse["chat.update"] = word
        assert await sink.send(ends(60)) == Delivered(200)
    assert channel.replies == {channel.first: [":satellite: gw-yard is back"]}


async def test_a_thread_that_takes_no_reply_is_followed_by_a_message() -> None:
    """And later notifications go to that one."""
    async with slack() as channel, opened(channel) as sink:
        await sink.send(fires())
        channel.refuse["chat.postMessage"] = "cannot_reply_to_message"
        assert await sink.send(fires(60, 2)) == Delivered(200)
        await sink.send(fires(120, 3))
    _, second = channel.messages
    assert channel.replies == {second: [FIRES]}


@pytest.mark.parametrize(
    ("word", "kind"), [("internal_error", RetryLater), ("token_revoked", Pause), ("ratelimited", Pause)]
)
async def test_trouble_with_the_edit_is_tried_again_with_the_reply(word: str, kind: type) -> None:
    """Editing twice changes nothing; replying twice would."""
    async with slack() as channel, opened(channel) as sink:
        await sink.send(fires())
        channel.refuse["chat.update"] = word
        assert isinstance(await sink.send(ends(60)), kind)
        assert channel.replies == {}
        assert await sink.send(ends(60)) == Delivered(200)
    assert channel.messages[channel.first].startswith(":white_check_mark:")
    assert len(channel.replies[channel.first]) == 1


async def test_what_is_in_a_digest_is_resolved_in_its_thread() -> None:
    """The digest stands for others too: it is not edited."""
    keys = [f"gw-{number}" for number in range(BURST + 5)]
    async with slack() as channel, opened(channel, rate_limit="5/s") as sink:
        assert set(await sink.send_batch([fires(key=key) for key in keys])) == {Delivered(200)}
        *_, digest = channel.messages
        assert channel.messages[digest].startswith("*5 messages in one*")
        await sink.send(ends(60, key=keys[-1]))
        assert channel.replies == {digest: [f":satellite: {keys[-1]} is back"]}
        assert channel.messages[digest].startswith("*5 messages in one*")


async def test_a_digest_of_recoveries_edits_what_opened_their_threads() -> None:
    """Each message in the channel says how it stands."""
    keys = [f"gw-{number}" for number in range(2 * BURST + 2)]
    memory = Fleeting()
    async with slack() as channel:
        async with opened(channel, memory) as sink:
            for key in keys:
                await sink.send(fires(key=key))
        async with opened(channel, memory, rate_limit="5/s") as sink:
            assert set(await sink.send_batch([ends(60, key=key) for key in keys])) == {Delivered(200)}
    *opening, _digest = channel.messages.values()
    assert [text.startswith(":white_check_mark:") for text in opening] == [True] * len(keys)


async def test_an_incoming_webhook_gets_plain_messages() -> None:
    """It answers `ok` and no ts; there is nothing to reply to."""
    async with receive(answer=Reply(200, body=b"ok")) as server:
        config = SlackConfig.model_validate({"type": "slack", "webhook_url": server.url, "rate_limit": None})
        async with open_slack("ops", config, now=time.time, memory=Fleeting()) as sink:
            for each in (fires(), fires(3600, 2), ends(7200, 3)):
                assert await sink.send(each) == Delivered(200)
    texts = [json.loads(got.body) for got in server.deliveries]
    assert texts == [{"text": FIRES}, {"text": FIRES}, {"text": ":satellite: gw-yard is back"}]


class Full:
    """A store whose disk is full."""

    async def recall(self) -> Mapping[str, bytes]:
        return {}

    async def keep(self, rows: Mapping[str, bytes | None]) -> None:
        raise OutboxError("the disk is full")


async def test_a_full_disk_does_not_make_it_say_things_twice() -> None:
    """The thread is known as long as the process lives."""
    async with slack() as channel, opened(channel, Full()) as sink:
        for each in (fires(), ends(60)):
            assert await sink.send(each) == Delivered(200)
    assert len(channel.messages) == 1


async def test_an_answer_that_is_cut_off_still_counts() -> None:
    """Slack repeats the message, which with its blocks is longer than what is kept of an answer."""
    whole = json.dumps({"ok": True, "channel": "C1", "ts": "1.2", "message": {"text": "x" * 5000}})
    cut = whole[:RESPONSE_LIMIT]
    assert document(cut) == {"ok": True, "channel": "C1", "ts": "1.2"}
    assert judged(200, cut, None, web_api=True) == Delivered(200)
    text = "{{ summary }}" + "y" * 6000
    async with slack() as channel, opened(channel, text=text) as sink:
        for each in (fires(), ends(60)):
            assert await sink.send(each) == Delivered(200)
    assert len(channel.messages) == 1


@pytest.mark.parametrize(
    "body",
    ['{"ok":true,"ts":"1.2","me', '["ok":true,' + "x" * RESPONSE_LIMIT, "x" * RESPONSE_LIMIT],
)
def test_what_only_looks_cut_off_does_not_count(body: str) -> None:
    """A proxy's page, or an answer that broke off early."""
    assert document(body) == {}
