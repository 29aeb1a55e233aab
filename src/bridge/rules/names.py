"""Which event names a rule means.  No I/O, no clock, no logging in this file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import re2

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
    @lru_cache(maxsize=1000)
    def compile(cls, text: str) -> NamePattern:
        """Raises MatchError.

        A value that begins and ends with a slash is an unanchored RE2 expression without all the slashes
        around it (`strings.Trim`). Else `*` is one dotted segment and `**` is any number, none included.
        """
        if text[:1] == "/" == text[-1:]:
            return cls(text, False, regex(text.strip("/")).search, text)
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
        return cls(text, False, regex(source).search, f"/{source}/")

    def holds(self, name: str) -> bool:
        return name == self.text if self.exact else bool(self.search(name))


def regex(source: str) -> Any:
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
