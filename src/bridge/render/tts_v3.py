"""`format: tts-v3`: what The Things Stack's own MQTT server publishes, on its topics.  No I/O, no clock here.

Topics are those of pkg/applicationserver/io/mqtt/topics/v3.go, payloads the `ApplicationUp` of messages.proto
(v3.32). The events `as.*.forward` carry that message as their data; only a queued downlink's event carries
the downlink alone, and the message around it is put together here as the Application Server does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

from bridge.errors import RenderError
from bridge.event import DeviceIds, Event
from bridge.render.filters import topic_level

APPLICATION_UP = "type.googleapis.com/ttn.lorawan.v3.ApplicationUp"
APPLICATION_DOWNLINK = "type.googleapis.com/ttn.lorawan.v3.ApplicationDownlink"
QUEUED = "as.down.data.forward"  # the Application Server publishes DownlinkQueued together with it

TOPICS: Mapping[str, str] = {
    "uplink_message": "up",
    "uplink_normalized": "up/normalized",
    "join_accept": "join",
    "downlink_queued": "down/queued",
    "downlink_sent": "down/sent",
    "downlink_ack": "down/ack",
    "downlink_nack": "down/nack",
    "downlink_failed": "down/failed",
    "downlink_queue_invalidated": "down/invalidated",
    "location_solved": "location/solved",
    "service_data": "service/data",
}
"""The end of the topic by the field of the oneof `up` that is set."""

Fields: TypeAlias = dict[str, msgspec.Raw]


class _Data(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Parts(msgspec.Struct):
    identifiers: list[Fields] = []


def message(event: Event, tenant: str | None = None) -> tuple[str, bytes]:
    """Topic and payload for *event*; raises RenderError if TTS's MQTT server has none for it.

    With a *tenant* the application is `app@tenant`, as on The Things Stack Cloud and The Things Network.
    """
    up = application_up(event)
    kind = next((end for field, end in TOPICS.items() if field in up), None)
    ids = msgspec.json.decode(up.get("end_device_ids", b"{}"), type=DeviceIds)
    application = ids.application_ids.application_id
    if kind is None or not application or not ids.device_id:
        raise RenderError(f"{event.name} carries no message of a device, which tts-v3 is")
    uid = f"{application}@{tenant}" if tenant else application
    topic = f"v3/{topic_level(uid)}/devices/{topic_level(ids.device_id)}/{kind}"
    return topic, msgspec.json.encode(up)


def application_up(event: Event) -> Fields:
    """The fields of the `ApplicationUp` in *event*, in their order and as the bytes that came."""
    try:
        fields = msgspec.json.decode(msgspec.json.decode(event.body, type=_Data).data, type=Fields)
        kind = msgspec.json.decode(fields.pop("@type", b'""'), type=str)
    except msgspec.MsgspecError:
        fields, kind = {}, ""
    if kind == APPLICATION_UP:
        return fields
    if kind == APPLICATION_DOWNLINK and event.name == QUEUED:
        return _queued(event, fields)
    raise RenderError(f"{event.name} carries no application message, which tts-v3 is")


def _queued(event: Event, downlink: Fields) -> Fields:
    """The message of a queued downlink, as `registerForwardDownlinks` of pkg/applicationserver has it."""
    parts = msgspec.json.decode(event.body, type=_Parts)
    device = next((ids["device_ids"] for ids in parts.identifiers if "device_ids" in ids), None)
    if device is None:
        raise RenderError(f"{event.name} names no device")
    up: Fields = {"end_device_ids": device}
    if "correlation_ids" in downlink:
        up["correlation_ids"] = downlink["correlation_ids"]
    return up | {"downlink_queued": msgspec.Raw(msgspec.json.encode(downlink))}
