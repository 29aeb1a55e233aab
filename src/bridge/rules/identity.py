"""Which identifiers and addresses a rule means.  No I/O, no clock, no logging in this file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import re2

from bridge.rules.names import MatchError, regex

IDENTIFIERS = ("application", "device", "gateway", "organization", "user", "client")
HEX_BITS: Mapping[str, int] = {"dev_addr": 32, "dev_eui": 64, "join_eui": 64, "eui": 64}
"""Width of the addresses a matcher may name; `eui` is a gateway's."""
FEW = 4  # identifiers of a rule


@dataclass(frozen=True, slots=True)
class Glob:
    """An id with `*` for any characters; of two parts for a device."""

    text: str
    prefix: str
    """What comes before the first `*`."""
    search: Callable[[str], Any]

    @classmethod
    def compile(cls, text: str) -> Glob:
        source = "[^/]*".join(re2.escape(part) for part in text.split("*"))
        return cls(text, text.partition("*")[0], regex(f"^{source}$").search)


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first *bits* bits of an address."""

    bits: int
    value: int


Ids: TypeAlias = Mapping[str, Sequence[str]]
"""What an event names: the fields of a matcher (and `device_id`) to their values; addresses upper-case."""


class Identified(Protocol):
    """What an event is about."""

    @property
    def pairs(self) -> frozenset[tuple[str, str]]:
        """The same as *ids*, pair by pair."""
        ...

    @property
    def ids(self) -> Ids: ...


@dataclass(frozen=True, slots=True)
class Identity:
    """One identifier field of a matcher: any of these."""

    field: str
    """As written: `device`, `dev_addr`."""
    key: str
    """Where in `Ids` to look: `device_id` for a device in any application."""
    texts: tuple[str, ...]
    exact: Collection[tuple[str, str]] = ()
    """Pairs of *key* and value: a tuple of few, which is small, or a set of many, which is fast."""
    globs: tuple[Glob, ...] = ()
    prefixes: tuple[Prefix, ...] = ()

    def holds(self, subject: Identified) -> bool:
        if not subject.pairs.isdisjoint(self.exact):
            return True
        if not (self.globs or self.prefixes):
            return False
        values = subject.ids.get(self.key, ())
        if any(glob.search(value) for glob in self.globs for value in values):
            return True
        return any(self._begins(value, prefix) for prefix in self.prefixes for value in values)

    def _begins(self, value: str, prefix: Prefix) -> bool:
        number = address(value)
        return number is not None and number >> (HEX_BITS[self.field] - prefix.bits) == prefix.value


def address(value: str) -> int | None:
    """The number that the hex *value* is; None if it is none, as from a server gone wrong."""
    try:
        return int(value, 16)
    except ValueError:
        return None


def identities(field: str, texts: Sequence[str]) -> tuple[Identity, ...]:
    """The identities *texts* of *field* stand for, to be ORed; raises MatchError."""
    if field in HEX_BITS:
        return (_addresses(field, texts),)
    for text in texts:
        if not text or (field != "device" and "/" in text) or text.count("/") > 1 or text.strip("/") != text:
            form = "application/device or device" if field == "device" else "an id, or one with *"
            raise MatchError(f"is not an id; write {form}")
    whole = [text for text in texts if field != "device" or "/" in text]
    alone = [text for text in texts if text not in whole]
    parts = [(field, whole), ("device_id", alone)]
    return tuple(_ids(field, key, part) for key, part in parts if part)


def _ids(field: str, key: str, texts: Sequence[str]) -> Identity:
    exact = {(key, text) for text in texts if "*" not in text}
    globs = tuple(Glob.compile(text) for text in texts if "*" in text)
    return Identity(field, key, tuple(texts), _fixed(exact), globs)


def _fixed(pairs: set[tuple[str, str]]) -> Collection[tuple[str, str]]:
    return tuple(sorted(pairs)) if len(pairs) <= FEW else frozenset(pairs)


def _addresses(field: str, texts: Sequence[str]) -> Identity:
    width = HEX_BITS[field]
    exact: set[tuple[str, str]] = set()
    prefixes: list[Prefix] = []
    for text in texts:
        digits, slash, length = text.partition("/")
        star = digits.endswith("*") and not slash
        digits = hex_digits(digits.removesuffix("*"), width)
        if star or slash:
            bits = _bits(length, digits, width) if slash else 4 * len(digits)
            prefixes.append(Prefix(bits, int(digits.ljust(width // 4, "0"), 16) >> (width - bits)))
        elif len(digits) == width // 4:
            exact.add((field, digits))
        else:
            example = "26000000/7" if width == 32 else "70B3D57ED0000000/24"
            raise MatchError(f"needs {width // 4} hex digits, or a prefix such as {example}")
    return Identity(field, field, tuple(texts), _fixed(exact), (), tuple(prefixes))


def hex_digits(text: str, width: int) -> str:
    """*text* in upper-case hex without `0x - :`; raises MatchError."""
    digits = text.removeprefix("0x").removeprefix("0X").replace("-", "").replace(":", "").upper()
    if len(digits) > width // 4 or any(digit not in "0123456789ABCDEF" for digit in digits):
        raise MatchError(f"must be up to {width // 4} hex digits, with or without 0x - :")
    return digits


def _bits(text: str, digits: str, width: int) -> int:
    if not (text.isascii() and text.isdigit() and digits and int(text) <= width):
        raise MatchError(f"needs a number of bits from 0 to {width} after the slash")
    return int(text)
