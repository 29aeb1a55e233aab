"""The way out of a source: into the bounded buffer, measured."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping

import anyio
import structlog
from anyio.streams.memory import MemoryObjectSendStream

from bridge.decode import Malformed
from bridge.event import Entity, Event
from bridge.metrics import Metrics
from bridge.own import own_event
from bridge.sources import Arrival, Reading, Reconciled, Started

log = structlog.get_logger()


class Feed:
    """Hands over what source *name* read; *now* is unix seconds. `into` is set before anything is sent."""

    into: MemoryObjectSendStream[Reading]

    def __init__(self, name: str, metrics: Metrics, now: Callable[[], float], rng: random.Random) -> None:
        self.name = name
        self.metrics = metrics
        self.now = now
        self._last_events = metrics.source_last_event.of
        self._rng = rng
        self._garbled = False
        self.is_blocked = False
        """The buffer is full: what was read is not handed over yet."""

    def arrival(self, event: Event, cursors: Mapping[str, int], *, sparse: bool = False) -> Arrival:
        """*event* as it is handed over, which is to follow."""
        self._last_events[self.name] = received = self.now()
        if sparse:
            self.metrics.source_sparse.labels(self.name).inc()
        return Arrival(self.name, event, received, cursors, sparse)

    async def started(self, cursors: Mapping[str, int]) -> None:
        await self.send(Started(self.name, cursors))

    async def tell(
        self, name: str, data: Mapping[str, object], entities: Iterable[Entity] = (), ns: int | None = None
    ) -> None:
        """An event of bridge itself, at *ns* of server time or, where no server is involved, now."""
        at = int(self.now() * 1e9) if ns is None else ns
        told = own_event(name, ns=at, rng=self._rng, entities=entities, data={"source": self.name, **data})
        await self.send(Arrival(self.name, told, self.now()))

    async def reconciled(self, reading: Reconciled) -> None:
        await self.send(reading)

    def malformed(self, frame: Malformed) -> None:
        self.metrics.source_frame_errors.labels(self.name).inc()
        if not self._garbled:
            log.warning("frames that are no event are skipped and counted", source=self.name, why=frame.why)
        self._garbled = True

    async def send(self, reading: Reading) -> None:
        """Into the buffer, when it has room."""
        if not self.put(reading):
            await self.wait(reading)

    def put(self, reading: Reading) -> bool:
        """Into the buffer; False if that is full: `wait` then."""
        try:
            self.into.send_nowait(reading)
        except anyio.WouldBlock:
            return False
        return True

    async def wait(self, reading: Reading) -> None:
        """Until the full buffer takes *reading*; counted, for the server drops events meanwhile."""
        began = anyio.current_time()
        self.is_blocked = True
        try:
            await self.into.send(reading)
        finally:
            self.is_blocked = False
        self.metrics.source_blocked.labels(self.name).inc(anyio.current_time() - began)
