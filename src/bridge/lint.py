"""What is allowed in a rule file and yet probably wrong.  No I/O, no clock, no logging in this file.

Every warning has a name (`LINTS` in `rules`); `allow: {name: reason}` in a rule takes it back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from bridge.alerts import Alert
from bridge.catalogue import DATA, Catalogue, EventName, Wire
from bridge.errors import Mistake
from bridge.pattern import Clause
from bridge.pattern.operators import Check, Int64
from bridge.rulefile import RuleFile
from bridge.rules import OWN, Rule
from bridge.rules.cover import covers
from bridge.rules.matcher import Matcher
from bridge.rules.names import NamePattern
from bridge.yamltext import Path

EVENT = "ttn.lorawan.v3.Event"
ID = re.compile(r"[a-z0-9*/-]+\Z")  # what ids are made of (identifiers.proto, v3.32), and our * and /


@dataclass(frozen=True, slots=True)
class _Place:
    """A block of a rule; *names* are all it can be about, None for any."""

    matcher: Matcher
    path: Path
    names: tuple[EventName, ...] | None


Pair = tuple[str, str]
Found = Iterator[tuple[str, Path, str]]
"""Name of the lint, place in the file, advice."""


def lint(files: Sequence[RuleFile], catalogue: Catalogue, *, followed: Collection[str] = ()) -> list[Mistake]:
    """A warning for each thing in *files* that cannot do what it seems to.

    *followed* are the kinds of entities whose streams are followed (`application`, `device`, ...); empty if
    that is not known.
    """
    earlier = _Earlier()
    warnings: list[Mistake] = []
    for file in files:
        for rule in file.rules:
            found = _rule(rule, earlier, catalogue, followed)
            warnings += _told(file, ("rules", rule.number), rule.allow, found)
            earlier.add(rule)
        for alert in file.alerts:
            found = _alert(alert, catalogue, followed)
            warnings += _told(file, ("alerts", alert.number), alert.allow, found)
    return sorted(set(warnings))


def _told(file: RuleFile, at: Path, allow: Collection[str], found: Found) -> Iterator[Mistake]:
    for name, path, advice in found:
        if name not in allow:
            yield file.document.mistake((*at, *path), f"{advice} ({name})")


def unused_sinks(files: Sequence[RuleFile], sinks: Mapping[str, Mistake]) -> list[Mistake]:
    """*sinks* nobody sends to; each comes with the place to name."""
    used = {name for file in files for rule in file.rules for name in rule.send}
    used |= {name for file in files for alert in file.alerts for name in alert.tells}
    return [place for name, place in sinks.items() if name not in used]


class _Earlier:
    """Rules that may take all a later one does, without asking each: of 10,000 that took minutes."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []
        self._wide: set[int] = set()
        self._by_value: dict[Pair, set[int]] = {}

    def add(self, rule: Rule) -> None:
        """One whose first field has only exact values can take no event that has none of them."""
        number = len(self._rules)
        self._rules.append(rule)
        fields = rule.match.identities
        if not fields or any(each.globs or each.prefixes for each in fields[0]):
            self._wide.add(number)
            return
        for identity in fields[0]:
            for pair in identity.exact:
                self._by_value.setdefault(pair, set()).add(number)

    def like(self, rule: Rule) -> Iterator[Rule]:
        """In their order."""
        pairs = [pair for field in rule.match.identities for identity in field for pair in identity.exact]
        found = self._wide.union(*(self._by_value.get(pair, ()) for pair in pairs))
        return (self._rules[number] for number in sorted(found))


def _rule(rule: Rule, earlier: _Earlier, catalogue: Catalogue, followed: Collection[str]) -> Found:
    yield from _block("match", rule.match, catalogue, followed)
    if rule.unless is not None:
        yield from _block("unless", rule.unless, catalogue, followed)
    if rule.unless is not None and covers(rule.unless, rule.match):
        yield "never", ("unless",), "takes out everything that match lets in: the rule never matches"
    for other in earlier.like(rule):
        if _shadows(other, rule):
            advice = f"rule {other.name} already sends all of it to the same sinks: it arrives twice"
            yield "shadowed", ("match",), advice
            break


def _alert(alert: Alert, catalogue: Catalogue, followed: Collection[str]) -> Found:
    for role, matcher in alert.matchers.items():
        yield from _block(role, matcher, catalogue, followed)
    if alert.unless is not None:
        yield from _block("unless", alert.unless, catalogue, followed)


def _block(key: str, matcher: Matcher, catalogue: Catalogue, followed: Collection[str]) -> Found:
    for place in _places(matcher, (key,), catalogue, None):
        yield from _names(place, catalogue)
        yield from _identifiers(place)
        yield from _content(place, catalogue)
        if key != "unless" and set(followed) == {"application"}:
            yield from _unheard(place, catalogue)


def _shadows(other: Rule, rule: Rule) -> bool:
    whole = other.unless is None and other.sample is None
    return whole and set(rule.send) <= set(other.send) and covers(other.match, rule.match)


def _places(
    matcher: Matcher, path: Path, catalogue: Catalogue, outer: tuple[EventName, ...] | None
) -> Iterator[_Place]:
    """*matcher* and the blocks of `any` in it, which are about no more names than it."""
    names = outer
    if matcher.names:
        fitting = _fitting(catalogue, matcher.names)
        names = fitting if outer is None else tuple(each for each in outer if each in fitting)
    yield _Place(matcher, path, names)
    for number, block in enumerate(matcher.any):
        yield from _places(block, (*path, "any", number), catalogue, names)


@lru_cache(maxsize=200)
def _fitting(catalogue: Catalogue, patterns: tuple[NamePattern, ...]) -> tuple[EventName, ...]:
    """The events that have a name of *patterns*: thousands of rules ask for the same few."""
    return tuple(
        each for each in catalogue.names.values() if any(pattern.holds(each.name) for pattern in patterns)
    )


def _at(place: _Place, patterns: Sequence[NamePattern], number: int) -> Path:
    return (*place.path, "name") if len(patterns) == 1 else (*place.path, "name", number)


def _names(place: _Place, catalogue: Catalogue) -> Found:
    patterns = place.matcher.names
    for number, pattern in enumerate(patterns):
        at = _at(place, patterns, number)
        if pattern.exact and not pattern.text.startswith(OWN):
            yield from _exact_name(pattern.text, at, catalogue)
        elif not pattern.exact and not _is_own(pattern) and not any(map(pattern.holds, catalogue.names)):
            yield "unknown-name", at, "no event name of The Things Stack v3.32 fits this pattern"


def _is_own(pattern: NamePattern) -> bool:
    """May the pattern mean events of bridge itself, or notifications?"""
    return any(own.rstrip(".") in pattern.text for own in OWN)


def _exact_name(name: str, at: Path, catalogue: Catalogue) -> Found:
    known = catalogue.names.get(name)
    if known is None:
        close = catalogue.close_to(name)
        hint = f"; did you mean {close}?" if close else ""
        yield "unknown-name", at, f"The Things Stack v3.32 has no event of this name{hint}"
    elif not known.deliverable_via_stream:
        yield "never", at, "no stream carries this event: it is published without identifiers, or never"


def _unheard(place: _Place, catalogue: Catalogue) -> Found:
    patterns = place.matcher.names
    for number, pattern in enumerate(patterns):
        fitting = _fitting(catalogue, (pattern,))
        if fitting and not any(each.in_application_stream for each in fitting):
            advice = 'no application stream carries this; follow the devices (devices: "*") or gateways too'
            yield "unheard", _at(place, patterns, number), advice


def _identifiers(place: _Place) -> Found:
    for ored in place.matcher.identities:
        for identity in ored:
            if identity.prefixes or identity.field in ("dev_addr", "dev_eui", "join_eui", "eui"):
                continue
            if not all(ID.match(text) for text in identity.texts):
                advice = (
                    "ids of The Things Stack are lower-case letters, digits and -: this one never matches"
                )
                yield "never", (*place.path, identity.field), advice


def _content(place: _Place, catalogue: Catalogue) -> Found:
    pattern = place.matcher.content
    clauses = (
        {clause.field.path: clause for each in pattern.alternatives for clause in each} if pattern else {}
    )
    for path, clause in clauses.items():
        at = (*place.path, *path.split("."))
        wires = _wires(place, path, catalogue)
        known = [wire for wire in wires if wire is not None]
        if wires and not known:
            yield "unknown-path", at, "the events this is about have no such field"
        elif known and all(wire.kind == "object" for wire in known) and clause.tests:
            yield "unknown-path", at, "is an object, and only its fields have values; name one of them"
        elif known:
            yield from _values(clause, known, at)


def _wires(place: _Place, path: str, catalogue: Catalogue) -> list[Wire | None]:
    """What *path* is in each type of data the place is about; empty where one of them is not known."""
    if not path.startswith(DATA):
        return [catalogue.at(EVENT, path)] if path != "data" else []
    if not place.names:
        return []
    types = [catalogue.types(each.name) for each in place.names]
    if not all(types):
        return []
    messages = dict.fromkeys(message for each in types for message in each)
    return [catalogue.at(message, path.removeprefix(DATA)) for message in messages]


def _values(clause: Clause, wires: Sequence[Wire], at: Path) -> Found:
    for check in clause.tests:
        if not clause.absent and any(wire.omitted and _takes_zero(check, wire) for wire in wires):
            advice = (
                "The Things Stack leaves this field out when it is zero, false or empty; add {exists: false}"
            )
            yield "zero", at, advice
        if not any(_possible(check, wire) for wire in wires):
            yield "never", at, f"{check.text} never matches: {_expected(wires[0])}"


def _takes_zero(check: Check, wire: Wire) -> bool:
    if check.operator == "numeric":
        return wire.kind in ("number", "int64") and check.holds(Int64("0") if wire.kind == "int64" else 0)
    return check.operator in ("", "exactly") and wire.zero is not None and check.holds(wire.zero)


KINDS: Mapping[str, Callable[[object], bool]] = {
    "string": lambda value: isinstance(value, str),
    "int64": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, int | float | str) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool),
}
"""What plain values a field may have; numbers also the strings NaN and Infinity."""


def _possible(check: Check, wire: Wire) -> bool:
    """Can a value of the field pass? When in doubt it can."""
    if wire.kind in ("open", "object"):
        return True
    if check.operator == "numeric":
        return wire.kind in ("number", "int64")
    if check.operator in ("prefix", "suffix", "wildcard", "equals-ignore-case", "exactly", "cidr"):
        return wire.kind in ("string", "int64") and (not wire.values or any(map(check.holds, wire.values)))
    if check.operator:
        return True
    if wire.kind == "number" and isinstance(check.key, str):
        return check.key in ("NaN", "Infinity", "-Infinity")
    if wire.values:
        return any(map(check.holds, wire.values))
    value = check.key[1] if isinstance(check.key, tuple) and check.key else check.key
    return KINDS[wire.kind](value) or (isinstance(value, bytes) and wire.kind == "string")


def _expected(wire: Wire) -> str:
    if wire.values:
        return f"it is one of {', '.join(sorted(wire.values))}"
    words = {
        "int64": "a 64-bit integer is a string of digits; quote it, or use numeric",
        "bool": "it is true",
    }
    return words.get(wire.kind, f"it is a {wire.kind}")
