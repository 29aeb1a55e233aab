"""The retained availability of devices and gateways, by alerts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from bridge import decode
from bridge.delivery import Delivery
from bridge.errors import RenderError
from bridge.sinks.mqtt import MqttConfig, composer
from bridge.sinks.mqtt.formats import Compose, HomeAssistant
from bridge.sinks.mqtt.message import Message
from tests.notifications import member, notification
from tests.recordings import documents, json_bytes

TOPIC = "bridge/availability/{{ ids.path }}"


def compose(**keys: Any) -> Compose:
    config = {"type": "mqtt", "url": "mqtt://broker", "availability_topic": TOPIC, "protocol": "3.1.1"}
    return composer(MqttConfig.model_validate(config | keys), "bridge/home/status", {})


def available(messages: Sequence[Message]) -> list[tuple[str, bytes]]:
    found = [each for each in messages if each.topic.startswith("bridge/availability/")]
    assert all(each.retain for each in found)
    return [(each.topic, each.payload) for each in found]


def recorded(name: str, device: str = "") -> Delivery:
    event = next(
        each
        for stream in ("apps.sse", "devices.sse", "gateway_flap.sse")
        for each in documents(stream)
        if each["name"] == name and "data" in each and device in json.dumps(each["identifiers"])
    )
    return Delivery(1, "d_1", decode.event(json_bytes(event)), "eu1", "r", "home", 1, 0.0)


def test_firing_is_offline_and_resolved_is_online() -> None:
    """Beside the notification itself."""
    fires = compose()(notification(since=0, at=60))
    ends = compose()(notification(status="resolved", since=0, at=60, ends=50))
    assert available(fires) == [("bridge/availability/gw-yard", b"offline")]
    assert available(ends) == [("bridge/availability/gw-yard", b"online")]
    assert fires[0].topic == "tts/gw-yard/bridge.alert.firing"


def test_a_device_has_its_application_in_the_topic() -> None:
    """As everywhere in `ids.path`."""
    fires = notification(key="plant-a/m1", by="device", kind="absent", since=0, at=60)
    assert available(compose()(fires)) == [("bridge/availability/plant-a/m1", b"offline")]


def test_of_a_group_each_member_is_told() -> None:
    """By its own status."""
    both = [member("gw-roof", since=0), member("gw-yard", since=0, ends=50)]
    assert available(compose()(notification(key="all", members=both, since=0, at=60))) == [
        ("bridge/availability/gw-roof", b"offline"),
        ("bridge/availability/gw-yard", b"online"),
    ]


@pytest.mark.parametrize(
    "delivery",
    [
        notification(kind="threshold", since=0, at=60),
        notification(kind="value", since=0, at=60),
        notification(by="application", key="plant-a", since=0, at=60),
        recorded("as.up.data.forward"),
        recorded("gs.gateway.disconnect"),
    ],
    ids=["threshold", "value", "application", "uplink", "event"],
)
def test_nothing_else_says_who_is_there(delivery: Delivery) -> None:
    """A low battery is no absence, and a disconnect may last a second."""
    assert available(compose()(delivery)) == []


def test_without_the_key_there_is_none() -> None:
    """The default."""
    assert available(compose(availability_topic=None)(notification(since=0, at=60))) == []


def test_a_format_without_alerts_publishes_the_availability_alone() -> None:
    """TTS's own MQTT server knows no alerts."""
    assert len(compose(format="tts-v3")(notification(since=0, at=60))) == 1
    with pytest.raises(RenderError):
        compose(format="tts-v3")(notification(kind="value", since=0, at=60))


def test_home_assistant_hears_of_a_device_with_its_first_uplink() -> None:
    """An entity whose availability nobody has told is not shown; told once, and again after an absence."""
    home = compose(format="home-assistant")
    assert isinstance(home, HomeAssistant)
    uplink = recorded("as.up.data.forward", "meter-01")
    fires = notification(key="plant-a/meter-01", by="device", kind="absent", since=0, at=60)
    said = []
    for each in (uplink, uplink, fires, fires, uplink):
        messages = home(each)
        home.acknowledged(messages)
        said.append([payload for _, payload in available(messages)])
    assert said == [[b"online"], [], [b"offline"], [], [b"online"]]


def test_home_assistant_shows_what_a_device_says_only_while_both_are_there() -> None:
    """Bridge and device, in the discovery of the device's own values; an alert is shown in any case."""
    home = compose(format="home-assistant")
    found = {
        message.topic: json.loads(message.payload)
        for each in (recorded("as.up.data.forward", "meter-01"), notification(since=0, at=60))
        for message in home(each)
        if message.topic.endswith("/config")
    }
    values = [each for topic, each in found.items() if "alert" not in topic]
    problems = [each for topic, each in found.items() if "alert" in topic]
    both = [{"topic": "bridge/home/status"}, {"topic": "bridge/availability/plant-a/meter-01"}]
    assert values
    assert problems
    assert all(each["availability"] == both for each in values)
    assert all(each["availability_mode"] == "all" for each in values)
    assert all(each["availability"] == both[:1] for each in problems)
    assert not any("availability_mode" in each for each in problems)


@pytest.mark.parametrize(
    ("topic", "advice"), [("bridge/availability", "name the device"), ("x/{{ ids.path", "template")]
)
def test_a_mistake_says_what_to_do(topic: str, advice: str) -> None:
    """One topic for all would say that all are gone when one is."""
    with pytest.raises(ValidationError, match=advice):
        compose(availability_topic=topic)
