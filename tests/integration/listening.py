"""Somebody who listens at the broker, beside bridge."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from tests.servers import Mosquitto

UNLIMITED = "max_queued_messages 0"
"""For mosquitto's config: it drops nothing for a listener that is slower than bridge."""


@asynccontextmanager
async def subscribed(broker: Mosquitto, topic: str) -> AsyncIterator[list[str]]:
    """The unique_ids of the events that arrive at *topic*, by a client that never loses its place."""
    arrived: list[str] = []
    client = mqtt.Client(CallbackAPIVersion.VERSION2, "listener", clean_session=False)
    client.on_message = lambda _client, _data, message: arrived.append(
        json.loads(message.payload)["unique_id"]
    )
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    client.subscribe(topic, qos=1)
    try:
        yield arrived
    finally:
        client.disconnect()
        client.loop_stop()


async def until_arrived(wanted: set[str], arrived: list[str], within: float = 30.0) -> None:
    """Give the broker and the listener the time they need for what bridge has handed over."""
    with anyio.move_on_after(within):
        while not wanted.issubset(arrived):
            await anyio.sleep(0.1)
