"""What a rule wants done with an event, and what came of an attempt.

No I/O, no clock, no logging in this file.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

from bridge.event import Event

Reason: TypeAlias = Literal[
    "client_error",
    "auth",
    "rate_limited",
    "server_error",
    "timeout",
    "dns",
    "tls",
    "connect",
    "template",
    "blocked_address",
    "redirect",
    "rejected",
    "expired",
    "other",
]
"""Why an attempt failed: the closed label set of `bridge_delivery_failures_total` (DESIGN.md §2.8)."""

REASONS: tuple[Reason, ...] = get_args(Reason)

RESPONSE_LIMIT = 4096  # bytes of a receiver's answer that are kept


def delivery_id(unique_id: str, rule: str, sink: str) -> str:
    """The same for every attempt, restart and retry by hand (DESIGN.md §2.4)."""
    digest = hashlib.sha256("\0".join((unique_id, rule, sink)).encode()).digest()
    return "d_" + base64.b32encode(digest[:20]).decode()[:26].lower()


class Route(NamedTuple):
    """One delivery a rule asked for; *order_key* only where the sink says `order: entity`."""

    rule: str
    sink: str
    order_key: str | None = None
    supersedes: str | None = None
    """Of a notification: those of the same key that still wait for this sink are dropped for it."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one sink because of one rule."""

    row: int
    """Where the outbox keeps it."""
    id: str
    event: Event
    """As it was stored: redacted."""
    source: str
    rule: str
    sink: str
    attempt: int
    """The number of the attempt now to be made, from 1."""
    received: float
    """Unix seconds at which the event was taken in."""
    tried_since: float | None = None
    """The sink's active time (unix seconds less its paused seconds) of the first attempt; None before."""
    order_key: str | None = None
    """Others of the sink with this key wait until this one is settled."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong, for the operator; *response* is the first 4 kB of the answer."""

    reason: Reason
    error: str
    status: int | None = None
    response: str = ""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver confirmed it (DESIGN.md §1, promise 4)."""

    status: int | None = None


@dataclass(frozen=True, slots=True)
class RetryLater:
    """This delivery again later, by the sink's `retry`."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Rejected:
    """This message is wrong and will not become right: a dead letter."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Pause:
    """The sink is wrong, or asked for a pause: nothing is sent to it for a while.

    *seconds* is what the receiver asked for; None when it has to be probed.
    """

    failure: Failure
    seconds: float | None = None


Outcome: TypeAlias = Delivered | RetryLater | Rejected | Pause


@dataclass(frozen=True, slots=True)
class Done:
    """Delivered: forget it."""


@dataclass(frozen=True, slots=True)
class Later:
    """Keep it; due at *due* unix seconds as attempt number *attempt*."""

    due: float
    attempt: int
    tried_since: float


@dataclass(frozen=True, slots=True)
class Dead:
    """Keep it as a dead letter."""

    reason: Reason


Verdict: TypeAlias = Done | Later | Dead


@dataclass(frozen=True, slots=True)
class Settlement:
    """One attempt and what follows from it; *started* in unix seconds, *duration* in seconds."""

    delivery: Delivery
    started: float
    duration: float
    outcome: Outcome
    verdict: Verdict
