"""Every example of rules/README.md, run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bridge import yamltext
from bridge.alerts import file as alertfile
from bridge.alerts import test as alerttest
from bridge.commands.test import recorded
from bridge.errors import ConfigError
from bridge.pattern.operators import OPERATORS
from bridge.rulefile import RULE_KEYS, as_written, read
from bridge.rules import LINTS, Rule, RuleSet
from bridge.rules.explain import event_of
from bridge.rules.matchfile import BLOCK_KEYS
from bridge.rules.test import difference, run
from bridge.shared import catalogue
from bridge.yamltext import Document

README = Path(__file__).parents[2] / "rules" / "README.md"
TEXT = README.read_text()
BLOCKS = {
    TEXT[: found.start()].count("\n") + 1: found[1]
    for found in re.finditer(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
}
LINES = sorted(BLOCKS)


def values(line: int) -> Any:
    """The example at *line*; names and identifiers as they are written."""

    def written(path: yamltext.Path) -> bool:
        match path:
            case ("match", *rest):
                return as_written(("rules", 0, "match", *rest))
            case ("matches" | "but not", int(), *rest):
                return as_written(("rules", 0, "tests", 0, "event", *rest)) or rest == ["remote_ip"]
            case ("refused", *rest):
                return as_written(("rules", 0, *rest))
        return as_written(path)

    return yamltext.parse(BLOCKS[line], "README.md", written).value


def rule(**entry: Any) -> Rule:
    document = Document("README.md", {"rules": [{"name": "r", "send": ["crm"], **entry}]}, {})
    return read(document, sinks=["crm"]).rules[0]


def kind(line: int) -> str:
    return str(next(iter(values(line))))


@pytest.mark.parametrize("line", [line for line in LINES if kind(line) == "match"])
def test_an_example_matches_and_its_near_misses_do_not(line: int) -> None:
    """By the engine, with what the wire facts know."""
    example = values(line)
    assert set(example) == {"match", "matches", "but not"}
    one = rule(match=example["match"])
    rule_set = RuleSet.of([one], catalogue().is_int64)
    for event in example["matches"]:
        assert rule_set.select(event_of(event)) == (one,), event
    for event in example["but not"]:
        assert rule_set.select(event_of(event)) == (), event


@pytest.mark.parametrize("line", [line for line in LINES if kind(line) == "refused"])
def test_a_refused_example_says_what_the_text_says(line: int) -> None:
    """Word for word."""
    example = values(line)
    with pytest.raises(ConfigError) as refused:
        rule(**example["refused"])
    assert str(refused.value) == f"README.md:1: rules[0].{example['says']}"


@pytest.mark.parametrize("line", [line for line in LINES if kind(line) == "rules"])
def test_a_whole_rule_loads_and_passes_its_own_tests(line: int) -> None:
    """With every key a rule may have."""
    document = Document(str(README), values(line), {})
    file = read(document, sinks=["crm", "broker"])
    assert set(values(line)["rules"][0]) == set(RULE_KEYS)
    results = list(run(file.rules, recorded, catalogue().is_int64))
    assert [told for each in results if not each.passed for told in difference(each)] == []


def test_the_alerts_load_and_pass_their_own_tests() -> None:
    """With every key an alert may have."""
    entries = [each for line in LINES if kind(line) == "alerts" for each in values(line)["alerts"]]
    file = read(Document(str(README), {"alerts": entries}, {}), sinks=["ops", "boss"])
    known = {*alertfile.COMMON, *(key for keys in alertfile.KINDS.values() for key in keys)} - {
        "allow",
        "above",
    }
    assert {key for each in entries for key in each} == known
    results = list(alerttest.run(file.alerts, lambda _alert, _story: [], catalogue().is_int64))
    assert [told for each in results if not each.passed for told in each.lines()] == []
    assert [key for key in {*known, "above"} if f"`{key}`" not in TEXT] == []


def test_every_example_is_one_of_these() -> None:
    """None is overlooked."""
    assert {kind(line) for line in LINES} == {"match", "refused", "rules", "alerts"}


def test_every_operator_field_and_warning_is_in_the_text() -> None:
    """Each operator in an example."""
    examples = [msgspec.json.encode(values(line)).decode() for line in LINES if kind(line) == "match"]
    assert [name for name in OPERATORS if not any(f'{{"{name}":' in each for each in examples)] == []
    assert [name for name in BLOCK_KEYS if f"`{name}`" not in TEXT] == []
    assert [name for name in LINTS if f"| `{name}` |" not in TEXT] == []
