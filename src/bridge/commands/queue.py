"""`bridge queue list | show | check | export | import`."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from bridge.commands.dead_letters import RuleOption, SinkOption
from bridge.commands.terminal import (
    NOT_SO,
    WRONG,
    ConfigOption,
    JsonOption,
    fail,
    loaded,
    print_json,
    print_lines,
    run_async,
    to_read,
)
from bridge.commands.trace import at
from bridge.config import Config
from bridge.control import admin_of, opened_reader, opened_store
from bridge.errors import StartError
from bridge.outbox import Waiting
from bridge.outbox.exchange import Exported, from_line, to_line
from bridge.outbox.jetstream.outbox import JetStreamOutbox
from bridge.outbox.queue import PAGE, Imported, Queue, Shown
from bridge.outbox.sqlite import SqliteReader

SHOWN = 100  # deliveries listed unless asked for more

app = typer.Typer(help="What waits to be delivered.", no_args_is_help=True)

FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="File, or - for standard input or output.")]


@app.command("list")
def list_queue(
    config: ConfigOption = None,
    sink: SinkOption = None,
    rule: RuleOption = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="At most so many; 0 for all.")] = SHOWN,
    as_json: JsonOption = False,
) -> None:
    """What waits, since when and why, in the order received."""
    settings = to_read(config)
    run_async(listed, settings, sink, rule, limit or None, as_json)


async def listed(
    config: Config, sink: str | None, rule: str | None, limit: int | None, as_json: bool
) -> None:
    """Print the queues of *config* (not with *as_json*) and up to *limit* deliveries; raises StartError."""
    async with opened_reader(config) as store:
        found = [each for each in await store.queues() if sink in (None, each.sink)]
        pauses = {each.sink: each.pause for each in found}
        if not as_json:
            print_lines(summary(each) for each in found)
        left, after = limit, 0
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            page = await store.waiting(sink, rule, after=after, limit=size)
            for each in page:
                why = reason(each, pauses.get(each.sink) is not None)
                print_json(line(each) | {"why": why}) if as_json else print(row(each, why))
            if len(page) < size:
                return
            after = page[-1].row
            left = None if left is None else left - len(page)
        if not as_json:
            print(f"({limit} shown; --limit 0 for all)", file=sys.stderr)


def summary(found: Queue) -> str:
    since = f", the oldest since {at(found.oldest)}" if found.oldest is not None else ""
    pause = found.pause
    paused = f"; paused until {at(pause.until)}: {pause.reason}: {pause.error}" if pause else ""
    dead = f"; {found.dead:,} dead letters" if found.dead else ""
    return f"{found.sink}: {found.waiting:,} waiting{since}{dead}{paused}"


def reason(each: Waiting, paused: bool) -> str:
    """Why *each* still waits."""
    if each.due is None:
        return "waits for the one before it"
    if paused:
        return "sink paused"
    return each.error or "not yet tried"


def line(each: Waiting) -> dict[str, object]:
    """What `--json` prints; a key is always there."""
    return {
        "id": each.id,
        "sink": each.sink,
        "rule": each.rule,
        "name": each.name,
        "unique_id": each.unique_id,
        "received": at(each.received),
        "attempt": each.attempt,
        "due": None if each.due is None else at(each.due),
        "order_key": each.order_key,
        "error": each.error,
    }


def row(each: Waiting, why: str) -> str:
    when = "" if each.due is None or each.attempt == 1 else f"  next attempt {at(each.due)}"
    return (
        f"{each.id}  {each.sink}  {each.rule}  {each.name}  {each.unique_id}  {at(each.received)}"
        f"  attempt {each.attempt}{when}  {why}"
    )


@app.command("show")
def show_delivery(
    identifier: Annotated[
        str, typer.Argument(metavar="ID", help="A delivery's id, or an event's unique_id.")
    ],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """All that is known of one delivery that waits."""
    found = run_async(shown, to_read(config), identifier)
    if not found:
        fail([f"{identifier}: does not wait; try `bridge trace` or `bridge dead-letters show`"], NOT_SO)
    for each in found:
        if as_json:
            print_json(document(each))
        else:
            print_lines(lines(each))


async def shown(config: Config, identifier: str) -> list[Shown]:
    async with opened_reader(config) as store:
        return await store.show(identifier)


def document(each: Shown) -> dict[str, object]:
    made = [
        {
            "number": attempt.number,
            "at": at(attempt.at),
            "duration": attempt.duration,
            "outcome": attempt.outcome,
            "reason": attempt.reason,
            "status": attempt.status,
            "error": attempt.error,
            "response": attempt.response,
        }
        for attempt in each.attempts
    ]
    why = reason(each.waiting, each.pause is not None)
    event = each.body.decode("utf-8", "replace")
    return line(each.waiting) | {"why": why, "attempts": made, "event": event}


def lines(each: Shown) -> Iterator[str]:
    for key, value in line(each.waiting).items():
        if value not in (None, ""):
            yield f"{key:10} {value}"
    yield f"{'why':10} {reason(each.waiting, each.pause is not None)}"
    if each.pause:
        yield f"{'paused':10} until {at(each.pause.until)}: {each.pause.reason}: {each.pause.error}"
    for made in each.attempts:
        status = f" status {made.status}" if made.status else ""
        yield f"  attempt {made.number}  {at(made.at)}  {made.outcome}{status}  {made.error}"
    yield each.body.decode("utf-8", "replace")


@app.command("check")
def check_store(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Look whether the store is whole; safe while bridge runs.

    Reads every page and compares what belongs together.
    """
    wrong = run_async(checked, to_read(config))
    for each in wrong:
        if as_json:
            print_json({"problem": each})
        else:
            print(each)
    if wrong:
        raise typer.Exit(NOT_SO)
    if not as_json:
        print("the store is whole")


async def checked(config: Config) -> list[str]:
    async with opened_reader(config) as store:
        return await store.check()


@app.command("export")
def export_queue(file: FileArgument = "-", config: ConfigOption = None) -> None:
    """Write what waits and what is dead as JSON lines.

    One event a line; safe while bridge runs.
    """
    settings = to_read(config)
    if file == "-":
        count = run_async(export_to, settings, sys.stdout.buffer)
    else:
        with opened(Path(file), "xb") as out:
            count = run_async(export_to, settings, out)
    print(f"{count} events exported", file=sys.stderr)


async def export_to(config: Config, out: BinaryIO) -> int:
    """Write the store of *config* to *out*; returns how many events. Read in pages, so no writer waits."""
    count = 0
    async with opened_reader(config) as store:
        async for page in pages(store):
            out.writelines(map(to_line, page))
            count += len(page)
            progress(count, "exported")
    out.flush()
    return count


async def pages(store: SqliteReader | JetStreamOutbox) -> AsyncIterator[Sequence[Exported]]:
    after: int | None = 0
    while after is not None:
        page, after = await store.exported(after)
        yield page


@app.command("import")
def import_queue(file: FileArgument, config: ConfigOption = None) -> None:
    """Take in what `bridge queue export` wrote.

    Events that are known are left out. Not while bridge runs.
    """
    settings = loaded(config)
    if admin_of(settings) is not None:
        raise StartError("bridge is running on this store; stop it, import, and start it again")
    if file == "-":
        imported = run_async(import_from, settings, sys.stdin.buffer, "standard input")
    else:
        with opened(Path(file), "rb") as source:
            imported = run_async(import_from, settings, source, file)
    print(
        f"{imported.events} events imported: {imported.deliveries} deliveries wait,"
        f" {imported.dead_letters} dead letters; {imported.duplicates} events were known"
    )


async def import_from(config: Config, source: Iterable[bytes], name: str) -> Imported:
    """Take in the lines of *source*, whose *name* is told with a line that is none of ours."""
    total = Imported()
    async with opened_store(config) as outbox:
        for page in parsed(source, name):
            total += await outbox.take_in(page, time.time())
            progress(total.events + total.duplicates, "read")
    return total


def parsed(source: Iterable[bytes], name: str) -> Iterator[list[Exported]]:
    """The lines of *source* in pages; ends the command at the first that cannot be read."""
    page: list[Exported] = []
    for number, text in enumerate(source, 1):
        if not text.strip():
            continue
        try:
            page.append(from_line(text))
        except ValueError as error:
            fail([f"{name}:{number}: {error}"], WRONG)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page


def opened(path: Path, mode: str) -> BinaryIO:
    """*path* open, or a StartError that says why not."""
    try:
        return path.open(mode)  # type: ignore[return-value]  # both modes are binary
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from None


def progress(count: int, what: str) -> None:
    """On a terminal, over the line before; quiet in a pipe."""
    if sys.stderr.isatty():
        print(f"\r{count:,} events {what}", end="\n" if count % PAGE else "", file=sys.stderr)
