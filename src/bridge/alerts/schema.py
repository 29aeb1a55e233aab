"""JSON Schema of the `alerts:` of rule files, for editors and for Helm.  No I/O in this file.

Each kind has the keys `alertfile` reads for it; what belongs together only the loader says.
"""

from __future__ import annotations

from typing import Any

from bridge.alerts.file import COMMON, KINDS, NEEDED

Schema = dict[str, Any]

NUMBER: Schema = {"type": "number"}
TEXT: Schema = {"type": "string", "minLength": 1}
WORD: Schema = {"type": ["string", "number", "boolean"]}
WORDS: Schema = {"anyOf": [WORD, {"type": "array", "items": WORD, "minItems": 1}]}
DURATION: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$"}
OFFSET: Schema = {
    "anyOf": [{"const": 0}, {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+$"}],
    "description": "After the start of the test; several units add up: 5m10s.",
}
BLOCK: Schema = {"$ref": "#/$defs/block"}


def alert_schema() -> Schema:
    """One of `alerts`; uses the definitions block and story."""
    return {
        "type": "object",
        "required": ["name", "kind", "by", "send"],
        "properties": {"kind": {"enum": list(KINDS)}},
        "allOf": [
            {"if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]}, "then": _of_kind(kind)}
            for kind in KINDS
        ],
    }


def _of_kind(kind: str) -> Schema:
    keys = (*COMMON, *KINDS[kind])
    own = {"for": _described("After so long; or a multiple of the learned interval: 3x.", {"type": "string"})}
    return {
        "required": list(NEEDED[kind]),
        "additionalProperties": False,
        "properties": {key: (own if kind == "absent" else {}).get(key, PROPERTIES[key]) for key in keys},
    }


def _described(text: str, schema: Schema) -> Schema:
    return schema | {"description": text}


def _map(properties: Schema, *required: str) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


def _one_or_more(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "array", "items": schema}]}


PROPERTIES: Schema = {
    "name": _described("Unique over all rule files, those of rules included.", WORD),
    "description": {"type": "string"},
    "kind": {"enum": list(KINDS)},
    "by": _described("One for each device, gateway, application, …; all; or data.… for a field.", TEXT),
    "send": _described("Names of sinks.", WORDS),
    "labels": {"type": "object", "additionalProperties": WORD},
    "summary": _described("Template of one sentence.", TEXT),
    "unless": _described("Events that do not count.", BLOCK),
    "allow": {"type": "object", "additionalProperties": TEXT},
    "tests": {"type": "array", "items": {"$ref": "#/$defs/story"}},
    "group_by": _described("Labels: alerts for which they are equal are told together.", {"type": "array"}),
    "group_wait": DURATION,
    "group_interval": DURATION,
    "repeat_interval": {"anyOf": [DURATION, {"const": "never"}]},
    "escalate_after": DURATION,
    "escalate_to": _described("Names of further sinks.", WORDS),
    "inhibited_by": _one_or_more(
        _map({"alert": WORD, "when": {"const": "last_heard_by"}, "equal": WORDS}, "alert")
    ),
    "mute": {
        "type": "array",
        "items": _map({"times": WORDS, "weekdays": WORDS, "location": TEXT}),
    },
    "down": _described("Events that say that it is down.", BLOCK),
    "up": _described("Events that say that it is up.", BLOCK),
    "silent": _described("Also down when no up event came for so long.", DURATION),
    "flapping": _map({"changes": {"type": "integer", "minimum": 2}, "within": DURATION}, "changes", "within"),
    "for": _described("Pending until it has lasted so long.", DURATION),
    "match": _described("Which events count.", BLOCK),
    "of": _described("With ratio: of all these.", BLOCK),
    "count": {"type": "integer", "minimum": 1},
    "within": DURATION,
    "distinct": _described("An identifier or a path whose values count once.", TEXT),
    "fold": _described("The beginning of a correlation id whose events count once.", TEXT),
    "ratio": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    "falls": _described("Path of a counter: only when it is lower than before.", TEXT),
    "field": _described("Path of a number.", TEXT),
    "above": NUMBER,
    "below": NUMBER,
    "readings": {"type": "integer", "minimum": 1},
    "hysteresis": {"type": "number", "minimum": 0},
    "pick": {"enum": ["max", "min", "first"]},
}


def story_schema() -> Schema:
    """One of an alert's `tests`."""
    event: Schema = {"type": "object", "required": ["name"]}
    return _map(
        {
            "description": {"type": "string"},
            "events": {
                "type": "array",
                "items": _map({"at": OFFSET, "every": OFFSET, "until": OFFSET, "event": event}, "event"),
            },
            "event_file": _described("A recorded stream.", TEXT),
            "until": OFFSET,
            "notifies": {
                "type": "array",
                "items": _map(
                    {
                        "at": OFFSET,
                        "status": {"enum": ["firing", "resolved"]},
                        "key": WORD,
                        "sends": {"type": "array", "items": WORD},
                        "summary": {"type": "string"},
                    },
                    "at",
                ),
            },
        },
        "notifies",
    ) | {"oneOf": [{"required": ["events"]}, {"required": ["event_file"]}]}
