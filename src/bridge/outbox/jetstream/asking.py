"""Requests to the server, many under way at once, each at the price of a publish and a future.

nats-py's own `request` costs a task, a timer and random bytes each: twice the CPU of what is done here, and
requests are most of what an event costs on JetStream (tests/bench/bench_nats.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

SWEEP_EVERY = 0.25  # seconds between two looks for requests whose time is up
BYTES_LIMIT = 1 << 30  # of answers that wait to be read: bounded by the requests under way


class Asking:
    """Requests over one connection; *within* seconds each is answered, or raises TimeoutError."""

    def __init__(self, client: Client, within: float) -> None:
        self._client = client
        self._within = within
        self._inbox = client.new_inbox()
        self._number = 0
        self._open: dict[str, asyncio.Future[Msg]] = {}
        self._deadlines: deque[tuple[float, str]] = deque()
        self._sweeping: asyncio.TimerHandle | None = None
        self._subscribed = False

    async def ask(self, subject: str, payload: bytes, headers: dict[str, str] | None) -> Msg:
        """Raises TimeoutError, and what nats-py raises where it cannot be sent."""
        if not self._subscribed:
            self._subscribed = True
            await self._client.subscribe(
                f"{self._inbox}.*", cb=self._answered, pending_msgs_limit=0, pending_bytes_limit=BYTES_LIMIT
            )
        loop = asyncio.get_running_loop()
        self._number += 1
        reply = f"{self._inbox}.{self._number}"
        future: asyncio.Future[Msg] = loop.create_future()
        self._open[reply] = future
        self._deadlines.append((loop.time() + self._within, reply))
        if self._sweeping is None:
            self._sweeping = loop.call_later(SWEEP_EVERY, self._sweep)
        try:
            await self._client.publish(subject, payload, reply=reply, headers=headers)
            return await future
        finally:
            self._open.pop(reply, None)

    async def _answered(self, message: Msg) -> None:
        future = self._open.get(message.subject)
        if future is not None and not future.done():
            future.set_result(message)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeping = None
        now = loop.time()
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][1] not in self._open):
            future = self._open.get(self._deadlines.popleft()[1])
            if future is not None and not future.done():
                future.set_exception(TimeoutError())
        if self._deadlines:
            self._sweeping = loop.call_later(SWEEP_EVERY, self._sweep)

    def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
