"""A subscriber at a real broker: what arrived, with its properties."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.servers import HOST, poll


@dataclass(frozen=True, slots=True)
class Arrived:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    user: dict[str, str]
    """MQTT 5 user properties."""
    content_type: str
    expiry: int | None
    """Seconds the broker would still have kept it."""


@dataclass(slots=True)
class Subscriber:
    messages: list[Arrived] = field(default_factory=list)
    """In the order of arrival; status messages and deliveries alike."""
    subscriptions: int = 0
    """How often the broker has confirmed the subscription: more than once after it was away."""

    @property
    def ids(self) -> list[str]:
        """The delivery ids that arrived, repeats repeated."""
        return [found for message in self.messages if (found := message.user.get("bridge-delivery"))]

    def payloads(self, topic: str) -> list[bytes]:
        return [message.payload for message in self.messages if message.topic == topic]

    def wait_for(self, topic: str, payload: bytes) -> None:
        """Return once *payload* has come on *topic*, and was the last that came there."""
        poll(lambda: self.payloads(topic)[-1:] == [payload], f"{payload!r} on {topic}")


@contextmanager
def subscriber(port: int, *topics: str, qos: int = 2) -> Iterator[Subscriber]:
    """Subscribed to *topics* of the broker on *port*, and again whenever it comes back.

    With *qos* 0 mosquitto passes a message on before it acknowledges it; with 1 and 2 it may hold some back.
    """
    found = Subscriber()
    client = paho.Client(CallbackAPIVersion.VERSION2, "subscriber", protocol=MQTTProtocolVersion.MQTTv5)
    client.reconnect_delay_set(1, 1)

    def on_connect(*_: Any) -> None:
        client.subscribe([(topic, qos) for topic in topics])

    def on_subscribe(*_: Any) -> None:
        found.subscriptions += 1

    def on_message(_client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        properties = vars(message.properties)
        found.messages.append(
            Arrived(
                message.topic,
                bytes(message.payload),
                message.qos,
                message.retain,
                dict(properties.get("UserProperty", ())),
                properties.get("ContentType", ""),
                properties.get("MessageExpiryInterval"),
            )
        )

    client.on_connect = on_connect
    client.on_subscribe = on_subscribe
    client.on_message = on_message
    client.connect(HOST, port)
    client.loop_start()
    try:
        poll(lambda: found.subscriptions == 1, "the subscription")
        yield found
    finally:
        client.disconnect()
        client.loop_stop()
