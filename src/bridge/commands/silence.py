"""`bridge silence add | list | expire`: who is not told for a while (Alertmanager's silences)."""

from __future__ import annotations

import getpass
import secrets
import time
from typing import Annotated, Any

import msgspec
import typer

from bridge.alerts.engine import silence_row
from bridge.alerts.silences import Silence, checked, matcher
from bridge.commands.terminal import (
    NOT_SO,
    ConfigOption,
    JsonOption,
    fail,
    loaded,
    print_json,
    run_async,
    to_read,
)
from bridge.commands.trace import at
from bridge.config import Config
from bridge.control import admin_of, opened_reader, opened_store
from bridge.errors import StartError
from bridge.fields import seconds
from bridge.outbox import Batch

app = typer.Typer(help="Who is not told for a while.", no_args_is_help=True)


@app.command("add")
def add(
    matchers: Annotated[
        list[str],
        typer.Argument(help="Labels: gateway=gw-yard, device=~plant-a/.*, severity!=page; a word: an alert."),
    ],
    lasts: Annotated[str, typer.Option("--for", help="How long: 30m, 2h, 1d.")] = "1h",
    comment: Annotated[str, typer.Option("--comment", help="Why.")] = "",
    author: Annotated[str, typer.Option("--author", help="Who [default: you].")] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep notifications back whose labels match.

    Alerts go on firing, and are told if they still do when the silence ends.
    """
    now = time.time()
    try:
        made = checked(
            Silence(
                id=secrets.token_hex(8),
                matchers=tuple(matcher(each) for each in matchers),
                starts=now,
                ends=now + seconds(lasts),
                author=author or whoever(),
                comment=comment,
            )
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    run_async(stored, loaded(config), made)
    print_json(line(made, now)) if as_json else print(made.id)


@app.command("list")
def list_silences(
    config: ConfigOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Those that are over too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Who is not told, until when, and why."""
    now = time.time()
    for each in run_async(listed, to_read(config)):
        if everything or each.state(now) != "expired":
            print_json(line(each, now)) if as_json else print(shown(each, now))


@app.command("expire")
def expire(
    ids: Annotated[list[str], typer.Argument(help="Ids of silences.")], config: ConfigOption = None
) -> None:
    """End silences now."""
    found = loaded(config)
    known = {each.id: each for each in run_async(listed, found)}
    missing = [each for each in ids if each not in known]
    if missing:
        fail([f"{each}: no such silence" for each in missing], NOT_SO)
    now = time.time()
    for each in ids:
        if known[each].state(now) != "expired":
            ended = msgspec.structs.replace(known[each], ends=now, starts=min(known[each].starts, now - 1))
            run_async(stored, found, ended)
    print(f"{len(ids)} ended")


async def stored(config: Config, silence: Silence) -> None:
    """Through the running bridge, else into the store; raises StartError."""
    admin = admin_of(config)
    if admin is not None:
        await admin.post("/api/silences", msgspec.to_builtins(silence))
        return
    async with opened_store(config) as outbox:
        await outbox.accept(Batch(alerts=silence_row(silence)))


async def listed(config: Config) -> list[Silence]:
    """Those in the store of *config*, the one that ends last first; raises StartError."""
    if config.nats is None and not config.outbox_path.exists():
        raise StartError(f"{config.outbox_path}: there is no store yet")
    async with opened_reader(config) as store:
        rows = await store.alert_states("silence")
    found = [msgspec.json.decode(state, type=Silence) for _, _, _, state in rows]
    return sorted(found, key=lambda each: (-each.ends, each.id))


def line(silence: Silence, now: float) -> dict[str, Any]:
    return {
        "id": silence.id,
        "state": silence.state(now),
        "matchers": [str(each) for each in silence.matchers],
        "starts": at(silence.starts),
        "ends": at(silence.ends),
        "author": silence.author,
        "comment": silence.comment,
    }


def shown(silence: Silence, now: float) -> str:
    matchers = " ".join(str(each) for each in silence.matchers)
    why = f"  {silence.author}: {silence.comment}" if silence.comment else f"  {silence.author}"
    return f"{silence.id}  {silence.state(now):8} until {at(silence.ends)}  {matchers}{why}"


def whoever() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
