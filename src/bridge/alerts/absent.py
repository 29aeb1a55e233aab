"""Alerts of kind `absent`: nothing came for too long.  No I/O, no clock, no logging in this file."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from bridge.alerts.parts import SECOND, Blind, Level, Observation, extended

LEARNED = 8  # intervals before an entity is missed by what it has taught,
FEWER, DAY = 3, 86_400 * SECOND  # or so many, after a day: the grace of a new device
FALL = 0.03  # how fast the learned interval follows shorter ones; a longer one counts at once
LEAST = 60 * SECOND  # ns; less silence is never absence by a learned interval


@dataclass(frozen=True, slots=True)
class Absent:
    """Missed after *span* ns, or after *times* the interval that was learned."""

    span: int | None = None
    times: float | None = None


class Core(msgspec.Struct, tag="absent", omit_defaults=True, gc=False):
    last: int = 0
    first: int = 0
    interval: int = 0
    """Learned, ns: near the longest that is usual, since a device may send in bursts."""
    count: int = 0
    """How many intervals were learned from, up to LEARNED."""


def take(spec: Absent, core: Core, seen: Observation, at: int, blind: Blind) -> bool:
    was_seen = not any(ended > core.last and began < at for began, ended in blind)
    if spec.times is not None and 0 < core.last < at and was_seen:
        _learn(spec, core, at - core.last)
    core.first = core.first or at
    core.last = at
    return True


def _learn(spec: Absent, core: Core, interval: int) -> None:
    """An outage that was told is no habit: it counts as the silence after which it was."""
    missed = span(spec, core)
    longest = interval if missed is None else min(interval, missed)
    if longest > core.interval:
        core.interval = longest
    else:
        core.interval += int((longest - core.interval) * FALL)
    core.count = min(core.count + 1, LEARNED)


def span(spec: Absent, core: Core) -> int | None:
    """After how many ns of silence it is missed; None while that is not known."""
    if spec.times is None:
        return spec.span
    knows = core.count >= LEARNED or (core.count >= FEWER and core.last - core.first >= DAY)
    return max(LEAST, int(core.interval * spec.times)) if knows else None


def level(spec: Absent, core: Core, at: int, blind: Blind) -> Level | None:
    end = deadline(spec, core, 0, blind)
    return Level(core.last) if end is not None and at >= end else None


def deadline(spec: Absent, core: Core, at: int, blind: Blind) -> int | None:
    waits = span(spec, core)
    if not core.last or waits is None:
        return None
    end = extended(core.last, waits, blind)
    return end if end > at else None
