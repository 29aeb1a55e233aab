"""What makes a JSON value of one field: scalars and the well-known types.  No I/O in this file.

A maker takes a buffer and the two offsets between which the value is.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from bridge.errors import FrameError
from bridge.proto.table import I32, I64, LEN, VARINT, WIRE_TYPES, Enum, Field
from bridge.proto.wellknown import WRAPPERS, duration_text, float_number, number, timestamp_text

Json: TypeAlias = Any
Make: TypeAlias = Callable[[bytes, int, int], Json]

LONGEST_VARINT = 10  # bytes
MASK32, MASK64 = (1 << 32) - 1, (1 << 64) - 1


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at *at* and the offset behind it; raises IndexError at the end of *data*."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & MASK64, at
        shift += 7
        if shift >= 7 * LONGEST_VARINT:
            raise FrameError("a number is longer than 64 bits")


def fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Of each field its tag, wire type, and where its value begins and ends; raises FrameError, IndexError.

    One-byte tags and sizes, which nearly all are, are read without a call: that is a third of the time.
    """
    while at < end:
        key = data[at]
        at += 1
        if key > 0x7F:
            key, at = varint(data, at - 1)
        wire_type = key & 7
        if wire_type == LEN:
            size = data[at]
            at += 1
            if size > 0x7F:
                size, at = varint(data, at - 1)
        elif wire_type == VARINT:
            size = 1 if data[at] < 0x80 else varint(data, at)[1] - at
        elif wire_type in (I32, I64):
            size = 4 if wire_type == I32 else 8
        else:
            raise FrameError("a field of an unknown wire type")
        if at + size > end:
            raise FrameError("a field is longer than its message")
        yield key, wire_type, at, at + size
        at += size


def _number(data: bytes, at: int) -> int:
    byte = data[at]
    return byte if byte < 0x80 else varint(data, at)[0]


def int32(raw: int) -> int:
    low = raw & MASK32
    return low - (1 << 32) if low >> 31 else low


def int64(raw: int) -> int:
    return raw - (1 << 64) if raw >> 63 else raw


def _bool(data: bytes, at: int, end: int) -> bool:
    return _number(data, at) != 0


def _int32(data: bytes, at: int, end: int) -> int:
    return int32(_number(data, at))


def _uint32(data: bytes, at: int, end: int) -> int:
    return _number(data, at) & MASK32


def _int64(data: bytes, at: int, end: int) -> str:
    return str(int64(_number(data, at)))


def _uint64(data: bytes, at: int, end: int) -> str:
    return str(_number(data, at))


def _string(data: bytes, at: int, end: int) -> str:
    return data[at:end].decode()


def _base64(data: bytes, at: int, end: int) -> str:
    return base64.b64encode(data[at:end]).decode()


def _hex(data: bytes, at: int, end: int) -> str:
    """EUIs, addresses, keys (`MarshalHEXBytes`, pkg/types in v3.32)."""
    return data[at:end].hex().upper()


def _float(data: bytes, at: int, end: int) -> Json:
    return float_number(data[at:end])


def _double(data: bytes, at: int, end: int) -> Json:
    return number(struct.unpack("<d", data[at:end])[0])


SCALARS: dict[str, Make] = {
    "bool": _bool,
    "int32": _int32,
    "uint32": _uint32,
    "int64": _int64,
    "uint64": _uint64,
    "string": _string,
    "bytes": _base64,
    "float": _float,
    "double": _double,
}
ZEROS: dict[str, Json] = {"bool": False, "int64": "0", "uint64": "0", "string": "", "bytes": ""}
"""What JSON shows of a zero where it has to be shown; 0 for all other scalars."""


def enum(values: Enum) -> Make:
    """A number without a name stays a number."""
    if values.json == "number":
        return _int32
    names = values.names

    def name(data: bytes, at: int, end: int) -> Json:
        value = int32(_number(data, at))
        return names.get(value, value)

    return name


def scalar(field: Field, enums: dict[str, Enum]) -> Make:
    if field.json == "hex":
        return _hex
    return enum(enums[field.of]) if field.type == "enum" else SCALARS[field.type]


def packed(wire_type: int, make: Make) -> Make:
    """The list in one packed field: values without tags, one behind the other."""

    def listed(data: bytes, at: int, end: int) -> list[Json]:
        found = []
        while at < end:
            stop = varint(data, at)[1] if wire_type == VARINT else at + (4 if wire_type == I32 else 8)
            if stop > end:
                raise FrameError("a field is longer than its message")
            found.append(make(data, at, stop))
            at = stop
        return found

    return listed


FIRST, SECOND = 1 << 3, 2 << 3  # tags without their wire types


def _two_numbers(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Fields 1 and 2 of Timestamp and Duration."""
    seconds = nanos = 0
    for key, _, begin, _ in fields(data, at, end):
        if key == FIRST | VARINT:
            seconds = int64(varint(data, begin)[0])
        elif key == SECOND | VARINT:
            nanos = int32(varint(data, begin)[0])
    return seconds, nanos


def _timestamp(data: bytes, at: int, end: int) -> str:
    return timestamp_text(*_two_numbers(data, at, end))


def _duration(data: bytes, at: int, end: int) -> str:
    return duration_text(*_two_numbers(data, at, end))


def _struct(data: bytes, at: int, end: int) -> dict[str, Json]:
    """`Struct`: field 1 is a map from string to `Value`."""
    found: dict[str, Json] = {}
    for key, _, begin, stop in fields(data, at, end):
        if key == FIRST | LEN:
            name, value = "", None
            for part, _, first, last in fields(data, begin, stop):
                if part == FIRST | LEN:
                    name = data[first:last].decode()
                elif part == SECOND | LEN:
                    value = _value(data, first, last)
            found[name] = value
    return found


def _list(data: bytes, at: int, end: int) -> list[Json]:
    return [_value(data, begin, stop) for key, _, begin, stop in fields(data, at, end) if key == FIRST | LEN]


def _null(data: bytes, at: int, end: int) -> None:
    return None


def _value(data: bytes, at: int, end: int) -> Json:
    """`Value`: one of the six JSON types."""
    found: Json = None
    for key, _, begin, stop in fields(data, at, end):
        make = VALUES.get(key)
        if make is not None:
            found = make(data, begin, stop)
    return found


VALUES: dict[int, Make] = {
    1 << 3 | VARINT: _null,
    2 << 3 | I64: _double,
    3 << 3 | LEN: _string,
    4 << 3 | VARINT: _bool,
    5 << 3 | LEN: _struct,
    6 << 3 | LEN: _list,
}
"""By tag (struct.proto)."""


def _empty(data: bytes, at: int, end: int) -> dict[str, Json]:
    return {}


def _wrapped(type: str) -> Make:
    """A wrapper message: its only field, shown even when it is zero."""
    zero, tag, make = ZEROS.get(type, 0), FIRST | WIRE_TYPES[type], SCALARS[type]

    def unwrap(data: bytes, at: int, end: int) -> Json:
        found = zero
        for key, _, begin, stop in fields(data, at, end):
            if key == tag:
                found = make(data, begin, stop)
        return found

    return unwrap


WELL_KNOWN: dict[str, Make] = {
    "google.protobuf.Timestamp": _timestamp,
    "google.protobuf.Duration": _duration,
    "google.protobuf.Struct": _struct,
    "google.protobuf.Value": _value,
    "google.protobuf.ListValue": _list,
    "google.protobuf.Empty": _empty,
} | {name: _wrapped(type) for name, type in WRAPPERS.items()}
"""Messages whose JSON is of a form of its own; in an Any it stands under `value`."""
