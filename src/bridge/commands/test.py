"""`bridge test`: the `tests:` of rule files."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from bridge.alerts import Alert, Story
from bridge.alerts import test as alerttest
from bridge.commands.terminal import NOT_SO, ConfigOption, JsonOption, loaded, print_json, print_lines
from bridge.config import read
from bridge.errors import ConfigError, FrameError, Mistake
from bridge.event import Event
from bridge.rulefile import RuleFile, parse
from bridge.rules import Example, Rule
from bridge.rules import test as ruletest
from bridge.rules.explain import read_events
from bridge.rules.test import Result, Tested
from bridge.shared import catalogue


def run_tests(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Rule files, or folders of them [default: those of the config]."),
    ] = None,
    config: ConfigOption = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the results as JUnit XML too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the tests in rule files.

    A diff for each that fails, and exit code 1 if any does.
    """
    files = named(paths) if paths else list(loaded(config, no_secrets=True).rule_files)
    rules = [rule for file in files for rule in file.rules]
    alerts = [alert for file in files for alert in file.alerts]
    wide = catalogue().is_int64
    results: list[Tested] = [
        *ruletest.run(rules, recorded, wide),
        *alerttest.run(alerts, played_from, wide),
    ]
    if junit is not None:
        junit.write_text(ruletest.junit(results), encoding="utf-8")
    failed = [result for result in results if not result.passed]
    if as_json:
        for result in results:
            print_json(as_object(result))
    else:
        for result in failed:
            print_lines(result.lines())
        print_lines([ruletest.summary(results)])
    if failed:
        raise typer.Exit(NOT_SO)


def named(paths: list[Path]) -> list[RuleFile]:
    """The rule files at *paths*, which may send to any sink; raises ConfigError with all their mistakes."""
    found: list[RuleFile] = []
    mistakes: list[Mistake] = []
    for path in paths:
        for file in sorted(path.glob("*.yaml")) if path.is_dir() else [path]:
            try:
                found.append(parse(read(file, str(file), "correct the path"), str(file), sinks=None))
            except ConfigError as error:
                mistakes.extend(error.mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    return found


def recorded(rule: Rule, test: Example) -> Event:
    """The event *test* names by file and unique_id; raises FrameError."""
    path = Path(rule.file).parent / str(test.file)
    found = events_of(path).get(str(test.unique_id))
    if found is None:
        raise FrameError(f"no event of {test.file} has this unique_id")
    return found


def played_from(alert: Alert, story: Story) -> list[Event]:
    """The events of the recorded file that the test of an alert names; raises FrameError."""
    return list(events_of(Path(alert.file).parent / str(story.file)).values())


@cache
def events_of(path: Path) -> dict[str, Event]:
    """The events of a recorded file by unique_id; raises FrameError."""
    try:
        return {event.unique_id: event for event in read_events(path.read_bytes())}
    except OSError as error:
        raise FrameError(f"{path.name} cannot be read: {error.strerror}") from None


def as_object(result: Tested) -> dict[str, object]:
    if isinstance(result, alerttest.Result):
        return {
            "file": result.file,
            "line": result.line,
            "alert": result.alert.name,
            "test": result.number,
            "passed": result.passed,
            "differences": list(result.differences),
            "why": result.error,
        }
    if not isinstance(result, Result):
        return {"file": result.file, "line": result.line, "passed": result.passed}
    return {
        "file": result.rule.file,
        "line": result.test.line,
        "rule": result.rule.name,
        "test": result.number,
        "passed": result.passed,
        "expected": list(result.test.sends),
        "sent": list(result.sent),
        "why": result.error or result.why,
    }
