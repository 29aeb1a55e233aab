"""How fast a sink may be asked: `rate_limit`.  Requests are counted, not deliveries (DESIGN.md §2.4)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, TypeAlias

import anyio
from pydantic import BeforeValidator

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(s|m|h)\Z")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
GRAIN = 0.02  # seconds: a timer is late by some milliseconds, and that much of the rate may be made up for


def per_second(value: object) -> float:
    """Requests a second in `50/s`, `100/m`, `20/h`; raises ValueError."""
    if isinstance(value, float) and not isinstance(value, bool):
        return value  # a default, already per second
    found = _RATE.match(value) if isinstance(value, str) else None
    rate = float(found[1]) / _SECONDS[found[2]] if found else 0.0
    if rate <= 0:
        raise ValueError("write a rate such as 50/s, 100/m or 20/h")
    return rate


Rate: TypeAlias = Annotated[float, BeforeValidator(per_second, json_schema_input_type=str)]
"""Requests a second, written with a unit."""


class Pace:
    """A token bucket: evenly *rate* requests a second, and *burst* of them at once after a calm.

    The bucket is one number, the time at which it would be full again (the generic cell rate algorithm,
    ITU-T I.371), so that tasks that wait pass in the order in which they came. *clock* is monotonic seconds.
    """

    def __init__(
        self, rate: float | None, burst: int = 1, *, clock: Callable[[], float] = anyio.current_time
    ) -> None:
        self.is_limited = rate is not None
        self._interval = 1.0 / rate if rate else 0.0
        self._ahead = max((burst - 1) * self._interval, GRAIN if rate else 0.0)
        self._full = 0.0
        self._clock = clock
        self._released = anyio.Event()

    def take(self) -> bool:
        """Whether a request may be made right now; if so, it counts as made."""
        now = self._clock()
        if self._full - self._ahead > now:
            return False
        self._full = max(self._full, now) + self._interval
        return True

    async def turn(self) -> bool:
        """Return when the next request may be made; False if `release` ended the waiting.

        A waiter that is cancelled leaves its place empty.
        """
        if not self._interval:
            return True
        now = self._clock()
        start = self._full - self._ahead
        self._full = max(self._full, now) + self._interval
        if start <= now:
            return True
        released = self._released
        with anyio.move_on_after(start - now):
            await released.wait()
        return not released.is_set()

    def release(self) -> None:
        """End the waiting of all that wait now: the receiver wants nothing for a while."""
        self._released.set()
        self._released = anyio.Event()
        self._full = min(self._full, self._clock() + self._interval)
