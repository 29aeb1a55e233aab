"""Who owns what, for how long.  No I/O, no clock, no randomness in this file.

A lease is one entry of a key-value bucket: who holds it, and a revision that every change raises. It is taken
and renewed by compare-and-set, so of two that try at once one has it. Nobody compares clocks: a lease has run
out for the others when they have seen one revision for its whole length by their own monotonic clock. Its
holder stops a quarter earlier, counted from when it *asked* for the renewal, which is before the others can
have seen it. The revision under which it was taken is the fencing token: a renewal right before something is
sent fails if anybody has taken the lease since, however long the sender had been stopped in between.

Between that renewal and what follows it there is still a gap: a process stopped right there goes on when
the lease is another's. No lease closes it. So what belongs to an owner is stored on the condition that what
it was made from is still what is stored, and a new owner first writes that in its own name
(`bridge.replicas.owning`); what came of a delivery is decided on the same condition
(`bridge.outbox.jetstream.desk`). Only what has left for a receiver cannot be called back: that is the repeat
a stop may cost, and the receiver knows it by its id. All of this is explored in tests/unit/test_leases.py,
every order of events of two replicas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

SURE = 0.75  # of the lease: for so long after asking for it its holder acts on it


@dataclass(frozen=True, slots=True)
class Entry:
    """A lease as the bucket has it; *holder* '' where it was given back."""

    holder: str
    revision: int


@dataclass(frozen=True, slots=True)
class Held:
    """A lease of ours at *revision*; *asked*: monotonic seconds when its last renewal was asked for."""

    revision: int
    asked: float

    def is_sure(self, now: float, lease: float) -> bool:
        """May its holder still act on it?"""
        return now < self.asked + lease * SURE


@dataclass(frozen=True, slots=True)
class Watched:
    """What was seen of somebody's lease: *since* monotonic seconds it has had *revision*."""

    revision: int
    since: float


@dataclass(frozen=True, slots=True)
class Take:
    """Write our name if the entry is still at revision *expect* (0: not there)."""

    expect: int


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Write that nobody holds it, if it is still ours at *expect*."""

    expect: int


Step: TypeAlias = Take | GiveBack | None


@dataclass(slots=True)
class Leases:
    """One replica's view of all leases; *lease* in seconds."""

    me: str
    lease: float
    held: dict[str, Held] = field(default_factory=dict)
    watched: dict[str, Watched] = field(default_factory=dict)

    def sure(self, now: float) -> frozenset[str]:
        """What this replica may act on."""
        return frozenset(name for name, each in self.held.items() if each.is_sure(now, self.lease))

    def see(self, name: str, entry: Entry | None, now: float) -> None:
        """The bucket was asked at *now* and said *entry*."""
        if entry is None or entry.holder != self.me:
            self.held.pop(name, None)
        revision = entry.revision if entry else 0
        before = self.watched.get(name)
        if before is None or before.revision != revision:
            self.watched[name] = Watched(revision, now)

    def step(self, name: str, entry: Entry | None, now: float, *, wanted: bool) -> Step:
        """What to do about *name*, of which `see` was told *entry* at *now*."""
        if entry is not None and entry.holder == self.me and name in self.held:
            return Take(entry.revision) if wanted else GiveBack(entry.revision)
        if not wanted:
            return None
        if entry is None or not entry.holder:
            return Take(entry.revision if entry else 0)
        has_run_out = now >= self.watched[name].since + self.lease
        return Take(entry.revision) if has_run_out else None

    def took(self, name: str, revision: int | None, asked: float) -> None:
        """The answer to a Take: the new revision, None if somebody was faster."""
        if revision is None:
            self.held.pop(name, None)
        else:
            self.held[name] = Held(revision, asked)

    def gave_back(self, name: str) -> None:
        self.held.pop(name, None)


def spread(names: Collection[str], count: int, replicas: Collection[str], me: str) -> frozenset[str]:
    """What *me* should follow of *names*, where *count* replicas follow each at the same time.

    No lease says so: one too many does no harm, for ids absorb repeats. The replicas are ranked anew for each
    name, so when one comes or goes only one follower of a name is another: the others go on.
    """
    alive = sorted({*replicas, me})

    def rank(name: str, replica: str) -> bytes:
        return hashlib.sha256(f"{name} {replica}".encode()).digest()

    return frozenset(
        name for name in names if me in sorted(alive, key=lambda replica: rank(name, replica))[:count]
    )


def share(
    names: Sequence[str], holders: Mapping[str, str], replicas: Collection[str], me: str
) -> frozenset[str]:
    """What *me* should hold of *names*: as many as everybody, those it has already first.

    *holders* is who holds what now. Replicas that are gone are in *holders* perhaps, but not in *replicas*.
    """
    alive = sorted({*replicas, me})
    fair, rest = divmod(len(names), len(alive))
    quota = fair + (alive.index(me) < rest)
    mine = [name for name in names if holders.get(name) == me]
    free = [name for name in names if holders.get(name, "") not in alive]
    kept = mine[: max(quota, 0)]
    return frozenset([*kept, *free[: quota - len(kept)]])
