"""What all kinds of alerts are made of: observations, and time in which bridge could not see.

Times are nanoseconds of event time. No I/O, no clock, no logging in this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import msgspec

SECOND = 1_000_000_000  # ns

Blind: TypeAlias = Sequence[tuple[int, int]]
"""Stretches of time, oldest first, in which what was sent may have been missed for good."""


class Observation(msgspec.Struct, omit_defaults=True, gc=False):
    """One event as an alert sees it."""

    time: int
    id: str
    role: str = "match"
    """Which block of the alert it matched: match, of, down, up; `gone` if its entity was deleted."""
    value: float | None = None
    text: str = ""
    """What is counted once, or what a counter belongs to."""
    heard: tuple[str, ...] = ()
    """The gateways that heard it."""
    cause: msgspec.Raw = msgspec.Raw(b"null")
    """As notifications name it, JSON."""
    data: msgspec.Raw = msgspec.Raw(b"null")
    """Its data after redaction, where the summary asks for it."""


class Level(NamedTuple):
    """A condition that holds: *since* when; *urgent*: it has held long enough, whatever `for` says."""

    since: int
    urgent: bool = False


def extended(since: int, span: int, blind: Blind) -> int:
    """When *span* ns after *since* are over, not counting on what bridge could not see.

    After a blind stretch the span begins anew, since what was waited for may have come in it; but a source
    that breaks again and again must not keep an alert quiet for ever, so at most one span is added.
    """
    end, hidden = since + span, 0
    for began, ended in blind:
        if ended > since and began < end:
            hidden += ended - max(began, since)
            end = max(end, min(ended + span, since + 2 * span + hidden))
    return end
