"""Whose history is read next.  No I/O, no clock, no logging in this file.

Times are those of `anyio.current_time()`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from bridge.event import Entity
from bridge.sources.followed import Followed
from bridge.sources.plan import mixes_levels

FULL_SOON = 50  # events of an entity after which its history is read again: half of what is kept for certain


class Turns:
    """What a break may have lost comes first, then who fills up, then whose turn it is (every *recycle*
    seconds).

    Only entities that a live stream carries are read, each by one stream at a time.
    """

    def __init__(self, recycle: float) -> None:
        self.followed: OrderedDict[Entity, Followed] = OrderedDict()
        """All of them, by the time of their next turn."""
        self._recycle = recycle
        self._resuming: dict[Entity, Followed] = {}
        self._busy: dict[Entity, Followed] = {}
        self._reading: set[Entity] = set()

    def add(self, each: Followed) -> None:
        self.followed[each.entity] = each

    def remove(self, each: Followed) -> None:
        for queue in (self._resuming, self._busy, self.followed):
            queue.pop(each.entity, None)

    def resume(self, found: Iterable[Followed]) -> None:
        """Read these as soon as possible, most urgent first."""
        for each in sorted(found, key=urgency, reverse=True):
            self._resuming[each.entity] = each

    def suspend(self, each: Followed) -> None:
        """No live stream carries *each* any more; it is resumed when one does."""
        self._resuming.pop(each.entity, None)

    def again(self, each: Followed) -> None:
        """Read *each* before its turn."""
        (self._resuming if each.is_unread else self._busy)[each.entity] = each

    def is_full_soon(self, each: Followed) -> bool:
        """Is *each* to be read before its turn? Then it will be."""
        if each.events < FULL_SOON or each.entity in self._busy:
            return False
        self._busy[each.entity] = each
        return True

    def clear(self) -> None:
        """There is no history: nobody is read before a turn."""
        self._resuming.clear()
        self._busy.clear()

    def is_due(self, now: float) -> bool:
        first = self._first()
        if first is not None and first.turn_at <= now:
            return True
        return any(each.streams for queue in (self._resuming, self._busy) for each in queue.values())

    def next_turn(self) -> float | None:
        """When the next turn comes; None if nobody is followed."""
        first = self._first()
        return None if first is None else first.turn_at

    def next(self, size: int, now: float) -> list[Followed]:
        """Up to *size* to be read by one stream; `release` them when it has ended."""
        batch: list[Followed] = []
        for queue in (self._resuming.values(), busiest(self._busy.values())):
            for each in queue:
                if len(batch) == size:
                    break
                if self._joins(batch, each):
                    batch.append(each)
        self._fill(batch, size, now)
        for each in batch:
            self._resuming.pop(each.entity, None)
            self._busy.pop(each.entity, None)
            self._reading.add(each.entity)
            self.put_off(each, now)
        return batch

    def _fill(self, batch: list[Followed], size: int, now: float) -> None:
        """Whose turn it is; who cannot be in the same stream goes before the next turns."""
        while len(batch) < size and (each := self._first()) is not None and each.turn_at <= now:
            self.put_off(each, now)
            if self._joins(batch, each):
                batch.append(each)
            elif each.streams and each.entity not in self._reading and each not in batch:
                self._busy[each.entity] = each

    def _joins(self, batch: list[Followed], each: Followed) -> bool:
        if each.streams == 0 or each.entity in self._reading or each in batch:
            return False
        return not mixes_levels([*(other.entity for other in batch), each.entity])

    def put_off(self, each: Followed, now: float) -> None:
        """Its next turn is *recycle* after *now*."""
        each.turn_at = now + self._recycle
        if each.entity in self.followed:
            self.followed.move_to_end(each.entity)

    def was_read(self, each: Followed, at: float) -> None:
        """Its history was read by a stream that opened *at*."""
        if each.events < FULL_SOON:
            self._busy.pop(each.entity, None)
        self.put_off(each, at)

    def release(self, batch: Iterable[Followed]) -> None:
        self._reading.difference_update(each.entity for each in batch)

    def _first(self) -> Followed | None:
        return next(iter(self.followed.values()), None)


def urgency(each: Followed) -> tuple[int, int]:
    """The busiest and most recently heard lose first what history trims."""
    return each.events, each.cursor_ns or 0


def busiest(found: Iterable[Followed]) -> list[Followed]:
    return sorted(found, key=lambda each: -each.events)
