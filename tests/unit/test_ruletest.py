"""The `tests:` of rule files: verdicts, diffs, JUnit; and the command."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer

from bridge.commands.test import named, recorded, run_tests
from bridge.errors import ConfigError
from bridge.rulefile import parse
from bridge.rules.test import Result, difference, junit, run, summary
from tests.recordings import RECORDED, documents

UPLINK = next(each["unique_id"] for each in documents("apps.sse") if each["name"] == "as.up.data.forward")
TEXT = f"""rules:
  - name: uplinks
    match: {{name: as.up.data.forward}}
    send: [crm, ops]
    tests:
      - event: {{name: as.up.data.forward}}
        sends: [ops, crm]
      - event: {{name: as.up.join.forward}}
        description: a join
        sends: [crm]
      - event: {{name: as.up.data.forward}}
        sends: []
      - event: {{name: as.up.data.forward}}
        sends: [crm, slack]
      - event_file: {RECORDED}/apps.sse#{UPLINK}
        sends: [crm, ops]
      - event_file: {RECORDED}/apps.sse#01NOBODY
        sends: []
      - event_file: nowhere.sse#01NOBODY
        sends: []
"""


def results() -> list[Result]:
    return list(run(parse(TEXT, "r.yaml", sinks=None).rules, recorded))


def test_a_test_passes_if_the_rule_sends_what_is_expected() -> None:
    """Whatever the order."""
    assert [each.passed for each in results()] == [True, False, False, False, True, False, False]
    assert summary(results()) == "2 passed, 5 failed"


def test_a_failure_is_told_as_a_diff_with_the_reason() -> None:
    """Where, what was expected, what is sent, why."""
    told = ["\n".join(difference(each)) for each in results() if not each.passed]
    assert told == [
        "r.yaml:8: uplinks, test 2 (a join)\n  - crm\n"
        "  because name is as.up.join.forward, not as.up.data.forward",
        "r.yaml:11: uplinks, test 3\n  + crm\n  + ops\n  because all of it matches",
        "r.yaml:13: uplinks, test 4\n    crm\n  - slack\n  + ops",
        f"r.yaml:17: uplinks, test 6\n  no event of {RECORDED}/apps.sse has this unique_id",
        "r.yaml:19: uplinks, test 7\n  nowhere.sse cannot be read: No such file or directory",
    ]


def test_junit_counts_failures_and_errors() -> None:
    """One suite a file, one case a test; it is XML whatever stands in it."""
    root = ElementTree.fromstring(junit(results()))
    (suite,) = root
    assert (suite.get("name"), suite.get("tests"), suite.get("failures"), suite.get("errors")) == (
        "r.yaml",
        "7",
        "3",
        "2",
    )
    assert [case.get("name") for case in suite][1] == "uplinks, test 2 (a join)"
    strange = TEXT.replace("a join", '"\\x00 <b> & \\x1b"')
    ElementTree.fromstring(junit(list(run(parse(strange, "r.yaml", sinks=None).rules, recorded))))


def test_the_command_ends_with_1_if_a_test_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And writes the JUnit file beside."""
    (tmp_path / "r.yaml").write_text(TEXT)
    with pytest.raises(typer.Exit) as ended:
        run_tests([tmp_path], junit=tmp_path / "out.xml")
    assert ended.value.exit_code == 1
    said = capsys.readouterr().out
    assert f"{tmp_path}/r.yaml:8: uplinks, test 2 (a join)" in said
    assert said.endswith("2 passed, 5 failed\n")
    assert (tmp_path / "out.xml").read_text().startswith("<?xml")


def test_the_command_is_quiet_if_all_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line."""
    (tmp_path / "r.yaml").write_text(TEXT[: TEXT.index("      - event: {name: as.up.join")])
    run_tests([tmp_path / "r.yaml"])
    assert capsys.readouterr().out == "1 passed, 0 failed\n"


def test_mistakes_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    """A file that is not there is one of them."""
    (tmp_path / "bad.yaml").write_text("rules: 5")
    with pytest.raises(ConfigError) as refused:
        named([tmp_path / "bad.yaml", tmp_path / "none.yaml"])
    assert [each.file for each in refused.value.mistakes] == [
        str(tmp_path / "bad.yaml"),
        str(tmp_path / "none.yaml"),
    ]
