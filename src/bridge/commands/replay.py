"""`bridge replay --alerts FILE`: what the alerts would have sent on a recorded day."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bridge.alerts import Alert
from bridge.alerts import test as alerttest
from bridge.alerts.groups import Notice
from bridge.alerts.parts import SECOND
from bridge.alerts.sights import AlertSet
from bridge.commands.explain import events_in
from bridge.commands.terminal import WRONG, ConfigOption, JsonOption, fail, loaded, print_json
from bridge.commands.test import named
from bridge.event import rfc3339
from bridge.fields import seconds
from bridge.shared import catalogue


def replay(
    recording: Annotated[
        Path | None,
        typer.Argument(
            help="A recorded stream, as `bridge record` saves it; - or nothing for standard input."
        ),
    ] = None,
    alerts: Annotated[
        list[Path] | None,
        typer.Option("--alerts", help="Rule files, or folders of them [default: those of the config]."),
    ] = None,
    after: Annotated[str, typer.Option("--until", help="How long time goes on after the last event.")] = "0s",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what alerts would have sent on a recorded day.

    For tuning before they are switched on: nothing is sent.
    """
    found = wanted(alerts, config)
    if not found:
        fail(["there are no alerts in these files"], WRONG)
    try:
        longer = int(seconds(after) * SECOND)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--until") from None
    events = list(events_in(recording))
    if not events:
        fail([f"{recording or 'standard input'}: there is no event in it"], WRONG)
    until = max(each.time_ns for each in events) + longer
    count = 0
    for at, notice in alerttest.played(AlertSet(found, catalogue().is_int64), events, until):
        count += 1
        if as_json:
            print_json(as_object(at, notice))
        else:
            print(line(at, notice))
    print(f"{count} notifications of {len(events)} events", file=sys.stderr)


def wanted(paths: list[Path] | None, config: Path | None) -> list[Alert]:
    files = named(paths) if paths else loaded(config, no_secrets=True).rule_files
    return [alert for file in files for alert in file.alerts]


def line(at: int, notice: Notice) -> str:
    data = notice.document["data"]
    return "  ".join(
        (
            rfc3339(at),
            f"{notice.status:8}",
            notice.alert.name,
            f"-> {', '.join(notice.sinks)}",
            data["summary"],
        )
    )


def as_object(at: int, notice: Notice) -> dict[str, object]:
    return {"at": rfc3339(at), "sends": list(notice.sinks), **notice.document["data"]}
