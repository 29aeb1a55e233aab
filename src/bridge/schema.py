"""JSON Schema of bridge.yaml and of rule files, for editors and for Helm.  No I/O in this file.

It says what may stand where; what only the loader can know (a rule's sinks, event names) it leaves open.
"""

from __future__ import annotations

from typing import Any

from bridge.alerts.schema import alert_schema, story_schema
from bridge.config import Config
from bridge.rules.identity import HEX_BITS, IDENTIFIERS
from bridge.rules.matchfile import CONTENT

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
BOUNDS = ("ge", "gt", "le", "lt")  # pydantic leaves bounds of a duration on the text that stands for it
WEEK = 604_800_000  # ms; less is told in hours: 48h, not 2d
UNITS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms"))


def config_schema() -> Schema:
    """Of bridge.yaml, with every key's description and default as an operator writes it."""
    schema = Config.model_json_schema(mode="validation")
    _tidy(schema)
    for section in ("sources", "sinks"):
        schema["properties"][section]["propertyNames"] = {"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"}
    return {"$schema": DIALECT, "title": "bridge.yaml"} | schema


def _tidy(node: Any) -> None:
    """Titles that repeat the key go; defaults of durations become text."""
    if isinstance(node, list):
        for each in node:
            _tidy(each)
        return
    if not isinstance(node, dict):
        return
    if isinstance(node.get("title"), str):
        del node["title"]
    for bound in BOUNDS:
        node.pop(bound, None)
    if node.get("type") == "string" and isinstance(node.get("default"), int | float):
        node["default"] = duration_text(node["default"])
    for each in node.values():
        _tidy(each)


def duration_text(seconds: float) -> str:
    """*seconds* in the largest unit that fits: 200ms, 10s, 5m, 48h, 30d."""
    ms = round(seconds * 1000)
    size, unit = next((size, unit) for size, unit in UNITS if ms % size == 0 and (unit != "d" or ms >= WEEK))
    return f"{ms // size}{unit}"


def described(text: str, schema: Schema) -> Schema:
    return schema | {"description": text}


TEXT: Schema = {"type": "string", "minLength": 1}
WORD: Schema = {"type": ["string", "number", "boolean"]}  # taken as it is written
ONE_OR_MORE: Schema = {"anyOf": [WORD, {"type": "array", "items": WORD, "minItems": 1}]}
PATTERN: Schema = {
    "description": "An Amazon EventBridge event pattern: fields, with a list of values at each leaf.",
    "anyOf": [
        {"type": "array", "minItems": 1},
        {"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#/$defs/pattern"}},
    ],
}


def rules_schema() -> Schema:
    """Of a rule file."""
    return {
        "$schema": DIALECT,
        "title": "bridge rules",
        "type": "object",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": {
            "rules": {"type": "array", "items": {"$ref": "#/$defs/rule"}},
            "alerts": {"type": "array", "items": {"$ref": "#/$defs/alert"}},
        },
        "$defs": {
            "rule": _rule(),
            "alert": alert_schema(),
            "block": _block(),
            "pattern": PATTERN,
            "test": _test(),
            "story": story_schema(),
        },
    }


def _rule() -> Schema:
    block = {"$ref": "#/$defs/block"}
    return {
        "type": "object",
        "required": ["name", "match", "send"],
        "additionalProperties": False,
        "properties": {
            "name": described("Unique over all rule files; a metric label and part of delivery ids.", WORD),
            "description": {"type": "string"},
            "match": described("What an event has to be; {} takes every event.", block),
            "unless": described("What it must not be.", block),
            "attach": described(
                "The other events of its correlation ids, as event.related.", {"const": "related"}
            ),
            "sample": described("A fraction such as 1/10.", {"type": "string", "pattern": "^[0-9]+/[0-9]+$"}),
            "send": described("Names of sinks.", ONE_OR_MORE),
            "allow": described(
                "Warnings that do not apply, each with the reason.",
                {"type": "object", "additionalProperties": TEXT},
            ),
            "tests": {"type": "array", "items": {"$ref": "#/$defs/test"}},
        },
    }


def _block() -> Schema:
    fields: Schema = {
        "name": described("Exact; * one segment, ** any number; /regex/ RE2, unanchored.", ONE_OR_MORE)
    }
    for kind in IDENTIFIERS:
        fields[kind] = described(f"Ids of a {kind}: exact, or with *.", ONE_OR_MORE)
    for address in HEX_BITS:
        fields[address] = described("Hex, or a prefix as hex/bits.", ONE_OR_MORE)
    for content in CONTENT:
        fields[content] = {"$ref": "#/$defs/pattern"}
    fields["any"] = described(
        "One of these blocks has to match.",
        {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/block"}},
    )
    return {"type": "object", "additionalProperties": False, "properties": fields}


def _test() -> Schema:
    return {
        "type": "object",
        "required": ["sends"],
        "additionalProperties": False,
        "oneOf": [{"required": ["event"]}, {"required": ["event_file"]}],
        "properties": {
            "description": {"type": "string"},
            "event": described("An event; what it lacks is empty.", {"type": "object", "required": ["name"]}),
            "event_file": described("file#unique_id", {"type": "string", "pattern": "#"}),
            "sends": described(
                "What this rule sends to, other rules aside.", {"type": "array", "items": WORD}
            ),
        },
    }
