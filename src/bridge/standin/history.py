"""What the server keeps, and what a stream gets of it.  No I/O, no clock, no randomness in this file.

The store of The Things Stack with the redis backend (pkg/events/redis/store.go in v3.32) and its defaults:
about 100 entries an entity, bodies for ten minutes, the list itself for a day after its last event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from bridge.event import Entity, Identifiers, entity_of, nanoseconds
from bridge.standin.registry import ids_json

ENTITY_COUNT = 100  # entries that are kept for certain
ENTITY_SLACK = 100  # `XADD MAXLEN ~ 100` cuts whole nodes of a hundred entries
BODY_TTL = 600_000_000_000  # ns
ENTITY_TTL = 86_400_000_000_000  # ns
SKEW = 1_000  # ms by which an event's clock may be behind the index
RELATED_LIMIT = 101  # events
MILLISECOND = 1_000_000  # ns


class _Visibility(msgspec.Struct):
    rights: tuple[str, ...] = ()


class _Envelope(msgspec.Struct):
    name: str
    time: str
    unique_id: str = ""
    identifiers: tuple[Identifiers, ...] = ()
    correlation_ids: tuple[str, ...] = ()
    visibility: _Visibility | None = None


class _Sparse(msgspec.Struct, omit_defaults=True):
    """What remains of an event without its body (pkg/events/redis/codec.go): see sparse.sse."""

    name: str
    time: str
    identifiers: tuple[dict[str, object], ...] = ()
    context: msgspec.Raw = msgspec.Raw()
    visibility: msgspec.Raw = msgspec.Raw()
    unique_id: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """One published event; *time* by the clock of its origin and *inserted* by the index's, in ns."""

    name: str
    time: int
    unique_id: str
    entities: tuple[Entity, ...]
    """Whose streams carry it: its identifiers, and a device's application if the name propagates."""
    correlation_ids: tuple[str, ...]
    body: bytes
    inserted: int
    rights: tuple[str, ...] = ()
    """Any one of them makes it visible, and none says that anybody may see it."""
    identifiers: tuple[Identifiers, ...] = ()


def record(body: bytes, inserted: int, propagates: Mapping[str, bool]) -> Record:
    """The record of an event's JSON *body*; *propagates* says which names applications get too."""
    read = msgspec.json.decode(body, type=_Envelope)
    found: dict[Entity, None] = {}
    for each in read.identifiers:
        entity = entity_of(each)
        if entity is None:
            continue
        found[entity] = None
        if entity.kind == "device" and propagates.get(read.name):
            found[Entity("application", entity.id.partition("/")[0])] = None
    return Record(
        read.name,
        nanoseconds(read.time),
        read.unique_id,
        tuple(found),
        read.correlation_ids,
        body,
        inserted,
        read.visibility.rights if read.visibility else (),
        read.identifiers,
    )


@dataclass(frozen=True, slots=True)
class Window:
    """What a stream reads of one entity.

    *silent_until* (ms of the index's clock) is where the live part begins. The server goes on reading after
    the last entry it found, and where it found none after the `after` of the request: with an `after` in the
    future nothing comes until then.
    """

    entries: tuple[Record, ...]
    silent_until: int = 0


def window(
    entries: Sequence[Record],
    *,
    tail: int,
    after: int | None,
    wants: Callable[[str], bool] = lambda name: True,
) -> Window:
    """The part of one entity's *entries* (oldest first) a stream is given; *after* in ns.

    `tail` counts before names are filtered. *after* is exclusive, and compared by the millisecond: an
    event of the same millisecond does not come (store.go:346-448).
    """
    since = 0 if after is None else after // MILLISECOND
    read = [each for each in entries if each.inserted // MILLISECOND >= since - SKEW]
    read = read[-tail:] if tail else read
    given = [
        each for each in read if (after is None or each.time // MILLISECOND > since) and wants(each.name)
    ]
    return Window(tuple(given), 0 if read else max(0, since - SKEW))


def identifiers_json(entity: Entity) -> dict[str, object]:
    """*entity* as `EntityIdentifiers`, without EUIs."""
    return {f"{entity.kind}_ids": ids_json(entity)}


def sparse(each: Record, entity: Entity) -> bytes:
    """*each* after its body has expired, as the stream of *entity* shows it."""
    read = msgspec.json.decode(each.body, type=_Sparse)
    read.identifiers = (identifiers_json(entity),)
    return msgspec.json.encode(read)


class _Redacted(msgspec.Struct, omit_defaults=True):
    """What somebody gets of a related event without the right to see it."""

    name: str
    time: str
    identifiers: msgspec.Raw = msgspec.Raw()
    origin: str = ""
    visibility: msgspec.Raw = msgspec.Raw()
    unique_id: str = ""


def redacted(body: bytes) -> bytes:
    """*body* as FindRelated shows it to somebody who may not see the event."""
    return msgspec.json.encode(msgspec.json.decode(body, type=_Redacted))


def renamed(body: bytes, unique_id: str, fresh: str) -> bytes:
    """*body* under the id *fresh*; its own `unique_id` stands last."""
    head, found, tail = body.rpartition(f'"unique_id":"{unique_id}"'.encode())
    return head + f'"unique_id":"{fresh}"'.encode() + tail if found else body


def shown(each: Record, entity: Entity, now: int) -> bytes:
    """The bytes of *each* in the stream of *entity* at *now* (ns)."""
    return each.body if now - each.inserted < BODY_TTL else sparse(each, entity)


@dataclass(slots=True)
class History:
    """The lists of all entities; changed by `add` only."""

    lists: dict[Entity, list[Record]] = field(default_factory=dict)

    def add(self, each: Record) -> None:
        for entity in each.entities:
            entries = self.lists.setdefault(entity, [])
            entries.append(each)
            if len(entries) >= ENTITY_COUNT + ENTITY_SLACK:
                del entries[:-ENTITY_COUNT]

    def of(self, entity: Entity, now: int) -> Sequence[Record]:
        """What is kept of *entity*, oldest first."""
        entries = self.lists.get(entity, [])
        return entries if entries and now - entries[-1].inserted < ENTITY_TTL else ()

    def related(self, correlation_id: str, now: int) -> tuple[Record, ...]:
        """The events of *correlation_id* whose bodies are still there, newest first."""
        found = {
            each.unique_id: each
            for each in _everything(self.lists.values())
            if correlation_id in each.correlation_ids and now - each.inserted < BODY_TTL
        }
        newest = sorted(found.values(), key=lambda each: each.inserted, reverse=True)
        return tuple(newest[:RELATED_LIMIT])


def _everything(lists: Iterable[Sequence[Record]]) -> Iterable[Record]:
    return (each for entries in lists for each in entries)
