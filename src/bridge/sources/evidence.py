"""Did history reach back to what was seen before?  No I/O, no clock, no logging in this file.

The server trims each entity's history to about a hundred entries and says nothing. A replay that contains
an event seen before proves that everything after it came; one without is a gap that can be told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from bridge.event import Entity

CERTAIN = 100  # entries the server keeps of an entity in any case (`store.entity-count`)
INDEX = 86_400_000_000_000  # ns without an event after which the server forgets an entity's history

Verdict: TypeAlias = Literal["proven", "gap", "unproven"]


@dataclass(slots=True, eq=False)
class Evidence:
    """What one replay shows of one entity; times in ns of server time."""

    entity: Entity
    known: frozenset[str]
    """Ids seen before: one of them proves the replay."""
    since: int
    """When the last of them happened."""
    is_break: bool = True
    """Was the entity without a live stream? Else its history is read in turn, to find what was dropped."""
    recent: tuple[str, ...] = ()
    """The last ids that moved the cursor when the replay was asked for, and the *cursor* then."""
    cursor: int = 0
    events: int = 0
    """How many had come by then since the reading before."""
    is_blind: bool = False
    """Nothing that was seen before can come again: other names are asked for now."""
    first: int = 0
    """The time of the first event replayed."""
    count: int = 0
    proven: bool = False
    missing: set[str] = field(default_factory=set)
    """What came by history and, so far, not by the live stream."""
    reached: bool = False
    """Has the newest event that was known come? The rest of this history is news."""

    def saw(self, unique_id: str, time_ns: int, *, already: bool) -> None:
        """The next event of the replay; *already* received, before the break if there was one.

        After a break, a replay that begins with something seen before it bridges it. In turns that proves
        nothing: what came before may have been dropped one by one.
        """
        self.count += 1
        if self.count == 1:
            self.first = time_ns
            self.proven = already and self.is_break
        if not already:
            self.missing.add(unique_id)
        if unique_id in self.known:
            self.proven = True
        if unique_id in self.recent[-1:]:
            self.reached = True

    def came_live(self, unique_id: str) -> None:
        """The live stream was only later than history."""
        self.missing.discard(unique_id)


def verdict(evidence: Evidence, clock: int, *, filtered: bool) -> Verdict:
    """What follows at *clock* (ns); *filtered*: names that were not asked for count towards a trim unseen.

    Read in turn, history that was trimmed since the last time is a gap if it shows that the live stream
    drops events. No gap is claimed where history came back empty or is older than the server's index. An
    entity nothing was ever seen of has lost something only if its history is full.
    """
    if evidence.proven or not (evidence.is_break or evidence.missing):
        return "proven"
    if evidence.is_blind:
        return "unproven"
    if not evidence.known:
        if evidence.count >= CERTAIN:
            return "gap"
        return "unproven" if filtered and evidence.count else "proven"
    if not evidence.count or clock - evidence.since > INDEX:
        return "unproven"
    return "gap"


@dataclass(frozen=True, slots=True)
class Gap:
    """Events of *entity* between *since* and *until* (ns of server time) may be lost."""

    entity: Entity
    since: int
    until: int


@dataclass(slots=True)
class Break:
    """The entities whose streams were lost and whose history is not yet read, and what that showed.

    Streams that break while it is still being mended belong to it: an operator is told once.
    """

    open: set[Entity] = field(default_factory=set)
    gaps: list[Gap] = field(default_factory=list)

    def settle(self, entity: Entity, gap: Gap | None) -> None:
        self.open.discard(entity)
        if gap is not None:
            self.gaps.append(gap)

    def told(self) -> list[Gap]:
        """The gaps to tell of now, if the break is mended; they are told once."""
        if self.open:
            return []
        gaps, self.gaps = self.gaps, []
        return gaps
