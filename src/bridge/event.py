"""What happened in the network: the event, and what it is about.

No I/O, no clock, no logging in this file.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

Kind: TypeAlias = Literal["device", "gateway", "application", "organization", "user", "client"]

KINDS: tuple[Kind, ...] = ("device", "gateway", "application", "organization", "user", "client")
"""In the order in which an event's order key and path are chosen (DESIGN.md §2.3)."""

SCALE: tuple[int, ...] = tuple(10 ** (9 - digits) for digits in range(10))
"""Nanoseconds in the last digit of a fraction of a second, by the number of its digits."""


class Entity(NamedTuple):
    """Something with an id in The Things Stack; a device's id is `application/device`."""

    kind: Kind
    id: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


class ApplicationIds(msgspec.Struct, frozen=True, gc=False):
    application_id: str = ""


class DeviceIds(msgspec.Struct, frozen=True, gc=False):
    device_id: str = ""
    application_ids: ApplicationIds = ApplicationIds()
    dev_eui: str = ""
    join_eui: str = ""
    dev_addr: str = ""


class GatewayIds(msgspec.Struct, frozen=True, gc=False):
    gateway_id: str = ""
    eui: str = ""


class OrganizationIds(msgspec.Struct, frozen=True, gc=False):
    organization_id: str = ""


class UserIds(msgspec.Struct, frozen=True, gc=False):
    user_id: str = ""


class ClientIds(msgspec.Struct, frozen=True, gc=False):
    client_id: str = ""


class Identifiers(msgspec.Struct, frozen=True, gc=False):
    """One entry of an event's `identifiers`: exactly one field is set (identifiers.proto, v3.32)."""

    device_ids: DeviceIds | None = None
    gateway_ids: GatewayIds | None = None
    application_ids: ApplicationIds | None = None
    organization_ids: OrganizationIds | None = None
    user_ids: UserIds | None = None
    client_ids: ClientIds | None = None


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event, its envelope decoded and the rest left as the bytes that came.

    A msgspec struct and not a dataclass: one is made for every event on the wire, and this is
    several times cheaper. None of these can be in a cycle, so the garbage collector need not look at them.
    """

    name: str
    """Such as `as.up.data.forward`; servers newer than the catalogue send names of their own."""
    time: str
    """RFC 3339, UTC, 0 to 9 fractional digits, as received; the clock of the server that made it."""
    time_ns: int
    """The same in nanoseconds since 1970; 0 if the event had no readable time."""
    unique_id: str
    """A ULID from The Things Stack, or one that `decode` made (DESIGN.md §3)."""
    identifiers: tuple[Identifiers, ...]
    body: bytes
    """The event's JSON object, byte for byte as received."""

    def document(self) -> dict[str, Any]:
        """The whole event as JSON values. Decodes anew on each call; raises nothing."""
        try:
            return msgspec.json.decode(self.body, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._leniently()

    def _leniently(self) -> dict[str, Any]:
        """What `decode` lets through unread and msgspec refuses to read.

        Numbers beyond a double become infinite, bytes that are no UTF-8 a replacement character; what is
        nested too deeply is left out.
        """
        try:
            found = json.loads(self.body.decode(errors="replace"), parse_int=_integer)
        except (ValueError, RecursionError):
            found = None
        return found if isinstance(found, dict) else {"name": self.name, "unique_id": self.unique_id}


def _integer(text: str) -> int | float:
    """Python reads no integer of more than 4,300 digits."""
    return int(text) if len(text) <= 4300 else float(text)


def entities(event: Event) -> tuple[Entity, ...]:
    """What *event* is about, in its own order, without repeats; a device does not list its application."""
    found: list[Entity] = []
    for ids in event.identifiers:
        entity = entity_of(ids)
        if entity is not None and entity not in found:
            found.append(entity)
    return tuple(found)


def entity_of(ids: Identifiers) -> Entity | None:
    """The entity *ids* names, or None for a kind newer than this file."""
    if ids.device_ids is not None:
        device = ids.device_ids
        return Entity("device", f"{device.application_ids.application_id}/{device.device_id}")
    if ids.gateway_ids is not None:
        return Entity("gateway", ids.gateway_ids.gateway_id)
    if ids.application_ids is not None:
        return Entity("application", ids.application_ids.application_id)
    if ids.organization_ids is not None:
        return Entity("organization", ids.organization_ids.organization_id)
    if ids.user_ids is not None:
        return Entity("user", ids.user_ids.user_id)
    if ids.client_ids is not None:
        return Entity("client", ids.client_ids.client_id)
    return None


def subject(event: Event) -> Entity | None:
    """The one entity *event* is filed under: the first device, else gateway, and so on through KINDS."""
    return min(entities(event), key=lambda entity: KINDS.index(entity.kind), default=None)


def order_key(event: Event, source: str) -> str:
    """What `order: entity` keeps in sequence: the subject, else the source."""
    entity = subject(event)
    return f"{entity.kind}:{entity.id}" if entity else f"source:{source}"


def ids_of(event: Event) -> dict[str, str]:
    """The `ids` of templates: every key always there, `''` where absent; the first of each kind wins."""
    ids = dict.fromkeys(
        (
            "application_id",
            "device_id",
            "dev_eui",
            "join_eui",
            "dev_addr",
            "gateway_id",
            "gateway_eui",
            "organization_id",
            "user_id",
            "client_id",
        ),
        "",
    )
    for each in event.identifiers:
        for key, value in _flat(each).items():
            ids[key] = ids[key] or value
    entity = subject(event)
    ids["path"] = entity.id if entity else ""
    return ids


def _flat(ids: Identifiers) -> dict[str, str]:
    if ids.device_ids is not None:
        device = ids.device_ids
        return {
            "application_id": device.application_ids.application_id,
            "device_id": device.device_id,
            "dev_eui": device.dev_eui,
            "join_eui": device.join_eui,
            "dev_addr": device.dev_addr,
        }
    if ids.gateway_ids is not None:
        return {"gateway_id": ids.gateway_ids.gateway_id, "gateway_eui": ids.gateway_ids.eui}
    entity = entity_of(ids)
    return {f"{entity.kind}_id": entity.id} if entity else {}


def nanoseconds(text: str) -> int:
    """Nanoseconds since 1970 of an RFC 3339 time; raises ValueError.

    `datetime` alone would lose everything below a microsecond.
    """
    fraction = text[20:-1]
    if text[19:20] == "." and text[-1:] == "Z" and fraction.isdigit() and fraction.isascii():
        if len(fraction) > 9:
            raise ValueError("fraction of a second must be 1 to 9 digits")
        return _second(text[:19]) + int(fraction) * SCALE[len(fraction)]
    whole, _, rest = text.partition(".")
    if not rest:
        return int(datetime.fromisoformat(text).replace(microsecond=0).timestamp()) * 1_000_000_000
    digits = rest.rstrip("Z")
    zone = ""
    for sign in "+-":
        digits, found, offset = digits.partition(sign)
        zone = zone or (sign + offset if found else "")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 9):
        raise ValueError("fraction of a second must be 1 to 9 digits")
    seconds = int(datetime.fromisoformat(whole + (zone or "+00:00")).timestamp())
    return seconds * 1_000_000_000 + int(digits.ljust(9, "0"))


@lru_cache(maxsize=256)
def _second(text: str) -> int:
    """Nanoseconds since 1970 of a date and time in UTC; events of one second come together."""
    return int(datetime.fromisoformat(text + "+00:00").timestamp()) * 1_000_000_000


def rfc3339(ns: int) -> str:
    """*ns* nanoseconds since 1970 as The Things Stack writes times: UTC, 0, 3, 6 or 9 digits."""
    seconds, fraction = divmod(ns, 1_000_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f"{fraction:09d}"
    while digits.endswith("000"):
        digits = digits[:-3]
    return f"{text}.{digits}Z" if digits else f"{text}Z"
