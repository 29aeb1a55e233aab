"""Which devices and gateways are there: a retained topic for each, moved by alerts.  No I/O in this file.

What counts is an alert of kind `state` or `absent` that is sent to the sink: firing is offline, resolved is
online.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from bridge.delivery import Delivery
from bridge.event import Entity, Identifiers, Kind
from bridge.own import identifier
from bridge.render import Template
from bridge.render.formats import members, notified
from bridge.sinks.mqtt.formats import Availability, Compose, Envelope
from bridge.sinks.mqtt.message import Message, properties, topic_name

ONLINE, OFFLINE = b"online", b"offline"
KINDS = ("state", "absent")
WHO: tuple[Kind, ...] = ("device", "gateway")

Make: TypeAlias = Callable[[Delivery, bytes], Message]


def availability(template: Template, envelope: Envelope) -> Availability:
    """What a delivery says of availability, on the topics *template* makes of `ids`. Raises RenderError."""

    def make(delivery: Delivery, payload: bytes) -> Message:
        packed = properties(()) if envelope.has_properties else b""
        return Message(topic_name(template.render(delivery)), payload, envelope.qos, True, packed)

    def told(delivery: Delivery) -> list[Message]:
        found = notified(delivery.event)
        if found.get("kind") not in KINDS:
            return []
        each = members(found) or [{**found, "status": delivery.event.name.rpartition(".")[2]}]
        return [message for one in each if (message := _of(one, delivery, make))]

    return Availability(told, lambda delivery: make(delivery, ONLINE), template.render)


def _of(told: Mapping[str, Any], delivery: Delivery, make: Make) -> Message | None:
    """The message about the key *told*; None if that is neither a device nor a gateway."""
    labels, key = told.get("labels"), told.get("key")
    if not isinstance(labels, dict) or not isinstance(key, str):
        return None
    kind = next((each for each in WHO if labels.get(each) == key), None)
    if kind is None:
        return None
    ids = msgspec.convert(identifier(Entity(kind, key)), Identifiers)
    event = msgspec.structs.replace(delivery.event, identifiers=(ids,))
    return make(
        msgspec.structs.replace(delivery, event=event), OFFLINE if told.get("status") == "firing" else ONLINE
    )


def beside(compose: Compose, also: Availability, *, alone: bool) -> Compose:
    """*compose*, and what its deliveries say of availability; *alone*: a format that has no alerts."""

    def both(delivery: Delivery) -> Sequence[Message]:
        told = also.told(delivery)
        return told if told and alone else (*compose(delivery), *told)

    return both
