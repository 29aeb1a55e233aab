"""Which rules could want an event, found without asking each.  No I/O, no clock, no logging in this file.

A rule that wants an event shows it in its keys: one of the names, identifiers or exact values it asks for is
there. Each rule is filed under the keys of that one of its fields that the fewest other rules share; a drawer
that stays full is divided again by the other fields. What has no keys (a numeric range alone) is always a
candidate. The candidates still have to be judged: the index only leaves out who cannot match.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from bridge.pattern import Clause, Pattern
from bridge.pattern.leaves import Field
from bridge.pattern.operators import keys
from bridge.rules.identity import HEX_BITS, Identity, address
from bridge.rules.matcher import Matcher, Subject

Key: TypeAlias = tuple[object, ...]
Demand: TypeAlias = tuple[Key, ...]
"""A matching event has at least one of these keys. Mostly it is one; a set of it is four times as large."""

FULL = 8  # rules in a drawer that are judged rather than divided
DEPTH = 4  # fields a rule may be filed by


NOTHING: Mapping[Key, Drawer] = {}


@dataclass(frozen=True, slots=True)
class Drawer:
    """*rules* are candidates at once; *inside* holds more of them by key.

    The other fields are what an event has to be asked for its keys.
    """

    rules: tuple[int, ...]
    inside: Mapping[Key, Drawer]
    names: bool = False
    ids: bool = False
    globs: tuple[tuple[str, int], ...] = ()
    prefixes: tuple[tuple[str, int], ...] = ()
    fields: tuple[Field, ...] = ()

    def find(self, subject: Subject, found: set[int]) -> None:
        """Add to *found* all that could want *subject*."""
        found.update(self.rules)
        inside = self.inside
        if inside:
            for key in self.keys(subject):
                drawer = inside.get(key)
                if drawer is not None:
                    drawer.find(subject, found)

    def keys(self, subject: Subject) -> Iterator[Key]:
        if self.names:
            for text in subject.fitting:
                yield "name", text
        if self.ids:
            yield from subject.pairs
        for name, length in self.globs:
            for value in subject.ids.get(name, ()):
                yield "glob", name, length, value[:length]
        for name, bits in self.prefixes:
            for value in subject.ids.get(name, ()):
                number = address(value)
                if number is not None:
                    yield "bits", name, bits, number >> (HEX_BITS[name] - bits)
        for wanted in self.fields:
            for value, _ in subject.leaves.at(wanted):
                for each in keys(value):
                    yield "=", wanted.path, each


def index(matchers: Iterable[tuple[int, Matcher]]) -> Drawer:
    """File matchers under their numbers."""
    filed = [(number, demands(matcher)) for number, matcher in matchers]
    return _drawer(filed, DEPTH)


def _drawer(filed: Sequence[tuple[int, Sequence[Demand]]], depth: int) -> Drawer:
    if len(filed) <= FULL or depth == 0:
        return Drawer(tuple(number for number, _ in filed), NOTHING)
    crowd = Counter(key for _, wanted in filed for demand in wanted for key in demand)
    always: list[int] = []
    inside: dict[Key, list[tuple[int, Sequence[Demand]]]] = {}
    for number, wanted in filed:
        best = min(wanted, key=lambda demand: max(crowd[key] for key in demand), default=None)
        if best is None:
            always.append(number)
            continue
        rest = [demand for demand in wanted if demand is not best]
        for key in best:
            inside.setdefault(key, []).append((number, rest))
    drawers = {key: _drawer(each, depth - 1) for key, each in inside.items()}
    asked = _Questions()
    for key in drawers:
        asked.ask(key)
    globs, prefixes, fields = tuple(asked.globs), tuple(asked.prefixes), tuple(map(Field, asked.paths))
    return Drawer(tuple(always), drawers, asked.names, asked.ids, globs, prefixes, fields)


@dataclass(slots=True)
class _Questions:
    """What an event has to be asked to know which keys of a drawer it has."""

    names: bool = False
    ids: bool = False
    globs: dict[tuple[str, int], None] = field(default_factory=dict)
    prefixes: dict[tuple[str, int], None] = field(default_factory=dict)
    paths: dict[str, None] = field(default_factory=dict)

    def ask(self, key: Key) -> None:
        match key:
            case ("name", _):
                self.names = True
            case ("glob", str(name), int(length), _):
                self.globs[name, length] = None
            case ("bits", str(name), int(bits), _):
                self.prefixes[name, bits] = None
            case ("=", str(path), _):
                self.paths[path] = None
            case _:
                self.ids = True


def demands(matcher: Matcher) -> list[Demand]:
    """What *matcher* demands of an event, field by field; a field without keys is left out."""
    found: list[Demand] = []
    if matcher.names:
        found.append(_demand(("name", pattern.text) for pattern in matcher.names))
    found += [_demand(key for each in ored for key in _identity(each)) for ored in matcher.identities]
    if matcher.content is not None:
        found += _content(matcher.content)
    if matcher.any:
        blocks = [demands(block) for block in matcher.any]
        if all(blocks):
            found.append(_demand(key for block in blocks for key in min(block, key=_looseness)))
    return found


def _demand(keys: Iterable[Key]) -> Demand:
    return tuple(dict.fromkeys(keys))


def _looseness(demand: Demand) -> tuple[bool, int]:
    """Of the fields of a block of `any`, rather an identifier or a value than a name."""
    return any(key[0] == "name" for key in demand), len(demand)


def _identity(identity: Identity) -> Iterator[Key]:
    yield from identity.exact
    for glob in identity.globs:
        yield "glob", identity.key, len(glob.prefix), glob.prefix
    for prefix in identity.prefixes:
        yield "bits", identity.key, prefix.bits, prefix.value


def _content(pattern: Pattern) -> list[Demand]:
    """One demand a field of plain values; of alternatives, one made of a field of each."""
    alternatives = [[_clause(clause) for clause in each if clause.exact] for each in pattern.alternatives]
    if len(alternatives) == 1:
        return alternatives[0]
    return [_demand(key for each in alternatives for key in each[0])] if all(alternatives) else []


def _clause(clause: Clause) -> Demand:
    return _demand(("=", clause.field.path, each) for each in clause.exact or ())
