"""`bridge alerts list`: what is pending or firing now."""

from __future__ import annotations

import time

import typer

from bridge.alerts.engine import Alerting, Current, as_object
from bridge.commands.terminal import ConfigOption, JsonOption, print_json, run_async, to_read
from bridge.config import Config
from bridge.control import opened_reader
from bridge.errors import StartError
from bridge.event import rfc3339

app = typer.Typer(help="What is wrong now.", no_args_is_help=True)


@app.command("list")
def list_alerts(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Alerts that are pending or firing.

    As of the last thing bridge has stored.
    """
    found = to_read(config)
    for each in run_async(current, found):
        print_json(as_object(each)) if as_json else print(shown(each))


async def current(config: Config) -> list[Current]:
    """By the store of *config*; raises StartError."""
    if config.nats is None and not config.outbox_path.exists():
        raise StartError(f"{config.outbox_path}: there is no store yet")
    async with opened_reader(config) as store:
        rows = await store.alert_states()
    alerting = Alerting()
    alerting.load(rows)
    alerting.now = time.time_ns()
    alerting.configure(config.alert_set, 0)
    return alerting.current()


def shown(each: Current) -> str:
    why = f"  ({each.suppressed})" if each.suppressed else ""
    return f"{each.state:8} {rfc3339(each.since)}  {each.alert}  {each.key}{why}"
