"""Text and numbers of the well-known types, as protojson writes them."""

from __future__ import annotations

import math
import struct
from datetime import datetime, timedelta
from functools import lru_cache

from bridge.errors import FrameError

EPOCH = datetime(1970, 1, 1)  # all UTC, and naive arithmetic is twice as fast
FIRST, LAST = -62_135_596_800, 253_402_300_799  # seconds: years 1 to 9999 (timestamp.proto)
LONGEST = 315_576_000_000  # seconds: 10,000 years (duration.proto)
NANOS = 1_000_000_000
EXACT = 1 << 53  # from here on a float is not every integer

WRAPPERS = {
    "google.protobuf.BoolValue": "bool",
    "google.protobuf.Int32Value": "int32",
    "google.protobuf.UInt32Value": "uint32",
    "google.protobuf.Int64Value": "int64",
    "google.protobuf.UInt64Value": "uint64",
    "google.protobuf.FloatValue": "float",
    "google.protobuf.DoubleValue": "double",
    "google.protobuf.StringValue": "string",
    "google.protobuf.BytesValue": "bytes",
}
"""Messages of one field `value`, number 1, whose JSON is that value alone."""


def timestamp_text(seconds: int, nanos: int) -> str:
    """RFC 3339, UTC, 0, 3, 6 or 9 digits; raises FrameError outside the years 1 to 9999."""
    if not (FIRST <= seconds <= LAST and 0 <= nanos < NANOS):
        raise FrameError("a timestamp is out of range")
    return f"{_second(seconds)}{fraction(nanos)}Z" if nanos else _second(seconds) + "Z"


@lru_cache(maxsize=1024)
def _second(seconds: int) -> str:
    return (EPOCH + timedelta(seconds=seconds)).isoformat()


def fraction(nanos: int) -> str:
    """`.066`, `.066123` or `.066123456`; '' for 0."""
    if not nanos:
        return ""
    digits = f".{nanos:09d}"
    return digits[:-6] if digits.endswith("000000") else digits.removesuffix("000")


def timestamp_of(text: str) -> tuple[int, int]:
    """Seconds since 1970 and nanoseconds of an RFC 3339 time in UTC; raises FrameError."""
    whole, _, rest = text.removesuffix("Z").partition(".")
    try:
        seconds = (datetime.fromisoformat(whole) - EPOCH) // timedelta(seconds=1)
        return seconds, _nanos(rest)
    except (ValueError, TypeError):
        raise FrameError("not a time in UTC") from None


def _nanos(digits: str) -> int:
    if len(digits) > 9 or (digits and not (digits.isascii() and digits.isdigit())):
        raise ValueError
    return int(digits.ljust(9, "0"))


def duration_text(seconds: int, nanos: int) -> str:
    """`0.066s`; raises FrameError if the parts have different signs or are out of range."""
    if abs(seconds) > LONGEST or abs(nanos) >= NANOS or seconds * nanos < 0:
        raise FrameError("a duration is out of range")
    sign = "-" if seconds < 0 or nanos < 0 else ""
    return f"{sign}{abs(seconds)}{fraction(abs(nanos))}s"


def duration_of(text: str) -> tuple[int, int]:
    """Seconds and nanoseconds, both with the sign; raises FrameError."""
    whole, _, rest = text.removesuffix("s").lstrip("-").partition(".")
    sign = -1 if text.startswith("-") else 1
    try:
        return sign * int(whole), sign * _nanos(rest)
    except ValueError:
        raise FrameError("not a duration") from None


@lru_cache(maxsize=4096)
def float_number(four: bytes) -> float | int | str:
    """A `float` as JSON: the shortest decimal that gives the same 32 bits again, as Go writes it."""
    (value,) = struct.unpack("<f", four)
    if not math.isfinite(value):
        return number(value)
    for digits in range(6, 9):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == four:
            return number(short)
    return number(float(f"{value:.9g}"))


def number(value: float) -> float | int | str:
    """A `double` as JSON: whole ones without `.0`, NaN and the infinities as text."""
    if value.is_integer() and abs(value) < EXACT and not (value == 0 and math.copysign(1, value) < 0):
        return int(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def float_of(value: object) -> float:
    """The other way; raises FrameError."""
    try:
        return float(value) if isinstance(value, int | float | str) else _not_a_number()
    except (ValueError, OverflowError):
        return _not_a_number()


def _not_a_number() -> float:
    raise FrameError("not a number")
