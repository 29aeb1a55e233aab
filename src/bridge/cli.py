"""The command line: our errors become one line each and an exit code (DESIGN.md §2.1).

0 done; 1 the thing asked for is not so; 2 wrong config or arguments; 3 cannot start or reach.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import version
from typing import Annotated

import typer

import bridge.lean  # noqa: F401  # before whatever else imports httpx or structlog
from bridge import logs
from bridge.commands.terminal import CANNOT, WRONG, fail
from bridge.errors import BridgeError, ConfigError

COMMANDS: Mapping[str, str] = {
    "run": "run",
    "check": "check",
    "demo": "demo",
    "doctor": "doctor",
    "init": "init",
    "explain": "explain",
    "send-test": "send_test",
    "trace": "trace",
    "verify": "verify",
    "record": "record",
    "replay": "replay",
    "catalogue": "catalogue",
    "schema": "schema",
    "test": "run_tests",
    "dead-letters": "app",
    "queue": "app",
    "silence": "app",
    "alerts": "app",
}
"""In the order of `--help`: what stands for each in its module of `bridge.commands`."""


def app(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The command line with these commands; the modules of all others are not imported."""
    made = typer.Typer(
        name="bridge",
        help="Event router for LoRaWAN networks on The Things Stack.",
        epilog="Start with `bridge demo`. Then write bridge.yaml, `bridge check`, `bridge run`.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(root)
    for name in names:
        found = getattr(import_module(f"bridge.commands.{name.replace('-', '_')}"), COMMANDS[name])
        if isinstance(found, typer.Typer):
            made.add_typer(found, name=name)
        else:
            made.command(name)(found)
    return made


def main() -> None:
    """The command `bridge`.

    It is made of the one command that is asked for: `bridge run` stays in memory, and the others with what
    only they import are 4 MB and 0.1 s.
    """
    logs.configure()
    asked = sys.argv[1:2]
    try:
        app(asked if asked and asked[0] in COMMANDS else COMMANDS)()
    except ConfigError as error:
        fail(error.mistakes, WRONG)
    except BridgeError as error:
        fail([error], CANNOT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)


def show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(version("tts-event-bridge") + "\n")
        raise typer.Exit


def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Event router for LoRaWAN networks on The Things Stack."""
