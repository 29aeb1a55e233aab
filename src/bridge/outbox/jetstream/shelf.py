"""The deliveries of one sink that this replica holds: pulled from the work queue, not yet settled.

The server gives each delivery to one replica. It is kept by a sign of life well within `ack_wait`; what has
been without one for too long may be in other hands and is put down unless it is being sent.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from bridge.outbox.jetstream.wire import Place, Waits

HELD_LATER = 1000  # deliveries whose time has not come that are held; more go back to the server until then
TURN_LATER = 30.0  # seconds for which what is far from its turn goes back to the server
FRESH_PART = 0.75  # of ack_wait: for so long after a sign of life a delivery is surely ours


@dataclass(slots=True)
class Held:
    """*seq*: the version of it that was pulled; *alive*: monotonic seconds of the last sign of life."""

    place: Place
    seq: int
    subject: str
    reply: str
    waits: Waits
    body: bytes
    alive: float

    @property
    def row(self) -> int:
        return self.place.row

    @property
    def order(self) -> tuple[float, int]:
        return self.waits.due_at, self.row


@dataclass(slots=True)
class Shelf:
    """*turns*: of each order key the row whose turn it is, as far as this replica knows."""

    sink: str
    ack_wait: float
    held: dict[int, Held] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)
    """Rows that the dispatcher has in hand."""
    parked: dict[int, float] = field(default_factory=dict)
    """Rows that went back to the server, and when they are due."""
    turns: dict[str, int] = field(default_factory=dict)
    looked: dict[str, float] = field(default_factory=dict)
    """Monotonic seconds at which a turn was last asked for."""

    def put(self, held: Held) -> None:
        self.held[held.row] = held
        self.parked.pop(held.row, None)

    def drop_stale(self, monotonic: float) -> list[Held]:
        """Put down what may be in other hands by now."""
        limit = monotonic - self.ack_wait * FRESH_PART
        stale = [each for row, each in self.held.items() if each.alive < limit and row not in self.taken]
        for each in stale:
            del self.held[each.row]
        return stale

    def is_doubtful(self, held: Held, monotonic: float) -> bool:
        return held.alive < monotonic - self.ack_wait * FRESH_PART

    def has_turn(self, held: Held) -> bool:
        key = held.waits.order_key
        return key is None or self.turns.get(key) == held.row

    def ready(self, now: float, horizon: float) -> list[Held]:
        """Due and its turn, not in hand: the oldest due first, then what a jump of the clock has put off."""
        free = [each for row, each in self.held.items() if row not in self.taken and self.has_turn(each)]
        due = [each for each in free if each.waits.due_at <= now]
        jumped = [each for each in free if each.waits.due_at > now + horizon]
        return [*sorted(due, key=lambda each: each.order), *sorted(jumped, key=lambda each: each.order)]

    def unsure_keys(self) -> list[str]:
        """Order keys of which something is held here, and nothing that is known to have its turn."""
        keys = {each.waits.order_key for each in self.held.values() if each.waits.order_key is not None}
        return [key for key in keys if self.turns.get(key) not in self.held]

    def next_due(self, given: Collection[int], now: float) -> float | None:
        """When the earliest falls due that is held or parked and neither *given* nor in hand."""
        for row in [row for row, due in self.parked.items() if due <= now]:
            del self.parked[row]
        held = (
            each.waits.due_at
            for row, each in self.held.items()
            if row not in given and row not in self.taken and self.has_turn(each)
        )
        return min((*held, *self.parked.values()), default=None)

    def too_many_later(self, now: float, horizon: float) -> list[Held]:
        """Beyond HELD_LATER: those due latest, and of what waits for its turn those that came last."""
        free = [each for row, each in self.held.items() if row not in self.taken]
        later = [each for each in free if now < each.waits.due_at <= now + horizon and self.has_turn(each)]
        blocked = [each for each in free if not self.has_turn(each)]
        later.sort(key=lambda each: each.order)
        blocked.sort(key=lambda each: each.row)
        return [*later[HELD_LATER:], *blocked[HELD_LATER:]]

    def back_in(self, held: Held, now: float, horizon: float) -> float:
        """For how many seconds one of those goes back to the server."""
        return min(max(0.0, held.waits.due_at - now), horizon) if self.has_turn(held) else TURN_LATER

    def park(self, held: Held) -> None:
        del self.held[held.row]
        if self.has_turn(held):
            self.parked[held.row] = held.waits.due_at

    def __iter__(self) -> Iterator[Held]:
        return iter(list(self.held.values()))


def monotonic() -> float:
    """Goes on while the process is stopped: that is what it is asked for."""
    return time.monotonic()
