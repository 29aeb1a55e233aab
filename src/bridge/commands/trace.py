"""`bridge trace UNIQUE_ID`: the story of one event, from the store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from bridge.commands.terminal import (
    NOT_SO,
    ConfigOption,
    JsonOption,
    fail,
    print_json,
    print_lines,
    run_async,
    to_read,
)
from bridge.config import Config
from bridge.control import opened_reader
from bridge.event import rfc3339
from bridge.outbox import Trace, TracedDelivery


def trace(
    unique_id: Annotated[str, typer.Argument(help="The event's unique_id.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell the story of one event.

    When it was received, which rules wanted it, each attempt with status, duration and error.
    """
    found = run_async(traced, to_read(config), unique_id)
    if found is None:
        fail([f"{unique_id}: not known: never accepted, or longer ago than dedup_window"], NOT_SO)
    if as_json:
        print_json(asdict(found))
    else:
        print_lines(shown(found))


async def traced(config: Config, unique_id: str) -> Trace | None:
    """What the store of *config* still knows of an event; raises StartError."""
    async with opened_reader(config) as store:
        return await store.trace(unique_id)


def shown(found: Trace) -> Iterator[str]:
    """*found* as lines for a person."""
    yield f"{found.unique_id}  {found.name}"
    yield f"received {at(found.received)} from source {found.source}"
    if not found.deliveries:
        yield "no deliveries are kept: no rule sent it, or trace_retention is over"
    for each in found.deliveries:
        yield from delivery(each)


def delivery(each: TracedDelivery) -> Iterator[str]:
    when = f" {at(each.at)}" if each.at else f", next attempt {at(each.due)}" if each.due else ""
    yield f"rule {each.rule} -> sink {each.sink}: {each.state}{when}  {each.id}"
    for made in each.attempts:
        status = f" status {made.status}" if made.status else ""
        error = f" {made.reason}: {made.error}" if made.reason else ""
        yield f"  attempt {made.number}  {at(made.at)}  {made.duration:.3f} s  {made.outcome}{status}{error}"


def at(seconds: float) -> str:
    """Unix *seconds* as the store's other times are written, to the millisecond."""
    return rfc3339(int(seconds * 1000) * 1_000_000)
