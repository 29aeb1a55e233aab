"""Slack's answers judged, its config, its digests."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bridge.delivery import Delivered, Delivery, Pause, Rejected, RetryLater
from bridge.event import Event
from bridge.sinks.slack import LINE, LONGEST, SlackConfig, digest, shortened
from bridge.sinks.slack import _Message as Message
from bridge.sinks.slack.answers import AUTH, KNOWN, LIMITED, MESSAGE, SERVER, SINK, judged

HOOK = "https://hooks.slack.com/services/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"
TOKEN = "xoxb-17653672481-19874698323-pdFZKVeTuE8sk7oOcHrzqqgy"


def api(**answer: object) -> str:
    return json.dumps(answer)


def test_only_slacks_own_ok_is_success() -> None:
    """HTTP 200 and `ok` in the form of the way that was taken (promise 4)."""
    assert judged(200, "ok", None, web_api=False) == Delivered(200)
    assert judged(200, "ok\n", None, web_api=False) == Delivered(200)
    assert judged(200, api(ok=True, ts="1"), None, web_api=True) == Delivered(200)


@pytest.mark.parametrize(
    ("status", "body", "web_api"),
    [
        (200, "", False),
        (200, "okay", False),
        (200, "OK", False),
        (200, '{"ok":true}', False),
        (200, "<html>Welcome to the guest network</html>", False),
        (204, "", False),
        (200, "ok", True),
        (200, "", True),
        (200, '{"ok":"true"}', True),
        (200, '{"ok":1}', True),
        (200, '{"ok":false}', True),
        (200, '[{"ok":true}]', True),
        (200, '{"ok":true', True),
        (201, '{"ok":true}', True),
        (200, '{"ok":false,"error":"a_word_of_tomorrow"}', True),
    ],
)
def test_what_is_not_slacks_ok_comes_again(status: int, body: str, web_api: bool) -> None:
    """A captive portal says 200 too."""
    assert isinstance(judged(status, body, None, web_api=web_api), RetryLater)


@pytest.mark.parametrize("word", sorted(LIMITED))
def test_too_fast_pauses_for_the_time_named(word: str) -> None:
    """In the header; half a minute where there is none."""
    outcome = judged(200, api(ok=False, error=word), 17.0, web_api=True)
    assert isinstance(outcome, Pause)
    assert (outcome.failure.reason, outcome.seconds) == ("rate_limited", 17.0)
    unnamed = judged(200, api(ok=False, error=word), None, web_api=True)
    assert isinstance(unnamed, Pause)
    assert unnamed.seconds == 30.0


@pytest.mark.parametrize("word", sorted(AUTH))
def test_a_wrong_token_pauses(word: str) -> None:
    """Until it is corrected."""
    outcome = judged(200, api(ok=False, error=word), None, web_api=True)
    assert isinstance(outcome, Pause)
    assert (outcome.failure.reason, outcome.seconds) == ("auth", None)
    assert outcome.failure.error == f"Slack says {word}"


@pytest.mark.parametrize("word", sorted(SINK))
@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_a_wrong_channel_or_webhook_pauses(word: str, status: int) -> None:
    """Even with HTTP 400, where the table would make dead letters: the word knows better."""
    outcome = judged(status, word, None, web_api=False)
    assert isinstance(outcome, Pause)
    assert outcome.failure.reason == "client_error"


@pytest.mark.parametrize("word", sorted(MESSAGE))
def test_a_wrong_message_is_rejected(word: str) -> None:
    """It will not become right."""
    assert isinstance(judged(200, api(ok=False, error=word), None, web_api=True), Rejected)
    assert isinstance(judged(400, word, None, web_api=False), Rejected)


@pytest.mark.parametrize("word", sorted(SERVER))
def test_slacks_own_trouble_comes_again(word: str) -> None:
    """Its fault, not ours."""
    outcome = judged(500, word, None, web_api=False)
    assert isinstance(outcome, RetryLater)
    assert outcome.failure.reason == "server_error"


def test_without_words_the_status_is_judged_like_any_webhooks() -> None:
    """DESIGN.md §2.5."""
    limited = judged(429, "", 30.0, web_api=True)
    assert isinstance(limited, Pause)
    assert limited.seconds == 30.0
    assert isinstance(judged(429, "", None, web_api=True), RetryLater)
    assert isinstance(judged(404, "not here", None, web_api=False), Pause)
    assert isinstance(judged(302, "", None, web_api=False), Pause)
    assert isinstance(judged(413, "", None, web_api=False), Rejected)
    assert isinstance(judged(502, "<html>", None, web_api=True), RetryLater)


@given(st.integers(100, 599), st.text(), st.none() | st.floats(0, 1e6), st.booleans())
def test_no_answer_breaks_the_judgement(status: int, body: str, wait: float | None, web_api: bool) -> None:
    """And an error shows only words of ours."""
    outcome = judged(status, body, wait, web_api=web_api)
    if not isinstance(outcome, Delivered):
        said = outcome.failure.error.removeprefix("Slack says ")
        assert said in KNOWN or said in {f"HTTP {status}", "the answer is not Slack's ok"}


def config(**keys: object) -> SlackConfig:
    return SlackConfig.model_validate({"type": "slack"} | keys)


@pytest.mark.parametrize(
    ("keys", "advice"),
    [
        ({}, "exactly one of webhook_url and token"),
        ({"webhook_url": HOOK, "token": TOKEN, "channel": "C1"}, "exactly one of webhook_url and token"),
        ({"token": TOKEN}, "token and channel belong together"),
        ({"webhook_url": HOOK, "channel": "C1"}, "token and channel belong together"),
        ({"webhook_url": HOOK, "api_url": "http://x/"}, "api_url goes with token"),
        ({"webhook_url": "hooks.slack.com/services/T0/B0/secret"}, "write a URL"),
        ({"webhook_url": HOOK, "text": "{{ summry }}"}, "summry is not defined"),
        ({"webhook_url": HOOK, "text": "{% if %}"}, "template"),
        ({"webhook_url": HOOK, "rate_limit": "fast"}, "write a rate such as 50/s"),
        ({"webhook_url": HOOK, "rate_limit": "0/s"}, "write a rate such as 50/s"),
        ({"webhook_url": HOOK, "allow_networks": ["10.0.0.0/99"]}, "write networks as"),
    ],
)
def test_a_mistake_in_the_config_reads_like_advice(keys: dict[str, object], advice: str) -> None:
    """And shows no value: any may be a secret."""
    with pytest.raises(ValidationError, match=advice) as caught:
        config(**keys)
    for secret in ("oKtXu8DoSTIKbmHlIYzbjKLq", "pdFZKVeTuE8sk7oOcHrzqqgy", "B0/secret"):
        assert secret not in str(caught.value)


def test_a_config_does_not_show_its_secrets() -> None:
    """Not when printed, not when logged."""
    for made in (config(webhook_url=HOOK), config(token=TOKEN, channel="C1")):
        assert "oKtXu8DoSTIKbmHlIYzbjKLq" not in repr(made)
        assert "pdFZKVeTuE8sk7oOcHrzqqgy" not in repr(made)


def message(number: int, text: str, name: str = "gs.gateway.connect") -> Message:
    return Message(
        Delivery(number, f"d_{number}", Event(name, "", 0, "", (), b"{}"), "eu1", "r", "ops", 1, 0.0), text
    )


def test_a_digest_says_how_many_and_which() -> None:
    """By event, most first, and then line by line."""
    told = digest(
        [
            message(1, "gw-a connected"),
            message(2, "gw-b connected"),
            message(3, "gw-a gone", "gs.gateway.disconnect"),
        ]
    )
    assert told == (
        "*3 messages in one*, so as to keep to the channel's rate: "
        "2 × gs.gateway.connect, 1 × gs.gateway.disconnect\n"
        "• gw-a connected\n• gw-b connected\n• gw-a gone"
    )


def test_a_digest_of_many_says_how_many_more() -> None:
    """Slack asks for at most 4,000 characters."""
    told = digest([message(number, f"message {number} " + "x" * 200) for number in range(100)])
    assert len(told) < LONGEST + 100
    shown = told.count("\n•")
    assert told.endswith(f"… and {100 - shown} more")
    assert told.startswith("*100 messages in one*")


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("one line", "one line"),
        ("first\nsecond", "first"),
        ("x" * (LINE + 1), "x" * LINE + "…"),
        ("x" * (LINE - 2) + "&amp;", "x" * (LINE - 2) + "…"),
        ("x" * (LINE - 5) + "&amp;yyy", "x" * (LINE - 5) + "&amp;…"),
        ("x" * (LINE - 2) + "<http://a|b>", "x" * (LINE - 2) + "…"),
    ],
)
def test_a_line_is_cut_where_slack_can_read_it(text: str, short: str) -> None:
    """Half an entity or half a link would show as garbage."""
    assert shortened(text) == short
