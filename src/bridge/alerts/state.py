"""Alerts of kind `state`: something is down or up.  No I/O, no clock, no logging in this file."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from bridge.alerts.parts import Blind, Level, Observation, extended


@dataclass(frozen=True, slots=True)
class Flapping:
    """*changes* times down within *within* ns count as down for as long as that is so."""

    changes: int
    within: int


@dataclass(frozen=True, slots=True)
class State:
    """*silent*, ns: also down when no up event came for so long."""

    silent: int | None = None
    flapping: Flapping | None = None


class Core(msgspec.Struct, tag="state", omit_defaults=True, gc=False):
    is_down: bool = False
    changed: int = 0
    """When the last change of *is_down* was."""
    up: int = 0
    """The last up event."""
    downs: list[int] = []
    """The last changes to down, as many as flapping asks for."""


def take(spec: State, core: Core, seen: Observation, at: int, blind: Blind) -> bool:
    """Move *core* by *seen*, at *at*; says whether it counts as a cause."""
    if seen.role == "down":
        if core.is_down:
            return False
        core.is_down, core.changed = True, at
        if spec.flapping is not None:
            core.downs = [*core.downs, at][-spec.flapping.changes :]
        return True
    if core.is_down:
        core.is_down, core.changed = False, at
    core.up = at
    return not core.is_down and spec.silent is not None


def level(spec: State, core: Core, at: int, blind: Blind) -> Level | None:
    if spec.flapping is not None and at < (calm := _calm(spec.flapping, core)):
        return Level(calm - spec.flapping.within, urgent=True)
    if core.is_down:
        return Level(core.changed)
    if spec.silent is not None and core.up and at >= extended(core.up, spec.silent, blind):
        return Level(core.up)
    return None


def deadline(spec: State, core: Core, at: int, blind: Blind) -> int | None:
    """The next time after *at* at which the level may change by itself."""
    found: list[int] = []
    if spec.flapping is not None:
        found.append(_calm(spec.flapping, core))
    if spec.silent is not None and core.up and not core.is_down:
        found.append(extended(core.up, spec.silent, blind))
    return min((each for each in found if each > at), default=None)


def _calm(flapping: Flapping, core: Core) -> int:
    """Until when it counts as flapping: the oldest of the changes leaves the window; 0 if it does not."""
    return core.downs[0] + flapping.within if len(core.downs) == flapping.changes else 0
