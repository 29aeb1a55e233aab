"""`bridge explain [FILE|-]`: for each event every rule's verdict, and each delivery as it would go out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from bridge.commands.terminal import WRONG, ConfigOption, JsonOption, fail, loaded, print_json, print_lines
from bridge.errors import FrameError
from bridge.event import Event
from bridge.ops.explained import as_object, deliveries
from bridge.rules.explain import Verdict, read_events
from bridge.rules.explain import explain as judged
from bridge.sinks.preview import Preview

LONGEST = 2000  # characters of a body shown to a person


def explain(
    file: Annotated[
        Path | None, typer.Argument(help="A recorded stream or JSON events; - or nothing for standard input.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say of each event which rules want it and what they send.

    Of the other rules the first clause that failed, and each delivery as it would go out.
    """
    found = loaded(config, no_secrets=True)
    events = list(events_in(file))
    if not events:
        fail([f"{file or 'standard input'}: there is no event in it"], WRONG)
    for event in events:
        verdicts = judged(found.rule_set, event)
        rendered = list(deliveries(found, event, verdicts, time.time()))
        if as_json:
            print_json(as_object(event, verdicts, rendered))
        else:
            print_lines(shown(event, verdicts, rendered))


def events_in(file: Path | None) -> Iterator[Event]:
    try:
        text = sys.stdin.buffer.read() if file is None or str(file) == "-" else file.read_bytes()
        yield from read_events(text)
    except OSError as error:
        fail([f"{file}: cannot be read: {error.strerror}"], WRONG)
    except FrameError as error:
        fail([f"{file or 'standard input'}: {error}"], WRONG)


def shown(event: Event, verdicts: tuple[Verdict, ...], rendered: list[Preview]) -> Iterator[str]:
    yield f"{event.name}  {event.unique_id}"
    for each in verdicts:
        if each.why is None:
            yield f"  + {each.rule}  sends to {', '.join(each.send)}"
        else:
            yield f"  - {each.rule}  {each.why}  ({each.file}:{each.line})"
    for preview in rendered:
        to = f" {preview.to}" if preview.to else ""
        body = preview.body if len(preview.body) <= LONGEST else preview.body[:LONGEST] + " ..."
        yield f"  > {preview.sink}{to}  {preview.delivery_id}"
        yield f"    {f'cannot be rendered: {preview.error}' if preview.error else body}"
