"""One connection to a broker: paho's protocol, driven by the event loop.

paho has a thread of its own to offer. Its socket on the event loop instead makes 31,000 QoS 1 publishes of
1.35 kB a second at a window of 100 where the thread makes 16,000, at half the CPU (0.30 s and 0.65 s for
10,000), because acknowledgements that come together wake the loop once. With paho's `Properties` in place of
packed ones it is 16,000 and 12,500. Packets of our own would make 92,000 at 0.05 s. (The client alone,
mosquitto 2.0.11 on loopback, 2 cores, medians of 3 in one run; tests/bench/bench_mqtt.py has the whole sink.)

Each connection has a client of its own and starts clean, so that nothing of an earlier one can be sent again
by anyone but the outbox (DESIGN.md §2.5).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, NamedTuple, TypeAlias, cast

import anyio
import anyio.to_thread
from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from bridge.delivery import Failure, Outcome, Rejected, RetryLater
from bridge.sinks import mqtt_answers as answers
from bridge.sinks.mqtt_answers import Trouble
from bridge.sinks.mqtt_client import BROKEN, Client, Opened, Opening, Packed, Settings
from bridge.sinks.mqtt_message import Message

TICK = 1.0  # seconds between looks at the keep alive
MANY = 65535  # packets in flight where a broker names no receive maximum (MQTT 5 §3.2.2.3.3)
FEW = (
    10  # the same of QoS 2 under 3.1.1: what is beyond its limit (20, unless configured otherwise) mosquitto
)
# throws away, and acknowledges, since a PUBREC of 3.1.1 cannot say no

Answer: TypeAlias = asyncio.Future[Outcome | None]
"""What became of a publish; None if the connection ended before it was sent."""


class _Flight(NamedTuple):
    answer: Answer
    size: int


class Link:
    """A connection from CONNECT to its end; used on the event loop's thread only."""

    def __init__(self, settings: Settings, opened: Opened) -> None:
        """Over *opened*, which becomes its own."""
        self.answered = anyio.Event()
        """The broker has taken us, or the link has ended."""
        self.ended = anyio.Event()
        self.trouble: Trouble | None = None
        """Why it ended."""
        self._settings = settings
        self._wire = opened.wire
        self._fd = opened.wire.fileno()
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Message, Answer]] = deque()
        self._flying: dict[int, _Flight] = {}
        self._free = 0  # packets the broker has room for
        self._written: list[int] = []  # QoS 0: packets of which bytes may still be unwritten
        self._packet_limit: int | None = None  # bytes
        self._last_answer = self._loop.time()
        self._flush_is_due = False
        self._is_blocked = False
        self._client = Client(settings, opened.sock, self._acknowledged)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_written
        self._client.on_message = self._on_message
        self._client.on_socket_close = lambda *_: self._detach()
        self._client.on_socket_register_write = lambda *_: self._flush_soon()
        self._loop.add_reader(self._fd, self._readable)
        self._ticking = self._loop.call_later(TICK, self._tick)
        self._client.reconnect()

    def publish(self, message: Message) -> Answer:
        """Send *message* once the broker has room for it; the answer comes with its last acknowledgement.

        Cancel the answer to take back what has not been sent.
        """
        answer: Answer = self._loop.create_future()
        if self.ended.is_set():
            answer.set_result(None)
        elif self._packet_limit is not None and message.size > self._packet_limit:
            answer.set_result(answers.too_large(message.size, self._packet_limit))
        else:
            self._waiting.append((message, answer))
            self._pump()
        return answer

    def end_if_silent(self, since: float) -> None:
        """Drop the connection if the broker has acknowledged nothing after *since* (the loop's clock)."""
        if self._last_answer < since:
            self._end(RetryLater(Failure("timeout", "no acknowledgement in time")))

    async def close(self, within: float) -> None:
        """Take leave, so that the will is not published, and close; in *within* seconds at most."""
        if not self.ended.is_set():
            self._client.disconnect()
            with anyio.move_on_after(within):
                await self.ended.wait()
        self.drop()

    def drop(self) -> None:
        """Close without a word: the broker publishes the will."""
        self._end(RetryLater(Failure("connect", "connection closed")))

    def _pump(self) -> None:
        while self._free and self._waiting:
            message, answer = self._waiting.popleft()
            if not answer.done():
                self._free -= 1
                self._flying[self._sent(message)] = _Flight(answer, len(message.payload))

    def _sent(self, message: Message) -> int:
        """The packet identifier under which *message* is now on its way."""
        packed = cast(Properties, Packed(message.properties)) if self._settings.protocol == 5 else None
        while True:
            info = self._client.publish(message.topic, message.payload, message.qos, message.retain, packed)
            if info.rc != MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:  # else the identifier still waits for an answer
                return info.mid

    def _on_written(self, _client: Any, _data: Any, mid: int, _code: Any, _properties: Any) -> None:
        """QoS 0, which is done when its bytes are in the socket."""
        self._written.append(mid)

    def _acknowledged(self, mid: int, code: int) -> None:
        flight = self._flying.pop(mid, None)
        if flight is None:
            return
        self._free += 1
        self._last_answer = self._loop.time()
        if not flight.answer.done():
            flight.answer.set_result(answers.published(code))
        self._pump()

    def _on_connect(
        self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        limits = vars(properties) if properties else {}
        code = reason.value
        if limits.get("MaximumQoS", 2) < self._settings.qos:
            code = answers.QOS_NOT_SUPPORTED
        elif self._settings.retain and not limits.get("RetainAvailable", 1):
            code = answers.RETAIN_NOT_SUPPORTED
        if code >= answers.FAILED:
            self._end(answers.refused(code))
            return
        self._packet_limit = limits.get("MaximumPacketSize")
        blind = self._settings.protocol != 5 and self._settings.qos == 2
        self._free = limits.get("ReceiveMaximum", FEW if blind else MANY)
        if self._settings.subscribe:
            self._client.subscribe(self._settings.subscribe)
        self.answered.set()
        self._pump()

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        if self._settings.heard:
            self._settings.heard(bytes(message.payload))

    def _on_disconnect(
        self, _client: Any, _data: Any, flags: paho.DisconnectFlags, reason: ReasonCode, _properties: Any
    ) -> None:
        error = self._client.read_error
        if flags.is_disconnect_packet_from_server:
            self._end(answers.disconnected(reason.value))
        elif error is not None and answers.is_tls(error) and not self.answered.is_set():
            self._end(answers.unreachable(error))
        elif reason.value == answers.PROTOCOL_ERROR:
            self._end(answers.NOT_MQTT)
        elif self.answered.is_set():
            self._end(RetryLater(Failure("connect", "connection lost")))
        else:
            self._end(RetryLater(Failure("connect", "the broker closed the connection before it answered")))

    def _readable(self) -> None:
        try:
            self._client.loop_read()
            while not self.ended.is_set() and self._wire.unread():
                self._client.loop_read()
        except BROKEN:
            self._end(answers.NOT_MQTT)

    def _flush_soon(self) -> None:
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_is_due = False
        if not self.answered.is_set():
            self._readable()  # a TLS alert may be there already, and would be lost with the write that fails
        if self.ended.is_set():
            return
        self._client.loop_write()
        if not self.ended.is_set():
            self._write()

    def _write(self) -> None:
        try:
            blocked = not self._wire.flush()
        except OSError:
            self._readable()  # what the broker has said before it closed the connection
            self._end(RetryLater(Failure("connect", "connection lost")))
            return
        if blocked and not self._is_blocked:
            self._loop.add_writer(self._fd, self._write)
        elif self._is_blocked and not blocked:
            self._loop.remove_writer(self._fd)
        self._is_blocked = blocked
        if not blocked:
            written, self._written = self._written, []
            for mid in written:
                self._acknowledged(mid, 0)

    def _tick(self) -> None:
        self._client.loop_misc()
        if not self.ended.is_set():
            self._ticking = self._loop.call_later(TICK, self._tick)

    def _detach(self) -> None:
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)

    def _end(self, trouble: Trouble) -> None:
        """Nothing more comes of this connection: whoever waits is told, once."""
        if self.ended.is_set():
            return
        self.trouble = trouble
        self.ended.set()
        self.answered.set()
        self._ticking.cancel()
        self._detach()
        self._wire.close()
        guilty = _guilty(self._flying, trouble)
        for mid, flight in self._flying.items():
            if not flight.answer.done():
                flight.answer.set_result(Rejected(trouble.failure) if mid == guilty else trouble)
        for _, answer in self._waiting:
            if not answer.done():
                answer.set_result(None)
        self._flying.clear()
        self._waiting.clear()


def _guilty(flying: dict[int, _Flight], trouble: Trouble) -> int | None:
    """The message over which the broker closed the connection, as far as that can be told.

    If one was too large, then the largest. If only one was in flight, that one.
    """
    code = trouble.failure.status
    if code == answers.PACKET_TOO_LARGE:
        return max(flying, key=lambda mid: flying[mid].size, default=None)
    if code in answers.BY_A_MESSAGE and len(flying) == 1:
        return next(iter(flying))
    return None


async def connect(settings: Settings) -> Link | Trouble:
    """A link the broker has accepted, or why there is none."""
    opening = Opening(settings)
    link: Link | None = None
    accepted = False
    try:
        with anyio.fail_after(settings.timeout):
            link = Link(settings, await anyio.to_thread.run_sync(opening.run, abandon_on_cancel=True))
            await link.answered.wait()
            accepted = True
            return link.trouble or link
    except (OSError, ValueError) as error:
        return answers.unreachable(error)
    finally:
        if link is None:
            opening.abandon()
        elif not accepted:
            link.drop()
