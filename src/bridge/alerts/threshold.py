"""Alerts of kind `threshold`: too many within a window that slides.  No I/O, no clock in this file.

What is kept does not grow with the events: of a count its last times, of a distinct count the last time of
as many values, of a ratio the counts of SLICES slices of the window.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from bridge.alerts.parts import Blind, Level, Observation

SLICES = 60  # a ratio's window is exact to a sixtieth of it


@dataclass(frozen=True, slots=True)
class Threshold:
    """*count* events within *within* ns.

    *distinct*: events with the same text count once. *ratio*: of the events in the window with role `of`, of
    which there have to be *count*, more than this part has the role `match`. *falls*: only events count whose
    value is below the one before of the same text.
    """

    count: int
    within: int
    distinct: bool = False
    ratio: float | None = None
    falls: bool = False


class Core(msgspec.Struct, tag="threshold", omit_defaults=True, gc=False):
    times: list[int] = []
    """Of a count, ascending."""
    values: dict[str, int] = {}
    """Of a distinct count: when each value came last."""
    slices: dict[str, list[int]] = {}
    """Of a ratio: slice number to how many matched and how many there were."""
    last: float | None = None
    last_text: str = ""


def take(spec: Threshold, core: Core, seen: Observation, at: int, blind: Blind) -> bool:
    if spec.falls and not _fell(core, seen):
        return False
    if spec.ratio is not None:
        _slice(spec, core, at)[0 if seen.role == "match" else 1] += 1
        return seen.role == "match"
    if spec.distinct:
        core.values.pop(seen.text, None)
        core.values[seen.text] = at
        while len(core.values) > spec.count:
            del core.values[min(core.values, key=core.values.__getitem__)]
    else:
        core.times = [*core.times, at][-spec.count :]
    return True


def _fell(core: Core, seen: Observation) -> bool:
    """A counter that is not there is zero; another text is another counter."""
    value = seen.value or 0.0
    before, core.last = core.last if core.last_text == seen.text else None, value
    core.last_text = seen.text
    return before is not None and value < before


def _slice(spec: Threshold, core: Core, at: int) -> list[int]:
    width = max(1, spec.within // SLICES)
    number = at // width
    core.slices = {key: each for key, each in core.slices.items() if int(key) > number - SLICES}
    return core.slices.setdefault(str(number), [0, 0])


def level(spec: Threshold, core: Core, at: int, blind: Blind) -> Level | None:
    if spec.ratio is not None:
        return _ratio_level(spec, core, at)
    times = sorted(core.values.values()) if spec.distinct else core.times
    inside = [each for each in times if each > at - spec.within]
    return Level(inside[0]) if len(inside) >= spec.count else None


def _ratio_level(spec: Threshold, core: Core, at: int) -> Level | None:
    matched, total = counts(spec, core, at)
    if total < spec.count or spec.ratio is None or matched <= spec.ratio * total:
        return None
    return Level(
        min(int(key) for key, each in core.slices.items() if each[0]) * max(1, spec.within // SLICES)
    )


def counts(spec: Threshold, core: Core, at: int) -> tuple[int, int]:
    """Of a ratio: how many matched and how many there were, in the window that ends at *at*."""
    first = at // max(1, spec.within // SLICES) - SLICES
    inside = [each for key, each in core.slices.items() if int(key) > first]
    return sum(each[0] for each in inside), sum(each[1] for each in inside)


def inside(spec: Threshold, core: Core, at: int) -> int:
    """How many count in the window that ends at *at*, as far as they are kept."""
    return counts(spec, core, at)[0] if spec.ratio is not None else int(value(spec, core, at))


def value(spec: Threshold, core: Core, at: int) -> float:
    """What a notification shows: the ratio, or how many there were, as far as they are kept."""
    if spec.ratio is not None:
        matched, total = counts(spec, core, at)
        return matched / total if total else 0.0
    times = core.values.values() if spec.distinct else core.times
    return float(sum(each > at - spec.within for each in times))


def deadline(spec: Threshold, core: Core, at: int, blind: Blind) -> int | None:
    """When the window lets go of something; only a level that holds can end so."""
    if spec.ratio is not None:
        width = max(1, spec.within // SLICES)
        return (at // width + 1) * width if core.slices and level(spec, core, at, blind) else None
    times = sorted(core.values.values()) if spec.distinct else core.times
    if len(times) < spec.count:
        return None
    end = times[-spec.count] + spec.within
    return end if end > at else None


def is_idle(spec: Threshold, core: Core, at: int) -> bool:
    """Is there nothing left that could still count?"""
    if spec.falls:
        return False
    if spec.ratio is not None:
        return counts(spec, core, at) == (0, 0)
    newest = max(core.values.values(), default=0) if spec.distinct else (core.times or [0])[-1]
    return newest <= at - spec.within
