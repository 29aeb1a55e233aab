"""Deadlines of many answers with one timer."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count
from typing import Any, TypeAlias

Answer: TypeAlias = asyncio.Future[Any]


class Overdue:
    """Needs asyncio. A timer for each answer would cost a tenth of all that a message costs."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._watched: list[tuple[float, int, Answer]] = []
        self._number = count()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, answer: Answer, deadline: float) -> None:
        """*answer* raises TimeoutError at *deadline*, in the loop's time, if it has not come by then."""
        self._let_go(answered_only=True)
        heapq.heappush(self._watched, (deadline, next(self._number), answer))
        if self._timer is None or deadline < self._timer.when():
            self._set(deadline)

    def _set(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._due)

    def _due(self) -> None:
        self._timer = None
        self._let_go(answered_only=False)
        if self._watched:
            self._set(self._watched[0][0])

    def _let_go(self, *, answered_only: bool) -> None:
        now = -1.0 if answered_only else self._loop.time()
        watched = self._watched
        while watched and (watched[0][2].done() or watched[0][0] <= now):
            answer = heapq.heappop(watched)[2]
            if not answer.done():
                answer.set_exception(TimeoutError())
