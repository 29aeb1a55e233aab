"""What The Things Stack sends: event names, and how the fields of their data look in JSON.

No I/O, no clock, no logging in this file: `of` takes the bytes of `share/tts_event_names.json` and
`share/tts_wire_fields.json` (from the sources of v3.32). Newer servers, Cloud and Enterprise send names and
fields that are not in here: what is not known is never wrong for that.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

DATA = "data."
WELL_KNOWN = "google.protobuf."
ERROR, PLAIN_ERROR = "ttn.lorawan.v3.ErrorDetails", WELL_KNOWN + "StringValue"
"""Go errors without details come as the second where the first is declared."""

ABOUT_APPLICATIONS = ("application.", "as.application.", "as.mqtt.", "as.pubsub.")
"""How the names begin whose events are about an application itself (pkg/applicationserver in v3.32)."""

Severity: TypeAlias = Literal["info", "warning", "failure", "disconnect"]
Kind: TypeAlias = Literal["string", "number", "bool", "int64", "object", "open"]
"""*int64*: a string of digits. *object*: has fields, so no leaf. *open*: anything may be there."""


class EventName(msgspec.Struct, frozen=True):
    """One event the sources define."""

    name: str
    component: str
    severity: Severity
    rights: tuple[str, ...]
    """Any one of them lets a key see it."""
    data_types: tuple[str, ...]
    """`@type`s its data is declared to have; empty where nothing is declared, which does not mean no data."""
    propagates_to_application: bool
    """Does a stream of the application carry it, or only one of the device?"""
    deliverable_via_stream: bool
    notes: tuple[str, ...] = ()

    @property
    def in_application_stream(self) -> bool:
        """Does a stream of an application carry it, be it about a device of it or itself?"""
        return self.propagates_to_application or self.name.startswith(ABOUT_APPLICATIONS)


class Field(msgspec.Struct, frozen=True):
    """One field of a message; *of* is the message or enum it holds, if any."""

    name: str
    type: str
    of: str = ""
    repeated: bool = False
    oneof: str = ""


class _Message(msgspec.Struct, frozen=True):
    fields: tuple[Field, ...]
    map_entry: bool = False


class _Enum(msgspec.Struct, frozen=True):
    values: dict[str, int]
    json: Literal["string", "number"] = "number"


class _Wire(msgspec.Struct, frozen=True):
    messages: dict[str, _Message]
    enums: dict[str, _Enum]


class Wire(msgspec.Struct, frozen=True):
    """How one field looks in JSON."""

    kind: Kind
    omitted: bool = False
    """Is it left out when it has its zero value?"""
    zero: Any = None
    values: frozenset[str] = frozenset()
    """All it can be, for an enum of words."""


OPEN, OBJECT = Wire("open"), Wire("object")
NUMBER, INT64, TEXT, BOOL = (
    Wire("number", True, 0),
    Wire("int64", True, "0"),
    Wire("string", True, ""),
    Wire("bool", True, False),
)
SCALARS: Mapping[str, Wire] = {
    **dict.fromkeys(("int32", "uint32", "float", "double"), NUMBER),
    **dict.fromkeys(("int64", "uint64"), INT64),
    **dict.fromkeys(("string", "bytes"), TEXT),
    "bool": BOOL,
}
WRAPPERS: Mapping[str, Wire] = {
    "Timestamp": Wire("string"),
    "Duration": Wire("string"),
    "StringValue": Wire("string"),
    "BytesValue": Wire("string"),
    "BoolValue": Wire("bool"),
    "Int64Value": Wire("int64"),
    "UInt64Value": Wire("int64"),
    **dict.fromkeys(("Int32Value", "UInt32Value", "FloatValue", "DoubleValue"), Wire("number")),
}
"""Well-known types as one field of a message (protobuf's JSON mapping); all others may hold anything."""


class Catalogue:
    def __init__(self, names: Sequence[EventName], wire: _Wire) -> None:
        self.names: Mapping[str, EventName] = {each.name: each for each in names}
        self._messages = {
            name: {each.name: each for each in one.fields} for name, one in wire.messages.items()
        }
        self._maps = frozenset(name for name, one in wire.messages.items() if one.map_entry)
        self._enums = wire.enums
        self._int64: dict[tuple[str, str, str], bool] = {}

    @classmethod
    def of(cls, names: bytes, wire: bytes) -> Catalogue:
        """Raises msgspec.DecodeError if they are not what the package ships."""
        return cls(msgspec.json.decode(names, type=list[EventName]), msgspec.json.decode(wire, type=_Wire))

    def close_to(self, name: str) -> str | None:
        """The event name that *name* probably was meant to be."""
        close = difflib.get_close_matches(name, self.names, n=1)
        return close[0] if close else None

    def types(self, name: str) -> tuple[str, ...]:
        """The messages an event called *name* may carry; empty where that is not known."""
        known = self.names.get(name)
        found = tuple(kind.rpartition("/")[2] for kind in known.data_types) if known else ()
        return (*found, PLAIN_ERROR) if ERROR in found else found

    def fields(self, message: str) -> Sequence[Field]:
        """The fields of *message*; none where they are not known."""
        return tuple(self._messages.get(message, {}).values())

    def is_map(self, message: str) -> bool:
        """Is *message* an entry of a map, which in JSON is an object with keys of its own?"""
        return message in self._maps

    def at(self, message: str, path: str) -> Wire | None:
        """What *path* leads to in the data of type *message*; None if it has no such field."""
        if path == "@type":
            return Wire("string")
        if message.startswith(WELL_KNOWN):
            return self._well_known(message, path)
        return self._inside(message, path.split("."))

    def _well_known(self, message: str, path: str) -> Wire | None:
        """As the data itself: `{"@type": ..., "value": ...}`."""
        if message.removeprefix(WELL_KNOWN) in WRAPPERS:
            return WRAPPERS[message.removeprefix(WELL_KNOWN)] if path == "value" else None
        return OPEN if path.partition(".")[0] == "value" else None

    def _inside(self, message: str, steps: Sequence[str]) -> Wire | None:
        fields = self._messages.get(message)
        if fields is None:
            return OPEN
        field = fields.get(steps[0])
        if field is None:
            return None
        return self._message(field, steps[1:]) if field.type == "message" else self._leaf(field, steps[1:])

    def _message(self, field: Field, steps: Sequence[str]) -> Wire | None:
        short = field.of.removeprefix(WELL_KNOWN)
        if short in WRAPPERS and field.of != short:
            return None if steps else WRAPPERS[short]
        if field.of in self._maps or field.of not in self._messages:
            return OPEN
        return self._inside(field.of, steps) if steps else OBJECT

    def _leaf(self, field: Field, steps: Sequence[str]) -> Wire | None:
        if steps:
            return None
        wire = self._enum(field.of) if field.type == "enum" else SCALARS.get(field.type, OPEN)
        if field.repeated or field.oneof:
            return msgspec.structs.replace(wire, omitted=False)
        return wire

    def _enum(self, name: str) -> Wire:
        enum = self._enums.get(name)
        if enum is None or enum.json == "number":
            return NUMBER
        zero = next((word for word, value in enum.values.items() if value == 0), None)
        return Wire("string", True, zero, frozenset(enum.values))

    def is_int64(self, name: str, kind: str, path: str) -> bool:
        """Is *path* of an event called *name*, its data of `@type` *kind* ('' if unsaid), an int64?"""
        key = (name, kind, path)
        found = self._int64.get(key)
        if found is None:
            if len(self._int64) >= 10_000:
                self._int64.clear()
            messages = (kind.rpartition("/")[2],) if kind else self.types(name)
            wires = [self.at(message, path.removeprefix(DATA)) for message in messages]
            found = path.startswith(DATA) and any(wire and wire.kind == "int64" for wire in wires)
            self._int64[key] = found
        return found
