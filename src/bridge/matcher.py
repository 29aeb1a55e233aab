"""Does an event match?  Names, identifiers, content, and why not.  No I/O, no clock, no logging in this file.

`Matcher.mismatch` is the one answer: the engine, `bridge explain`, `bridge test` and the page all ask it, so
they cannot disagree. `rules/README.md` is the normative text of what is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeAlias

import re2

from bridge.event import Event, Identifiers, entity_of
from bridge.pattern import Leaves, Pattern, Why

IDENTIFIERS = ("application", "device", "gateway", "organization", "user", "client")
HEX_BITS: Mapping[str, int] = {"dev_addr": 32, "dev_eui": 64, "join_eui": 64, "eui": 64}
"""Width of the addresses a matcher may name; `eui` is a gateway's."""
MAX_NAMES = 10_000  # distinct event names remembered; a server has a few hundred


class MatchError(ValueError):
    """Not a name, identifier or address pattern; the message says what to write instead."""


def _options() -> Any:
    options = re2.Options()
    options.log_errors = False
    return options


@dataclass(frozen=True, slots=True)
class NamePattern:
    """An exact event name, a glob over its segments, or `/regex/` as The Things Stack has it."""

    text: str
    exact: bool
    search: Callable[[str], Any]
    """Truthy if the name matches."""
    upstream: str
    """The same in the language of `StreamEventsRequest.names` (pkg/events/pattern.go in v3.32)."""

    @classmethod
    def compile(cls, text: str) -> NamePattern:
        """Raises MatchError.

        A value that begins and ends with a slash is an unanchored RE2 expression without all the slashes
        around it (`strings.Trim`). Else `*` is one dotted segment and `**` is any number, none included.
        """
        if text[:1] == "/" == text[-1:]:
            return cls(text, False, _regex(text.strip("/")).search, text)
        segments = text.split(".")
        if "" in segments:
            raise MatchError("has an empty segment; write a name such as as.up.data.forward")
        if any("*" in segment and segment not in ("*", "**") for segment in segments):
            raise MatchError(
                r"has a * beside other characters: it stands for a whole segment; or write /^as\.up/"
            )
        if "*" not in text:
            return cls(text, True, text.__eq__, text)
        source = _glob_source(segments)
        return cls(text, False, _regex(source).search, f"/{source}/")

    def holds(self, name: str) -> bool:
        return name == self.text if self.exact else bool(self.search(name))


def _regex(source: str) -> Any:
    try:
        return re2.compile(source, _options())
    except re2.error as error:
        said = error.args[0]
        problem = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        raise MatchError(f"is not a regular expression of RE2: {problem.partition(': ')[0]}") from None


def _glob_source(segments: Sequence[str]) -> str:
    """An anchored expression; each `**` takes the dot beside it along."""
    rest = list(segments)
    source = ""
    while rest and rest[0] == "**":
        rest.pop(0)
        source = r"(?:[^.]+\.)*"
    if not rest:
        return "^.+$"
    for number, segment in enumerate(rest):
        dot = r"\." if number else ""
        if segment == "**":
            source += r"(?:\.[^.]+)*"
        else:
            source += dot + ("[^.]+" if segment == "*" else re2.escape(segment))
    return f"^{source}$"


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
        return cls(text, text.partition("*")[0], _regex(f"^{source}$").search)


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first *bits* bits of an address."""

    bits: int
    value: int


Ids: TypeAlias = Mapping[str, Sequence[str]]
"""What an event names: the fields of a matcher (and `device_id`) to their values; addresses upper-case."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One identifier field of a matcher: any of these."""

    field: str
    """As written: `device`, `dev_addr`."""
    key: str
    """Where in `Ids` to look: `device_id` for a device in any application."""
    texts: tuple[str, ...]
    exact: frozenset[tuple[str, str]] = frozenset()
    """Pairs of *key* and value."""
    globs: tuple[Glob, ...] = ()
    prefixes: tuple[Prefix, ...] = ()

    def holds(self, subject: Subject) -> bool:
        if not self.exact.isdisjoint(subject.pairs):
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
    exact = frozenset((key, text) for text in texts if "*" not in text)
    globs = tuple(Glob.compile(text) for text in texts if "*" in text)
    return Identity(field, key, tuple(texts), exact, globs)


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
    return Identity(field, field, tuple(texts), frozenset(exact), (), tuple(prefixes))


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


class Names:
    """Which name patterns an event name fits, worked out once for each distinct name."""

    def __init__(self, patterns: Iterable[NamePattern]) -> None:
        self._patterns = {pattern.text: pattern for pattern in patterns}
        self._fitting: dict[str, frozenset[str]] = {}

    def fitting(self, name: str) -> frozenset[str]:
        """The texts of the patterns that *name* fits."""
        found = self._fitting.get(name)
        if found is None:
            if len(self._fitting) >= MAX_NAMES:
                self._fitting.clear()
            found = frozenset(text for text, pattern in self._patterns.items() if pattern.holds(name))
            self._fitting[name] = found
        return found


Wide: TypeAlias = Callable[[str, str, str], bool]
"""Of event name, `@type` of its data and path: is there a 64-bit integer, which JSON has as a string?"""


def never(_name: str, _type: str, _path: str) -> bool:
    return False


class Subject:
    """One event as matchers see it; what they ask for is worked out once, and only then."""

    def __init__(self, event: Event, names: Names | None = None, wide: Wide = never) -> None:
        self.event = event
        self._names = names
        self._wide = wide

    def named(self, patterns: Sequence[NamePattern]) -> bool:
        """Does its name fit one of *patterns*?"""
        if self._names is None:
            return any(pattern.holds(self.event.name) for pattern in patterns)
        return any(pattern.text in self.fitting for pattern in patterns)

    @cached_property
    def fitting(self) -> frozenset[str]:
        return self._names.fitting(self.event.name) if self._names else frozenset()

    @cached_property
    def pairs(self) -> frozenset[tuple[str, str]]:
        """Identifier field and value, of all identifiers."""
        return frozenset(pair for each in self.event.identifiers for pair in pairs_of(each) if pair[1])

    @cached_property
    def ids(self) -> Ids:
        found: dict[str, list[str]] = {}
        for key, value in sorted(self.pairs):
            found.setdefault(key, []).append(value)
        return found

    @cached_property
    def leaves(self) -> Leaves:
        document = self.event.document()
        data = document.get("data")
        kind = data.get("@type") if isinstance(data, dict) else None
        return Leaves(document, partial(self._wide, self.event.name, kind if isinstance(kind, str) else ""))


def pairs_of(ids: Identifiers) -> Sequence[tuple[str, str]]:
    """Identifier field and value of one identifier; '' where it has none."""
    if (device := ids.device_ids) is not None:
        application = device.application_ids.application_id
        return (
            ("application", application),
            ("device", f"{application}/{device.device_id}"),
            ("device_id", device.device_id),
            ("dev_eui", device.dev_eui.upper()),
            ("join_eui", device.join_eui.upper()),
            ("dev_addr", device.dev_addr.upper()),
        )
    if (gateway := ids.gateway_ids) is not None:
        return ("gateway", gateway.gateway_id), ("eui", gateway.eui.upper())
    entity = entity_of(ids)
    return ((entity.kind, entity.id),) if entity else ()


@dataclass(frozen=True, slots=True)
class Matcher:
    """Fields are ANDed, the values of one field are ORed, an empty field matches all."""

    names: tuple[NamePattern, ...] = ()
    identities: tuple[tuple[Identity, ...], ...] = ()
    """A tuple a field; its members are ORed."""
    content: Pattern | None = None
    """Over the whole event."""
    any: tuple[Matcher, ...] = ()
    """At least one of them, if there are any."""

    def mismatch(self, subject: Subject) -> Why | None:
        """The first clause of the matcher that *subject* does not meet; None if it matches."""
        if self.names and not subject.named(self.names):
            return Why(_other_name, self.names, subject)
        for field in self.identities:
            if not any(identity.holds(subject) for identity in field):
                return Why(_no_identity, field, subject)
        if self.content is not None and (why := self.content.mismatch(subject.leaves)) is not None:
            return why
        return _none_of(self.any, subject) if self.any else None

    def may_be_named(self, name: str) -> bool:
        """Can an event of this *name* match?"""
        if self.names and not any(pattern.holds(name) for pattern in self.names):
            return False
        return not self.any or any(block.may_be_named(name) for block in self.any)

    def name_patterns(self) -> tuple[NamePattern, ...]:
        """Patterns one of which the name of a matching event fits; empty if it may have any name."""
        if self.names or not self.any:
            return self.names
        inner = [block.name_patterns() for block in self.any]
        return tuple(pattern for each in inner for pattern in each) if all(inner) else ()

    def blocks(self) -> Iterator[Matcher]:
        """The matcher itself and all blocks of `any` in it."""
        yield self
        for block in self.any:
            yield from block.blocks()


def _none_of(blocks: Sequence[Matcher], subject: Subject) -> Why | None:
    whys: list[Why] = []
    for block in blocks:
        why = block.mismatch(subject)
        if why is None:
            return None
        whys.append(why)
    return Why(_no_block, whys)


def _no_block(whys: Sequence[Why]) -> str:
    return "; ".join(f"any[{number}]: {why}" for number, why in enumerate(whys))


def _other_name(patterns: Sequence[NamePattern], subject: Subject) -> str:
    return f"name is {subject.event.name}, not {_or(pattern.text for pattern in patterns)}"


def _no_identity(field: Sequence[Identity], subject: Subject) -> str:
    name = field[0].field
    wanted = _or(text for identity in field for text in identity.texts)
    have = subject.ids.get(name)
    return f"{name} is {_or(have)}, not {wanted}" if have else f"no {name}, which must be {wanted}"


def _or(texts: Iterable[str]) -> str:
    return " or ".join(texts)
