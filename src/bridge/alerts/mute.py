"""Hours in which nobody is told: Alertmanager's time intervals.  No I/O, no clock in this file."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
STEP = timedelta(minutes=1)
FURTHEST = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Mute:
    """*times* are minutes of the day, from and before; *weekdays* 0 for Monday; empty means every one."""

    times: tuple[tuple[int, int], ...] = ()
    weekdays: frozenset[int] = frozenset()
    zone: tzinfo = UTC

    def holds(self, unix: float) -> bool:
        """Is nobody to be told at *unix* seconds?"""
        return self._covers(datetime.fromtimestamp(unix, self.zone))

    def _covers(self, local: datetime) -> bool:
        if self.weekdays and local.weekday() not in self.weekdays:
            return False
        minute = local.hour * 60 + local.minute
        return not self.times or any(begin <= minute < end for begin, end in self.times)


def muted_until(mutes: tuple[Mute, ...], unix: float) -> float | None:
    """Until when nobody is told, unix seconds; None if somebody is told now.

    Looked for minute by minute and at most a day ahead: who asks then asks again.
    """
    if not any(mute.holds(unix) for mute in mutes):
        return None
    at = datetime.fromtimestamp(unix, UTC).replace(second=0, microsecond=0) + STEP
    end = at + FURTHEST
    while at < end and any(mute.holds(at.timestamp()) for mute in mutes):
        at += STEP
    return at.timestamp()
