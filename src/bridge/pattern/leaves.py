"""A JSON document as content patterns see it.  No I/O, no clock, no logging in this file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from bridge.pattern.operators import Int64

Membership: TypeAlias = Mapping[int, int]
"""An array, by its identity in memory, to the element of it that a leaf lies in."""
Leaf: TypeAlias = tuple[Any, Membership]

NOWHERE: Membership = {}


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
