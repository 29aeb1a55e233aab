"""Which rules want an event?  No I/O, no clock, no logging in this file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from bridge.event import Event, Identifiers
from bridge.pattern.leaves import Why
from bridge.rules.index import Drawer, index
from bridge.rules.matcher import Matcher, Subject, Wide, never
from bridge.rules.names import Names

OWN = ("bridge.", "notification.")
"""Names no event stream of The Things Stack has."""


Envelope: TypeAlias = tuple[str, tuple[Identifiers, ...]]
KNOWN = 4096  # envelopes of which it is remembered who wants them

LINTS: Mapping[str, str] = {
    "unknown-name": "a name, or a pattern of names, that no event of The Things Stack v3.32 has",
    "unknown-path": "a path into data that the events' type does not have",
    "unheard": "an event no application stream carries, while only applications are followed",
    "zero": "a zero, false or empty value of a field that is left out when it is that",
    "never": "something that can never match",
    "shadowed": "an earlier rule already sends all of it to the same sinks",
    "template": "a template of a sink the rule sends to fails on a sample of its events",
    "rights": "events a key may not see, or no followed stream carries (`check --online`)",
}
"""The warnings `allow` may name."""


@dataclass(frozen=True, slots=True)
class Sample:
    """*part* of every *whole* events, chosen by `unique_id`: the same ones for every rule and start."""

    part: int
    whole: int

    def takes(self, unique_id: str) -> bool:
        digest = hashlib.blake2b(unique_id.encode(), digest_size=8).digest()
        return int.from_bytes(digest) * self.whole < self.part << 64

    def __str__(self) -> str:
        return f"{self.part}/{self.whole}"


@dataclass(frozen=True, slots=True)
class Example:
    """One entry of a rule's `tests:`; *line* from 1."""

    line: int
    sends: tuple[str, ...]
    description: str = ""
    event: Mapping[str, Any] | None = None
    file: str | None = None
    unique_id: str | None = None
    """Which event of *file*, a path relative to the rule file."""


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    send: tuple[str, ...]
    match: Matcher
    unless: Matcher | None = None
    sample: Sample | None = None
    attach_related: bool = False
    """Deliver with the other events of its correlation ids, as `event.related`."""
    allow: Mapping[str, str] = field(default_factory=dict)
    """Lints that do not apply here, each with the reason."""
    tests: tuple[Example, ...] = ()
    file: str = ""
    line: int = 0
    number: int = 0
    """Which rule of *file*, from 0."""

    def matchers(self) -> Iterator[Matcher]:
        """All blocks of `match` and `unless`."""
        yield from self.match.blocks()
        if self.unless is not None:
            yield from self.unless.blocks()

    @property
    def is_shallow(self) -> bool:
        """Does it judge by name and identifiers alone?"""
        unless = self.unless is None or self.unless.is_shallow
        return self.match.is_shallow and unless and self.sample is None

    def mismatch(self, subject: Subject) -> Why | None:
        """Why the rule does not want *subject*: the first clause that failed; None if it does.

        The engine, `bridge explain`, `bridge test` and the page all ask this, so they cannot disagree.
        """
        why = self.match.mismatch(subject)
        if why is not None:
            return why
        if self.unless is not None and self.unless.mismatch(subject) is None:
            return Why(lambda: "unless matches")
        if self.sample is not None and not self.sample.takes(subject.event.unique_id):
            return Why("sample {} leaves it out".format, self.sample)
        return None


@dataclass(frozen=True, slots=True)
class _Filed:
    """Some of *rules*, by their *numbers*, with an index of their own."""

    rules: tuple[Rule, ...]
    numbers: Sequence[int]
    index: Drawer

    @classmethod
    def of(cls, rules: tuple[Rule, ...], numbers: Sequence[int]) -> _Filed:
        return cls(rules, numbers, index((number, rules[number].match) for number in numbers))

    def wanting(self, subject: Subject) -> tuple[int, ...]:
        """The numbers of those that want *subject*, in order."""
        found: set[int] = set()
        self.index.find(subject, found)
        return tuple(number for number in sorted(found) if self.rules[number].mismatch(subject) is None)


class RuleSet:
    """Rules ready to be asked; what they were asked before makes the next answer quick, and changes none."""

    def __init__(self, rules: tuple[Rule, ...], wide: Wide) -> None:
        self.rules = rules
        self._wide = wide
        self._names = Names(pattern for rule in rules for each in rule.matchers() for pattern in each.names)
        self._shallow = _Filed.of(rules, [number for number, rule in enumerate(rules) if rule.is_shallow])
        self._deep = _Filed.of(rules, [number for number, rule in enumerate(rules) if not rule.is_shallow])
        self._known: dict[Envelope, tuple[Sequence[int], tuple[Rule, ...]]] = {}
        """What shallow rules want of events with this name and these identifiers."""
        self.samples = {rule.name: rule.sample for rule in rules if rule.sample}
        whole = tuple(replace(rule, sample=None) for rule in rules if rule.sample)
        self._whole = RuleSet(whole, wide) if whole else None

    @classmethod
    def of(cls, rules: Iterable[Rule], wide: Wide = never) -> RuleSet:
        """*wide* knows the 64-bit integers of the wire (`Catalogue.is_int64`)."""
        return cls(tuple(rules), wide)

    def subject(self, event: Event) -> Subject:
        return Subject(event, self._names, self._wide)

    def select(self, event: Event) -> tuple[Rule, ...]:
        """The rules that want *event*, in their order."""
        envelope = event.name, event.identifiers
        known = self._known.get(envelope)
        if known is None:
            if len(self._known) >= KNOWN:
                self._known.clear()
            numbers = self._shallow.wanting(self.subject(event))
            known = self._known[envelope] = numbers, tuple(self.rules[number] for number in numbers)
        if not self._deep.numbers:
            return known[1]
        deep = self._deep.wanting(self.subject(event))
        return tuple(self.rules[number] for number in sorted((*known[0], *deep))) if deep else known[1]

    def left_out(self, event: Event) -> tuple[str, ...]:
        """The names of rules that would want *event* if their `sample` took it."""
        if self._whole is None:
            return ()
        wanted = (rule.name for rule in self._whole.select(event))
        return tuple(name for name in wanted if not self.samples[name].takes(event.unique_id))

    def names(self) -> list[str]:
        """What to ask The Things Stack for, exact names and `/regex/`; empty means everything."""
        return upstream_names([rule.match for rule in self.rules])


def upstream_names(matchers: Sequence[Matcher]) -> list[str]:
    """`StreamEventsRequest.names` that cover what *matchers* can match; empty for everything.

    "Everything" leaves out `gcs.managed.*`, which a server sends only to who names them
    (pkg/events/mux/mux.go in v3.32); `/` is the expression that names all.
    """
    patterns = [matcher.name_patterns() for matcher in matchers]
    wanted = {each for found in patterns for each in found if not (each.exact and each.text.startswith(OWN))}
    if all(patterns):
        return sorted({each.upstream for each in wanted})
    return ["/"] if any("gcs" in each.text for each in wanted) else []
