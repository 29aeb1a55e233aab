"""How far all readers together are: the clock of alerts that several replicas feed.

No I/O, no clock, no randomness in this file. Time is what the log says: a reader whose last word is older
than *patience*, by the times at which messages were stored, is gone. So whoever reads the log comes to the
same result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from bridge.alerts.partition import Beat
from bridge.alerts.settling import Behind, Unsettled
from bridge.event import Entity

PartOf = Callable[[Entity, int], int]
"""Which of so many parts of a source an entity belongs to."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Its last beat, *at* ns of the log."""

    at: int
    beat: Beat
    behind: Mapping[str, frozenset[Entity] | None]


class Readers:
    """*patience* in ns."""

    def __init__(self, patience: int, part_of: PartOf) -> None:
        self._patience = patience
        self._part_of = part_of
        self._readers: dict[str, Reader] = {}

    def hear(self, by: str, at: int, beat: Beat | None) -> None:
        """A message of *by* was stored *at*; only a beat says how far it is."""
        if beat is not None:
            behind = {
                source: None if entities is None else frozenset(entities)
                for source, entities in beat.behind.items()
            }
            self._readers[by] = Reader(at, beat, behind)
        gone = [name for name, each in self._readers.items() if each.at < at - self._patience]
        for name in gone:
            del self._readers[name]

    def clock(self) -> int | None:
        """The slowest of the readers' clocks; None while nobody reads."""
        return min((each.beat.clock for each in self._readers.values() if each.beat.parts), default=None)

    def unsettled(self, sources: Mapping[str, Sequence[str]]) -> Unsettled:
        """Who cannot be judged yet of *sources*, of which each has these parts, in their order."""
        found: dict[str, Behind | frozenset[Entity] | None] = {}
        for source, parts in sources.items():
            behind = self._behind(source, parts)
            if behind is None or behind.parts or behind.entities:
                found[source] = behind
        return found

    def _behind(self, source: str, parts: Sequence[str]) -> Behind | None:
        """None for everybody. Of several that read a part it is enough that one is there."""
        told: list[list[frozenset[Entity]]] = [[] for _ in parts]
        for each in self._readers.values():
            entities = each.behind.get(source, frozenset())
            if entities is None:
                continue
            for number, part in enumerate(parts):
                if part in each.beat.parts:
                    told[number].append(entities)
        unread = frozenset(number for number, entities in enumerate(told) if not entities)
        if len(unread) == len(parts):
            return None
        of = partial(self._part, count=len(parts))
        asked = {entity for entities in told for some in entities for entity in some}
        waiting = frozenset(each for each in asked if all(each in some for some in told[of(each)]))
        return Behind(waiting, unread, of)

    def _part(self, entity: Entity, count: int) -> int:
        return self._part_of(entity, count)
