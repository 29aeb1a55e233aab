"""Why each rule wants an event, or does not.  No I/O, no clock, no logging in this file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from bridge import decode
from bridge.errors import FrameError
from bridge.event import Event
from bridge.rules import RuleSet


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one rule says of one event."""

    rule: str
    file: str
    line: int
    why: str | None
    """The first clause that failed; None if the rule wants the event."""
    send: tuple[str, ...]
    """Where it would go; empty if the rule does not want it."""


def explain(rules: RuleSet, event: Event) -> tuple[Verdict, ...]:
    """Every rule's verdict on *event*, in their order: from the `mismatch` the engine asks."""
    subject = rules.subject(event)
    found: list[Verdict] = []
    for rule in rules.rules:
        why = rule.mismatch(subject)
        sent = rule.send if why is None else ()
        found.append(Verdict(rule.name, rule.file, rule.line, None if why is None else str(why), sent))
    return tuple(found)


def read_events(text: bytes) -> Iterator[Event]:
    """The events in *text*: a recorded stream in either framing, one JSON event, or a list of them.

    Raises FrameError if there is a JSON value that is no event; a torn or odd line of a stream is skipped.
    """
    try:
        whole = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        decoder = decode.Decoder()
        for frame in [*decoder.feed(text), *decoder.close()]:
            if isinstance(frame, Event):
                yield frame
        return
    for each in whole if isinstance(whole, list) else [whole]:
        yield event_of(each)


def event_of(value: object) -> Event:
    """The event that the JSON value *value* is, bare or as `{"result": ...}`; raises FrameError."""
    if not isinstance(value, Mapping):
        raise FrameError("not an event: it must be an object with a name")
    inner = value.get("result", value)
    return decode.event(msgspec.json.encode(inner))
