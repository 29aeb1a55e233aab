"""Identifiers: as The Things Stack makes them, and ours.  No I/O, no clock; chance is an argument."""

from __future__ import annotations

import hashlib
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
VALUES = {letter: value for value, letter in enumerate(CROCKFORD)}


PAIRS = tuple(first + second for first, second in product("abcdefghijklmnopqrstuvwxyz234567", repeat=2))
SHIFTS = range(120, -1, -10)
"""130 bits are 26 letters of base32 (RFC 4648 §6), two at a time: Python's own takes four times as long."""


def digest(*parts: str) -> str:
    """26 letters that stand for *parts*, in every process the same: 130 bits of a SHA-256."""
    bits = int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:17], "big") >> 6
    return "".join([PAIRS[bits >> shift & 1023] for shift in SHIFTS])


def ulid(ns: int, rng: random.Random) -> str:
    """A ULID of *ns* nanoseconds since 1970: its millisecond and 80 random bits.

    Sortable by millisecond and not inside one (pkg/events/correlation_context.go in v3.32).
    """
    value = (ns // 1_000_000) << 80 | rng.getrandbits(80)
    return "".join(CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


def made_at(ulid: str) -> float | None:
    """Unix seconds at which *ulid* was made; None for what is none."""
    if len(ulid) != 26 or ulid[0] > "7":
        return None
    milliseconds = 0
    for letter in ulid[:10]:
        value = VALUES.get(letter)
        if value is None:
            return None
        milliseconds = milliseconds << 5 | value
    return milliseconds / 1000


def error_id(rng: random.Random) -> str:
    """The `correlation_id` of one error."""
    return f"{rng.getrandbits(128):032x}"
