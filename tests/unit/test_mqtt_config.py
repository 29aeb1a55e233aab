"""The MQTT sink's part of `bridge.yaml`, and what it makes of a delivery."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bridge import decode
from bridge.delivery import Delivery
from bridge.errors import RenderError
from bridge.sinks.mqtt import MqttConfig, composer, status_topic
from bridge.sinks.mqtt.address import Address, parse
from bridge.sinks.mqtt.connection import reconnect_wait
from bridge.sinks.mqtt.formats import HomeAssistant
from bridge.sinks.mqtt.message import Message, properties, topic_name, variable_length
from tests.mqtt_peer import user_properties

EVENT = (
    b'{"name":"as.up.data.forward","time":"2026-11-23T21:09:06Z","identifiers":[{"device_ids":'
    b'{"device_id":"meter-01","application_ids":{"application_id":"plant-a"}}}],'
    b'"data":{"text":"a/b+c#d"},"unique_id":"01"}'
)


def config(**keys: Any) -> MqttConfig:
    return MqttConfig.model_validate({"type": "mqtt", "url": "mqtt://broker.example"} | keys)


def delivery(body: bytes = EVENT) -> Delivery:
    return Delivery(1, "d_x", decode.event(body), "eu1", "rule-1", "broker", 1, 0.0)


def composed(body: bytes = EVENT, **keys: Any) -> Message:
    (message,) = composer(config(**keys), None, {})(delivery(body))
    return message


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://broker.example", Address("mqtt", "broker.example", 1883, "")),
        ("mqtts://broker.example/", Address("mqtts", "broker.example", 8883, "")),
        ("mqtts://10.0.0.1:8884", Address("mqtts", "10.0.0.1", 8884, "")),
        ("mqtt://[::1]:1884", Address("mqtt", "::1", 1884, "")),
        ("ws://broker.example", Address("ws", "broker.example", 80, "/mqtt")),
        ("wss://broker.example/", Address("wss", "broker.example", 443, "/mqtt")),
        ("wss://broker.example:8084/ws?x=1", Address("wss", "broker.example", 8084, "/ws?x=1")),
    ],
)
def test_a_url_names_the_broker(url: str, address: Address) -> None:
    """Default ports; the path is the WebSocket's."""
    assert parse(url) == address


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("http://s3cr3t.example", "there is mqtt, mqtts, ws and wss"),
        ("s3cr3t.example:1883", "there is mqtt, mqtts, ws and wss"),
        ("mqtt://", "write a URL such as"),
        ("mqtt://s3cr3t.example:99999", "this is no URL"),
        ("mqtt://user:s3cr3t@broker.example", "into username and password"),
        ("mqtt://broker.example/s3cr3t", "the topic is a key of its own"),
        ("ws://broker.example/mqtt#s3cr3t", "has no #"),
    ],
)
def test_a_wrong_url_is_explained_without_repeating_it(url: str, advice: str) -> None:
    """It may hold a password."""
    with pytest.raises(ValueError, match=advice) as caught:
        parse(url)
    assert "s3cr3t" not in str(caught.value)


@given(st.text())
def test_any_text_is_an_address_or_a_value_error(url: str) -> None:
    """Nothing else is raised over what an operator may write."""
    with suppress(ValueError):
        assert parse(url).port


@pytest.mark.parametrize(
    ("keys", "advice"),
    [
        ({"format": "xml"}, "Input should be 'event'"),
        ({"format": "template"}, "template: goes with format: template"),
        ({"template": "x"}, "template: goes with format: template"),
        ({"format": "template", "template": "{{ x"}, "template"),
        ({"cloudevents": "binary"}, "binary goes with format: cloudevents"),
        ({"format": "cloudevents", "cloudevents": "binary", "protocol": "3.1.1"}, "and protocol: 5"),
        ({"tenant": "ttn"}, "tenant goes with format: tts-v3"),
        ({"format": "tts-v3", "topic": "x"}, "format: tts-v3 has topics of its own"),
        ({"discovery_prefix": "#"}, "wildcard"),
        ({"password": "x"}, "password needs a username"),
        ({"protocol": "3.1.1", "message_expiry": "1h"}, "message_expiry needs protocol: 5"),
        ({"tls": {"ca_file": "ca.pem"}}, "tls needs an mqtts or wss URL"),
        ({"topic": "tts/{{ nothing }}"}, "nothing is not defined"),
        ({"topic": "tts/{{ event.name"}, "template"),
        ({"status_topic": "a/{{ ids.path }}"}, "a status topic knows only sink"),
        ({"status_topic": "a/{{ rule }}"}, "a status topic knows only sink"),
        ({"status_topic": "a/{{ event.name }}"}, "a status topic knows only sink"),
        ({"status_topic": "bridge/#"}, "wildcard"),
        ({"qos": 3}, "Input should be 1, 0 or 2"),
        ({"protocol": 4}, "Input should be 5 or '3.1.1'"),
        ({"max_in_flight": 0}, "greater than or equal to 1"),
        ({"message_expiry": "500ms"}, "greater than or equal to 1"),
    ],
)
def test_a_mistake_is_told_at_load(keys: dict[str, Any], advice: str) -> None:
    """DESIGN.md §1.7."""
    with pytest.raises(ValidationError, match=advice):
        config(**keys)


def test_the_defaults_are_the_documented_ones() -> None:
    """DESIGN.md §2.2."""
    made = config()
    assert (made.protocol, made.qos, made.retain, made.format, made.max_in_flight) == (
        5,
        1,
        False,
        "event",
        100,
    )
    assert made.topic == "tts/{{ ids.path or 'none' }}/{{ event.name }}"
    assert made.status_topic == "bridge/{{ sink }}/status"
    assert (made.retry.initial, made.retry.max, made.retry.give_up_after) == (5.0, 3600.0, 86400.0)
    assert config(protocol="5").protocol == 5


def test_the_default_topic_is_path_and_name() -> None:
    """The slash of `ids.path` separates; the payload is the event's own bytes."""
    message = composed()
    assert message.topic == "tts/plant-a/meter-01/as.up.data.forward"
    assert message.payload == EVENT
    assert (message.qos, message.retain) == (1, False)


def test_an_event_about_nothing_goes_below_none() -> None:
    """`ids.path` is empty there, and a level must not be."""
    assert composed(b'{"name":"x.y","unique_id":"1"}').topic == "tts/none/x.y"


def test_what_a_value_holds_makes_no_levels_and_no_wildcards() -> None:
    """`+ # /` of values become %2B %23 %2F; those of the template stay."""
    assert composed(topic="a/b/{{ data.text }}/c").topic == "a/b/a%2Fb%2Bc%23d/c"


def test_data_is_the_format_that_leaves_the_envelope_out() -> None:
    """DESIGN.md §2.4."""
    assert composed(format="data").payload == b'{"text":"a/b+c#d"}'


def test_messages_of_a_device_may_be_kept_in_order() -> None:
    """As for the other sinks; retained topics want it."""
    assert (config().order, config(order="entity").order) == ("none", "entity")


def test_cloudevents_go_structured_or_binary() -> None:
    """As the MQTT protocol binding has them: one JSON object, or attributes as user properties."""
    structured = composed(format="cloudevents")
    assert b'"specversion":"1.0"' in structured.payload
    assert b"application/cloudevents+json" in structured.properties
    binary = composed(format="cloudevents", cloudevents="binary")
    user, _ = user_properties(binary.properties, 0)
    assert binary.payload == EVENT
    assert (user["specversion"], user["type"]) == ("1.0", "org.thethingsstack.as.up.data.forward")
    assert b"application/json" in binary.properties


def test_a_template_makes_the_payload() -> None:
    """And says what it is."""
    message = composed(format="template", template="{{ ids.device_id }}: {{ data.text }}")
    assert message.payload == b"meter-01: a/b+c#d"
    assert b"text/plain" in message.properties


def test_home_assistant_is_told_of_an_entity_once() -> None:
    """Discovery first, and only where it is news; the state each time, on one topic."""
    uplink = EVENT.replace(b'"text":"a/b+c#d"', b'"uplink_message":{"decoded_payload":{"level":1}}')
    home = composer(config(format="home-assistant"), "bridge/broker/status", {})
    assert isinstance(home, HomeAssistant)
    first = home(delivery(uplink))
    assert [message.topic for message in first] == [
        "homeassistant/sensor/tts_plant-a_meter-01_level/config",
        "homeassistant/sensor/tts_plant-a_meter-01_last_seen/config",
        "tts/plant-a/meter-01/state",
    ]
    assert [message.retain for message in first] == [True, True, False]
    assert b'"availability":[{"topic":"bridge/broker/status"}]' in first[0].payload
    assert len(home(delivery(uplink))) == 3, "not acknowledged yet"
    home.acknowledged(first)
    again = home(delivery(uplink))
    assert [message.topic for message in again] == ["tts/plant-a/meter-01/state"]
    home.acknowledged(again)
    assert [message.topic for message in home.again()] == [message.topic for message in first]


def test_a_message_carries_what_tells_repeats_apart() -> None:
    """Delivery id, unique_id and name as user properties; none under 3.1.1."""
    user, end = user_properties(composed().properties, 0)
    assert user == {"bridge-delivery": "d_x", "unique_id": "01", "event": "as.up.data.forward"}
    assert end == len(composed().properties)
    assert b"\x03\x00\x10application/json" in composed().properties
    assert composed(protocol="3.1.1").properties == b""


def test_a_message_expires_only_if_told() -> None:
    """In whole seconds, as the wire has it."""
    assert composed(message_expiry="1h").properties[1:7] == b"\x02\x00\x00\x0e\x10\x03"
    assert b"\x02\x00" not in composed().properties[:6]


@pytest.mark.parametrize("topic", ["", "a/+/b", "#", "a\x00b", "a\nb", "a\x7fb", "x" * 65536, "ü" * 40000])
def test_a_topic_nobody_can_publish_on_is_a_dead_letter(topic: str) -> None:
    """Empty, wildcards, control characters, too long."""
    with pytest.raises(RenderError, match="the topic"):
        topic_name(topic)


@pytest.mark.parametrize("topic", ["a", "/", "a//b", "$share", "ü/日本", "x" * 65535])
def test_other_topics_are_left_alone(topic: str) -> None:
    """Empty levels are legal."""
    assert topic_name(topic) == topic


def test_the_status_topic_names_the_sink() -> None:
    """Escaped like any value."""
    assert status_topic("bridge/{{ sink }}/status", "broker") == "bridge/broker/status"


@given(st.lists(st.tuples(st.text(max_size=50), st.text(max_size=300)), max_size=5))
def test_properties_can_be_read_back(user: list[tuple[str, str]]) -> None:
    """Whatever is in them: what no broker takes is replaced, and the lengths are right."""
    packed = properties(user, content_type="text/plain", message_expiry=7)
    found, end = user_properties(packed, 0)
    assert end == len(packed)
    assert not any(ord(character) < 32 for value in found.values() for character in value)


def test_a_property_is_cut_to_what_the_wire_can_hold() -> None:
    """65,535 bytes, and no half character."""
    found, _ = user_properties(properties([("k", "ü" * 40000)]), 0)
    assert found["k"] == "ü" * 32767


@pytest.mark.parametrize(
    ("number", "packed"),
    [
        (0, b"\x00"),
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (16384, b"\x80\x80\x01"),
        (268435455, b"\xff\xff\xff\x7f"),
    ],
)
def test_a_length_is_packed_as_the_specification_shows(number: int, packed: bytes) -> None:
    """MQTT 5 §1.5.5, table 1-1."""
    assert variable_length(number) == packed


def test_waits_for_a_broker_grow_to_a_minute_and_are_jittered() -> None:
    """Half fixed, half by chance: never at once, never beyond."""
    assert [reconnect_wait(n, 0.0) for n in (1, 2, 3, 8, 1000)] == [0.25, 0.5, 1.0, 30.0, 30.0]
    assert reconnect_wait(1, 0.5) == 0.375
    assert reconnect_wait(1000, 1.0) == 60.0
