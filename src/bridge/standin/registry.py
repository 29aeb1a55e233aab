"""What exists: applications, devices, gateways and the rest, as the Identity Server lists them.

No I/O, no clock, no randomness in this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from bridge.event import DeviceIds, Entity, GatewayIds, Identifiers, Kind, entity_of, rfc3339
from bridge.standin.rights import parent

MICROSECOND = 1_000  # ns: what the database keeps of a time
ALWAYS = ("ids", "created_at", "updated_at")  # fields that come without being asked for


@dataclass(slots=True)
class Kept:
    """One entity; *created* and *updated* in ns, *extra* the identifiers beside its id, *fields* the rest."""

    entity: Entity
    created: int
    updated: int
    extra: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)

    def written(self, paths: Sequence[str]) -> dict[str, Any]:
        """The message, with the fields that *paths* name on top of those that always come."""
        wanted = {path.partition(".")[0] for path in paths}
        message = {
            "ids": ids_json(self.entity) | self.extra,
            "created_at": rfc3339(self.created // MICROSECOND * MICROSECOND),
            "updated_at": rfc3339(self.updated // MICROSECOND * MICROSECOND),
        }
        return message | {name: value for name, value in self.fields.items() if name in wanted and value}


@dataclass(slots=True)
class Registry:
    """All entities. Those that events name exist as well, unless they were deleted."""

    kept: dict[Entity, Kept] = field(default_factory=dict)
    gone: set[Entity] = field(default_factory=set)
    devices: dict[str, dict[Entity, Kept]] = field(default_factory=dict)
    """By application."""

    def __contains__(self, entity: Entity) -> bool:
        return entity in self.kept

    def add(self, entity: Entity, now: int, extra: Mapping[str, str], fields: Mapping[str, Any]) -> Kept:
        """*entity*, and with a device its application; what is there already gets the new fields."""
        self.gone.discard(entity)
        above = parent(entity)
        if above != entity and above not in self.kept:
            self.add(above, now, {}, {})
        each = self.kept.setdefault(entity, Kept(entity, now, now))
        each.updated = now
        each.extra |= extra
        each.fields |= fields
        if above != entity:
            self.devices.setdefault(above.id, {})[entity] = each
        return each

    def see(self, identifiers: Identifiers, now: int) -> None:
        """An event named *identifiers*."""
        entity = entity_of(identifiers)
        if entity is None or entity in self.kept or not self.gone.isdisjoint((entity, parent(entity))):
            return
        self.add(entity, now, extra_of(identifiers), {})

    def remove(self, entity: Entity) -> None:
        """Forget *entity* and, with an application, its devices."""
        for each in (entity, *self.devices.get(entity.id, {} if entity.kind == "application" else ())):
            self.kept.pop(each, None)
            self.gone.add(each)
        if entity.kind == "application":
            self.devices.pop(entity.id, None)
        elif entity.kind == "device":
            self.devices.get(parent(entity).id, {}).pop(entity, None)

    def of_kind(self, kind: Kind) -> list[Kept]:
        return [each for each in self.kept.values() if each.entity.kind == kind]

    def of_application(self, application: str) -> list[Kept]:
        return list(self.devices.get(application, {}).values())


def ordered(found: Iterable[Kept], order: str) -> list[Kept]:
    """*found* by id, or by the field *order*, backwards with a dash before it."""
    by_id = sorted(found, key=lambda each: each.entity.id)
    key = _ORDERS.get(order.removeprefix("-"))
    return sorted(by_id, key=key, reverse=order.startswith("-")) if key else by_id


_ORDERS: Mapping[str, Callable[[Kept], Any]] = {
    "created_at": lambda each: each.created,
    "name": lambda each: str(each.fields.get("name", "")),
    **{f"{kind}_id": lambda each: each.entity.id for kind in ("application", "device", "gateway")},
    **{f"{kind}_id": lambda each: each.entity.id for kind in ("organization", "user", "client")},
}


def ids_json(entity: Entity) -> dict[str, Any]:
    """*entity* as its own kind of identifiers: `{"application_id": …}`."""
    if entity.kind != "device":
        return {f"{entity.kind}_id": entity.id}
    application, _, device = entity.id.partition("/")
    return {"device_id": device, "application_ids": {"application_id": application}}


def extra_of(identifiers: Identifiers) -> dict[str, str]:
    """The EUIs that came with *identifiers*; an address is a session's and not registered."""
    ids = identifiers.device_ids or identifiers.gateway_ids
    if not isinstance(ids, DeviceIds | GatewayIds):
        return {}
    read = msgspec.structs.asdict(ids)
    return {name: read[name] for name in ("dev_eui", "join_eui", "eui") if read.get(name)}
