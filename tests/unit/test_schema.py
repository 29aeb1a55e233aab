"""The schemas agree with the loader: what they accept and refuse, on the files that ship."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bridge.alerts.file import COMMON, KINDS
from bridge.schema import config_schema, duration_text, rules_schema
from bridge.yamltext import parse

RULES = sorted((Path(__file__).parents[2] / "rules").glob("*.yaml"))


def errors(schema: dict[str, Any], value: Any) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema)
    return [error.message for error in validator.iter_errors(value)]


def example() -> Any:
    text = (files("bridge") / "share" / "bridge.example.yaml").read_text()
    return parse(text, "bridge.example.yaml").value


def test_both_are_valid_schemas() -> None:
    """Of the dialect they name."""
    for schema in (config_schema(), rules_schema()):
        jsonschema.Draft202012Validator.check_schema(schema)


def test_the_example_is_accepted() -> None:
    """Every key of it."""
    assert errors(config_schema(), example()) == []


def test_the_example_shows_every_key() -> None:
    """Nobody has to read the code for one."""
    schema, document = config_schema(), example()
    assert set(schema["properties"]) == set(document)
    for section in ("sources", "sinks"):
        for entry in document[section].values():
            model = next(
                each
                for each in schema["$defs"].values()
                if each.get("properties", {}).get("type", {}).get("const") == entry["type"]
            )
            assert set(model["properties"]) == set(entry), entry["type"]


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_shipped_rules_are_accepted(path: Path) -> None:
    """Each file."""
    assert errors(rules_schema(), parse(path.read_text(), path.name).value) == []


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("crm", "timout", "1s"),
        ("crm", "timeout", "fast"),
        ("crm", "timeout", 10),
        ("crm", "type", "webhok"),
        ("broker", "qos", 3),
    ],
)
def test_a_mistake_is_refused(section: str, key: str, value: object) -> None:
    """As the loader would."""
    document = example()
    document["sinks"][section][key] = value
    assert errors(config_schema(), document)


@pytest.mark.parametrize(
    "rule",
    [
        {"name": "x", "match": {}},
        {"name": "x", "match": {"nam": "y"}, "send": ["a"]},
        {"name": "x", "match": {"data": {"f_port": 5}}, "send": ["a"]},
        {"name": "x", "match": {}, "send": []},
        {"name": "x", "match": {}, "send": ["a"], "attach": "all"},
    ],
)
def test_a_wrong_rule_is_refused(rule: dict[str, object]) -> None:
    """As the loader would."""
    assert errors(rules_schema(), {"rules": [rule]})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "200ms"), (10.0, "10s"), (240.0, "4m"), (3600.0, "1h"), (172_800.0, "48h"), (2_592_000.0, "30d")],
)
def test_defaults_read_as_an_operator_writes_them(seconds: float, text: str) -> None:
    """In the largest unit that fits."""
    assert duration_text(seconds) == text


def test_keys_have_descriptions_and_readable_defaults() -> None:
    """An editor shows them."""
    webhook = config_schema()["$defs"]["WebhookConfig"]["properties"]
    assert webhook["timeout"]["default"] == "10s"
    assert "connecting" in webhook["timeout"]["description"]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("state", {}),
        ("absent", {"match": {}}),
        ("absent", {"match": {}, "for": "1h", "count": 5}),
        ("threshold", {"match": {}, "within": "soon"}),
        ("value", {"match": {}, "field": "data.x", "readings": 0}),
        ("value", {"match": {}, "field": "data.x", "colour": "red"}),
        ("watch", {"match": {}}),
    ],
)
def test_a_mistake_in_an_alert_is_refused(kind: str, more: dict[str, object]) -> None:
    """A key that is missing, of another kind, unknown, or of no meaning."""
    alert = {"name": "a", "kind": kind, "by": "gateway", "send": ["ops"], **more}
    assert errors(rules_schema(), {"alerts": [alert]})


def test_every_key_of_an_alert_is_in_its_schema() -> None:
    """What the loader reads, an editor offers."""
    schema = rules_schema()["$defs"]["alert"]["allOf"]
    found = {key for each in schema for key in each["then"]["properties"]}
    assert found == {*COMMON, *(key for keys in KINDS.values() for key in keys)}
