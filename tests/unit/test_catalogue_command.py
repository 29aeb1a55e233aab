"""`bridge catalogue`."""

from __future__ import annotations

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from bridge.commands.catalogue import catalogue, entries, reach, selected
from bridge.errors import ConfigError

app = typer.Typer()
app.command()(catalogue)


def run(*arguments: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    return result.exit_code, result.stdout.splitlines()


def test_every_name_has_a_line_with_component_reach_right_and_type() -> None:
    code, lines = run()
    assert code == 0
    assert len(lines) == 1 + 248
    line = next(each for each in lines if each.startswith("as.up.data.forward "))
    assert "Application Server" in line
    assert "APPLICATION_TRAFFIC_READ" in line
    assert "ApplicationUp" in line


def test_an_application_stream_carries_73_names_and_the_others_need_each_device() -> None:
    found = [reach(each) for each in entries().values()]
    assert found.count("yes") == 73
    assert reach(entries()["ns.up.data.drop"]) == "devices"
    assert reach(entries()["gs.gateway.connect"]) == "no"


@pytest.mark.parametrize(
    ("pattern", "some", "count"),
    [
        ("gs.gateway.*", "gs.gateway.disconnect", None),
        ("/^gs\\.gateway\\./", "gs.gateway.connection.stats", None),
        ("as.up.data.forward", "as.up.data.forward", 1),
        ("JOIN", "js.join.accept", None),
        ("**.fail", "as.webhook.fail", None),
    ],
)
def test_a_pattern_finds_names_as_rules_do_and_parts_of_names(
    pattern: str, some: str, count: int | None
) -> None:
    found = [each.name for each in selected(entries().values(), pattern)]
    assert some in found
    assert count is None or len(found) == count


def test_nothing_found_is_exit_code_1_and_a_bad_pattern_a_mistake() -> None:
    assert run("as.up.data.forwrad")[0] == 1
    with pytest.raises(ConfigError):
        run("/(/")


def test_json_is_one_object_a_line() -> None:
    code, lines = run("--json", "as.up.data.forward")
    assert code == 0
    found = msgspec.json.decode(lines[0])
    assert found["application_stream"] == "yes"
    assert found["rights"] == ["RIGHT_APPLICATION_TRAFFIC_READ"]
