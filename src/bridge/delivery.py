"""What a rule wants done with an event, and what came of an attempt.

No I/O, no clock, no logging in this file.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, get_args

import msgspec

from bridge.event import Event
from bridge.ids import digest

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
    return "d_" + digest(unique_id, rule, sink)


class Route(NamedTuple):
    """One delivery a rule asked for; *order_key* only where the sink says `order: entity`."""

    rule: str
    sink: str
    order_key: str | None = None
    supersedes: str | None = None
    """Of a notification: those of the same key that still wait for this sink are dropped for it."""


class Delivery(msgspec.Struct, frozen=True, gc=False):
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


class Failure(msgspec.Struct, frozen=True, gc=False):
    """What went wrong, for the operator; *response* is the first 4 kB of the answer."""

    reason: Reason
    error: str
    status: int | None = None
    response: str = ""


class Delivered(msgspec.Struct, frozen=True, gc=False):
    """The receiver confirmed it (DESIGN.md §1, promise 4)."""

    status: int | None = None


class RetryLater(msgspec.Struct, frozen=True, gc=False):
    """This delivery again later, by the sink's `retry`."""

    failure: Failure


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """This message is wrong and will not become right: a dead letter."""

    failure: Failure


class Pause(msgspec.Struct, frozen=True, gc=False):
    """The sink is wrong, or asked for a pause: nothing is sent to it for a while.

    *seconds* is what the receiver asked for; None when it has to be probed.
    """

    failure: Failure
    seconds: float | None = None


Outcome: TypeAlias = Delivered | RetryLater | Rejected | Pause


class Done(msgspec.Struct, frozen=True, gc=False):
    """Delivered: forget it."""


class Later(msgspec.Struct, frozen=True, gc=False):
    """Keep it; due at *due* unix seconds as attempt number *attempt*."""

    due: float
    attempt: int
    tried_since: float


class Dead(msgspec.Struct, frozen=True, gc=False):
    """Keep it as a dead letter."""

    reason: Reason


Verdict: TypeAlias = Done | Later | Dead


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """One attempt and what follows from it; *started* in unix seconds, *duration* in seconds."""

    delivery: Delivery
    started: float
    duration: float
    outcome: Outcome
    verdict: Verdict
