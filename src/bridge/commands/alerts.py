"""`bridge alerts list`: what is pending or firing now."""

from __future__ import annotations

import time
from pathlib import Path

import typer

from bridge.alerting import Alerting, Current, as_object
from bridge.alertset import AlertSet
from bridge.commands.terminal import ConfigOption, JsonOption, loaded, print_json, run_async
from bridge.errors import StartError
from bridge.event import rfc3339
from bridge.outbox.sqlite import open_readonly

app = typer.Typer(help="What is wrong now.", no_args_is_help=True)


@app.command("list")
def list_alerts(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Alerts that are pending or firing.

    As of the last thing bridge has stored.
    """
    found = loaded(config, no_secrets=True)
    for each in run_async(current, found.outbox_path, found.alert_set):
        print_json(as_object(each)) if as_json else print(shown(each))


async def current(path: Path, alerts: AlertSet) -> list[Current]:
    """By the store at *path*; raises StartError."""
    if not path.exists():
        raise StartError(f"{path}: there is no store yet")
    async with open_readonly(path) as store:
        rows = await store.alert_states()
    alerting = Alerting()
    alerting.load(rows)
    alerting.now = time.time_ns()
    alerting.configure(alerts, 0)
    return alerting.current()


def shown(each: Current) -> str:
    why = f"  ({each.suppressed})" if each.suppressed else ""
    return f"{each.state:8} {rfc3339(each.since)}  {each.alert}  {each.key}{why}"
