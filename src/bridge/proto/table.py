"""The messages, as data: fields by number, types, and how The Things Stack renders each in JSON."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec

PACKAGE = "ttn.lorawan.v3."

VARINT, I64, LEN, I32 = 0, 1, 2, 5
"""Wire types (protobuf encoding, "Message Structure")."""

WIRE_TYPES = {
    "bool": VARINT,
    "enum": VARINT,
    "int32": VARINT,
    "uint32": VARINT,
    "int64": VARINT,
    "uint64": VARINT,
    "float": I32,
    "double": I64,
    "string": LEN,
    "bytes": LEN,
    "message": LEN,
}


class Field(msgspec.Struct, frozen=True):
    """One field of a message; *of* is the full name of its message or enum."""

    name: str
    number: int
    type: str
    of: str = ""
    repeated: bool = False
    json: str = ""
    """`hex`: bytes in upper-case hex instead of base64."""
    oneof: str = ""

    @property
    def wire_type(self) -> int:
        return WIRE_TYPES[self.type]


class Message(msgspec.Struct, frozen=True):
    """Fields in the order in which JSON has them."""

    fields: tuple[Field, ...]
    map_entry: bool = False


class Enum(msgspec.Struct, frozen=True):
    values: dict[str, int]
    json: Literal["string", "number"]

    @property
    def names(self) -> dict[int, str]:
        """By number; of aliases the first, as in the maps that protoc-gen-go makes."""
        return {number: name for name, number in reversed(self.values.items())}


class Table(msgspec.Struct, frozen=True):
    """By full name, such as `ttn.lorawan.v3.Event`."""

    messages: dict[str, Message]
    enums: dict[str, Enum]


STATUS = "google.rpc.Status"
"""What `grpc-status-details-bin` holds (google/rpc/status.proto)."""

_SHORT = {
    STATUS: "1 code int32, 2 message string, 3 details google.protobuf.Any*",
    "APIKey": "1 id string, 2 key string, 3 name string, 4 rights Right*, "
    "5 created_at google.protobuf.Timestamp, 6 updated_at google.protobuf.Timestamp, "
    "7 expires_at google.protobuf.Timestamp",
    "Collaborator": "1 ids OrganizationOrUserIdentifiers, 2 rights Right*",
    "EntityStateChangedNotification": "1 state State, 2 state_description string",
    "OrganizationOrUserIdentifiers": "1 organization_ids OrganizationIdentifiers, 2 user_ids UserIdentifiers",
    "ScheduleDownlinkErrorDetails": "1 path_errors ErrorDetails*",
}
"""Further messages that stand in an `Any` of errors and notifications (rights.proto, identifiers.proto,
notification_service.proto, gatewayserver.proto of v3.32); APIKey and the last are in the recordings."""

_STATES = ("REQUESTED", "APPROVED", "REJECTED", "FLAGGED", "SUSPENDED")


@cache
def table() -> Table:
    """Everything this version knows."""
    listed = files("bridge").joinpath("share", "tts_wire_fields.json").read_bytes()
    read = msgspec.json.decode(listed, type=Table)
    read.enums[f"{PACKAGE}State"] = Enum({f"STATE_{name}": at for at, name in enumerate(_STATES)}, "string")
    for name, text in _SHORT.items():
        fields = tuple(_field(each.split(), read) for each in text.split(", "))
        read.messages[_full(name)] = Message(fields)
    return read


def _full(name: str) -> str:
    return name if name.startswith("google.") else PACKAGE + name


def _field(words: list[str], known: Table) -> Field:
    """`4 rights Right*`: number, name, type; a star if there may be several."""
    number, name, type = words
    repeated = type.endswith("*")
    type = type.rstrip("*")
    if type in WIRE_TYPES:
        return Field(name, int(number), type, repeated=repeated)
    kind = "enum" if _full(type) in known.enums else "message"
    return Field(name, int(number), kind, _full(type), repeated)


def tag(field: Field) -> int:
    return field.number << 3 | field.wire_type
