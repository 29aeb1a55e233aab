"""A JSON value to the bytes of its message: for requests, the stand-in and tests.  No I/O in this file."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from bridge.errors import FrameError
from bridge.proto.kinds import MASK64, WELL_KNOWN
from bridge.proto.table import I64, LEN, VARINT, WIRE_TYPES, Enum, Field, Table, table
from bridge.proto.wellknown import WRAPPERS, duration_of, float_of, timestamp_of

Json: TypeAlias = Any

ANY = "google.protobuf.Any"


def encode(message: str, value: Mapping[str, Json], known: Table | None = None) -> bytes:
    """The bytes of *value*, JSON of a *message* by its full name; raises FrameError if it is not."""
    try:
        return _nested(known or table(), message, value)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, struct.error):
        raise FrameError(f"not the JSON of a {message}") from None


def _message(known: Table, message: str, value: Mapping[str, Json]) -> bytes:
    fields = {each.name: each for each in known.messages[message].fields}
    unknown = value.keys() - fields.keys()
    if unknown:
        raise FrameError(f"{message} has no field {min(unknown)}")
    return b"".join(
        _field(known, fields[name], value[name])
        for name in sorted(value, key=lambda each: fields[each].number)
    )


def _field(known: Table, field: Field, value: Json) -> bytes:
    nested = known.messages.get(field.of)
    if nested and nested.map_entry:
        pairs = ({"key": key, "value": each} for key, each in value.items())
        return b"".join(_tagged(field.number, LEN, _message(known, field.of, pair)) for pair in pairs)
    if not field.repeated:
        made = _single(known, field, value)
        shown = field.type == "message" or field.oneof or not _is_zero(field.wire_type, made)
        return _tagged(field.number, field.wire_type, made) if shown else b""
    if field.wire_type == LEN:
        return b"".join(_tagged(field.number, LEN, _single(known, field, each)) for each in value)
    packed = b"".join(_single(known, field, each) for each in value)
    return _tagged(field.number, LEN, packed) if packed else b""


def _is_zero(wire_type: int, made: bytes) -> bool:
    return not (made if wire_type == LEN else any(made))


def _tagged(number: int, wire_type: int, made: bytes) -> bytes:
    head = varint(number << 3 | wire_type)
    return head + varint(len(made)) + made if wire_type == LEN else head + made


def varint(number: int) -> bytes:
    number &= MASK64
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)


def _single(known: Table, field: Field, value: Json) -> bytes:
    if field.type == "message":
        return _nested(known, field.of, value)
    if field.type == "enum":
        return varint(_enum(known.enums[field.of], value))
    if field.json == "hex":
        return bytes.fromhex(value)
    return SCALARS[field.type](value)


def _enum(enum: Enum, value: Json) -> int:
    number = enum.values.get(value, -1) if isinstance(value, str) else int(value)
    if number < 0 and isinstance(value, str):
        raise FrameError("an enum has no such name")
    return number


def _text(value: Json) -> bytes:
    return str(value).encode()


def _whole(value: Json) -> bytes:
    return varint(int(value))


def _float(value: Json) -> bytes:
    return struct.pack("<f", float_of(value))


def _double(value: Json) -> bytes:
    return struct.pack("<d", float_of(value))


def _decoded(value: Json) -> bytes:
    return base64.b64decode(value)


SCALARS: dict[str, Callable[[Json], bytes]] = {
    "bool": _whole,
    "int32": _whole,
    "uint32": _whole,
    "int64": _whole,
    "uint64": _whole,
    "float": _float,
    "double": _double,
    "string": _text,
    "bytes": _decoded,
}


def _nested(known: Table, name: str, value: Json) -> bytes:
    if name == ANY:
        return _any(known, value)
    if name in WRAPPERS:
        made = SCALARS[WRAPPERS[name]](value)
        wire_type = WIRE_TYPES[WRAPPERS[name]]
        return b"" if _is_zero(wire_type, made) else _tagged(1, wire_type, made)
    if name in WELL_KNOWN:
        return FORMS[name](value)
    return _message(known, name, value)


def _any(known: Table, value: Mapping[str, Json]) -> bytes:
    url = value["@type"]
    name = url.rpartition("/")[2]
    if name in known.messages:
        made = _message(known, name, {key: each for key, each in value.items() if key != "@type"})
    elif name == ANY or name in WELL_KNOWN:
        made = _nested(known, name, value["value"])
    else:
        made = _decoded(value["value"])
    return _tagged(1, LEN, _text(url)) + (_tagged(2, LEN, made) if made else b"")


def _two_numbers(first: int, second: int) -> bytes:
    numbers = ((1, first), (2, second))
    return b"".join(_tagged(number, VARINT, varint(value)) for number, value in numbers if value)


def _timestamp(value: Json) -> bytes:
    return _two_numbers(*timestamp_of(value))


def _duration(value: Json) -> bytes:
    return _two_numbers(*duration_of(value))


def _struct(value: Mapping[str, Json]) -> bytes:
    entries = (_tagged(1, LEN, _text(key)) + _tagged(2, LEN, _value(each)) for key, each in value.items())
    return b"".join(_tagged(1, LEN, entry) for entry in entries)


def _list(value: list[Json]) -> bytes:
    return b"".join(_tagged(1, LEN, _value(each)) for each in value)


def _value(value: Json) -> bytes:
    match value:
        case None:
            return _tagged(1, VARINT, b"\0")
        case bool():
            return _tagged(4, VARINT, varint(value))
        case int() | float():
            return _tagged(2, I64, _double(value))
        case str():
            return _tagged(3, LEN, value.encode())
        case dict():
            return _tagged(5, LEN, _struct(value))
        case list() | tuple():
            return _tagged(6, LEN, _list(list(value)))
        case _:
            raise FrameError("not JSON")


def _empty(value: Json) -> bytes:
    return b""


FORMS: dict[str, Callable[[Json], bytes]] = {
    "google.protobuf.Timestamp": _timestamp,
    "google.protobuf.Duration": _duration,
    "google.protobuf.Struct": _struct,
    "google.protobuf.Value": _value,
    "google.protobuf.ListValue": _list,
    "google.protobuf.Empty": _empty,
}
