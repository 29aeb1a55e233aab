"""Names and wire facts, against the recordings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bridge.catalogue import BOOL, INT64, NUMBER, OBJECT, OPEN, TEXT
from bridge.rulefile import parse
from bridge.rules import RuleSet
from bridge.shared import catalogue
from tests.recordings import STREAMS, documents
from tests.unit.test_rules import event

UPLINK = "ttn.lorawan.v3.ApplicationUp"


@pytest.mark.parametrize(
    ("message", "path", "expected"),
    [
        (UPLINK, "uplink_message.f_port", NUMBER),
        (UPLINK, "uplink_message.settings.frequency", INT64),
        (UPLINK, "uplink_message.confirmed", BOOL),
        (UPLINK, "uplink_message.frm_payload", TEXT),
        (UPLINK, "uplink_message.rx_metadata", OBJECT),
        (UPLINK, "uplink_message.decoded_payload.anything.at.all", OPEN),
        (UPLINK, "uplink_message.locations.user.latitude", OPEN),
        (UPLINK, "uplink_message.f_porrt", None),
        (UPLINK, "uplink_message.f_port.x", None),
        ("google.protobuf.Value", "value", OPEN),
        ("google.protobuf.StringValue", "val", None),
        ("ttn.lorawan.v3.MadeUp", "x", OPEN),
    ],
)
def test_a_path_leads_to_what_the_wire_has(message: str, path: str, expected: object) -> None:
    """Or to nothing, which is told from not knowing."""
    assert catalogue().at(message, path) == expected


def test_zero_is_left_out_except_in_lists_oneofs_and_wrappers() -> None:
    """As protobuf's JSON mapping says."""
    at = catalogue().at
    rssi, warnings = (
        at(UPLINK, "uplink_message.rx_metadata.rssi"),
        at(UPLINK, "uplink_message.decoded_payload_warnings"),
    )
    wrapped = at(UPLINK, "uplink_message.rx_metadata.signal_rssi")
    assert rssi is not None
    assert warnings is not None
    assert wrapped is not None
    assert (rssi.omitted, warnings.omitted, wrapped.omitted) == (True, False, False)


def test_a_misspelt_name_is_recognised() -> None:
    """A name that is like none is not."""
    assert catalogue().close_to("as.up.data.foward") == "as.up.data.forward"
    assert catalogue().close_to("zzzzz") is None


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for child in value:
            yield from leaves(child, path)
    else:
        yield path, value


KINDS: dict[str, type | tuple[type, ...]] = {
    "number": (int, float),
    "int64": str,
    "string": str,
    "bool": bool,
    "open": object,
}


def test_every_recorded_leaf_is_what_the_wire_facts_say() -> None:
    """No path is missing, every value has its kind, and no zero is there that should be left out."""
    wrong: set[tuple[str, str, str]] = set()
    for document in (each for name in STREAMS for each in documents(name)):
        kind = document.get("data", {}).get("@type", "").rpartition("/")[2]
        for path, value in leaves(document.get("data", {})):
            wire = catalogue().at(kind, path)
            if wire is None or not isinstance(value, KINDS[wire.kind]):
                wrong.add((kind, path, wire.kind if wire else "missing"))
            elif wire.omitted and value == wire.zero:
                wrong.add((kind, path, "zero"))
    assert wrong == set()


def test_every_recorded_name_carries_a_type_it_may() -> None:
    """Where the catalogue declares any."""
    wrong: set[tuple[str, str]] = set()
    for document in (each for name in STREAMS for each in documents(name)):
        types = catalogue().types(document["name"])
        kind = document.get("data", {}).get("@type", "").rpartition("/")[2]
        if kind and types and kind not in types:
            wrong.add((document["name"], kind))
    assert wrong == set()


@pytest.mark.parametrize("extra", [{}, {"@type": f"type.googleapis.com/{UPLINK}"}])
def test_numeric_takes_the_digits_of_a_64_bit_integer(extra: dict[str, str]) -> None:
    """By the `@type` of the data, or without one by the event's name; and no other string of digits."""
    match = "{data: {uplink_message: {%s: [{numeric: ['>', 868000000]}]}}}"
    text = f"rules: [{{name: r, send: [crm], match: {match}}}]"

    def wanted(path: str, data: Any, name: str = "as.up.data.forward") -> bool:
        rules = RuleSet.of(parse(text % path, "r", sinks=["crm"]).rules, catalogue().is_int64).rules
        rule_set = RuleSet.of(rules, catalogue().is_int64)
        one = event(name, data={**extra, "uplink_message": data})
        return rule_set.select(one) == rules and rules[0].mismatch(rule_set.subject(one)) is None

    assert wanted("settings.frequency", {"settings": {"frequency": "868100000"}})
    assert not wanted("settings.frequency", {"settings": {"frequency": "867100000"}})
    assert not wanted("frm_payload", {"frm_payload": "868100000"})
    assert not wanted("decoded_payload.serial", {"decoded_payload": {"serial": "868100000"}})
    assert wanted("settings.frequency", {"settings": {"frequency": "868100000"}}, "x.y") is bool(extra)
