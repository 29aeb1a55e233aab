"""Content patterns: Amazon EventBridge event patterns, exactly.  No I/O, no clock, no logging in this file.

https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-event-patterns.html, and where that is silent,
event-ruler 2.1.0. Two of its rules decide everything: a JSON object is a set of leaves (dotted path, value),
and the leaves one pattern matches must lie in the same element of every array they share.

The one deviation: `numeric` also takes a string of digits at a path that is *wide*, since The Things Stack
writes 64-bit integers as strings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from bridge.operators import OPERATORS, Int64, Key, OperandError, Test, plain, shown, test

Path: TypeAlias = tuple[str, ...]
Membership: TypeAlias = Mapping[int, int]
"""An array, by its identity in memory, to the element of it that a leaf lies in."""
Leaf: TypeAlias = tuple[Any, Membership]

MAX_ALTERNATIVES = 1000  # patterns `$or` may multiply into
MAX_DEPTH = 200  # objects inside each other in a pattern
MAX_FIELDS = 300  # of one pattern
MAX_STEPS = 100_000  # leaves looked at for one event: only a hostile event comes near
NOWHERE: Membership = {}
NESTED_OR = frozenset(
    {
        *OPERATORS,
        *("html", "=", "<", "<=", ">", ">=", "regex", "not-wildcard", "not-equals-ignore-case", "date-after"),
        *("date-on-or-after", "date-before", "date-on-or-before", "in-date-range", "ip-address-in-range"),
        "ip-address-not-in-range",
    }
)
"""Fields that make `$or` an ordinary field when they stand in one of its objects."""


class PatternError(ValueError):
    """Not an event pattern; *path* leads to the place inside it."""

    def __init__(self, path: Sequence[str | int], advice: str) -> None:
        super().__init__(advice)
        self.path = tuple(path)
        self.advice = advice


class Why:
    """Why something does not match, put into words only when somebody reads it."""

    __slots__ = ("_parts", "_words")

    def __init__(self, words: Callable[..., str], *parts: Any) -> None:
        self._words = words
        self._parts = parts

    def __str__(self) -> str:
        return self._words(*self._parts)


class Leaves:
    """A JSON document as patterns see it: its leaves by path. Empty objects and arrays have none.

    Paths are walked when first asked for: most of a document is never looked at.
    """

    def __init__(self, document: Any, wide: Callable[[str], bool] = lambda _path: False) -> None:
        self._document = document
        self._wide = wide
        self._at: dict[str, Sequence[Leaf]] = {}
        self._numeric: dict[str, Sequence[Leaf]] = {}

    def at(self, field: Field) -> Sequence[Leaf]:
        found = self._at.get(field.path)
        if found is None:
            found = self._at[field.path] = walk(self._document, field.keys)
        return found

    def numeric_at(self, field: Field) -> Sequence[Leaf]:
        """The same, with each string of digits marked that is a 64-bit integer."""
        found = self._numeric.get(field.path)
        if found is None:
            found = self.at(field)
            if any(is_digits(value) for value, _ in found) and self._wide(field.path):
                found = [(Int64(value) if is_digits(value) else value, where) for value, where in found]
            self._numeric[field.path] = found
        return found


def is_digits(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > 20:
        return False
    digits = value.removeprefix("-")
    return digits.isascii() and digits.isdigit()


Keys: TypeAlias = Sequence[Sequence[tuple[str, int]]]
"""For each place in a path, the keys an object may have there and the place each leads to.

A dot in a key is a dot in the path: `{"a.b": 1}` and `{"a": {"b": 1}}` are the same document.
"""


@dataclass(frozen=True)
class Field:
    path: str

    @cached_property
    def keys(self) -> Keys:
        steps = self.path.split(".")
        count = len(steps)
        return [[(".".join(steps[at:to]), to) for to in range(at + 1, count + 1)] for at in range(count)]


def walk(document: Any, keys: Keys) -> Sequence[Leaf]:
    """The leaves of *document* at a path, in its order.

    An array passes its elements on. Scalars of one array do not exclude each other: only an element that is
    an object or an array is a place of its own (Event.traverseArray in event-ruler).
    """
    found: list[Leaf] = []
    waiting: list[tuple[Any, int, Membership]] = [(document, 0, NOWHERE)]
    end = len(keys)
    while waiting:
        value, at, where = waiting.pop()
        if isinstance(value, dict):
            if at < end:
                waiting.extend((value[key], to, where) for key, to in reversed(keys[at]) if key in value)
        elif isinstance(value, list):
            waiting.extend(
                (child, at, {**where, id(value): number} if isinstance(child, dict | list) else where)
                for number, child in zip(range(len(value) - 1, -1, -1), reversed(value), strict=True)
            )
        elif at == end:
            found.append((value, where))
    return found


@dataclass(frozen=True, slots=True)
class Clause:
    """One field: any of *tests* on a leaf, or *absent*: no leaf there."""

    field: Field
    tests: tuple[Test, ...]
    absent: bool = False
    exact: frozenset[Key | tuple[()]] | None = None
    """The keys of the values, if each test is one plain value."""

    def leaves(self, leaves: Leaves) -> Sequence[Leaf]:
        if any(each.operator == "numeric" for each in self.tests):
            return leaves.numeric_at(self.field)
        return leaves.at(self.field)

    def holds(self, value: Any) -> bool:
        return any(each.holds(value) for each in self.tests)

    def wanted(self) -> str:
        return " or ".join([*(each.text for each in self.tests), *(["absent"] if self.absent else [])])

    def why(self, leaves: Leaves) -> str:
        """What is there instead of what is wanted."""
        there = [shown(value) for value, _ in self.leaves(leaves)]
        have = ", ".join(text if len(text) <= 60 else text[:60] + "..." for text in there[:5])
        more = f" and {len(there) - 5} more" if len(there) > 5 else ""
        path = self.field.path
        if any(self.holds(value) for value, _ in self.leaves(leaves)):
            return f"{path} is {self.wanted()} only in another array element than the fields before it"
        return (
            f"{path} is {have}{more}, not {self.wanted()}"
            if there
            else f"no {path}, which must be {self.wanted()}"
        )


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern: one of *alternatives* has to match with all its clauses, taken by path."""

    alternatives: tuple[tuple[Clause, ...], ...]

    def mismatch(self, leaves: Leaves) -> Why | None:
        """The clause that failed first, in the alternative that came furthest; None if *leaves* match."""
        furthest, failed = -1, self.alternatives[0][0]
        for clauses in self.alternatives:
            at = _failed(clauses, leaves)
            if at is None:
                return None
            if at > furthest:
                furthest, failed = at, clauses[at]
        return Why(failed.why, leaves)


def _failed(clauses: Sequence[Clause], leaves: Leaves) -> int | None:
    """Which of *clauses* fails first; None if all hold together.

    Arrays are rare: without one among the leaves, each clause can be judged alone.
    """
    options: list[Sequence[Membership]] = []
    arrays = False
    for number, clause in enumerate(clauses):
        there = clause.leaves(leaves)
        places = [where for value, where in there if clause.holds(value)]
        if not places and not (clause.absent and all(where for _, where in there)):
            return number
        arrays = arrays or any(places) or (clause.absent and bool(there))
        options.append(places)
    return _Search(clauses, options, leaves).first_failure() if arrays else None


class _Search:
    """Finds an option for each clause such that all agree on their arrays."""

    def __init__(
        self, clauses: Sequence[Clause], options: Sequence[Sequence[Membership]], leaves: Leaves
    ) -> None:
        self.clauses = clauses
        self.options = [
            list({frozenset(where.items()): where for where in places}.values()) for places in options
        ]
        self.leaves = leaves
        self.furthest = 0
        self.steps = 0
        self.dead: set[tuple[int, frozenset[tuple[int, int]]]] = set()
        self.later = [self._arrays(number) for number in range(len(clauses))]

    def _arrays(self, number: int) -> frozenset[int]:
        """The arrays that clause *number* and those after it look at."""
        return frozenset(
            array
            for clause in self.clauses[number:]
            for _, where in clause.leaves(self.leaves)
            for array in where
        )

    def first_failure(self) -> int | None:
        return None if self.matches(0, NOWHERE) else min(self.furthest, len(self.clauses) - 1)

    def matches(self, at: int, chosen: Membership) -> bool:
        self.furthest = max(self.furthest, at)
        if at == len(self.clauses):
            return True
        state = at, frozenset((array, chosen[array]) for array in self.later[at] if array in chosen)
        self.steps += 1
        if state in self.dead or self.steps > MAX_STEPS:
            return False
        for where in self.options[at]:
            joined = _joined(chosen, where)
            if joined is not None and self.matches(at + 1, joined):
                return True
        if self.clauses[at].absent and self._nothing(at, chosen) and self.matches(at + 1, chosen):
            return True
        self.dead.add(state)
        return False

    def _nothing(self, at: int, chosen: Membership) -> bool:
        """Is no leaf of the clause where the others are? Only those before it count, as in event-ruler."""
        return all(_joined(chosen, where) is None for _, where in self.clauses[at].leaves(self.leaves))


def _joined(a: Membership, b: Membership) -> Membership | None:
    """Both memberships as one; None if they lie in different elements of an array."""
    if not b:
        return a
    for array, element in b.items():
        if a.get(array, element) != element:
            return None
    return {**a, **b}


def compile(pattern: Any) -> Pattern:
    """The pattern that the JSON value *pattern* is; raises PatternError.

    event-ruler tries twice: with `$or` as its operator everywhere, then with `$or` as a field everywhere.
    """
    if not isinstance(pattern, Mapping):
        raise PatternError((), "write a pattern as field: [values]")
    try:
        alternatives = _object(pattern, (), "", [{}], operators=True)
    except PatternError as error:
        try:
            alternatives = _object(pattern, (), "", [{}], operators=False)
        except PatternError:
            raise error from None
    if max(map(len, alternatives)) > MAX_FIELDS:
        raise PatternError((), f"has more than {MAX_FIELDS} fields")
    return Pattern(tuple(tuple(each[path] for path in sorted(each)) for each in alternatives))


Alternatives: TypeAlias = list[dict[str, Clause]]


def _object(
    pattern: Mapping[str, Any],
    path: Path,
    dotted: str,
    so_far: Alternatives,
    *,
    operators: bool,
    inside_or: bool = False,
) -> Alternatives:
    """*so_far* with what *pattern* asks for; a path that comes again replaces what it was (event-ruler)."""
    if not pattern:
        raise PatternError(path, "is empty; write field: [values]")
    if len(path) > MAX_DEPTH:
        raise PatternError(path[:MAX_DEPTH], "is nested too deeply")
    for name, value in pattern.items():
        key = str(name)
        here = (*path, key)
        if key == "$or" and operators:
            so_far = _or(value, here, dotted, so_far)
        elif inside_or and key in NESTED_OR:
            raise PatternError(here, "is no field that $or can have")
        elif isinstance(value, Mapping):
            below = f"{dotted}.{key}" if dotted else key
            so_far = _object(value, here, below, so_far, operators=operators, inside_or=inside_or)
        else:
            clause = _clause(value, here, f"{dotted}.{key}" if dotted else key)
            so_far = [{**each, clause.field.path: clause} for each in so_far]
    return so_far


def _or(value: Any, path: Path, dotted: str, so_far: Alternatives) -> Alternatives:
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(each, Mapping) for each in value):
        raise PatternError(path, "takes a list of at least two patterns")
    found: Alternatives = []
    for each in value:
        found += _object(each, path, dotted, so_far, operators=True, inside_or=True)
        if len(found) > MAX_ALTERNATIVES:
            raise PatternError(path, f"multiplies into more than {MAX_ALTERNATIVES} patterns")
    return found


def _clause(value: Any, path: Path, dotted: str) -> Clause:
    if not isinstance(value, list):
        raise PatternError(path, f"a value stands in brackets: [{_example(value)}]")
    if not value:
        raise PatternError(path, "is an empty list; write the values to match")
    absent = [item for item in value if isinstance(item, Mapping) and _is_absent(item)]
    tests = tuple(
        _test(item, path) for item in value if not isinstance(item, Mapping) or not _is_absent(item)
    )
    plain_only = not absent and all(each.key != () for each in tests)
    exact = frozenset(each.key for each in tests) if plain_only else None
    return Clause(Field(dotted), tests, bool(absent), exact)


def _is_absent(item: Mapping[str, Any]) -> bool:
    return len(item) == 1 and item.get("exists") is False


def _example(value: Any) -> str:
    """What stands in the brackets: a value of the same type, for values are never repeated."""
    if value is None:
        return "null"
    return "true" if isinstance(value, bool) else "5" if isinstance(value, int | float) else "..."


def _test(item: Any, path: Path) -> Test:
    if isinstance(item, Mapping):
        if len(item) != 1:
            raise PatternError(path, "has an operator object with more or less than one operator")
        name, operand = next(iter(item.items()))
        try:
            return test(str(name), operand)
        except OperandError as error:
            raise PatternError(path, f"{_named(name)} {error}") from None
    if not (item is None or isinstance(item, str | int | float)):
        raise PatternError(path, "has a list inside a list; write one list of values")
    try:
        return plain(item)
    except OperandError as error:
        raise PatternError(path, str(error)) from None


def _named(name: Any) -> str:
    return str(name) if name in OPERATORS else "an object in the list"
