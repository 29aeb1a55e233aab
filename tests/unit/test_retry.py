"""What follows from an attempt: DESIGN.md §2.5, row by row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.delivery import (
    Dead,
    Delivered,
    Delivery,
    Done,
    Failure,
    Later,
    Outcome,
    Pause,
    Rejected,
    RetryLater,
)
from bridge.event import Event
from bridge.retry import RetryPolicy, backoff, http_outcome, retry_after, verdict

POLICY = RetryPolicy(initial=5, max=3600, give_up_after=86400)


def delivery(attempt: int = 1, tried_since: float | None = None) -> Delivery:
    event = Event("a.b", "", 0, "01", (), b"{}")
    return Delivery(1, "d_x", event, "s", "r", "k", attempt, 0.0, tried_since)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_2xx_is_delivered(status: int) -> None:
    """The receiver has it."""
    assert http_outcome(status) == Delivered(status)


@pytest.mark.parametrize("status", [400, 409, 411, 413, 414, 415, 422, 431])
def test_a_wrong_message_is_rejected(status: int) -> None:
    """It will not become right by sending it again."""
    outcome = http_outcome(status, response="no")
    assert outcome == Rejected(Failure("client_error", f"HTTP {status}", status, "no"))


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (301, "redirect"),
        (304, "redirect"),
        (401, "auth"),
        (402, "client_error"),
        (403, "auth"),
        (404, "client_error"),
        (405, "client_error"),
        (407, "auth"),
        (410, "client_error"),
    ],
)
def test_a_wrong_sink_pauses(status: int, reason: str) -> None:
    """A revoked token must not turn a weekend of events into dead letters."""
    outcome = http_outcome(status)
    assert isinstance(outcome, Pause)
    assert (outcome.failure.reason, outcome.seconds) == (reason, None)


@pytest.mark.parametrize(("status", "reason"), [(429, "rate_limited"), (503, "server_error")])
def test_a_named_time_pauses_the_sink_that_long(status: int, reason: str) -> None:
    """Retry-After belongs to the receiver, not to the one message."""
    outcome = http_outcome(status, retry_after=30.0)
    assert isinstance(outcome, Pause)
    assert (outcome.failure.reason, outcome.seconds) == (reason, 30.0)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (408, "client_error"),
        (425, "client_error"),
        (429, "rate_limited"),
        (500, "server_error"),
        (502, "server_error"),
        (503, "server_error"),
        (599, "server_error"),
        (418, "client_error"),
    ],
)
def test_everything_else_is_tried_again(status: int, reason: str) -> None:
    """Without a time named, this delivery waits and the others go on."""
    outcome = http_outcome(status)
    assert isinstance(outcome, RetryLater)
    assert outcome.failure.reason == reason


def test_a_time_named_with_another_status_is_no_pause() -> None:
    """Only 429 and 503 speak for the whole receiver."""
    assert isinstance(http_outcome(500, retry_after=30.0), RetryLater)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        (" 3 ", 3.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40.0),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    """RFC 9110 §10.2.3, at 60 seconds past the epoch."""
    assert retry_after(header, now=60.0) == seconds


@given(st.text())
def test_no_retry_after_header_breaks_us(header: str) -> None:
    """Whatever a receiver writes there."""
    found = retry_after(header, now=0.0)
    assert found is None or found >= 0


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_wait_stays_below_its_ceiling(attempt: int, chance: float) -> None:
    """Exponential up to `max`, never beyond, never negative."""
    wait = backoff(attempt, POLICY, chance)
    assert 0 <= wait <= min(POLICY.max, POLICY.initial * 2 ** min(attempt - 1, 30))


def test_a_failed_attempt_waits_and_counts() -> None:
    """Half of the ceiling of the third attempt: 5 s, 10 s, 20 s."""
    failed: Outcome = RetryLater(Failure("timeout", "no answer"))
    assert verdict(failed, delivery(3, 900.0), POLICY, now=1000.0, paused=0.0, chance=0.5) == Later(
        1010.0, 4, 900.0
    )


def test_a_pause_costs_no_attempt() -> None:
    """The row waits as it was; its time began when the sink was still well."""
    paused = Pause(Failure("auth", "HTTP 401", 401))
    assert verdict(paused, delivery(1), POLICY, now=1000.0, paused=100.0, chance=0.5) == Later(
        1000.0, 1, 900.0
    )


def test_it_is_given_up_after_a_day_of_trying() -> None:
    """From the first attempt on."""
    failed = RetryLater(Failure("connect", "refused"))
    tried = delivery(20, tried_since=0.0)
    assert verdict(failed, tried, POLICY, now=86_400.0, paused=0.0, chance=0.0) == Dead("expired")
    assert verdict(failed, tried, POLICY, now=86_399.0, paused=0.0, chance=0.0) == Later(86_399.0, 21, 0.0)


def test_the_time_of_a_pause_does_not_count_towards_giving_up() -> None:
    """Two days paused, one second tried."""
    failed = RetryLater(Failure("connect", "refused"))
    tried = delivery(2, tried_since=0.0)
    assert verdict(failed, tried, POLICY, now=172_801.0, paused=172_800.0, chance=0.0) == Later(
        172_801.0, 3, 0.0
    )


def test_delivered_is_done_and_rejected_is_dead() -> None:
    """The two ends."""
    rejected = Rejected(Failure("client_error", "HTTP 400", 400))
    assert verdict(Delivered(200), delivery(), POLICY, now=0.0, paused=0.0, chance=0.0) == Done()
    assert verdict(rejected, delivery(), POLICY, now=0.0, paused=0.0, chance=0.0) == Dead("client_error")
