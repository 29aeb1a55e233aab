"""Protobuf to JSON: equal to what the server writes over HTTP, and nothing but FrameError on garbage."""

from __future__ import annotations

import base64
import struct
from contextlib import suppress
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import FrameError
from bridge.proto import Reader, encode
from bridge.proto.table import PACKAGE, Field, table
from bridge.proto.wellknown import WRAPPERS
from tests.recordings import RECORDED, STREAMS, documents

EVENT = f"{PACKAGE}Event"
ANY = "type.googleapis.com/"
MESSAGES = sorted(name for name in table().messages if not table().messages[name].map_entry)


def render(message: str, data: bytes) -> dict[str, Any]:
    return Reader().render(f"{PACKAGE}{message}", data).value


def again(message: str, value: dict[str, Any]) -> dict[str, Any]:
    """*value* through bytes and back."""
    return render(message, encode(f"{PACKAGE}{message}", value))


@cache
def recorded_messages() -> tuple[bytes, ...]:
    data, at, found = (RECORDED / "mixed.grpcbin").read_bytes(), 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return tuple(found)


@cache
def recorded_json() -> dict[str, dict[str, Any]]:
    """By unique_id, from all HTTP recordings; without sparse.sse, whose bodies had expired."""
    names = [name for name in STREAMS if name != "sparse.sse"]
    return {event["unique_id"]: event for name in names for event in documents(name)}


def test_grpc_and_http_give_equal_events() -> None:
    """Every event that both transports recorded is the same JSON value; 497 of them."""
    reader, shared = Reader(), 0
    for message in recorded_messages():
        rendering = reader.render(EVENT, message)
        over_http = recorded_json().get(rendering.value["unique_id"])
        if over_http is not None:
            shared += 1
            assert rendering.value == over_http
            assert list(rendering.value) == list(over_http)

    assert shared == 497


def test_every_recorded_message_is_covered() -> None:
    """Not one has data that had to be passed as base64."""
    reader = Reader()

    assert [reader.render(EVENT, each).opaque for each in recorded_messages()] == [()] * 563


def test_every_recorded_event_survives_bytes() -> None:
    """JSON, bytes, JSON: the same value, for the 1,970 events of the recordings."""
    reader = Reader()
    for event in recorded_json().values():
        assert reader.render(EVENT, encode(EVENT, event)).value == event


def test_the_order_of_fields_is_that_of_the_json() -> None:
    """`received_at` is field 12 of ApplicationUp and stands before field 3."""
    value = {"uplink_message": {"f_port": 1}, "received_at": "2026-01-02T03:04:05Z", "simulated": True}

    assert list(again("ApplicationUp", value)) == ["received_at", "uplink_message", "simulated"]


@pytest.mark.parametrize(
    "time",
    [
        "2026-01-02T03:04:05Z",
        "2026-01-02T03:04:05.100Z",
        "2026-01-02T03:04:05.123456Z",
        "2026-01-02T03:04:05.123456789Z",
        "2026-01-02T03:04:05.000000001Z",
        "1970-01-01T00:00:00Z",
        "1969-12-31T23:59:59.500Z",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999999Z",
    ],
)
def test_a_time_has_0_3_6_or_9_digits(time: str) -> None:
    """Also before 1970, and the zero time of Go."""
    assert again("Event", {"time": time}) == {"time": time}


@pytest.mark.parametrize("delay", ["0s", "5s", "0.066s", "-0.500s", "-3s", "1.000001s", "0.000000001s"])
def test_a_duration_has_0_3_6_or_9_digits(delay: str) -> None:
    """The sign stands once, before both parts."""
    assert again("JoinResponse", {"lifetime": delay}) == {"lifetime": delay}


def test_zero_values_are_left_out() -> None:
    """Although they are on the wire: 0, false and '' of f_port, confirmed and device_id."""
    assert render("ApplicationUplink", b"\x10\x00\x58\x00") == {}
    assert render("EndDeviceIdentifiers", b"\x0a\x00") == {}
    assert render("RxMetadata", b"\x45\x00\x00\x00\x00") == {}
    assert render("RxMetadata", b"\x45\x00\x00\x00\x80") == {}


def test_an_empty_message_is_shown() -> None:
    """`f_ctrl` without a flag is `{}` and not absent."""
    assert again("FHDR", {"f_ctrl": {}}) == {"f_ctrl": {}}


def test_the_member_of_a_oneof_is_shown_although_it_is_empty() -> None:
    """Which member it is says something by itself."""
    assert again("DownlinkPath", {"uplink_token": ""}) == {"uplink_token": ""}


def test_a_wrapper_is_its_value_although_it_is_zero() -> None:
    """`crc_status: false` is a wrapped false, and no missing field."""
    assert again("UplinkMessage", {"crc_status": False}) == {"crc_status": False}
    assert again("RxMetadata", {"signal_rssi": 0}) == {"signal_rssi": 0}


def test_identifiers_are_hex_and_payloads_base64() -> None:
    """EUIs and addresses in upper-case hex, also those of zeros only."""
    ids = {"device_id": "m1", "dev_eui": "70B3D57ED0000002", "join_eui": "0000000000000000"}

    assert again("EndDeviceIdentifiers", ids) == ids
    assert again("ApplicationUplink", {"frm_payload": "AQI="}) == {"frm_payload": "AQI="}


def test_enums_are_names_or_numbers_as_the_server_has_them() -> None:
    """A class is a name, a data rate a number; a name this version does not know stays a number."""
    assert again("TxRequest", {"class": "CLASS_C", "rx1_delay": 5}) == {"class": "CLASS_C", "rx1_delay": 5}
    assert render("TxRequest", b"\x08\x63") == {"class": 99}
    assert again("Rights", {"rights": ["RIGHT_ALL", "right_invalid"]}) == {
        "rights": ["RIGHT_ALL", "right_invalid"]
    }


def test_64_bit_numbers_are_text() -> None:
    """Signed and unsigned, up to their ends."""
    value = {"frequency": "18446744073709551615", "concentrator_timestamp": "-9223372036854775808"}

    assert again("TxSettings", value) == value


def test_negative_32_bit_numbers() -> None:
    """They take ten bytes on the wire."""
    assert again("Location", {"altitude": -12}) == {"altitude": -12}


@pytest.mark.parametrize(
    ("value", "json"),
    [(9.2, 9.2), (-110.0, -110), (-0.5, -0.5), (1e20, 1e20), (3.4028234663852886e38, 3.4028235e38)],
)
def test_a_float_is_its_shortest_decimal(value: float, json: float) -> None:
    """9.2 and not 9.199999809265137, as Go writes it."""
    found = render("RxMetadata", b"\x45" + struct.pack("<f", value))["rssi"]

    assert found == json
    assert repr(found) == repr(json)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_text(text: str) -> None:
    """JSON has no other word for it; in a `Struct` as well."""
    assert again("RxMetadata", {"rssi": text}) == {"rssi": text}
    data = b"\x11" + struct.pack("<d", float(text))
    value = Reader().render(EVENT, wrapped("google.protobuf.Value", data)).value["data"]["value"]
    assert value == text


def wrapped(name: str, data: bytes) -> bytes:
    """An event whose `data` is *data* of the type *name*."""
    url = f"{ANY}{name}".encode()
    inner = b"\x0a" + bytes([len(url)]) + url + b"\x12" + bytes([len(data)]) + data
    return b"\x22" + bytes([len(inner)]) + inner


def test_a_map_shows_the_zeros_that_are_not_on_the_wire() -> None:
    """Metrics of 0 and a context without a value are still there."""
    status = {"metrics": {"rxin": 0, "ackr": 99.5}, "versions": {"fw": ""}}

    assert again("GatewayStatus", status) == status
    assert again("Event", {"context": {"tenant-id": "Cgl0", "empty": ""}})["context"] == {
        "tenant-id": "Cgl0",
        "empty": "",
    }
    assert render("ApplicationUplink", b"\x72\x05\x0a\x03abc") == {"locations": {"abc": {}}}


def test_numbers_may_be_packed_or_not() -> None:
    """Both are legal on the wire."""
    assert render("CFList", b"\x12\x03\x01\x02\x03") == {"freq": [1, 2, 3]}
    assert render("CFList", b"\x10\x01\x10\x02\x10\x03") == {"freq": [1, 2, 3]}
    assert render("CFList", b"\x1a\x02\x01\x00") == {"ch_masks": [True, False]}


def test_free_json_keeps_its_shape() -> None:
    """Null, false, 0, '' and empty containers inside a `Struct` are values."""
    payload = {"a": None, "b": [1, 2.5, "x", {}, []], "c": {"d": False, "e": 0, "f": ""}, "": "no key"}

    assert again("ApplicationUplink", {"decoded_payload": payload}) == {"decoded_payload": payload}


def test_an_any_says_its_type_first() -> None:
    """A message beside its fields, a well-known type under `value`."""
    error = {"@type": f"{ANY}{PACKAGE}ErrorDetails", "name": "drop", "code": 5}
    text = {"@type": f"{ANY}google.protobuf.StringValue", "value": ""}
    names = {"@type": f"{ANY}google.protobuf.Value", "value": ["a", None, 1]}

    for data in (error, text, names):
        assert again("Event", {"data": data}) == {"data": data}
        assert next(iter(again("Event", {"data": data})["data"])) == "@type"


def test_a_type_that_is_not_covered_keeps_its_bytes_and_is_named() -> None:
    """So that newer servers lose nothing, and the operator hears of it."""
    data = {"@type": f"{ANY}{PACKAGE}Newer", "value": base64.b64encode(b"\x08\x01").decode()}
    details = {"@type": f"{ANY}{PACKAGE}ErrorDetails", "details": [data], "code": 1}
    rendering = Reader().render(EVENT, encode(EVENT, {"name": "x", "data": details}))

    assert rendering.value == {"name": "x", "data": details}
    assert rendering.opaque == (f"{PACKAGE}Newer",)


def test_data_that_is_not_what_its_type_says_keeps_its_bytes() -> None:
    """The event around it is still one."""
    rendering = Reader().render(EVENT, b"\x0a\x01x" + wrapped(f"{PACKAGE}Location", b"\xff"))

    assert rendering.value == {"name": "x", "data": {"@type": f"{ANY}{PACKAGE}Location", "value": "/w=="}}
    assert rendering.opaque == (f"{PACKAGE}Location",)


def test_unknown_fields_are_skipped() -> None:
    """Of every wire type, in front and behind."""
    newer = b"\xf8\x07\x01" + b"\xfa\x07\x02ab" + b"\xfd\x07abcd" + b"\xf9\x07abcdefgh"

    assert render("Event", newer + b"\x0a\x01x" + newer) == {"name": "x"}


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",
        b"\x0a\x05ab",
        b"\x0a\x02\xff\xfe",
        b"\x0b",
        b"\x80" * 11,
        b"\x08",
        b"\x12\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    ],
    ids=["no size", "too short", "no UTF-8", "group", "long varint", "no value", "year 292 billion"],
)
def test_broken_bytes_are_a_frame_error(data: bytes) -> None:
    """And never a wrong event."""
    with pytest.raises(FrameError):
        render("Event", data)


def test_what_is_nested_without_end_is_a_frame_error() -> None:
    """A cause of a cause of a cause…"""
    data = b""
    for _ in range(4000):
        data = b"\x32" + size(len(data)) + data
    with pytest.raises(FrameError):
        render("ErrorDetails", data)


def size(number: int) -> bytes:
    return bytes([number & 0x7F | 0x80]) + size(number >> 7) if number > 0x7F else bytes([number])


@given(data=st.binary(max_size=200), message=st.sampled_from(MESSAGES))
def test_garbage_is_a_value_or_a_frame_error(data: bytes, message: str) -> None:
    """Nothing else is ever raised."""
    with suppress(FrameError):
        Reader().render(message, data)


@given(at=st.integers(0, 562), place=st.floats(0, 1), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_event_is_a_value_or_a_frame_error(at: int, place: float, byte: int, cut: bool) -> None:
    """One byte changed, or the end missing."""
    message = recorded_messages()[at]
    index = int(place * (len(message) - 1))
    damaged = message[:index] if cut else message[:index] + bytes([byte]) + message[index + 1 :]
    with suppress(FrameError):
        Reader().render(EVENT, damaged)


@pytest.mark.parametrize(
    "value",
    [
        {"no_such_field": 1},
        {"time": "yesterday"},
        {"identifiers": 5},
        {"data": {"@type": "type.googleapis.com/unknown"}},
        {"visibility": {"rights": ["RIGHT_TO_BE_WRONG"]}},
        {"context": {"a": 5}},
    ],
)
def test_what_is_not_the_json_of_a_message_is_not_written(value: dict[str, Any]) -> None:
    """FrameError, and no bytes."""
    with pytest.raises(FrameError):
        encode(EVENT, value)


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "uint32": st.integers(0, 2**32 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1).map(str),
    "uint64": st.integers(0, 2**64 - 1).map(str),
    "float": FLOATS.map(lambda value: float(f"{value:.6g}")),
    "double": NUMBERS,
    "string": st.text(max_size=5),
    "bytes": st.binary(max_size=5).map(lambda value: base64.b64encode(value).decode()),
}
SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "google.protobuf.Timestamp": st.sampled_from(["2026-01-02T03:04:05.123456789Z", "1970-01-01T00:00:00Z"]),
    "google.protobuf.Duration": st.sampled_from(["0s", "-0.066s", "3.000000001s"]),
    "google.protobuf.Struct": st.dictionaries(st.text(max_size=3), JSON, max_size=3),
    "google.protobuf.Any": st.sampled_from(
        [{"@type": f"{ANY}google.protobuf.Value", "value": [1]}, {"@type": f"{ANY}new", "value": "AA=="}]
    ),
} | {name: SCALARS[type] for name, type in WRAPPERS.items()}


def of_field(field: Field, depth: int) -> st.SearchStrategy[Any]:
    if field.of in SPECIAL:
        one = SPECIAL[field.of]
    elif field.type == "message":
        one = of_message(field.of, depth)
    elif field.type == "enum":
        values = table().enums[field.of]
        one = st.sampled_from(sorted(values.names.values() if values.json == "string" else values.names))
    elif field.json == "hex":
        one = st.binary(max_size=8).map(lambda value: value.hex().upper())
    else:
        one = SCALARS[field.type]
    nested = table().messages.get(field.of)
    if nested and nested.map_entry:
        return st.dictionaries(st.text(max_size=3), of_field(nested.fields[1], depth), min_size=1, max_size=2)
    return st.lists(one, min_size=1, max_size=3) if field.repeated else one


def of_message(name: str, depth: int = 3) -> st.SearchStrategy[dict[str, Any]]:
    """Any value of the message; oneofs may have several members, which the wire has no say in."""
    fields = table().messages[name].fields if depth else ()
    return st.fixed_dictionaries({}, optional={each.name: of_field(each, depth - 1) for each in fields})


def without_zeros(message: str, value: dict[str, Any]) -> dict[str, Any]:
    """*value* as the server writes it: what is at its default is left out."""
    known = {each.name: each for each in table().messages[message].fields}
    return {name: shown(known[name], each) for name, each in value.items() if not hidden(known[name], each)}


def hidden(field: Field, value: Any) -> bool:
    if field.repeated or field.oneof or field.type == "message":
        return False
    if field.type == "enum":
        return value in (0, table().enums[field.of].names.get(0))
    return value in (0, "0" if field.type in ("int64", "uint64") else "")


def shown(field: Field, value: Any) -> Any:
    nested = table().messages.get(field.of)
    if nested is None:
        return value
    if nested.map_entry:
        return {key: shown(nested.fields[1], each) for key, each in value.items()}
    if field.repeated:
        return [without_zeros(field.of, each) for each in value]
    return without_zeros(field.of, value)


@given(st.data())
def test_whatever_the_table_knows_survives_bytes(data: st.DataObject) -> None:
    """Any value of any of the messages: JSON, bytes, JSON, less its zeros."""
    message = data.draw(st.sampled_from(MESSAGES))
    value = data.draw(of_message(message))

    assert Reader().render(message, encode(message, value)).value == without_zeros(message, value)
