"""The sources' part of `bridge.yaml`."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from bridge.event import KINDS, Entity, Kind
from bridge.fields import Duration, File, Section, seconds
from bridge.sources.discovery import Scope
from bridge.tls import TlsConfig

LATER = "is not available in this version"
ALL = "*"
ID = re.compile(r"[a-z0-9](?:-?[a-z0-9]){1,35}\Z")  # identifiers.proto: 2 characters for users, else 3


def tts_url(url: str) -> str:
    """*url* of a server, without `/api/v3`; raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("write a URL such as https://eu1.cloud.thethings.network")
    return url.rstrip("/").removesuffix("/api/v3").rstrip("/")


def _host_and_port(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("write host:port, such as eu1.cloud.thethings.network:8884")
    return address


def grpc_target(url: str, address: str | None) -> str:
    """Where gRPC is spoken; the ports are those of pkg/component/component.go in v3.32."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return address or f"{host}:{8884 if parts.scheme == 'https' else 1884}"


class IdentifierConfig(Section):
    """An entity to follow, or all of a kind that the key can see."""

    application: str | None = None
    device: str | None = None
    """`application/device`."""
    gateway: str | None = None
    organization: str | None = None
    user: str | None = None
    client: str | None = None
    devices: str | None = None
    """`*`: the devices of the application too."""

    @model_validator(mode="after")
    def _one(self) -> IdentifierConfig:
        named = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(named) != 1:
            raise ValueError("write exactly one of application, device, gateway, organization, user, client")
        if self.devices is not None and (named[0] != "application" or self.devices != ALL):
            raise ValueError('devices goes with application and is "*": all of its devices')
        value = str(getattr(self, named[0]))
        if value == ALL and named[0] != "device":
            return self
        if "*" in value:
            raise ValueError('* stands alone, for all there are; devices: "*" for those of an application')
        if (value.count("/") == 1) != (named[0] == "device") or value.count("/") > 1:
            raise ValueError("write a device as application/device, and other ids without a slash")
        if not all(ID.match(part) for part in value.split("/")):
            raise ValueError("ids are lower-case letters, digits and single dashes, 2 to 36 characters")
        return self

    @property
    def kind(self) -> Kind:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def entity(self) -> Entity | None:
        """The one it names; None for all of its kind."""
        value = getattr(self, self.kind)
        return None if value == ALL else Entity(self.kind, value)


def _from(value: object) -> object:
    if value not in ("now", "oldest"):
        seconds(value)
    return value


def _speed(value: object) -> object:
    if value == "max" or (isinstance(value, int | float) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError("write a number above 0, or max")


def _names(value: object) -> object:
    if value == "auto" or (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        return value
    raise ValueError("write auto, or a list of event names")


class TtsSourceConfig(Section):
    """An event stream of The Things Stack."""

    type: Literal["tts"]
    url: Annotated[str, AfterValidator(tts_url)]
    """Address of the server; /api/v3 is added."""
    api_key: SecretStr
    transport: Literal["http", "grpc"] = "http"
    grpc_address: Annotated[str, AfterValidator(_host_and_port)] | None = None
    """`host:port` for gRPC; default: the host of url, 8884 (1884 for http://)."""
    identifiers: Annotated[tuple[IdentifierConfig, ...], Field(min_length=1)]
    names: Annotated[Any, BeforeValidator(_names, json_schema_input_type=Literal["auto"] | list[str])] = (
        "auto"
    )
    """Event names the server is asked for: auto is what the rules need."""
    start: Annotated[str, BeforeValidator(_from), Field(alias="from")] = "now"
    """Where an identifier without a cursor begins: now, oldest, or a duration back."""
    overlap: Annotated[Duration, Field(ge=0)] = 10.0
    """How far a new stream goes back behind its cursor."""
    recycle: Annotated[Duration, Field(gt=0)] = 240.0
    """How often the stream is opened anew, before the old one closes."""
    redundancy: Annotated[int, Field(ge=1)] = 1
    tls: TlsConfig = TlsConfig()

    @model_validator(mode="after")
    def _available(self) -> TtsSourceConfig:
        if self.transport == "grpc" and find_spec("grpc") is None:
            raise ValueError("transport: grpc needs an extra: pip install 'tts-event-bridge[grpc]'")
        return self

    @property
    def entities(self) -> tuple[Entity, ...]:
        """Those that are named."""
        return tuple(dict.fromkeys(each.entity for each in self.identifiers if each.entity is not None))

    @property
    def scope(self) -> Scope:
        return Scope(
            self.entities,
            frozenset(each.kind for each in self.identifiers if each.entity is None),
            frozenset(each.application or "" for each in self.identifiers if each.devices == ALL),
        )


class ReplaySourceConfig(Section):
    """A recorded stream, played again."""

    type: Literal["replay"]
    path: File
    """A .sse or .ndjson file."""
    speed: Annotated[Any, BeforeValidator(_speed, json_schema_input_type=Literal["max"] | float)] = 1
    """1 is as recorded, N is N times as fast, max does not wait."""
    verbatim: bool = False
    """Keep times and ids; default: times shifted to now, ids made fresh for the run."""
