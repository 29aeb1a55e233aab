"""A sink alone: recorded events to a receiver or broker with as many in flight as the sink allows.

    python -m tests.bench.alone webhook|mqtt URL COUNT

Prints deliveries a second and CPU seconds for 10,000. Nothing is stored; a webhook is signed.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator

import anyio
import msgspec

from bridge.delivery import Delivered, Delivery
from bridge.event import Event
from bridge.sinks import Sink
from bridge.sinks.mqtt import MqttConfig
from bridge.sinks.registry import SinkConfig, open_sink
from bridge.sinks.webhook import WebhookConfig
from tests.recordings import documents

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def deliveries(count: int) -> Iterator[Delivery]:
    bodies = [(each["name"], msgspec.json.encode(each)) for each in documents("devices.sse")]
    for number, (name, body) in zip(range(count), itertools.cycle(bodies), strict=False):
        event = Event(name, "", 0, f"01ALONE{number:019d}", (), body)
        yield Delivery(number, f"d_{number}", event, "tts", "all", "crm", 1, 0.0)


async def send(sink: Sink, waiting: Iterator[Delivery]) -> None:
    for each in waiting:
        outcome = await sink.send(each)
        assert isinstance(outcome, Delivered), outcome


def config(kind: str, url: str) -> SinkConfig:
    if kind == "mqtt":
        return MqttConfig.model_validate({"type": "mqtt", "url": url, "topic": "tts/{{ event.name }}"})
    keys = {"type": "webhook", "url": url, "secret": SECRET, "allow_private_networks": True}
    return WebhookConfig.model_validate(keys)


async def run(kind: str, url: str, count: int) -> None:
    async with open_sink("crm", config(kind, url), now=time.time) as sink:
        waiting = iter(list(deliveries(count)))
        began, cpu = time.perf_counter(), time.process_time()
        async with anyio.create_task_group() as slots:
            for _ in range(sink.max_in_flight):
                slots.start_soon(send, sink, waiting)
        took = time.perf_counter() - began
    print(count / took, (time.process_time() - cpu) / count * 10_000)


if __name__ == "__main__":
    anyio.run(run, sys.argv[1], sys.argv[2], int(sys.argv[3]), backend_options={"use_uvloop": True})
