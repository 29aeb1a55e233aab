"""`bridge catalogue [PATTERN]`: the event names of The Things Stack, and what it takes to get them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Annotated, Literal, TypeAlias

import msgspec
import typer

from bridge.catalogue import EventName
from bridge.commands.terminal import NOT_SO, JsonOption, NoConfigOption, fail, print_json, print_lines
from bridge.errors import ConfigError, Mistake
from bridge.rules.names import MatchError, NamePattern

ABOUT_APPLICATIONS = ("application.", "as.application.", "as.mqtt.", "as.pubsub.")
"""How the names begin whose events are about an application (pkg/applicationserver in v3.32)."""

TYPE_PREFIX = "type.googleapis.com/"


Reach: TypeAlias = Literal["yes", "no", "devices", "no stream"]
"""Whether an application stream carries a name: yes, no, or only one on the device; or nothing does."""


def reach(each: EventName) -> Reach:
    if not each.deliverable_via_stream:
        return "no stream"
    if each.propagates_to_application or each.name.startswith(ABOUT_APPLICATIONS):
        return "yes"
    return "devices" if any(right.startswith("RIGHT_APPLICATION_") for right in each.rights) else "no"


@cache
def entries() -> Mapping[str, EventName]:
    """All names, in order."""
    text = files("bridge").joinpath("share", "tts_event_names.json").read_bytes()
    found = msgspec.json.decode(text, type=list[EventName])
    return {each.name: each for each in sorted(found, key=lambda each: each.name)}


def selected(known: Iterable[EventName], pattern: str | None) -> list[EventName]:
    """Those *pattern* finds: a name, `*` and `**` for segments, `/regex/`, or any part of a name.

    Raises MatchError.
    """
    if not pattern:
        return list(known)
    found = list(known)
    if "*" in pattern or pattern[:1] == "/" == pattern[-1:]:
        compiled = NamePattern.compile(pattern)
        return [each for each in found if compiled.holds(each.name)]
    exact = [each for each in found if each.name == pattern]
    return exact or [each for each in found if pattern.lower() in each.name]


def catalogue(
    pattern: Annotated[
        str | None, typer.Argument(help="A name, part of one, with * or **, or /regex/.")
    ] = None,
    as_json: JsonOption = False,
    _config: NoConfigOption = None,
) -> None:
    """List event names with component, type, right and stream.

    And whether an application stream carries them.
    """
    try:
        found = selected(entries().values(), pattern)
    except MatchError as error:
        raise ConfigError([Mistake("PATTERN", 0, "", str(error))]) from None
    if as_json:
        for each in found:
            print_json(as_object(each))
    else:
        print_lines(table(found))
    if not found:
        fail(["no event name of v3.32 is like that; a newer server may have it"], NOT_SO)


def as_object(each: EventName) -> dict[str, object]:
    return {
        "name": each.name,
        "component": each.component,
        "data_types": list(each.data_types),
        "rights": list(each.rights),
        "severity": each.severity,
        "application_stream": reach(each),
        "notes": list(each.notes),
    }


def table(found: Sequence[EventName]) -> list[str]:
    """One line a name, in columns, under a header."""
    if not found:
        return []
    header = ("NAME", "COMPONENT", "APPLICATION STREAM", "RIGHT", "DATA")
    rows = [header, *(row(each) for each in found)]
    widths = [max(len(line[column]) for line in rows) for column in range(len(header) - 1)]
    return [
        "  ".join(
            [*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[-1]]
        ).rstrip()
        for line in rows
    ]


def row(each: EventName) -> tuple[str, str, str, str, str]:
    data = ", ".join(
        kind.removeprefix(TYPE_PREFIX).removeprefix("ttn.lorawan.v3.") for kind in each.data_types
    )
    rights = " or ".join(right.removeprefix("RIGHT_") for right in each.rights)
    return each.name, each.component, reach(each), rights or "none", data or "-"
