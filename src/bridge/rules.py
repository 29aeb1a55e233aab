"""Which rules want an event?  No I/O, no clock, no logging in this file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge.event import Event
from bridge.matcher import Matcher, NamePattern, Subject

OWN = ("bridge.", "notification.")
"""Names no event stream of The Things Stack has."""


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
class Test:
    """One entry of a rule's `tests:`; *line* from 1."""

    line: int
    sends: tuple[str, ...]
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
    tests: tuple[Test, ...] = ()
    file: str = ""
    line: int = 0
    number: int = 0
    """Which rule of *file*, from 0."""

    def mismatch(self, subject: Subject) -> str | None:
        """Why the rule does not want *subject*: the first clause that failed; None if it does."""
        why = self.match.mismatch(subject)
        if why is None and self.unless is not None and self.unless.mismatch(subject) is None:
            return "unless matches"
        if why is None and self.sample is not None and not self.sample.takes(subject.event.unique_id):
            return f"sample {self.sample} leaves it out"
        return why


@dataclass(frozen=True, slots=True)
class RuleSet:
    rules: tuple[Rule, ...]
    _by_name: dict[str, tuple[Rule, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, rules: Iterable[Rule]) -> RuleSet:
        return cls(tuple(rules))

    def select(self, event: Event) -> tuple[Rule, ...]:
        """The rules that want *event*, in their order."""
        candidates = self._by_name.get(event.name)
        if candidates is None:
            candidates = tuple(rule for rule in self.rules if rule.match.may_be_named(event.name))
            if len(self._by_name) > 10_000:
                self._by_name.clear()
            self._by_name[event.name] = candidates
        subject = Subject(event)
        return tuple(rule for rule in candidates if rule.mismatch(subject) is None)

    def names(self) -> list[str]:
        """What to ask The Things Stack for, exact names and `/regex/`; empty means everything."""
        return upstream_names([rule.match for rule in self.rules])


def upstream_names(matchers: Sequence[Matcher]) -> list[str]:
    """`StreamEventsRequest.names` that cover what *matchers* can match; empty for everything."""
    wanted: set[str] = set()
    for matcher in matchers:
        patterns: tuple[NamePattern, ...] = matcher.name_patterns()
        if not patterns:
            return []
        wanted.update(p.upstream for p in patterns if not (p.exact and p.text.startswith(OWN)))
    return sorted(wanted)
