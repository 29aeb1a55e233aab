"""Which identifiers go into which stream, what came by which, and whom an error means.

No I/O, no clock, no logging in this file.

Two facts pull in opposite directions. Every opening counts against the key's rate budget, so live streams
carry many identifiers; and the history of all identifiers of a stream goes through one buffer of 1,024
(14 entities lose up to 15 %, measured), so history is read by short streams of at most five.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import islice

from bridge.errors import SourceError
from bridge.event import KINDS, Entity, Event, entities
from bridge.own import identifier
from bridge.sources.upstream import TAIL

__all__ = [
    "after",
    "backfill_size",
    "carriers",
    "culprits",
    "group_size",
    "grouped",
    "identifier",
    "key",
    "shard",
]

LIVE = 500
"""Identifiers of a live stream. Measured (tests/bench/bench_tenant.py) with 10,300 of them and bursts of
3,000 events at once: 100 a stream need 103 openings a renewal, 500 and 2,500 lose nothing, one stream for all
loses two thirds of a burst until they are read again."""
BACKFILL = 5  # entities of a stream that reads history, at most
UNKNOWN_HISTORY = 200  # entries an entity may have: `XADD MAXLEN ~ 100` keeps up to 199 (pkg/events/redis)
LIVE_SHARE = 0.25  # of the rate budget that renewing live streams may use

RIGHTS_ERROR = re.compile(r"(?:no|insufficient)_(\w+)_rights\Z")
NOT_FOUND = re.compile(r"(\w+)_not_found\Z")
POSITION = re.compile(r"identifiers\[(\d+)\]\Z")


def key(entity: Entity) -> str:
    """How a cursor names *entity*: `application:plant-a`, `device:plant-a/meter-01`."""
    return f"{entity.kind}:{entity.id}"


def owner(entity: Entity) -> Entity:
    """Where the server looks up rights: a device has none of its own (pkg/auth/rights/require.go)."""
    if entity.kind != "device":
        return entity
    return Entity("application", entity.id.partition("/")[0])


def carriers(event: Event, followed: Container[Entity], propagates: Mapping[str, bool]) -> list[Entity]:
    """Which of the entities *followed* by a stream brought *event*.

    One whose identifier the event has, or the application of its device where *propagates* says so of the
    name (pkg/events/basic/subscription.go in v3.32). Of a name that is not in there the application is
    believed to be the carrier if nobody else can be.
    """
    about = entities(event)
    found = [each for each in about if each in followed]
    for each in about:
        parent = owner(each)
        if parent is each or parent not in followed or parent in found:
            continue
        if propagates.get(event.name, not found):
            found.append(parent)
    return found


def shard(entity: Entity, count: int) -> int:
    """Which of *count* parts of a source *entity* belongs to, on every replica; an owner's all to one."""
    return zlib.crc32(key(owner(entity)).encode()) % count


def after(cursors: Iterable[int | None], overlap_ns: int) -> int | None:
    """Where a stream starts, ns: *overlap_ns* before its oldest cursor; None if there is no cursor."""
    known = [cursor for cursor in cursors if cursor is not None]
    return max(0, min(known) - overlap_ns) if known else None


def group_size(count: int, openings_per_minute: int | None, recycle: float, live: int = LIVE) -> int:
    """How many of *count* identifiers a live stream carries: *live*, or more.

    Every stream is opened anew each *recycle* seconds; with a rate limit that may use up a quarter of it,
    for the rest is what history is read with.
    """
    if openings_per_minute is None:
        return live
    streams = max(1, int(openings_per_minute * recycle / 60 * LIVE_SHARE))
    return max(live, -(-count // streams))


def backfill_size(largest_history: int) -> int:
    """How many entities a stream may carry whose history is read, *largest_history* seen on this server."""
    return max(1, min(BACKFILL, TAIL // max(largest_history, 1)))


def grouped(found: Iterable[Entity], size: int) -> list[tuple[Entity, ...]]:
    """*found* in streams of at most *size*, evenly filled; what has one owner stands together.

    An owner that is deleted or forbidden then spoils few streams.
    """
    ordered = sorted(set(found), key=lambda each: (owner(each), KINDS.index(each.kind), each.id))
    if not ordered:
        return []
    count = -(-len(ordered) // size)
    even, rest = divmod(len(ordered), count)
    source = iter(ordered)
    return [tuple(islice(source, even + (number < rest))) for number in range(count)]


def mixes_levels(found: Iterable[Entity]) -> bool:
    """Does an application stand beside a device of its own?

    The server replays one after the other and does not say where the second begins: what history lacks
    could not be told for each of them.
    """
    present = set(found)
    return any(each.kind == "device" and owner(each) in present for each in present)


def culprits(error: SourceError, asked: Sequence[Entity]) -> tuple[Entity, ...]:
    """Whom of *asked* the server refused the stream for, as far as *error* tells; empty if it does not.

    The attributes are those of errors.json: `uid` of a right that is missing, `<kind>_id` of an entity
    that is not there, the position of identifiers that are none. A `uid` may end in `@tenant`.
    """
    attributes = {name: str(value) for name, value in error.attributes.items()}
    if error.name == "validation":
        found = POSITION.match(attributes.get("field", ""))
        return tuple(asked[int(found[1]) : int(found[1]) + 1]) if found else ()
    if rights := RIGHTS_ERROR.match(error.name):
        return _belonging(rights[1], attributes.get("uid", ""), asked)
    if missing := NOT_FOUND.match(error.name):
        return _belonging(missing[1], attributes.get(f"{missing[1]}_id", ""), asked)
    return ()


def _belonging(kind: str, id: str, asked: Sequence[Entity]) -> tuple[Entity, ...]:
    meant = kind, id.partition("@")[0]
    return tuple(each for each in asked if meant in (tuple(each), tuple(owner(each))))


def is_about_entities(error: SourceError) -> bool:
    """Is *error* about some of the identifiers, and not about the key, the names or the server?"""
    if error.kind not in ("refused", "rejected"):
        return False
    if error.namespace in ("pkg/auth/rights", "pkg/identityserver/store"):
        return True
    return error.name == "validation"
