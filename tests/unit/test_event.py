"""The vocabulary: identifiers, times, the order key."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.event import Entity, Event, Identifiers, entities, ids_of, nanoseconds, order_key, rfc3339


def event(*identifiers: Mapping[str, object]) -> Event:
    ids = msgspec.convert(list(identifiers), tuple[Identifiers, ...])
    return Event("as.up.data.forward", "", 0, "01M8", ids, b"{}")


METER = {
    "device_ids": {
        "device_id": "meter-01",
        "application_ids": {"application_id": "plant-a"},
        "dev_eui": "70B3D57ED0000002",
    }
}
ROOF = {"gateway_ids": {"gateway_id": "gw-roof", "eui": "B827EBFFFE000001"}}


def test_a_device_is_named_with_its_application() -> None:
    """Device ids are unique only inside an application."""
    assert entities(event(METER)) == (Entity("device", "plant-a/meter-01"),)


def test_the_device_comes_before_the_gateway_as_the_subject() -> None:
    """DESIGN.md §2.3: the order key is the first of device, gateway, application, ..."""
    assert order_key(event(ROOF, METER), "eu1") == "device:plant-a/meter-01"


def test_without_identifiers_the_source_is_the_order_key() -> None:
    """`js.join.reject` names nobody."""
    assert order_key(event(), "eu1") == "source:eu1"


def test_every_id_is_always_there() -> None:
    """Templates are strict: an absent id is '' and not undefined."""
    ids = ids_of(event(ROOF))
    assert ids["gateway_eui"] == "B827EBFFFE000001"
    assert ids["device_id"] == ""
    assert ids["path"] == "gw-roof"


def test_the_first_identifier_of_a_kind_wins() -> None:
    """Two gateways in one event: the path and the ids speak of the same one."""
    other = {"gateway_ids": {"gateway_id": "gw-field"}}
    assert ids_of(event(ROOF, other))["gateway_id"] == "gw-roof"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("2026-11-23T21:09:06.664332819Z", 1_795_468_146_664_332_819),
        ("1970-01-01T01:00:00.25+01:00", 250_000_000),
    ],
)
def test_nanoseconds_survive(text: str, expected: int) -> None:
    """`datetime` alone keeps microseconds only."""
    assert nanoseconds(text) == expected


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-11-23T21:09:06.Z", "2026-11-23T21:09:06.1234567890Z"]
)
def test_a_broken_time_is_a_value_error(text: str) -> None:
    """Whoever parses a frame catches exactly this."""
    with pytest.raises(ValueError, match=r"."):
        nanoseconds(text)


@given(st.integers(0, 4_000_000_000 * 10**9))
def test_rfc3339_and_nanoseconds_are_inverse(ns: int) -> None:
    """nanoseconds(rfc3339(x)) == x, to the last digit."""
    assert nanoseconds(rfc3339(ns)) == ns
