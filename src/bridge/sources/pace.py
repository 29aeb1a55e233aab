"""When the next stream may be opened: the rate budget of a key, shared by everything that uses the key."""

from __future__ import annotations

import anyio

from bridge.sources.upstream import RateBudget

RESERVE = 0.25  # of the limit that reading history leaves to live streams
PATIENCE = 1.0  # seconds on top of what the server said: its seconds are truncated

EPSILON = 1e-6  # seconds: a shorter wait is the rounding of a float, and may not move the clock


class Pace:
    """Openings within the budget the server last told; without a limit they are not held back.

    Live streams are *urgent*: they may use all of the budget, history what is above the reserve.
    """

    def __init__(self) -> None:
        self._limit: int | None = None
        self._tokens = 0.0
        self._told_at = 0.0
        self._shut_until = 0.0

    @property
    def limit(self) -> int | None:
        """Openings a minute; None where there is no limit."""
        return self._limit

    async def turn(self, *, urgent: bool) -> None:
        """Return when one more stream may be opened, and count it."""
        while (wait := self._wait(urgent)) > 0:
            await anyio.sleep(wait)
        self._tokens -= 1

    def told(self, budget: RateBudget | None) -> None:
        """The server's word on what is left; others with the same key are in it."""
        if budget is None:
            self._limit = None
            return
        self._limit = budget.limit
        self._tokens = float(budget.available)
        self._told_at = anyio.current_time()

    def refused(self, retry_after: float | None) -> None:
        """The budget is used up; nothing is opened for *retry_after* seconds."""
        now = anyio.current_time()
        self._shut_until = max(self._shut_until, now + (retry_after or 0.0) + PATIENCE)
        self._tokens, self._told_at = 1.0, self._shut_until

    def _wait(self, urgent: bool) -> float:
        now = anyio.current_time()
        if now < self._shut_until:
            return self._shut_until - now
        if self._limit is None:
            return 0.0
        self._refill(now)
        least = 1.0 if urgent else min(float(self._limit), 1.0 + max(1.0, self._limit * RESERVE))
        wait = (least - self._tokens) * 60 / self._limit
        return wait if wait > EPSILON else 0.0

    def _refill(self, now: float) -> None:
        limit = self._limit or 0
        if now > self._told_at:
            self._tokens = min(float(limit), self._tokens + (now - self._told_at) * limit / 60)
            self._told_at = now
