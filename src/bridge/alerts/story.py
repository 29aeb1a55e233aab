"""The `tests:` of alerts: events with times, and the notifications that follow.  No I/O in this file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bridge.alerts import Expected, Story
from bridge.alerts.parts import SECOND
from bridge.fields import seconds
from bridge.reading import Reading
from bridge.yamltext import Path

KEYS = ("description", "events", "event_file", "until", "notifies")
PART = re.compile(r"[0-9.]+(?:ms|s|m|h|d)")
EXPECTED = ("at", "status", "key", "sends", "summary")


def stories(reading: Reading, value: Any, path: Path) -> tuple[Story, ...]:
    """The tests at *path* of the document; those with mistakes are left out."""
    if not isinstance(value, list):
        reading.wrong(path, "must be a list, each with events and notifies")
        return ()
    found = [_story(reading, each, (*path, number)) for number, each in enumerate(value)]
    return tuple(each for each in found if each is not None)


def _story(reading: Reading, value: Any, path: Path) -> Story | None:
    before = len(reading.mistakes)
    entry = reading.mapping(value, path, KEYS, "a map with events and notifies")
    if ("events" in entry) == ("event_file" in entry):
        reading.wrong(path, "needs exactly one of events and event_file")
    if "notifies" not in entry:
        reading.wrong((*path, "notifies"), "is required; [] if nobody must be told")
    events = _list(reading, entry.get("events", []), (*path, "events"))
    notifies = _list(reading, entry.get("notifies", []), (*path, "notifies"))
    told = [_expected(reading, each, (*path, "notifies", number)) for number, each in enumerate(notifies)]
    came = [
        found
        for number, each in enumerate(events)
        for found in _events(reading, each, (*path, "events", number))
    ]
    until = offset(reading, entry["until"], (*path, "until")) if "until" in entry else None
    if len(reading.mistakes) > before:
        return None
    return Story(
        reading.document.line(path),
        tuple(came),
        tuple(told),
        str(entry.get("description") or ""),
        str(entry["event_file"]) if "event_file" in entry else None,
        until,
    )


def _list(reading: Reading, value: Any, path: Path) -> list[Any]:
    if isinstance(value, list):
        return value
    reading.wrong(path, "must be a list")
    return []


def _events(reading: Reading, value: Any, path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    """`{at: 5m, event: {...}}`; with `every` and `until` the same again and again."""
    entry = reading.mapping(value, path, ("at", "event", "every", "until"), "a map with at and event")
    event = entry.get("event")
    if not (isinstance(event, Mapping) and isinstance(event.get("name"), str)):
        reading.wrong((*path, "event"), "must be an event: a map with at least a name")
        return []
    at = offset(reading, entry.get("at", "0s"), (*path, "at"))
    if "every" not in entry:
        return [(at, event)]
    every = offset(reading, entry["every"], (*path, "every"))
    until = offset(reading, entry.get("until"), (*path, "until"))
    if every < SECOND // 10 or (until - at) // max(1, every) > 10_000:
        reading.wrong((*path, "every"), "must be at least 100ms, and make at most 10000 events")
        return []
    return [(each, event) for each in range(at, until + 1, every)]


def _expected(reading: Reading, value: Any, path: Path) -> Expected:
    entry = reading.mapping(value, path, EXPECTED, "a map with at and status")
    status = entry.get("status", "firing")
    if status not in ("firing", "resolved"):
        reading.wrong((*path, "status"), "must be firing or resolved")
    sends = (
        reading.texts(entry["sends"], (*path, "sends"), "the name of a sink") if "sends" in entry else None
    )
    summary = entry.get("summary")
    return Expected(
        offset(reading, entry.get("at"), (*path, "at")),
        str(status),
        str(entry.get("key", "")),
        None if sends is None else tuple(name for _, name in sends),
        None if summary is None else str(summary),
    )


def offset(reading: Reading, value: Any, path: Path) -> int:
    """ns after the start of a test; several units add up: 5m10s."""
    if value == 0:
        return 0
    parts = PART.findall(value) if isinstance(value, str) else []
    try:
        return int(sum(map(seconds, parts if parts and "".join(parts) == value else [value])) * SECOND)
    except ValueError as error:
        reading.wrong(path, str(error))
        return 0
