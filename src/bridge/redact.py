"""Hide what must not be stored (DESIGN.md §2.3).  No I/O, no clock, no logging in this file.

A path is dotted, from the event's root: `data.key`, `data.**.app_s_key`; `**` is zero or more levels.
Arrays are passed through: a step applies to each element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import msgspec
import re2

from bridge.event import Event

REDACTED = "[redacted]"

Steps: TypeAlias = tuple[str, ...]


class Pattern(Protocol):
    """Of RE2, which is linear in what it reads."""

    def search(self, text: bytes) -> object | None: ...


def parse_path(text: str) -> Steps:
    """The steps of *text*; raises ValueError."""
    steps = tuple(text.split("."))
    if not all(steps):
        raise ValueError("write a path as data.key or data.**.key, without empty steps")
    if steps[-1] == "**":
        raise ValueError("a path must end in the name of the field to hide")
    return steps


@dataclass(frozen=True, slots=True)
class Redactor:
    paths: tuple[Steps, ...]
    names: tuple[bytes, ...]
    """The last name of each path as it stands in JSON: an event whose bytes lack it is not decoded."""
    mention: Pattern
    """Finds any of the names, or an escape, in one pass: 2.5 µs an event where `in` for each takes 5.9."""

    @classmethod
    def of(cls, paths: Sequence[str]) -> Redactor:
        steps = tuple(parse_path(path) for path in paths)
        names = tuple(msgspec.json.encode(path[-1]) for path in steps)
        return cls(steps, names, re2.compile(b"|".join((rb"\\u", *map(re2.escape, dict.fromkeys(names))))))

    def redact(self, event: Event) -> Event:
        """*event* with each value at a path replaced; the very same event if there is none.

        A name may be written in JSON with escapes (`"k\\u0065y"`): such an event is always decoded.
        """
        body = event.body
        if self.mention.search(body) is None:
            return event
        escaped = b"\\u" in body
        wanted = [path for path, name in zip(self.paths, self.names, strict=True) if escaped or name in body]
        document = event.document()
        hidden = [_hide(document, path) for path in wanted]
        if True not in hidden:
            return event
        return msgspec.structs.replace(event, body=msgspec.json.encode(document))


def _hide(value: Any, steps: Steps) -> bool:
    """Replace what *steps* lead to inside *value*; say whether there was anything."""
    if isinstance(value, list):
        return True in [_hide(each, steps) for each in value]
    if not isinstance(value, dict):
        return False
    step, rest = steps[0], steps[1:]
    if step == "**":
        deeper = [_hide(each, steps) for each in value.values()]
        return _hide(value, rest) or True in deeper
    if step not in value:
        return False
    if not rest:
        value[step] = REDACTED
        return True
    return _hide(value[step], rest)
