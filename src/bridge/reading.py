"""Reading a file of ours: what is there, and every mistake on the way.  No I/O in this file."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge.errors import Mistake
from bridge.yamltext import Document, Path


@dataclass(slots=True)
class Reading:
    """A document being read. A mistake is noted and reading goes on, so that all of them are told."""

    document: Document
    mistakes: list[Mistake] = field(default_factory=list)

    def wrong(self, path: Path, advice: str) -> None:
        self.mistakes.append(self.document.mistake(path, advice))

    def mapping(
        self, value: Any, path: Path, known: Sequence[str], what: str, unknown: str = ""
    ) -> Mapping[str, Any]:
        """*value* as a map with keys of *known*; empty, and noted, if it is none.

        *unknown* is said of a key that is like none of *known*.
        """
        if not isinstance(value, Mapping):
            self.wrong(path, f"must be {what}")
            return {}
        for key in value:
            if key not in known:
                self.wrong((*path, key), f"unknown key{did_you_mean(key, known) or unknown}")
        return value

    def texts(self, value: Any, path: Path, what: str) -> list[tuple[Path, str]]:
        """A text, or a list of them, each with its place."""
        items = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
        found: list[tuple[Path, str]] = []
        for number, item in items:
            at = path if number is None else (*path, number)
            if isinstance(item, str) and item:
                found.append((at, item))
            else:
                self.wrong(at, f"must be {what}, or a list of them")
        return found

    def allowed(self, value: Any, path: Path, known: Collection[str]) -> Mapping[str, str]:
        """`allow`: which warnings, of *known* ones, do not apply, each with the reason."""
        if not isinstance(value, Mapping):
            self.wrong(path, "must be a map of a warning's name to the reason it does not apply")
            return {}
        for key, reason in value.items():
            if key not in known:
                hint = did_you_mean(key, known) or f"; there is {', '.join(known)}"
                self.wrong((*path, key), f"no warning has this name{hint}")
            if not (isinstance(reason, str) and reason.strip()):
                self.wrong((*path, key), "needs the reason why this warning does not apply")
        return {key: str(reason) for key, reason in value.items()}


def did_you_mean(word: str, known: Collection[str]) -> str:
    """The end of a message: what *word* probably was; '' if it is like none of *known*."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
