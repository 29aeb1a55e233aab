"""Content patterns: Amazon EventBridge event patterns, exactly.  No I/O, no clock, no logging in this file.

https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-event-patterns.html, and where that is silent,
event-ruler 2.1.0. Two of its rules decide everything: a JSON object is a set of leaves (dotted path, value),
and the leaves one pattern matches must lie in the same element of every array they share.

The one deviation: `numeric` also takes a string of digits at a path that is *wide*, since The Things Stack
writes 64-bit integers as strings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from bridge.pattern.leaves import NOWHERE, Field, Leaf, Leaves, Membership, Why
from bridge.pattern.operators import OPERATORS, Check, Key, OperandError, plain, shown, test

Path: TypeAlias = tuple[str | int, ...]

MAX_ALTERNATIVES = 1000  # patterns `$or` may multiply into
MAX_DEPTH = 200  # objects inside each other in a pattern
MAX_FIELDS = 300  # of one pattern
MAX_STEPS = 100_000  # leaves looked at for one event: only a hostile event comes near
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
        self.all: tuple[PatternError, ...] = (self,)
        """Every mistake of the pattern, this one first."""

    @classmethod
    def of(cls, mistakes: Sequence[PatternError]) -> PatternError:
        first = mistakes[0]
        first.all = tuple(mistakes)
        return first


@dataclass(frozen=True, slots=True)
class Clause:
    """One field: any of *tests* on a leaf, or *absent*: no leaf there."""

    field: Field
    tests: tuple[Check, ...]
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
    compiler = _Compiler()
    alternatives = compiler.object(pattern, (), "", [{}])
    if compiler.mistakes:
        plainly = _Compiler(operators=False)
        alternatives = plainly.object(pattern, (), "", [{}])
        if plainly.mistakes:
            raise PatternError.of(compiler.mistakes)
    if max(map(len, alternatives)) > MAX_FIELDS:
        raise PatternError((), f"has more than {MAX_FIELDS} fields")
    return Pattern(tuple(tuple(each[path] for path in sorted(each)) for each in alternatives))


Alternatives: TypeAlias = list[dict[str, Clause]]


@dataclass(slots=True)
class _Compiler:
    """Goes on after a mistake, so that all of them are told."""

    operators: bool = True
    """Is `$or` one?"""
    mistakes: list[PatternError] = field(default_factory=list)

    def wrong(self, path: Path, advice: str) -> None:
        self.mistakes.append(PatternError(path, advice))

    def object(
        self,
        pattern: Mapping[str, Any],
        path: Path,
        dotted: str,
        so_far: Alternatives,
        *,
        inside_or: bool = False,
    ) -> Alternatives:
        """*so_far* with what *pattern* asks for; a path that comes again replaces what it was."""
        if not pattern:
            self.wrong(path, "is empty; write field: [values]")
        if len(path) > MAX_DEPTH:
            self.wrong(path[:MAX_DEPTH], "is nested too deeply")
            return so_far
        for name, value in pattern.items():
            key = str(name)
            here, below = (*path, key), f"{dotted}.{key}" if dotted else key
            if key == "$or" and self.operators:
                so_far = self.alternatives(value, here, dotted, so_far)
            elif inside_or and key in NESTED_OR:
                self.wrong(here, "is no field that $or can have")
            elif isinstance(value, Mapping):
                so_far = self.object(value, here, below, so_far, inside_or=inside_or)
            elif (clause := self.clause(value, here, below)) is not None:
                so_far = [{**each, below: clause} for each in so_far]
        return so_far

    def alternatives(self, value: Any, path: Path, dotted: str, so_far: Alternatives) -> Alternatives:
        if (
            not isinstance(value, list)
            or len(value) < 2
            or not all(isinstance(each, Mapping) for each in value)
        ):
            self.wrong(path, "takes a list of at least two patterns")
            return so_far
        found: Alternatives = []
        for number, each in enumerate(value):
            found += self.object(each, (*path, number), dotted, so_far, inside_or=True)
            if len(found) > MAX_ALTERNATIVES:
                self.wrong(path, f"multiplies into more than {MAX_ALTERNATIVES} patterns")
                return so_far
        return found

    def clause(self, value: Any, path: Path, dotted: str) -> Clause | None:
        if not isinstance(value, list):
            self.wrong(path, f"a value stands in brackets: [{_example(value)}]")
            return None
        if not value:
            self.wrong(path, "is an empty list; write the values to match")
        absent = [item for item in value if _is_absent(item)]
        tests = [self.test(item, path) for item in value if not _is_absent(item)]
        checks = tuple(each for each in tests if each is not None)
        plain_only = not absent and all(each.key != () for each in checks)
        exact = frozenset(each.key for each in checks) if plain_only else None
        return Clause(Field(dotted), checks, bool(absent), exact)

    def test(self, item: Any, path: Path) -> Check | None:
        try:
            return _test(item)
        except OperandError as error:
            self.wrong(path, str(error))
            return None


def _test(item: Any) -> Check:
    if isinstance(item, Mapping):
        if len(item) != 1:
            raise OperandError("has an object with more or less than one operator")
        name, operand = next(iter(item.items()))
        try:
            return test(str(name), operand)
        except OperandError as error:
            called = name if name in OPERATORS else "an object in the list"
            raise OperandError(f"{called} {error}") from None
    if not (item is None or isinstance(item, str | int | float)):
        raise OperandError("has a list inside a list; write one list of values")
    return plain(item)


def _is_absent(item: Any) -> bool:
    return isinstance(item, Mapping) and len(item) == 1 and item.get("exists") is False


def _example(value: Any) -> str:
    """What stands in the brackets: a value of the same type, for values are never repeated."""
    if value is None:
        return "null"
    return "true" if isinstance(value, bool) else "5" if isinstance(value, int | float) else "..."
