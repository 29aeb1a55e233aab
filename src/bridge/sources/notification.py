"""One notification as an event, and the config of the source that brings it.  No I/O in this file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Literal

import msgspec
from pydantic import AfterValidator, Field, SecretStr, model_validator

from bridge.decode import event
from bridge.errors import FrameError
from bridge.event import Event
from bridge.fields import Duration, Section
from bridge.sources.models import ID, tts_url
from bridge.tls import TlsConfig

HOST_AND_PORT = re.compile(r"[^/\s]+:[0-9]{1,5}\Z")


def _user(value: str) -> str:
    if not ID.match(value):
        raise ValueError("ids are lower-case letters, digits and single dashes, 2 to 36 characters")
    return value


class NotificationsSourceConfig(Section):
    """The notifications of one user of The Things Stack."""

    type: Literal["tts-notifications"]
    url: Annotated[str, AfterValidator(tts_url)]
    """Address of the server; /api/v3 is added."""
    api_key: SecretStr
    """A key of the user, with the right to read notifications."""
    user: Annotated[str, AfterValidator(_user)]
    transport: Literal["http", "grpc"] = "http"
    grpc_address: str | None = None
    """host:port of the gRPC API; default: host of url, 8884 (1884 for http://)."""
    interval: Annotated[Duration, Field(ge=1)] = 60.0
    """How often the list is read; an event of the server makes it sooner."""
    mark: Literal["none", "seen", "archived"] = "none"
    """What a notification becomes in the Console once every delivery of it is confirmed."""
    tls: TlsConfig = TlsConfig()

    @model_validator(mode="after")
    def _address_of_grpc(self) -> NotificationsSourceConfig:
        if self.grpc_address is not None and self.transport != "grpc":
            raise ValueError("grpc_address is for transport: grpc")
        if self.grpc_address is not None and not HOST_AND_PORT.match(self.grpc_address):
            raise ValueError("write grpc_address as host:port, such as eu1.cloud.thethings.network:8884")
        if self.transport == "grpc" and find_spec("grpc") is None:
            raise ValueError("transport: grpc needs an extra: pip install 'tts-event-bridge[grpc]'")
        return self


@dataclass(frozen=True, slots=True)
class Notification:
    """One entry of the list; *created* in ns since 1970, 0 if it could not be read."""

    id: str
    created: int
    event: Event

    @property
    def order(self) -> tuple[int, str]:
        return self.created, self.id


class _Read(msgspec.Struct):
    id: str = ""
    created_at: str = ""
    notification_type: str = ""
    entity_ids: msgspec.Raw = msgspec.Raw()


def unique_id(user: str, id: str) -> str:
    return f"notification/{user}/{id}"


def notification(user: str, body: bytes) -> Notification:
    """The notification *body* of *user* as an event; raises FrameError.

    It is about the entity of the notification and the user who got it; its data are the notification.
    """
    try:
        read = msgspec.json.decode(body, type=_Read)
    except (msgspec.DecodeError, RecursionError):
        raise FrameError("not a notification") from None
    if not read.id:
        raise FrameError("a notification without an id")
    receiver: dict[str, dict[str, str]] = {"user_ids": {"user_id": user}}
    about: list[object] = [receiver]
    if bytes(read.entity_ids) and msgspec.json.decode(read.entity_ids) not in (receiver, None):
        about.insert(0, read.entity_ids)
    document = {
        "name": f"notification.{read.notification_type or 'unknown'}",
        "time": read.created_at,
        "identifiers": about,
        "data": msgspec.Raw(body),
        "unique_id": unique_id(user, read.id),
    }
    made = event(msgspec.json.encode(document))
    return Notification(read.id, made.time_ns, made)
