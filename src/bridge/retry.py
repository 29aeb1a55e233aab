"""What follows from an attempt (DESIGN.md §2.5).  No I/O, no clock, no randomness in this file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import assert_never

from bridge.delivery import (
    Dead,
    Delivered,
    Delivery,
    Done,
    Failure,
    Later,
    Outcome,
    Pause,
    Reason,
    Rejected,
    RetryLater,
    Verdict,
)

MESSAGE_IS_WRONG = frozenset({400, 409, 411, 413, 414, 415, 422, 431})
SINK_IS_WRONG: dict[int, Reason] = {
    401: "auth",
    402: "client_error",
    403: "auth",
    404: "client_error",
    405: "client_error",
    407: "auth",
    410: "client_error",
}

PROBE_MAX = 3600.0  # seconds between probes of a sink that stays wrong (DESIGN.md §2.5)
LEAST_PAUSE = 0.1  # seconds


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """A sink's `retry`, in seconds."""

    initial: float = 5.0
    max: float = 3600.0
    give_up_after: float = 86400.0


def http_outcome(status: int, *, response: str = "", retry_after: float | None = None) -> Outcome:
    """Judge an HTTP answer; *retry_after* in seconds, *response* the first 4 kB of the body."""

    def failure(reason: Reason) -> Failure:
        return Failure(reason, f"HTTP {status}", status, response)

    if 200 <= status < 300:
        return Delivered(status)
    if 300 <= status < 400:
        return Pause(failure("redirect"))
    if status in SINK_IS_WRONG:
        return Pause(failure(SINK_IS_WRONG[status]))
    if status in MESSAGE_IS_WRONG:
        return Rejected(failure("client_error"))
    reason: Reason = "rate_limited" if status == 429 else "server_error" if status >= 500 else "client_error"
    if status in (429, 503) and retry_after is not None:
        return Pause(failure(reason), retry_after)
    return RetryLater(failure(reason))


def retry_after(header: str | None, now: float) -> float | None:
    """Seconds to wait by a `Retry-After` header (RFC 9110 §10.2.3: seconds or a date); None if unreadable."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, at.timestamp() - now)


def backoff(attempt: int, policy: RetryPolicy, chance: float) -> float:
    """Seconds to wait after failed attempt number *attempt*: exponential, full jitter.

    *chance* is uniform in [0, 1). See "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    ceiling = min(policy.max, policy.initial * 2.0 ** min(attempt - 1, 40))
    return ceiling * chance


def probe_wait(probes: int, policy: RetryPolicy, chance: float) -> float:
    """Seconds to the next probe of a sink that stays wrong, after *probes* that failed.

    Growing to an hour; never less than half of the ceiling, since one delivery an hour is what it may cost.
    """
    growing = replace(policy, max=PROBE_MAX)
    return (backoff(probes + 1, growing, 1.0) + backoff(probes + 1, growing, chance)) / 2


def pause_wait(asked: float | None, probes: int, policy: RetryPolicy, chance: float) -> float:
    """Seconds a sink rests that *asked* for so many, or (None) is to be probed, after *probes* that failed.

    One that asks for no rest at all and still answers so gets some, growing up to `retry.initial`.
    """
    if asked is None:
        return probe_wait(probes, policy, chance)
    least = min(policy.initial, LEAST_PAUSE * 2.0 ** min(probes, 40))
    return min(max(asked, least), policy.max)


def verdict(
    outcome: Outcome, delivery: Delivery, policy: RetryPolicy, *, now: float, paused: float, chance: float
) -> Verdict:
    """What becomes of *delivery*; *now* in unix seconds, *paused* all the seconds its sink was paused.

    The time of a pause does not count towards `give_up_after`: a token that expired over a weekend
    costs no delivery. An attempt that ended in a pause is not counted either.
    """
    active = now - paused
    since = active if delivery.tried_since is None else delivery.tried_since
    match outcome:
        case Delivered():
            return Done()
        case Rejected(failure):
            return Dead(failure.reason)
        case Pause():
            return Later(now, delivery.attempt, since)
        case RetryLater():
            if active - since >= policy.give_up_after:
                return Dead("expired")
            return Later(now + backoff(delivery.attempt, policy, chance), delivery.attempt + 1, since)
    assert_never(outcome)
