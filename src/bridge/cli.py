"""The command line: our errors become one line each and an exit code (DESIGN.md §2.1).

0 done; 1 the thing asked for is not so; 2 wrong config or arguments; 3 cannot start or reach.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from bridge import logs
from bridge.commands import alerts, dead_letters, queue, silence
from bridge.commands.catalogue import catalogue
from bridge.commands.check import check
from bridge.commands.demo import demo
from bridge.commands.doctor import doctor
from bridge.commands.explain import explain
from bridge.commands.init import init
from bridge.commands.record import record
from bridge.commands.replay import replay
from bridge.commands.run import run
from bridge.commands.schema import schema
from bridge.commands.send_test import send_test
from bridge.commands.terminal import CANNOT, WRONG, fail
from bridge.commands.test import run_tests
from bridge.commands.trace import trace
from bridge.commands.verify import verify
from bridge.errors import BridgeError, ConfigError

app = typer.Typer(
    name="bridge",
    help="Event router for LoRaWAN networks on The Things Stack.",
    epilog="Start with `bridge demo`. Then write bridge.yaml, `bridge check`, `bridge run`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    run,
    check,
    demo,
    doctor,
    init,
    explain,
    send_test,
    trace,
    verify,
    record,
    replay,
    catalogue,
    schema,
):
    app.command()(command)
app.command("test")(run_tests)
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(queue.app, name="queue")
app.add_typer(silence.app, name="silence")
app.add_typer(alerts.app, name="alerts")


def main() -> None:
    """The command `bridge`."""
    logs.configure()
    try:
        app()
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


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Event router for LoRaWAN networks on The Things Stack."""
