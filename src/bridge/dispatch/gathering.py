"""Deliveries that are ready, put together for sinks that take several at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import anyio

from bridge.delivery import Delivery
from bridge.sinks import BatchLimits, BatchSink, Sink

ALONE = BatchLimits()
READY = 8192  # deliveries held ready for a sink at most
READY_BYTES = 16 << 20  # of their bodies, after which no more are taken or read


def limits_of(sink: Sink) -> BatchLimits:
    return sink.batch_limits if isinstance(sink, BatchSink) else ALONE


def room(sink: Sink, ahead: int) -> int:
    """How many deliveries to read ahead: *ahead* for each place, as many as a place takes, up to READY."""
    return max(16, min(ahead * sink.max_in_flight * limits_of(sink).max_events, READY))


class Gathering:
    """Where the slots of one sink take their work from.

    One slot gathers at a time: were all of them to wait, each would get one delivery and nobody a batch.
    No memory stream, because a `receive` that is cancelled when its time is up may lose what it was given.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self.bytes = 0
        """Of the bodies that are ready."""
        self._ready: deque[Delivery] = deque()
        self._came = anyio.Event()
        self._closed = False
        self._turn = anyio.Lock(fast_acquire=True)

    @property
    def is_light(self) -> bool:
        """May more bodies be held in memory?"""
        return self.bytes < READY_BYTES

    def put(self, deliveries: Iterable[Delivery]) -> None:
        for each in deliveries:
            self._ready.append(each)
            self.bytes += len(each.event.body)
        self._came.set()

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        self._came.set()

    def at_once(self) -> Sequence[Delivery]:
        """A single one that is ready is taken without a turn: whoever waits in its turn looks again."""
        return self._next(1) if self._ready and self._limits.max_events == 1 else ()

    async def take(self) -> Sequence[Delivery]:
        """The next deliveries to attempt together; none when nothing more will come."""
        async with self._turn:
            await self._more(0)
            limits = self._limits
            if limits.max_events > 1 and limits.max_wait:
                with anyio.move_on_after(limits.max_wait):
                    while not self._is_full() and await self._more(len(self._ready)):
                        pass
            return self._next(self._fitting())

    def _next(self, count: int) -> Sequence[Delivery]:
        found = [self._ready.popleft() for _ in range(count)]
        self.bytes -= sum([len(each.event.body) for each in found])
        return found

    async def _more(self, than: int) -> bool:
        """Wait until there are more *than* so many; False if there never will be."""
        while len(self._ready) <= than and not self._closed:
            self._came = anyio.Event()
            await self._came.wait()
        return len(self._ready) > than

    def _is_full(self) -> bool:
        """Would waiting add nothing to the next batch?"""
        return (
            not self.is_light
            or self._fitting() == self._limits.max_events
            or self._fitting() < len(self._ready)
        )

    def _fitting(self) -> int:
        """How many of those that are ready make the next batch: at least one, if there is one."""
        size = 0
        for count, delivery in enumerate(self._ready):
            size += len(delivery.event.body)
            if count == self._limits.max_events or (count and size > self._limits.max_bytes):
                return count
        return len(self._ready)
