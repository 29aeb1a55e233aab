"""What a source remembers of each entity it follows, and of the ids that came lately.

Clocks are told apart everywhere: names ending in `_ns` are nanoseconds of server time, `_at` and `hold` are
`anyio.current_time()`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bridge.event import Entity
from bridge.sources.evidence import Evidence
from bridge.sources.plan import key

RECENT = 8  # ids kept beside a cursor, as many as the outbox keeps
UNREAD = math.inf


@dataclass(slots=True, eq=False)
class Followed:
    """One entity; everything but *entity* and *key* changes as streams come and go."""

    entity: Entity
    key: str
    cursor_ns: int | None = None
    """None until its first stream has started."""
    hold: float = 0.0
    """Until then the cursor stands still; UNREAD while history it may have lost is still to be read."""
    recent: tuple[str, ...] | None = ()
    """The last ids that moved the cursor, newest last; None while they are only on disk."""
    streams: int = 0
    """Live streams that now carry it."""
    events: int = 0
    """How many came since its history was last read."""
    anchor: tuple[str, ...] = ()
    """*recent* as of then."""
    anchor_ns: int = 0
    read_ns: int = 0
    read_at: float = -math.inf
    turn_at: float = -math.inf
    """When its history is to be read again at the latest."""
    in_time: bool = True
    """Was its last reading early enough for history to hold everything since the one before?"""
    lost_ns: int = 0
    lost_at: float = math.inf
    """When its last live stream was lost: by the process before this one at the beginning of time, and
    never as long as it is followed for the first time."""
    known_ns: int = 0
    """What is older is not news to bridge: its cursor, or the server's clock, when following began."""
    floor_ns: int = 0
    """What is older was never wanted: where following began, if this process began it."""
    is_blind: bool = False
    """The ids beside its cursor are of events that are no longer asked for."""
    readings: list[Evidence] = field(default_factory=list)
    """The last few of its history, which may overlap."""
    doubted: Evidence | None = None
    """A reading that is being made again."""
    tries: int = 0
    """How often in a row its history came without the newest event known."""
    unproven: bool = False

    @classmethod
    def of(cls, entity: Entity, cursor_ns: int | None, *, has_ids: bool = True) -> Followed:
        """As it is when the process starts: with a cursor of an earlier one, everything since may be lost.

        *has_ids*: the ids stored beside the cursor are of events that may come again.
        """
        found = cls(entity, key(entity), cursor_ns)
        if cursor_ns is not None:
            found.hold, found.lost_at = UNREAD, -math.inf
            found.recent, found.is_blind = (None, False) if has_ids else ((), True)
            found.known_ns = found.anchor_ns = cursor_ns
        return found

    @property
    def is_unread(self) -> bool:
        return self.hold == UNREAD

    def move(self, at_ns: int, unique_id: str) -> None:
        """The cursor moves to *at_ns* because of *unique_id*; never back."""
        if self.cursor_ns is None or at_ns > self.cursor_ns:
            self.cursor_ns = max(0, at_ns)
        kept = self.recent[1 - RECENT :] if self.recent else ()
        self.recent, self.is_blind = (*kept, unique_id), False


@dataclass(slots=True)
class Seen:
    """Ids that came in the last *keep* to twice *keep* seconds, and when: hashes, to be small."""

    keep: float
    limit: int = 200_000
    _young: dict[int, float] = field(default_factory=dict)
    _old: dict[int, float] = field(default_factory=dict)
    _since: float = -math.inf

    def add(self, unique_id: str, now: float) -> bool:
        """Was it there before? From *now* on it is."""
        if now - self._since > self.keep or len(self._young) >= self.limit:
            self._old, self._young, self._since = self._young, {}, now
        number = hash(unique_id)
        if number in self._young:
            return True
        before = self._old.get(number)
        self._young[number] = now if before is None else before
        return before is not None

    def before(self, unique_id: str, at: float) -> bool:
        """Had it come before *at*?"""
        number = hash(unique_id)
        return self._young.get(number, self._old.get(number, math.inf)) < at
