"""What integrators subscribe to, at a real mosquitto: TTS's own topics, Home Assistant's discovery."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from paho.mqtt import publish

from bridge import decode
from bridge.delivery import Delivered, Delivery, Rejected
from bridge.sinks.mqtt import Mqtt, MqttConfig, open_mqtt
from tests.notifications import notification
from tests.recordings import STREAMS, documents, json_bytes
from tests.servers import HOST, Mosquitto, mosquitto
from tests.subscriber import subscriber

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path) as running:
        yield running


def sink(broker: Mosquitto, **keys: Any) -> AbstractAsyncContextManager[Mqtt]:
    config = MqttConfig.model_validate({"type": "mqtt", "url": broker.url()} | keys)
    return open_mqtt("home", config, now=lambda: 0.0, chance=lambda: 0.0)


def recorded(name: str, device: str = "") -> list[Delivery]:
    """A delivery of each recorded event of that name."""
    found = [
        each
        for stream in STREAMS
        for each in documents(stream)
        if each["name"] == name and "data" in each and device in json.dumps(each["identifiers"])
    ]
    return [
        Delivery(number, f"d_{number:026}", decode.event(json_bytes(each)), "eu1", "r", "home", 1, 0.0)
        for number, each in enumerate(found)
    ]


async def test_cloudevents_name_the_server_of_a_source_that_came_with_a_reload(broker: Mosquitto) -> None:
    """The mapping may be empty when the sink opens: it is the bridge's own and fills later."""
    hosts: dict[str, str] = {}
    config = MqttConfig.model_validate({"type": "mqtt", "url": broker.url(), "format": "cloudevents"})
    async with open_mqtt("home", config, now=lambda: 0.0, hosts=hosts) as opened:
        hosts["eu1"] = "eu1.cloud.thethings.network"
        (message,) = opened.compose(recorded("as.up.data.forward")[0])
    assert json.loads(message.payload)["source"].startswith("//eu1.cloud.thethings.network/plant-")


async def until(condition: Callable[[], object], what: str) -> None:
    with anyio.move_on_after(10):
        while not condition():
            await anyio.sleep(0.01)
        return
    pytest.fail(f"{what} did not happen")


async def test_subscribers_of_tts_find_what_they_know(broker: Mosquitto) -> None:
    """The topics and payloads of The Things Stack's MQTT server; what it has not, is a dead letter."""
    uplink, join = recorded("as.up.data.forward", "meter-01")[0], recorded("as.up.join.forward")[0]
    with subscriber(broker.port, "v3/#") as found:
        async with sink(broker, format="tts-v3", tenant="ttn") as opened:
            assert isinstance(await opened.send(uplink), Delivered)
            assert isinstance(await opened.send(join), Delivered)
            assert isinstance(await opened.send(recorded("gs.gateway.connect")[0]), Rejected)
        await until(lambda: len(found.messages) == 2, "both messages")
    first, second = found.messages
    assert first.topic == "v3/plant-a@ttn/devices/meter-01/up"
    assert json.loads(first.payload)["uplink_message"]["f_port"] == 1
    assert "@type" not in json.loads(first.payload)
    assert second.topic.endswith("/join")


async def test_home_assistant_discovers_a_device_and_follows_it(broker: Mosquitto) -> None:
    """Discovery retained and once, state on each uplink; one who starts later finds the discovery."""
    uplinks = recorded("as.up.data.forward", "meter-01")[:3]
    with subscriber(broker.port, "tts/#", "homeassistant/#") as found:
        async with sink(broker, format="home-assistant") as opened:
            for each in uplinks:
                assert isinstance(await opened.send(each), Delivered)
            await until(lambda: len(found.payloads("tts/plant-a/meter-01/state")) == 3, "three states")
            with subscriber(broker.port, "homeassistant/#") as later:
                await until(lambda: len(later.messages) >= 6, "the retained discovery")
    config = next(each for each in later.messages if each.topic.endswith("_temperature/config"))
    assert config.retain
    assert json.loads(config.payload)["state_topic"] == "tts/plant-a/meter-01/state"
    assert json.loads(config.payload)["availability"] == [{"topic": "bridge/home/status"}]
    assert len(found.payloads(config.topic)) == 1


async def test_home_assistant_is_told_again_when_it_starts(broker: Mosquitto) -> None:
    """Its birth message brings discovery and last state; its last will, and other words, bring nothing."""
    uplink, second, third = recorded("as.up.data.forward", "meter-01")[:3]

    async def say(word: str) -> None:
        topic = "homeassistant/status"
        await anyio.to_thread.run_sync(partial(publish.single, topic, word, hostname=HOST, port=broker.port))

    with subscriber(broker.port, "tts/#", "homeassistant/+/+/config") as found:
        async with sink(broker, format="home-assistant") as opened:
            assert isinstance(await opened.send(uplink), Delivered)
            await until(lambda: bool(found.payloads("tts/plant-a/meter-01/state")), "the state")
            told = len(found.messages)
            await say("offline")
            assert isinstance(await opened.send(second), Delivered)
            await until(lambda: second.id in found.ids, "the second state")
            await say("online")
            await until(lambda: len(found.messages) > 2 * told, "everything again")
            assert isinstance(await opened.send(third), Delivered)
            await until(lambda: third.id in found.ids, "the third state")
    again = found.messages[told + 1 : -1]
    assert len(found.messages) == 2 * told + 2
    assert {each.topic for each in again} == {each.topic for each in found.messages[:told]}
    assert [each.user["bridge-delivery"] for each in again if each.topic.endswith("/state")] == [second.id]


async def test_who_comes_later_finds_who_is_there(broker: Mosquitto) -> None:
    """Availability is retained: offline while the alert fires, online again afterwards."""
    topic = "bridge/availability/{{ ids.path }}"
    fires = [notification(key=key, since=0, at=60) for key in ("gw-roof", "gw-yard")]
    ends = notification(key="gw-roof", status="resolved", since=0, at=120, ends=110, number=2)
    async with sink(broker, availability_topic=topic) as opened:
        for each in (*fires, ends):
            assert isinstance(await opened.send(each), Delivered)
    with subscriber(broker.port, "bridge/availability/#") as found:
        await until(lambda: len(found.messages) == 2, "both")
    assert {(each.topic, bytes(each.payload)) for each in found.messages} == {
        ("bridge/availability/gw-roof", b"online"),
        ("bridge/availability/gw-yard", b"offline"),
    }
