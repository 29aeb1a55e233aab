"""`bridge dead-letters list | show | retry | drop`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

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
from bridge.control import Admin, admin_of, opened_reader, opened_store
from bridge.fields import seconds
from bridge.outbox import DeadLetter, DeadLetterFilter

PAGE = 1000  # rows read at a time
SHOWN = 100  # dead letters listed unless asked for more

app = typer.Typer(help="What was given up, kept for you.", no_args_is_help=True)

Ids = Annotated[list[str] | None, typer.Argument(help="Delivery ids.")]
SinkOption = Annotated[str | None, typer.Option("--sink", help="Only of this sink.")]
RuleOption = Annotated[str | None, typer.Option("--rule", help="Only of this rule.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="Only with this reason.")]
SinceOption = Annotated[str | None, typer.Option("--since", help="Only of the last 2h, 7d, ...")]

Change = Literal["retry", "drop"]


def now() -> float:
    """Unix seconds."""
    return time.time()


async def listed(config: Config, wanted: DeadLetterFilter, limit: int | None) -> list[DeadLetter]:
    """The dead letters in the store of *config*, oldest first, at most *limit*; raises StartError."""
    found: list[DeadLetter] = []
    async with opened_reader(config) as store:
        while limit is None or len(found) < limit:
            size = PAGE if limit is None else min(PAGE, limit - len(found))
            page = await store.dead_letters(wanted, limit=size, after=found[-1].id if found else None)
            found.extend(page)
            if len(page) < size:
                break
    return found


async def change(config: Config, wanted: DeadLetterFilter, what: Change) -> int:
    """Retry or drop what is *wanted*; returns how many. Asks the running bridge, else opens the store."""
    admin = admin_of(config)
    if admin is not None:
        return await _over_http(admin, wanted, what)
    async with opened_store(config) as outbox:
        if what == "retry":
            return await outbox.retry_dead_letters(wanted, now())
        return await outbox.drop_dead_letters(wanted, now())


async def _over_http(admin: Admin, wanted: DeadLetterFilter, what: Change) -> int:
    answer = await admin.post(f"/api/dead-letters/{what}", as_json(wanted))
    return int(answer["changed"])


def as_json(wanted: DeadLetterFilter) -> dict[str, object]:
    """Only what was asked for: an absent field matches all."""
    fields = {
        "ids": None if wanted.ids is None else list(wanted.ids),
        "sink": wanted.sink,
        "rule": wanted.rule,
        "reason": wanted.reason,
        "since": wanted.since,
    }
    return {key: value for key, value in fields.items() if value is not None}


def line(letter: DeadLetter) -> dict[str, object]:
    """What `--json` prints (DESIGN.md §2.1)."""
    return {
        "id": letter.id,
        "sink": letter.sink,
        "rule": letter.rule,
        "name": letter.name,
        "unique_id": letter.unique_id,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "first": at(letter.first),
        "last": at(letter.last),
        "status": letter.status,
    }


def shown(letter: DeadLetter) -> Iterator[str]:
    """All that is known of *letter*, for a person."""
    for key, value in line(letter).items():
        yield f"{key:10} {'' if value is None else value}"
    yield f"{'error':10} {letter.error}"
    if letter.response:
        yield f"{'response':10} {letter.response}"


def selected(
    ids: list[str] | None, sink: str | None, rule: str | None, reason: str | None, since: str | None
) -> DeadLetterFilter:
    """The filter that the options of a dead-letters command mean."""
    try:
        after = None if since is None else now() - seconds(since)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from None
    return DeadLetterFilter(ids or None, sink, rule, reason, after)


@app.command("list")
def list_dead_letters(
    config: ConfigOption = None,
    sink: SinkOption = None,
    rule: RuleOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="At most so many; 0 for all.")] = SHOWN,
    as_json: JsonOption = False,
) -> None:
    """What was given up, oldest first."""
    settings = to_read(config)
    found = run_async(listed, settings, selected(None, sink, rule, reason, since), limit or None)
    for each in found:
        if as_json:
            print_json(line(each))
        else:
            print("  ".join(str(value) for value in line(each).values() if value is not None))
    if limit and len(found) == limit and not as_json:
        print(f"({limit} shown; --limit 0 for all)", file=sys.stderr)


@app.command("show")
def show_dead_letter(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="The delivery's id.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """All that is known of one dead letter."""
    settings = to_read(config)
    found = run_async(listed, settings, DeadLetterFilter(ids=[identifier]), 1)
    if not found:
        fail([f"{identifier}: no such dead letter"], NOT_SO)
    if as_json:
        print_json(line(found[0]) | {"error": found[0].error, "response": found[0].response})
    else:
        print_lines(shown(found[0]))


def changed(config: Path | None, what: Change, wanted: DeadLetterFilter, everything: bool) -> None:
    if wanted == DeadLetterFilter() and not everything:
        fail(["name ids, a filter such as --sink, or --all"], WRONG)
    count = run_async(change, loaded(config), wanted, what)
    print(f"{count} {'will be tried again' if what == 'retry' else 'dropped'}")
    if not count:
        raise typer.Exit(NOT_SO)


AllOption = Annotated[bool, typer.Option("--all", help="All of them.")]


@app.command("retry")
def retry_dead_letters(
    ids: Ids = None,
    config: ConfigOption = None,
    sink: SinkOption = None,
    rule: RuleOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    everything: AllOption = False,
) -> None:
    """Try again, under the same delivery id; safe while bridge runs."""
    changed(config, "retry", selected(ids, sink, rule, reason, since), everything)


@app.command("drop")
def drop_dead_letters(
    ids: Ids = None,
    config: ConfigOption = None,
    sink: SinkOption = None,
    rule: RuleOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    everything: AllOption = False,
) -> None:
    """Forget for ever."""
    changed(config, "drop", selected(ids, sink, rule, reason, since), everything)
