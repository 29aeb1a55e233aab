"""The rule files that come with the package: documented, free of warnings, tested with recorded events."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from bridge.alerts import test as alerttest
from bridge.commands.test import named, played_from, recorded
from bridge.lint import lint
from bridge.rulefile import RuleFile, clashes
from bridge.rules import RuleSet
from bridge.rules.explain import read_events
from bridge.rules.test import difference, run
from bridge.shared import catalogue
from tests.recordings import RECORDED, STREAMS

RULES = Path(__file__).parents[2] / "rules"
SHIPPED = sorted(path.name for path in RULES.glob("*.yaml"))
SINKS = {"webhook", "ops", "broker"}
WANTED = {
    "alerts-access.yaml",
    "alerts-bridge.yaml",
    "alerts-network.yaml",
    "device-health.yaml",
    "downlinks.yaml",
    "everything-to-mqtt.yaml",
    "failures.yaml",
    "gateway-health.yaml",
    "gateways.yaml",
    "joins.yaml",
    "payloads.yaml",
    "security.yaml",
    "uplinks-to-webhook.yaml",
    "uplinks.yaml",
}


def load(name: str) -> RuleFile:
    (file,) = named([RULES / name])
    return file


def test_they_are_all_there_and_in_the_package() -> None:
    """The demo and `bridge init` read them from there."""
    assert set(SHIPPED) == WANTED
    packaged = {each.name for each in (files("bridge") / "share" / "rules").iterdir()}
    assert {*WANTED, "recorded.sse", "devices.sse", "gateway_flap.sse", "README.md"} <= packaged


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_says_what_it_is_for(name: str) -> None:
    """In its first line, and sends only to the sinks an example config has."""
    assert (RULES / name).read_text().startswith("# ")
    file = load(name)
    assert {sink for rule in file.rules for sink in rule.send} <= SINKS
    assert {sink for alert in file.alerts for sink in alert.tells} <= SINKS


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_has_no_warnings(name: str) -> None:
    """Not even silenced ones."""
    file = load(name)
    assert lint([file], catalogue()) == []
    assert not any(rule.allow for rule in file.rules)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_tests_of_a_shipped_file_pass(name: str) -> None:
    """Each rule has one that matches, and one that does not unless it takes everything."""
    file = load(name)
    results = list(run(file.rules, recorded, catalogue().is_int64))
    assert [line for each in results if not each.passed for line in difference(each)] == []
    for rule in file.rules:
        assert any(each.sends for each in rule.tests), rule.name
        assert rule.match.names == () or not all(each.sends for each in rule.tests), rule.name


@pytest.mark.parametrize("name", [name for name in SHIPPED if name.startswith("alerts-")])
def test_the_tests_of_shipped_alerts_pass(name: str) -> None:
    """Each alert is told in one of them; those of the network have one on recorded traffic too."""
    file = load(name)
    results = list(alerttest.run(file.alerts, played_from, catalogue().is_int64))
    assert [line for each in results for line in each.differences] == []
    assert all(each.passed for each in results)
    for alert in file.alerts:
        assert any(each.expected for each in alert.tests), alert.name
        assert name == "alerts-bridge.yaml" or any(each.file for each in alert.tests), alert.name


def test_all_shipped_files_can_be_loaded_together() -> None:
    """`rules: [rules/*.yaml]` is the default: names are unique over all of them."""
    assert clashes([load(name) for name in SHIPPED]) == []


@pytest.mark.parametrize("name", sorted(path.name for path in RULES.glob("*.sse")))
def test_their_recorded_events_are_as_recorded(name: str) -> None:
    """Every line of them stands in one of the recordings."""
    known = {line.strip() for each in STREAMS for line in (RECORDED / each).read_bytes().split(b"\n")}
    assert {line.strip() for line in (RULES / name).read_bytes().split(b"\n")} <= known


def test_what_the_demo_loads_says_something_of_the_recordings() -> None:
    """Uplinks, failures and a gateway that comes and goes, each a few times."""
    rule_set = RuleSet.of(
        rule for name in ("uplinks", "failures", "gateways") for rule in load(f"{name}.yaml").rules
    )
    counts: dict[str, int] = {}
    for name in ("apps.sse", "gateway_flap.sse"):
        for event in read_events((RECORDED / name).read_bytes()):
            for rule in rule_set.select(event):
                counts[rule.name] = counts.get(rule.name, 0) + 1
    assert counts == {"uplinks": 112, "failures": 84, "gateway-up": 5, "gateway-down": 7}
