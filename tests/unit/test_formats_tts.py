"""`format: tts-v3`, over recorded events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import decode
from bridge.errors import FrameError, RenderError
from bridge.event import Event
from bridge.render.tts_v3 import TOPICS, message
from tests.recordings import STREAMS, documents, json_bytes

IDS = {"device_id": "meter-01", "application_ids": {"application_id": "plant-a"}}


def event(
    data: dict[str, Any], name: str = "as.up.data.forward", device: dict[str, Any] | None = IDS
) -> Event:
    identifiers = [{"device_ids": device}] if device else []
    body = {"name": name, "identifiers": identifiers, "data": data, "unique_id": "1"}
    return decode.event(json.dumps(body).encode())


def up(field: str, **inner: Any) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/ttn.lorawan.v3.ApplicationUp", "end_device_ids": IDS, field: inner}


@pytest.mark.parametrize(
    ("field", "topic"),
    [
        ("uplink_message", "up"),
        ("uplink_normalized", "up/normalized"),
        ("join_accept", "join"),
        ("downlink_queued", "down/queued"),
        ("downlink_sent", "down/sent"),
        ("downlink_ack", "down/ack"),
        ("downlink_nack", "down/nack"),
        ("downlink_failed", "down/failed"),
        ("downlink_queue_invalidated", "down/invalidated"),
        ("location_solved", "location/solved"),
        ("service_data", "service/data"),
    ],
)
def test_each_message_has_its_topic(field: str, topic: str) -> None:
    """As pkg/applicationserver/io/mqtt/topics/v3.go has them."""
    assert message(event(up(field)))[0] == f"v3/plant-a/devices/meter-01/{topic}"
    assert field in TOPICS


def test_on_the_cloud_the_application_has_its_tenant() -> None:
    """As its own MQTT server has it: `app@tenant`."""
    assert message(event(up("join_accept")), "ttn")[0] == "v3/plant-a@ttn/devices/meter-01/join"


def test_the_payload_is_the_message_without_its_type() -> None:
    """Byte for byte otherwise: numbers keep their digits, fields their order."""
    body = (
        b'{"name":"as.up.data.forward","identifiers":[],"unique_id":"1","data":{"@type":"type.googleapis.com/'
        b'ttn.lorawan.v3.ApplicationUp","end_device_ids":{"device_id":"m","application_ids":{"application_id":'
        b'"a"}},"uplink_message":{"z":1.50,"a":1e3,"n":"18446744073709551615"},"simulated":true}}'
    )
    topic, payload = message(decode.event(body))
    assert topic == "v3/a/devices/m/up"
    assert payload == (
        b'{"end_device_ids":{"device_id":"m","application_ids":{"application_id":"a"}},'
        b'"uplink_message":{"z":1.50,"a":1e3,"n":"18446744073709551615"},"simulated":true}'
    )


def test_a_queued_downlink_is_put_into_its_message() -> None:
    """`as.down.data.forward` carries the ApplicationDownlink alone."""
    downlink = {
        "f_port": 15,
        "frm_payload": "bgc=",
        "priority": "NORMAL",
        "correlation_ids": ["as:downlink:1"],
    }
    data = {"@type": "type.googleapis.com/ttn.lorawan.v3.ApplicationDownlink"} | downlink
    topic, payload = message(event(data, "as.down.data.forward"))
    assert topic == "v3/plant-a/devices/meter-01/down/queued"
    assert json.loads(payload) == {
        "end_device_ids": IDS,
        "correlation_ids": ["as:downlink:1"],
        "downlink_queued": downlink,
    }


@pytest.mark.parametrize(
    "other",
    [
        event({"@type": "type.googleapis.com/ttn.lorawan.v3.ApplicationDownlink"}, "as.down.data.receive"),
        event(
            {"@type": "type.googleapis.com/ttn.lorawan.v3.ApplicationDownlink"}, "as.down.data.forward", None
        ),
        event({"@type": "type.googleapis.com/ttn.lorawan.v3.ErrorDetails"}, "as.up.data.decode.fail"),
        event(up("something_newer")),
        event(up("uplink_message") | {"end_device_ids": {"device_id": "m"}}),
        decode.event(b'{"name":"gs.gateway.connect","unique_id":"1"}'),
        decode.event(b'{"name":"x","unique_id":"1","data":[1]}'),
        decode.event(b'{"name":"x","unique_id":"1","data":{"@type":5}}'),
    ],
)
def test_what_that_server_never_publishes_is_a_dead_letter(other: Event) -> None:
    """Told by name, so that the rule can be corrected."""
    with pytest.raises(RenderError, match=other.name):
        message(other)


def test_every_recorded_application_message_has_a_topic() -> None:
    """Uplinks and joins of all recordings."""
    kinds = []
    for each in (each for stream in STREAMS for each in documents(stream)):
        if each.get("data", {}).get("@type", "").endswith(".ApplicationUp"):
            topic, payload = message(decode.event(json_bytes(each)))
            kinds.append(topic.rpartition("/")[2])
            assert json.loads(payload) == {k: v for k, v in each["data"].items() if k != "@type"}
    assert set(kinds) == {"up", "join"}


@given(
    st.recursive(st.none() | st.booleans() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_garbage_raises_nothing_but_render_errors(data: Any) -> None:
    """Whatever TTS may send one day."""
    try:
        made = event(data)
    except FrameError:
        return
    with pytest.raises(RenderError):
        message(made)
