"""The harness of the MQTT sink: a scripted peer, since mosquitto cannot be told to hang or to refuse."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

from bridge.sinks import Sink
from bridge.sinks.mqtt import MqttConfig, open_mqtt
from tests.contract.harness import Make
from tests.mqtt_peer import Acknowledge, Break, Hold, Peer, mqtt_peer
from tests.servers import free_port

PASSWORD = "s3cr3t-password"


class MqttHarness:
    secrets = (PASSWORD,)

    def __init__(self, qos: int) -> None:
        self.peer = Peer(free_port())
        self._qos = qos
        self._running = AsyncExitStack()
        self._is_up = False

    def open(self, *, timeout: float = 5.0, max_in_flight: int = 4) -> AbstractAsyncContextManager[Sink]:
        config = MqttConfig.model_validate(
            {
                "type": "mqtt",
                "url": f"mqtt://127.0.0.1:{self.peer.port}",
                "username": "bridge",
                "password": PASSWORD,
                "qos": self._qos,
                "timeout": timeout,
                "max_in_flight": max_in_flight,
            }
        )
        return open_mqtt("sut", config, now=lambda: 1_700_000_000.0)

    def arrived(self) -> list[str]:
        return [message.delivery_id for message in self.peer.deliveries]

    async def heal(self) -> None:
        self.peer.answer = Acknowledge()
        if not self._is_up:
            self._is_up = True
            await self._running.enter_async_context(mqtt_peer(self.peer))

    async def go_down(self) -> None:
        self._is_up = False
        await self._running.aclose()

    async def hang(self) -> None:
        self.peer.answer = Hold()

    async def reset(self) -> None:
        self.peer.answer = Break()

    async def fail(self) -> None:
        self.peer.answer = Acknowledge(0x80)

    async def deny(self) -> None:
        self.peer.answer = Acknowledge(0x87)

    async def refuse(self) -> None:
        self.peer.answer = Acknowledge(0x99)

    async def limit(self, seconds: float) -> bool:
        self.peer.answer = Acknowledge(0x97)  # quota exceeded
        return False


def _made(qos: int) -> Make:
    @asynccontextmanager
    async def make(directory: Path) -> AsyncIterator[MqttHarness]:
        harness = MqttHarness(qos)
        await harness.heal()
        try:
            yield harness
        finally:
            await harness.go_down()

    make.__name__ = f"mqtt-qos{qos}"
    return make


HARNESSES: tuple[Make, ...] = (_made(1), _made(2))
