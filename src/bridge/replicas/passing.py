"""What alerts see of events, on its way to the replicas that judge it.

No I/O, no clock in this file: *publish* sends. To `Ingest` this stands in the place of the engine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from bridge.alerts.blind import BlindSpot, blind_spot
from bridge.alerts.engine import Row, Unsettled
from bridge.alerts.groups import Notice
from bridge.alerts.partition import PARTITIONS, Beat, Item, Seen, packed, partition
from bridge.alerts.settling import Behind
from bridge.alerts.sights import AlertSet, Sight
from bridge.event import Entity, Event

BEAT_AT = 2  # ticks: timers of alerts are exact to a second
NAMED = 200  # entities a beat names; beyond that everybody of the source waits


class Outgoing(NamedTuple):
    """A message for the partition *number*, under an id by which a repeat is known."""

    number: int
    body: bytes
    id: str


Publish = Callable[[Sequence[Outgoing]], Awaitable[None]]
"""Those of one partition in their order; raises OutboxError, and is called again with the same."""


class Passing:
    """*me* is this replica, *boot* this process. *parts* are the leases that are surely its own, now."""

    def __init__(
        self,
        me: str,
        boot: str,
        publish: Publish,
        parts: Callable[[], frozenset[str]],
        redact: Callable[[Event], Event],
    ) -> None:
        self.now = 0
        self._me = me
        self._boot = boot
        self._publish = publish
        self._parts = parts
        self._redact = redact
        self._alerts = AlertSet(())
        self._items: defaultdict[int, list[Item]] = defaultdict(list)
        self._beat: Beat | None = None
        self._ticks = 0
        self._sent = 0
        self._outgoing: list[Outgoing] = []

    def configure(self, alerts: AlertSet) -> None:
        self._alerts = alerts

    def look(self, event: Event) -> Sequence[Sight]:
        return self._alerts.sights(event, self._redact)

    def gap(self, source: str, event: Event) -> None:
        """Everybody has to know: whoever it concerns may be in any partition."""
        spot = blind_spot(event)
        if spot is not None and self._alerts.alerts:
            for number in range(PARTITIONS):
                self._items[number].append(self._missed(source, event, spot))

    def _missed(self, source: str, event: Event, spot: BlindSpot) -> Item:
        return Item(source, f"missed/{event.unique_id}", self.now, missed=spot)

    def observe(self, source: str, sights: Sequence[Sight], now: int, *, only_known: bool = False) -> None:
        found: defaultdict[int, list[Seen]] = defaultdict(list)
        for alert, key, seen in sights:
            found[partition(alert, key)].append(Seen(alert.name, key, seen))
        for number, each in found.items():
            self._items[number].append(Item(source, each[0].what.id, now, tuple(each), only_known))

    def tick(self, now: int, unsettled: Unsettled, parts: Collection[str] = ()) -> Sequence[Notice]:
        """*parts* were read by this replica when the tick was made; some may be another's by now."""
        self.now = max(self.now, now)
        self._ticks += 1
        if self._ticks % BEAT_AT == 0 and self._alerts.alerts:
            behind = {source: _named(each) for source, each in unsettled.items()}
            self._beat = Beat(self.now, tuple(sorted(self._parts().intersection(parts))), behind)
        return ()

    def rows(self) -> Mapping[Row, bytes | None]:
        return {}

    async def hand_over(self) -> None:
        """Send all that was noted; asked again after a failure, the same again before anything else."""
        if not self._outgoing:
            self._pack()
        if self._outgoing:
            await self._publish(self._outgoing)
            self._outgoing = []

    def _pack(self) -> None:
        for number in range(PARTITIONS) if self._beat else sorted(self._items):
            for body in packed(self._me, self._items.get(number, ()), self._beat):
                self._send(number, body)
        self._items.clear()
        self._beat = None

    def _send(self, number: int, body: bytes) -> None:
        self._sent += 1
        self._outgoing.append(Outgoing(number, body, f"{self._boot}-{self._sent}"))

    async def leave(self) -> None:
        """This replica reads no more: nobody need wait for it."""
        for number in range(PARTITIONS):
            for body in packed(self._me, (), Beat(self.now)):
                self._send(number, body)
        await self._publish(self._outgoing)


def _named(each: Behind | frozenset[Entity] | None) -> tuple[Entity, ...] | None:
    if each is None or isinstance(each, Behind) or len(each) > NAMED:
        return None
    return tuple(sorted(each))
