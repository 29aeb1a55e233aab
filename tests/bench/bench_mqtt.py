"""The MQTT sink alone against a local mosquitto, beside paho driven by its own thread.

QoS 1 at a window of 100 unless said otherwise, recorded uplinks; the sink renders topic, properties and
payload, the thread publishes ready bytes. Figures are of one machine at one moment: compare them in one run.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bridge import decode
from bridge.delivery import Delivered, Delivery
from bridge.sinks.mqtt import MqttConfig, open_mqtt
from tests.recordings import documents, json_bytes
from tests.servers import HOST, Mosquitto, certificates, mosquitto

MESSAGES = 10_000
WINDOW = 100
ROUNDS = 5

Publish = Callable[[int], Awaitable[None]]


def deliveries() -> list[Delivery]:
    found = [
        each for each in documents("apps.sse") if each["name"] == "as.up.data.forward" and "data" in each
    ]
    return [
        Delivery(n, f"d_{n:026}", decode.event(json_bytes(each)), "eu1", "r", "broker", 1, 0.0)
        for n, each in enumerate(found)
    ]


async def measured(publish: Publish) -> tuple[float, float]:
    """Messages a second, and CPU seconds for 10,000, of WINDOW tasks that wait for each acknowledgement."""
    numbers = iter(range(MESSAGES))

    async def slot() -> None:
        for number in numbers:
            await publish(number)

    started, cpu = time.perf_counter(), time.process_time()
    async with anyio.create_task_group() as slots:
        for _ in range(WINDOW):
            slots.start_soon(slot)
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    return MESSAGES / wall, cpu / MESSAGES * 10_000


async def sink(broker: Mosquitto, listener: str, ca: Path, **keys: Any) -> tuple[float, float]:
    secured = {"tls": {"ca_file": str(ca)}} if listener in ("mqtts", "wss") else {}
    config = MqttConfig.model_validate({"type": "mqtt", "url": broker.url(listener)} | secured | keys)
    waiting = deliveries()
    async with open_mqtt("broker", config, now=time.time) as opened:

        async def publish(number: int) -> None:
            outcome = await opened.send(waiting[number % len(waiting)])
            assert isinstance(outcome, Delivered), outcome

        await publish(0)
        return await measured(publish)


async def thread(broker: Mosquitto) -> tuple[float, float]:
    """paho as its documentation shows it; acknowledgements handed to the event loop in batches."""
    loop = asyncio.get_running_loop()
    waiting: dict[int, asyncio.Future[None]] = {}
    early: set[int] = set()
    found = deliveries()
    client = paho.Client(CallbackAPIVersion.VERSION2, "thread", protocol=MQTTProtocolVersion.MQTTv5)
    client.max_inflight_messages_set(WINDOW)
    acknowledged: list[int] = []

    def wake() -> None:
        while acknowledged:
            mid = acknowledged.pop()
            future = waiting.pop(mid, None)
            if future is None:
                early.add(mid)
            else:
                future.set_result(None)

    def on_publish(_client: Any, _data: Any, mid: int, _code: Any, _properties: Any) -> None:
        acknowledged.append(mid)
        if len(acknowledged) == 1:
            loop.call_soon_threadsafe(wake)

    async def publish(number: int) -> None:
        event = found[number % len(found)].event
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho has no types here
        properties.UserProperty = [("bridge-delivery", found[number % len(found)].id), ("event", event.name)]
        properties.ContentType = "application/json"
        mid = client.publish("tts/plant-a/meter-01/x", event.body, 1, properties=properties).mid
        if mid in early:
            early.discard(mid)
        else:
            waiting[mid] = loop.create_future()
            await waiting[mid]

    client.on_publish = on_publish
    client.connect(HOST, broker.port)
    client.loop_start()
    try:
        return await measured(publish)
    finally:
        client.disconnect()
        client.loop_stop()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        certs = certificates(Path(folder) / "certs")
        with mosquitto(
            Path(folder), certs=certs, config="max_inflight_messages 0\nmax_queued_messages 0"
        ) as broker:
            cases: dict[str, Callable[[], Awaitable[tuple[float, float]]]] = {
                "paho's thread": lambda: thread(broker),
                "sink": lambda: sink(broker, "mqtt", certs.ca),
                "sink, 3.1.1": lambda: sink(broker, "mqtt", certs.ca, protocol="3.1.1"),
                "sink, QoS 0": lambda: sink(broker, "mqtt", certs.ca, qos=0),
                "sink, QoS 2": lambda: sink(broker, "mqtt", certs.ca, qos=2),
                "sink, mqtts": lambda: sink(broker, "mqtts", certs.ca),
                "sink, ws": lambda: sink(broker, "ws", certs.ca),
            }
            figures: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
            for _, (name, case) in itertools.product(range(ROUNDS), cases.items()):
                figures[name].append(asyncio.run(_awaited(case)))
    print(f"{'':14} {'messages/s':>10}  {'CPU s/10k':>9}   (medians of {ROUNDS}, interleaved)")
    for name, found in figures.items():
        rates, cpus = zip(*found, strict=True)
        print(f"{name:14} {statistics.median(rates):10,.0f}  {statistics.median(cpus):9.2f}")


async def _awaited(case: Callable[[], Awaitable[tuple[float, float]]]) -> tuple[float, float]:
    return await case()


if __name__ == "__main__":
    main()
