"""Content patterns: Amazon EventBridge event patterns, exactly.  No I/O, no clock, no logging in this file.

https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-event-patterns.html, and where that is silent,
event-ruler 2.1.0. Two of its rules decide everything: a JSON object is a set of leaves (path, value), and the
leaves one pattern matches must lie in the same element of every array they share.

The one deviation: `numeric` also takes a string of digits where *wide* says so, since The Things Stack writes
64-bit integers as strings.
"""

from __future__ import annotations

import ipaddress
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

Path: TypeAlias = tuple[str, ...]
Membership: TypeAlias = Mapping[int, int]
"""Array (numbered in the order of the document) to the element a leaf lies in."""
Scalar: TypeAlias = str | int | float | bool | None

MAX_ALTERNATIVES = 1000  # patterns `$or` may multiply into
MAX_STEPS = 100_000  # leaves looked at for one event: only a hostile event comes near


class PatternError(ValueError):
    """Not an event pattern; *path* leads to the place inside it."""

    def __init__(self, path: Path, advice: str) -> None:
        super().__init__(advice)
        self.path = path
        self.advice = advice


@dataclass(frozen=True, slots=True)
class Test:
    """One value a field may have; *text* is how the operator wrote it."""

    text: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Clause:
    """One field: any of *tests* on a leaf at *path*, or *absent*: no leaf there."""

    path: Path
    tests: tuple[Test, ...]
    absent: bool = False
    exact: frozenset[Scalar] | None = None
    """The values, if each test is one plain value."""

    def __str__(self) -> str:
        texts = [*(test.text for test in self.tests), *(["absent"] if self.absent else [])]
        return f"{'.'.join(self.path)} is not {' or '.join(texts)}"


@dataclass(frozen=True, slots=True)
class Leaf:
    value: Any
    membership: Membership


@dataclass(frozen=True, slots=True)
class Leaves:
    """A JSON document as patterns see it: its leaves by path. Empty objects and arrays have none."""

    by_path: Mapping[Path, Sequence[Leaf]]

    @classmethod
    def of(cls, document: Any) -> Leaves:
        found: dict[Path, list[Leaf]] = {}
        _collect(document, (), {}, found, iter(range(1 << 62)))
        return cls(found)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern: one of *alternatives* has to match with all its clauses."""

    alternatives: tuple[tuple[Clause, ...], ...]

    def mismatch(self, leaves: Leaves) -> str | None:
        """The clause that failed first, in the alternative that came furthest; None if *leaves* match."""
        furthest: tuple[int, str] = (-1, "")
        for clauses in self.alternatives:
            search = _Search(clauses, leaves)
            if search.matches(0, {}):
                return None
            if search.furthest > furthest[0]:
                furthest = search.furthest, search.why()
        return furthest[1]


@dataclass(slots=True)
class _Search:
    """Finds leaves for the clauses that agree on their arrays; clauses are taken in the order of paths."""

    clauses: tuple[Clause, ...]
    leaves: Leaves
    furthest: int = 0
    steps: int = 0

    def matches(self, at: int, chosen: Membership) -> bool:
        self.furthest = max(self.furthest, at)
        if at == len(self.clauses):
            return True
        clause = self.clauses[at]
        present = False
        for leaf in self.leaves.by_path.get(clause.path, ()):
            self.steps += 1
            if self.steps > MAX_STEPS:
                return False
            joined = _joined(chosen, leaf.membership)
            if joined is None:
                continue
            present = True
            if any(test.holds(leaf.value) for test in clause.tests) and self.matches(at + 1, joined):
                return True
        return clause.absent and not present and self.matches(at + 1, chosen)

    def why(self) -> str:
        """The clause nobody could satisfy together with those before it."""
        clause = self.clauses[min(self.furthest, len(self.clauses) - 1)]
        here = self.leaves.by_path.get(clause.path, ())
        together = any(test.holds(leaf.value) for leaf in here for test in clause.tests)
        more = " in the same array element as the others" if together else ""
        return f"{clause}{more}"


def _joined(a: Membership, b: Membership) -> Membership | None:
    """Both memberships as one; None if they lie in different elements of an array."""
    if not b:
        return a
    for array, element in b.items():
        if a.get(array, element) != element:
            return None
    return {**a, **b}


def _collect(
    value: Any, path: Path, membership: Membership, into: dict[Path, list[Leaf]], arrays: Iterator[int]
) -> None:
    if isinstance(value, Mapping):
        for key, child in value.items():
            _collect(child, (*path, key), membership, into, arrays)
    elif isinstance(value, list):
        array = next(arrays)
        for element, child in enumerate(value):
            _collect(child, path, {**membership, array: element}, into, arrays)
    else:
        into.setdefault(path, []).append(Leaf(value, membership))


def compile(pattern: Any, *, wide: Callable[[Path], bool] = lambda _path: False) -> Pattern:
    """The pattern that the JSON value *pattern* is; raises PatternError with all that is wrong first."""
    if not isinstance(pattern, Mapping) or not pattern:
        raise PatternError((), "write a pattern as field: [values]")
    alternatives = _alternatives(pattern, (), wide)
    return Pattern(tuple(tuple(sorted(each, key=lambda c: ".".join(c.path))) for each in alternatives))


Alternatives: TypeAlias = list[tuple[Clause, ...]]


def _alternatives(pattern: Mapping[str, Any], path: Path, wide: Callable[[Path], bool]) -> Alternatives:
    """*pattern* without `$or`: every way to satisfy it."""
    if not pattern:
        raise PatternError(path, "is empty; write field: [values]")
    found: Alternatives = [()]
    for key, value in pattern.items():
        if key == "$or" and _is_or(value):
            parts = [each for branch in value for each in _alternatives(branch, path, wide)]
        else:
            parts = _field(value, (*path, str(key)), wide)
        if len(found) * len(parts) > MAX_ALTERNATIVES:
            raise PatternError(path, f"$or multiplies into more than {MAX_ALTERNATIVES} patterns")
        found = [(*a, *b) for a, b in product(found, parts)]
    return found


def _is_or(value: Any) -> bool:
    """Is the value of `$or` the operator's? Else it is a field of that name, as in event-ruler."""
    return (
        isinstance(value, list)
        and len(value) >= 2
        and all(isinstance(each, Mapping) and each and not set(each) & OPERATORS.keys() for each in value)
    )


def _field(value: Any, path: Path, wide: Callable[[Path], bool]) -> Alternatives:
    if isinstance(value, Mapping):
        return _alternatives(value, path, wide)
    if not isinstance(value, list):
        raise PatternError(path, f"a value stands in brackets: [{_shown(value)}]")
    if not value:
        raise PatternError(path, "is an empty list; write the values to match")
    tests: list[Test] = []
    absent = False
    for item in value:
        if isinstance(item, Mapping) and item.get("exists") is False and len(item) == 1:
            absent = True
        else:
            tests.append(_test(item, path, wide(path)))
    plain = not absent and not any(isinstance(item, Mapping) for item in value)
    return [(Clause(path, tuple(tests), absent, frozenset(value) if plain else None),)]


def _shown(value: Any) -> str:
    """The type of *value* by an example: values are never repeated."""
    return "true" if isinstance(value, bool) else "5" if isinstance(value, int | float) else "..."


def _test(item: Any, path: Path, wide: bool) -> Test:
    if isinstance(item, list):
        raise PatternError(path, "has a list inside a list; write one list of values")
    if not isinstance(item, Mapping):
        return Test(_text(item), _equals(item))
    if len(item) != 1:
        raise PatternError(path, "has an operator object with more or less than one operator")
    name, operand = next(iter(item.items()))
    make = OPERATORS.get(name)
    if make is None:
        raise PatternError(path, f"has an unknown operator; there is {', '.join(sorted(OPERATORS))}")
    return Test(f"{name} {_text(operand)}", make(operand, (*path, name), wide))


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equals(wanted: Scalar) -> Callable[[Any], bool]:
    """Numbers by value (`5` is `5.0`), never as strings; `true` is not 1."""
    if _is_number(wanted):
        return lambda value: _is_number(value) and value == wanted
    return lambda value: type(value) is type(wanted) and value == wanted


Make: TypeAlias = Callable[[Any, Path, bool], Callable[[Any], bool]]


def _string(operand: Any, path: Path) -> str:
    if not isinstance(operand, str):
        raise PatternError(path, "takes a string")
    return operand


def _ignoring_case(operand: Any, path: Path) -> tuple[str, bool]:
    """A string, or {equals-ignore-case: string}."""
    if isinstance(operand, Mapping):
        if set(operand) != {"equals-ignore-case"}:
            raise PatternError(path, "takes a string, or {equals-ignore-case: string}")
        return _string(operand["equals-ignore-case"], path).lower(), True
    return _string(operand, path), False


def _prefix(operand: Any, path: Path, _wide: bool) -> Callable[[Any], bool]:
    text, fold = _ignoring_case(operand, path)
    return lambda value: isinstance(value, str) and (value.lower() if fold else value).startswith(text)


def _suffix(operand: Any, path: Path, _wide: bool) -> Callable[[Any], bool]:
    text, fold = _ignoring_case(operand, path)
    return lambda value: isinstance(value, str) and (value.lower() if fold else value).endswith(text)


def _equals_ignore_case(operand: Any, path: Path, _wide: bool) -> Callable[[Any], bool]:
    text = _string(operand, path).lower()
    return lambda value: isinstance(value, str) and value.lower() == text


def _wildcard(operand: Any, path: Path, _wide: bool) -> Callable[[Any], bool]:
    """`*` is any run of characters; `\\*` and `\\\\` are the characters themselves."""
    pieces: list[str] = []
    text = _string(operand, path)
    for token in re.findall(r"\\.|\\|[^\\]", text, re.DOTALL):
        if len(token) == 2 and token[1] in "*\\":
            pieces.append(token[1])
        elif token[0] == "\\":
            raise PatternError(path, "takes \\* and \\\\ only after a backslash")
        elif token == "*" and pieces and pieces[-1] == "":
            raise PatternError(path, "takes no two * in a row")
        else:
            pieces.append("" if token == "*" else token)
    return _glob(pieces)


def _glob(pieces: Sequence[str]) -> Callable[[Any], bool]:
    """Matches literal characters with `''` for any run between them, in time linear in the text."""
    parts = "".join(piece or "\0*" for piece in pieces).split("\0*")
    if len(parts) == 1:
        return lambda value: isinstance(value, str) and value == parts[0]
    first, *middle, last = parts

    def holds(value: Any) -> bool:
        if not isinstance(value, str) or len(value) < len(first) + len(last):
            return False
        if not (value.startswith(first) and value.endswith(last)):
            return False
        at, end = len(first), len(value) - len(last)
        for part in middle:
            at = value.find(part, at, end)
            if at < 0:
                return False
            at += len(part)
        return True

    return holds


def _exists(operand: Any, path: Path, _wide: bool) -> Callable[[Any], bool]:
    if operand is not True:
        raise PatternError(path, "takes true or false")
    return lambda _value: True


COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
DIGITS = re.compile(r"-?[0-9]{1,20}\Z")


def _numeric(operand: Any, path: Path, wide: bool) -> Callable[[Any], bool]:
    """`[op, number]`, or a range `[">" or ">=", low, "<" or "<=", high]`."""
    if not isinstance(operand, list) or len(operand) not in (2, 4):
        raise PatternError(path, 'takes [">=", number] or a range [">=", low, "<", high]')
    signs, bounds = operand[::2], operand[1::2]
    if not all(isinstance(sign, str) and sign in COMPARE for sign in signs):
        raise PatternError(path, "takes the comparisons = < <= > >=")
    if not all(_is_number(bound) for bound in bounds):
        raise PatternError(path, "takes numbers without quotes")
    if len(signs) == 2:
        if signs[0] not in (">", ">=") or signs[1] not in ("<", "<="):
            raise PatternError(path, 'takes a range as [">=", low, "<", high]')
        if bounds[0] >= bounds[1]:
            raise PatternError(path, "has a range whose low end is not below its high end")
    checks = [(COMPARE[sign], bound) for sign, bound in zip(signs, bounds, strict=True)]

    def holds(value: Any) -> bool:
        if wide and isinstance(value, str) and DIGITS.match(value):
            value = int(value)
        return _is_number(value) and all(check(value, bound) for check, bound in checks)

    return holds


def _cidr(operand: Any, path: Path, _wide: bool) -> Callable[[Any], bool]:
    text = _string(operand, path)
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        network = None
    if network is None or "/" not in text:
        raise PatternError(path, "takes a network such as 10.0.0.0/8")

    def holds(value: Any) -> bool:
        if not isinstance(value, str):
            return False
        try:
            return ipaddress.ip_address(value) in network
        except ValueError:
            return False

    return holds


def _anything_but(operand: Any, path: Path, wide: bool) -> Callable[[Any], bool]:
    """Any value there is but these: strings, or numbers, or one operator over strings."""
    if isinstance(operand, Mapping):
        return _anything_but_operator(operand, path, wide)
    values = operand if isinstance(operand, list) else [operand]
    strings = all(isinstance(value, str) for value in values)
    if not values or not (strings or all(_is_number(value) for value in values)):
        raise PatternError(path, "takes strings, or numbers, or one of prefix suffix wildcard ...")
    tests = [_equals(value) for value in values]
    return lambda value: not any(test(value) for test in tests)


def _anything_but_operator(
    operand: Mapping[str, Any], path: Path, wide: bool
) -> Callable[[Any], bool]:
    name, inner = next(iter(operand.items())) if len(operand) == 1 else ("", None)
    make = BUT.get(name)
    if make is None:
        raise PatternError(path, f"takes one of {', '.join(sorted(BUT))}")
    values = inner if isinstance(inner, list) else [inner]
    if not values or "" in values:
        raise PatternError((*path, name), "takes strings that are not empty")
    tests = [make(value, (*path, name), wide) for value in values]
    return lambda value: not any(test(value) for test in tests)


BUT: Mapping[str, Make] = {
    "prefix": _prefix,
    "suffix": _suffix,
    "wildcard": _wildcard,
    "equals-ignore-case": _equals_ignore_case,
}

OPERATORS: Mapping[str, Make] = {
    **BUT,
    "numeric": _numeric,
    "cidr": _cidr,
    "exists": _exists,
    "anything-but": _anything_but,
}
