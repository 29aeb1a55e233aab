"""Which identifiers go into a stream, and what came by which.  No I/O, no clock, no logging in this file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bridge.event import Entity, Event, entities


def key(entity: Entity) -> str:
    """How a cursor names *entity*: `application:plant-a`, `device:plant-a/meter-01`."""
    return f"{entity.kind}:{entity.id}"


def identifier(entity: Entity) -> dict[str, Any]:
    """*entity* as `EntityIdentifiers` of a StreamEventsRequest (identifiers.proto, v3.32)."""
    if entity.kind != "device":
        return {f"{entity.kind}_ids": {f"{entity.kind}_id": entity.id}}
    application, _, device = entity.id.partition("/")
    return {"device_ids": {"device_id": device, "application_ids": {"application_id": application}}}


def carriers(event: Event, followed: Iterable[Entity]) -> list[Entity]:
    """Which of the entities *followed* by a stream brought *event*.

    One whose identifier the event has, or the application of its device
    (pkg/events/basic/subscription.go in v3.32).
    """
    about = set(entities(event))
    about |= {Entity("application", each.id.partition("/")[0]) for each in about if each.kind == "device"}
    return [each for each in followed if each in about]


def after(cursors: Sequence[int | None], overlap_ns: int) -> int | None:
    """Where a stream starts, ns: *overlap_ns* before its oldest cursor; None if there is no cursor."""
    known = [cursor for cursor in cursors if cursor is not None]
    return max(0, min(known) - overlap_ns) if known else None
