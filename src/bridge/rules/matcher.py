"""Does an event match?  Names, identifiers, content, and why not.  No I/O, no clock, no logging in this file.

`Matcher.mismatch` is the one answer: the engine, `bridge explain`, `bridge test` and the page all ask it, so
they cannot disagree. `rules/README.md` is the normative text of what is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeAlias

from bridge.event import Event, Identifiers, entity_of
from bridge.pattern import Pattern
from bridge.pattern.leaves import Leaves, Why
from bridge.rules.identity import Identity, Ids
from bridge.rules.names import NamePattern, Names

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

    @property
    def is_shallow(self) -> bool:
        """Does it ask for name and identifiers alone?"""
        return self.content is None and all(block.is_shallow for block in self.any)

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
