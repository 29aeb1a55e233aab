"""What `bridge doctor` makes of what it was told.  No I/O, no clock, no logging in this file.

Every judgement is a `Finding`: what was looked at, a plain verdict, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from bridge.event import Entity, Kind

Verdict: TypeAlias = Literal["ok", "note", "wrong", "unknown"]
"""*note*: works, but look at it. *unknown*: could not be found out. Only *wrong* is exit code 1."""

SECOND = 1_000_000_000  # ns
DAY = 86_400.0  # seconds; the server forgets an entity's history a day after its last event
KEPT = 100  # events the server keeps of an entity for certain (events.redis.store.entity-count)
EXPIRES_SOON = 14 * DAY  # seconds
SKEW = 5.0  # seconds between two clocks that both follow NTP, with room for a slow answer
SHORT_WINDOW = 60.0  # seconds: less, and a restart of the server loses events
SLOW_SYNC = 0.1  # seconds for one commit: ten a second
NAMED = 5  # of a list, before "and 12 more"
TIGHT = 10  # openings a minute below which a rate limit is felt


@dataclass(frozen=True, slots=True)
class Finding:
    """*about* names the part of the config, *check* what was looked at; *do* is '' where all is well."""

    about: str
    check: str
    verdict: Verdict
    says: str
    do: str = ""

    def __str__(self) -> str:
        advice = f"; {self.do}" if self.do else ""
        return f"{self.verdict:7} {self.about}: {self.check}: {self.says}{advice}"


@dataclass(frozen=True, slots=True)
class Want:
    """The event names of the catalogue a rule or alert can match; *explicit* if it names any itself."""

    rule: str
    names: tuple[str, ...]
    explicit: bool
    kind: Literal["rule", "alert"] = "rule"

    def __str__(self) -> str:
        return f"{self.kind} {self.rule}"


@dataclass(frozen=True, slots=True)
class Carried:
    """An event name as the doctor needs it: *kinds* of streams that carry it, *rights* that show it."""

    name: str
    kinds: frozenset[Kind]
    rights: frozenset[str]


def expiry(about: str, expires_ns: int | None, now_ns: int) -> Iterator[Finding]:
    """When the key ends; nothing if it does not."""
    if expires_ns is None:
        return
    left = (expires_ns - now_ns) / SECOND
    if left < EXPIRES_SOON:
        advice = "make a new key before that, and change api_key"
        yield Finding(about, "key", "note", f"expires in {duration(max(0.0, left))}", advice)


def strangers(about: str, owner: Entity | None, followed: Iterable[Entity]) -> Iterator[Finding]:
    """Entities a key can never see: one of an application or a gateway is good for that one alone."""
    if owner is None or owner.kind in ("user", "organization"):
        return
    others = [each for each in followed if _parent(each) != owner]
    if others:
        says = f"the key of {owner} is good for nothing else, and {listing(map(str, others))} is followed"
        yield Finding(about, "key", "wrong", says, "use a key of a user or an organization")


def excess(about: str, is_admin: bool, rights: Collection[str]) -> Iterator[Finding]:
    """A key that may do more than read."""
    more = [right for right in rights if right.endswith(("_ALL", "_WRITE", "_DELETE", "_KEYS"))]
    if is_admin or more:
        what = "is an admin's" if is_admin else f"may also do {listing(sorted(more))}"
        yield Finding(
            about, "key", "note", f"the key {what}", "bridge only reads: a key with read rights is safer"
        )


def clock(about: str, server_ns: int, before_ns: int, after_ns: int, resolution_ns: int) -> Finding:
    """The server's clock, told between *before* and *after* of our own, to *resolution*."""
    middle = (before_ns + after_ns) // 2
    uncertain = (after_ns - before_ns) / 2 / SECOND + resolution_ns / SECOND
    ahead = (middle - server_ns - resolution_ns // 2) / SECOND
    if abs(ahead) <= SKEW + uncertain:
        return Finding(about, "clock", "ok", f"{abs(ahead):.1f} s apart from the server's")
    which = "ahead of" if ahead > 0 else "behind"
    says = f"this machine is {duration(abs(ahead))} {which} the server"
    return Finding(about, "clock", "wrong", says, "start NTP on whichever of the two is wrong")


def rights(
    about: str,
    wants: Sequence[Want],
    carried: Mapping[str, Carried],
    granted: Mapping[Entity, frozenset[str]],
) -> Iterator[Finding]:
    """What the rules want against what the key may see of the entities asked about.

    Missing rights are no error of the server: the events are just absent (UPSTREAM.md §2.6).
    """
    lacking: dict[Want, dict[str, set[str]]] = {}
    blind = [entity for entity, some in granted.items() if not some]
    for entity, some in granted.items():
        for want in wants if some else ():
            for each in _carried_by(entity.kind, want, carried):
                if each.rights and each.rights.isdisjoint(some):
                    right = min(each.rights)
                    lacking.setdefault(want, {}).setdefault(right, set()).add(each.name)
    if blind:
        says = f"the key has no right on {listing(map(str, blind))}, or it does not exist"
        yield Finding(
            about, "scope", "wrong", says, "correct identifiers, or add the key's owner as collaborator"
        )
    for want in wants:
        if want in lacking:
            yield _lacks(about, want, lacking[want], carried, granted)
    if not blind and not lacking and granted:
        yield Finding(about, "rights", "ok", f"enough for all rules on {listing(map(str, granted))}")


def _lacks(
    about: str,
    want: Want,
    missing: Mapping[str, Collection[str]],
    carried: Mapping[str, Carried],
    granted: Mapping[Entity, frozenset[str]],
) -> Finding:
    hidden = {name for names in missing.values() for name in names}
    kinds = {entity.kind for entity in granted}
    possible = {name for kind in kinds for name in (each.name for each in _carried_by(kind, want, carried))}
    verdict: Verdict = "wrong" if want.explicit and hidden >= possible else "note"
    says = f"{want} does not get {listing(sorted(hidden))}"
    return Finding(about, "rights", verdict, says, f"give the key {listing(sorted(missing))}")


def reach(
    about: str, wants: Sequence[Want], carried: Mapping[str, Carried], kinds: Collection[Kind]
) -> Iterator[Finding]:
    """Rules that wait for events no followed stream can carry."""
    for want in wants:
        known = [carried[name] for name in want.names if name in carried]
        if not want.explicit or not known or any(each.kinds & set(kinds) for each in known):
            continue
        needed = sorted({kind for each in known for kind in each.kinds})
        events = listing(each.name for each in known)
        says = f"{want} waits for {events}, which no followed stream carries"
        follow = " or ".join(map(_as_identifier, needed))
        advice = f"follow {follow}" if follow else "drop the rule: the server never sends it"
        yield Finding(about, "reach", "wrong", says, advice)


def _as_identifier(kind: Kind) -> str:
    return 'devices ("*" under an application)' if kind == "device" else f"a {kind}"


def _carried_by(kind: Kind, want: Want, carried: Mapping[str, Carried]) -> Iterator[Carried]:
    return (carried[name] for name in want.names if name in carried and kind in carried[name].kinds)


@dataclass(frozen=True, slots=True)
class Stored:
    """What the server has kept of one entity: how many events, from and to when (ns)."""

    count: int
    oldest_ns: int = 0
    newest_ns: int = 0


def window(about: str, stored: Mapping[Entity, Stored], now_ns: int, recycle: float) -> Finding:
    """How long an interruption may last at the present rate before events are gone."""
    known = {entity: each for entity, each in stored.items() if each.count and each.oldest_ns < now_ns}
    spans = {entity: recovery(each, now_ns) for entity, each in known.items()}
    if not spans:
        return Finding(about, "window", "unknown", "no stored event of the entities that were looked at")
    entity, shortest = min(spans.items(), key=lambda found: found[1])
    says = f"{duration(shortest)} at the present rate (of {len(spans)} looked at, {entity} is the busiest)"
    advice = "raise events.redis.store.entity-count (and ttl) of the server"
    if shortest < SHORT_WINDOW:
        return Finding(about, "window", "wrong", says, f"a longer interruption loses events: {advice}")
    if shortest < recycle:
        return Finding(
            about, "window", "note", says, f"less than recycle, so it is re-read more often; {advice}"
        )
    return Finding(about, "window", "ok", says)


def recovery(stored: Stored, now_ns: int) -> float:
    """Seconds in which so many events come as the server keeps of an entity; a day at most."""
    span = max((now_ns - stored.oldest_ns) / SECOND, 0.001)
    return min(DAY, span * KEPT / stored.count)


def budget(about: str, limit: int, available: int) -> Finding:
    """The key's rate limit, in openings a minute."""
    says = f"{limit} streams a minute, {available} left now"
    if limit < TIGHT:
        advice = "raise it for Events/Stream (rate-limiting), or follow fewer devices: re-reading has to wait"
        return Finding(about, "rate limit", "note", says, advice)
    return Finding(about, "rate limit", "ok", says)


def disk(about: str, free: int, used: int, max_size: int, reserve: int) -> Finding:
    """Space for the store, in bytes: *used* by it now, *free* beside it."""
    says = f"{size(free)} free, the store uses {size(used)} of {size(max_size)}"
    if used == 0 and free < reserve:
        return Finding(about, "disk", "wrong", says, f"it needs {size(reserve)} to begin with: make room")
    if free < reserve:
        return Finding(about, "disk", "wrong", says, "make room: the disk is full before anything is stored")
    if used + free < max_size:
        return Finding(about, "disk", "note", says, "lower max_size, or make room")
    return Finding(about, "disk", "ok", says)


def sync_speed(about: str, seconds_each: float) -> Finding:
    """How long one commit waits for the disk."""
    says = f"one commit takes {seconds_each * 1000:.1f} ms"
    if seconds_each > SLOW_SYNC:
        return Finding(about, "speed", "note", says, "use a faster disk, or durability: process")
    return Finding(about, "speed", "ok", says)


def _parent(entity: Entity) -> Entity:
    return Entity("application", entity.id.partition("/")[0]) if entity.kind == "device" else entity


def listing(words: Iterable[str]) -> str:
    """`a, b, c` or `a, b, c, d, e and 12 more`."""
    found = list(words)
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + more


def duration(seconds: float) -> str:
    """*seconds* as the operator would say it."""
    for unit, length in (("d", DAY), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: int) -> str:
    """*count* bytes in the largest unit that leaves a number above 1."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
