"""Time for alerts, in order with what sources read: as far as a tick has come, so far everything has."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from bridge.event import Entity
from bridge.sources import CatchesUp, Reading, Source, Tick

EVERY = 0.5  # seconds: timers of alerts are exact to a second


class Ticks:
    """To `pipeline.flow` a source. *sources* are those that run, *now* is unix seconds.

    *parts* says by which leases this replica reads, of several that share sources.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        now: Callable[[], float],
        every: float = EVERY,
        parts: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        self._sources = sources
        self._now = now
        self._every = every
        self._parts = parts

    async def run(self, into: MemoryObjectSendStream[Reading]) -> None:
        while True:
            await anyio.sleep(self._every)
            await into.send(self.tick())

    def tick(self) -> Tick:
        """The slowest of the servers' clocks: rather a second late than before an event."""
        standings = {
            name: source.standing() for name, source in self._sources.items() if isinstance(source, CatchesUp)
        }
        clocks = [each.clock_ns for each in standings.values() if each.clock_ns is not None]
        unsettled: dict[str, frozenset[Entity] | None] = {
            name: each.unsettled for name, each in standings.items() if each.unsettled != frozenset()
        }
        return Tick(min(clocks, default=int(self._now() * 1e9)), unsettled, self._parts())
