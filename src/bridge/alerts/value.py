"""Alerts of kind `value`: a number is out of bounds.  No I/O, no clock, no logging in this file."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from bridge.alerts.parts import Blind, Level, Observation


@dataclass(frozen=True, slots=True)
class Value:
    """Out of bounds above *above* or below *below*, for *readings* readings in a row.

    It is back when it is inside by *hysteresis*; in between it stays what it is.
    """

    above: float | None = None
    below: float | None = None
    readings: int = 1
    hysteresis: float = 0.0

    def is_out(self, value: float) -> bool:
        return (self.above is not None and value > self.above) or (
            self.below is not None and value < self.below
        )

    def is_back(self, value: float) -> bool:
        return (self.above is None or value <= self.above - self.hysteresis) and (
            self.below is None or value >= self.below + self.hysteresis
        )


class Core(msgspec.Struct, tag="value", omit_defaults=True, gc=False):
    is_out: bool = False
    first: int = 0
    """The first reading of the row that is out of bounds."""
    row: int = 0
    value: float = 0.0


def take(spec: Value, core: Core, seen: Observation, at: int, blind: Blind) -> bool:
    if seen.value is None:
        return False
    core.value = seen.value
    if spec.is_out(seen.value):
        core.first = core.first if core.row else at
        core.row = min(core.row + 1, spec.readings)
        core.is_out = core.is_out or core.row >= spec.readings
        return True
    if not core.is_out or spec.is_back(seen.value):
        core.row, core.is_out = 0, False
    return False


def level(spec: Value, core: Core, at: int, blind: Blind) -> Level | None:
    return Level(core.first) if core.is_out else None


def deadline(spec: Value, core: Core, at: int, blind: Blind) -> int | None:
    """Nothing but a reading changes it."""
    return None
