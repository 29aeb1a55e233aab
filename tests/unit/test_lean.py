"""What `bridge run` does not have in memory."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from bridge.lean import left_out

ASKED = """
import sys
from bridge.cli import main
sys.argv = ["bridge", *{arguments}]
try:
    main()
except SystemExit:
    print("imported:", *sys.modules)
"""


def imported(*arguments: str) -> set[str]:
    """The modules of a process that was asked for *arguments*."""
    script = ASKED.format(arguments=list(arguments))
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(ended.stdout.rpartition("imported:")[2].split())


def test_a_module_that_is_left_out_is_missing_inside_and_there_again_after() -> None:
    """As if it was not installed, and then as if nothing had been."""
    sys.modules.pop("this", None)
    with left_out("this"), pytest.raises(ModuleNotFoundError):
        import_module("this")
    assert "this" not in sys.modules


def test_a_module_that_is_imported_already_stays() -> None:
    """Whoever has it goes on with the same one."""
    with left_out("pytest"):
        assert import_module("pytest") is pytest
    assert sys.modules["pytest"] is pytest


def test_run_imports_no_other_command_and_no_rich() -> None:
    """They would stay in memory as long as bridge runs."""
    modules = imported("run", "--help")
    assert {each for each in modules if each.startswith("bridge.commands.")} == {
        "bridge.commands.run",
        "bridge.commands.terminal",
    }
    assert not modules & {"bridge.standin", "rich", "pygments"}


def test_help_knows_every_command() -> None:
    """Where none is asked for, all are imported."""
    assert {"bridge.commands.run", "bridge.commands.alerts", "bridge.commands.test"} <= imported("--help")
