"""How many requests a receiver is given at once.  No I/O, no clock, no randomness in this file.

Additive increase, multiplicative decrease, as TCP finds its window (RFC 5681 §3.1): a receiver that is slow
to fail gets less to do until it keeps up, and soon all of it again when it does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from bridge.delivery import Delivered, Outcome, Pause, Reason, RetryLater

OVERLOAD: frozenset[Reason] = frozenset({"timeout", "server_error", "rate_limited", "connect"})
"""Failures that may come from too many requests."""


@dataclass(slots=True)
class Concurrency:
    """From 1 to *most*; begins at *most*. Times are those of one clock, in seconds."""

    most: int
    allowed: float = field(init=False)
    _cut_at: float = field(init=False, default=float("-inf"))

    def __post_init__(self) -> None:
        self.allowed = float(self.most)

    @property
    def limit(self) -> int:
        return int(self.allowed)

    def ended(self, outcomes: Iterable[Outcome], *, started: float, now: float) -> None:
        """A request *started* then came back with *outcomes*.

        Requests that were already on their way at the last cut say nothing new of the smaller limit.
        """
        has_delivered = False
        for outcome in outcomes:
            if isinstance(outcome, Delivered):
                has_delivered = True
            elif is_overload(outcome):
                if started >= self._cut_at:
                    self.allowed = max(1.0, self.allowed / 2)
                    self._cut_at = now
                return
        if has_delivered:
            self.allowed = min(float(self.most), self.allowed + 1.0 / self.allowed)


def is_overload(outcome: Outcome) -> bool:
    return isinstance(outcome, RetryLater | Pause) and outcome.failure.reason in OVERLOAD
