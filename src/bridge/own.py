"""Events of bridge itself: `bridge.source.gap`, `bridge.sink.paused` and so on (DESIGN.md §2.3).

No I/O, no clock, no logging in this file; the random source is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from bridge.decode import event
from bridge.event import Entity, Event, rfc3339
from bridge.ids import ulid

if TYPE_CHECKING:
    import random

OWN = "bridge."
ORIGIN = "bridge"


def own_event(
    name: str,
    *,
    ns: int,
    rng: random.Random,
    entities: Iterable[Entity] = (),
    data: Mapping[str, object] | None = None,
) -> Event:
    """The event *name* (`bridge.…`) at *ns* nanoseconds since 1970, about *entities*, under a ULID.

    It has the shape of The Things Stack's own, so that rules, templates and sinks treat it alike.
    *data* are JSON values: words, numbers and times for the operator, never a secret.
    """
    if not name.startswith(OWN):
        raise ValueError(f"own events are called {OWN}…")
    document: dict[str, object] = {
        "name": name,
        "time": rfc3339(ns),
        "identifiers": [identifier(each) for each in entities],
        "data": dict(data or {}),
        "origin": ORIGIN,
        "unique_id": ulid(ns, rng),
    }
    return event(msgspec.json.encode(document))


def identifier(entity: Entity) -> dict[str, Any]:
    """*entity* as `EntityIdentifiers` (identifiers.proto, v3.32)."""
    if entity.kind != "device":
        return {f"{entity.kind}_ids": {f"{entity.kind}_id": entity.id}}
    application, _, device = entity.id.partition("/")
    return {"device_ids": {"device_id": device, "application_ids": {"application_id": application}}}
