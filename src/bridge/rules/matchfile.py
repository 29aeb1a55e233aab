"""The blocks of rule files that say which events are meant: `match`, `unless`.  No I/O in this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bridge import pattern
from bridge.pattern import Pattern, PatternError
from bridge.reading import Reading
from bridge.rules.identity import HEX_BITS, IDENTIFIERS, Identity, identities
from bridge.rules.matcher import Matcher
from bridge.rules.names import MatchError, NamePattern
from bridge.yamltext import Path

CONTENT = (
    "data",
    "origin",
    "correlation_ids",
    "authentication",
    "visibility",
    "remote_ip",
    "user_agent",
    "context",
)
"""Event fields a content pattern may stand in."""
BLOCK_KEYS = ("name", *IDENTIFIERS, *HEX_BITS, *CONTENT, "any")
MAX_DEPTH = 20  # blocks of `any` inside each other


def is_as_written(path: Sequence[str | int]) -> bool:
    """Is the scalar at *path* inside a block a name, an identifier or an address?"""
    while len(path) > 1 and path[0] == "any" and isinstance(path[1], int):
        path = path[2:]
    return bool(path) and (path[0] == "name" or path[0] in IDENTIFIERS or path[0] in HEX_BITS)


def block(reading: Reading, value: Any, path: Path, depth: int = 0) -> Matcher:
    """The matcher that *value*, at *path* of the document, is."""
    hint = "; fields of the event's data go below data"
    entry = reading.mapping(value, path, BLOCK_KEYS, "a map such as {name: as.up.data.forward}", hint)
    if depth > MAX_DEPTH:
        reading.wrong(path, f"has any inside any more than {MAX_DEPTH} times")
        return Matcher()
    fields = [each for each in entry if each in IDENTIFIERS or each in HEX_BITS]
    found = [_identity(reading, each, entry[each], (*path, each)) for each in fields]
    return Matcher(
        names=_names(reading, entry["name"], (*path, "name")) if "name" in entry else (),
        identities=tuple(each for each in found if each),
        content=_content(reading, {key: entry[key] for key in CONTENT if key in entry}, path),
        any=_any(reading, entry["any"], (*path, "any"), depth + 1) if "any" in entry else (),
    )


def _any(reading: Reading, value: Any, path: Path, depth: int) -> tuple[Matcher, ...]:
    if not isinstance(value, list) or not value:
        reading.wrong(path, "must be a list of blocks, of which one has to match: [{...}, {...}]")
        return ()
    return tuple(block(reading, each, (*path, number), depth) for number, each in enumerate(value))


def _names(reading: Reading, value: Any, path: Path) -> tuple[NamePattern, ...]:
    if isinstance(value, list) and not value:
        reading.wrong(path, "is empty; write the names to match, or leave the field out")
    found: list[NamePattern] = []
    for at, text in reading.texts(value, path, "an event name"):
        try:
            found.append(NamePattern.compile(text))
        except MatchError as error:
            reading.wrong(at, str(error))
    return tuple(found)


def _identity(reading: Reading, field: str, value: Any, path: Path) -> tuple[Identity, ...]:
    if isinstance(value, list) and not value:
        reading.wrong(path, "is empty; write the values to match, or leave the field out")
    what = "an address" if field in HEX_BITS else f"the id of {_article(field)} {field}"
    found: list[str] = []
    for at, text in reading.texts(value, path, what):
        try:
            identities(field, [text])
            found.append(text)
        except MatchError as error:
            reading.wrong(at, str(error))
    return identities(field, found) if found else ()


def _article(word: str) -> str:
    return "an" if word[0] in "ao" else "a"


def _content(reading: Reading, value: Mapping[str, Any], path: Path) -> Pattern | None:
    if not value:
        return None
    try:
        return pattern.compile(value)
    except PatternError as error:
        for each in error.all:
            reading.wrong((*path, *each.path), each.advice)
        return None
