"""One connection to a broker: its packets, driven by the event loop.

The packets are our own (`packets`). The client alone, QoS 1 publishes of 1.35 kB at a window of 100,
mosquitto 2.0.11 on loopback, 2 cores, medians of 3 in one run: paho in its own thread 16,000 a second at
0.65 CPU s for 10,000, paho's socket on the event loop 31,000 at 0.30, own packets 92,000 at 0.05;
tests/bench/bench_mqtt.py has the whole sink.

Each connection starts clean, so that nothing of an earlier one can be sent again by anyone but the outbox
(DESIGN.md §2.5).
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import NamedTuple, TypeAlias

import anyio
import anyio.to_thread

from bridge.delivery import Failure, Outcome, Rejected, RetryLater
from bridge.sinks.mqtt import answers, packets
from bridge.sinks.mqtt.answers import Trouble
from bridge.sinks.mqtt.client import READ, Opened, Opening, Settings
from bridge.sinks.mqtt.message import Message

KEEPALIVE = 30  # seconds without traffic after which the broker is asked whether it is there
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
        self._is_leaving = False
        self._sock = opened.sock
        self._reader = packets.Reader()
        self._is_five = settings.protocol == 5
        self._last_mid = 0
        self._keepalive: float = KEEPALIVE
        self._last_in = self._last_out = self._loop.time()
        self._pinged = False
        self._loop.add_reader(self._fd, self._readable)
        self._ticking = self._loop.call_later(TICK, self._tick)
        self._send(
            packets.connect(
                settings.client_id,
                is_five=self._is_five,
                keepalive=KEEPALIVE,
                username=settings.username,
                password=settings.password,
                will=settings.will,
            )
        )

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
            self._send(packets.LEAVE)
            self._is_leaving = True
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
                self._fly(message, answer)

    def _fly(self, message: Message, answer: Answer) -> None:
        """Under the next packet identifier that is free; QoS 0 does not send it, and is done when written."""
        mid = self._last_mid % MANY + 1
        while mid in self._flying:
            mid = mid % MANY + 1
        self._last_mid = mid
        self._flying[mid] = _Flight(answer, len(message.payload))
        self._send(packets.publish(message, mid, is_five=self._is_five))
        if not message.qos:
            self._written.append(mid)

    def _send(self, data: bytes) -> None:
        self._sock.send(data)
        self._last_out = self._loop.time()
        self._flush_soon()

    def _acknowledged(self, mid: int, code: int) -> None:
        flight = self._flying.pop(mid, None)
        if flight is None:
            return
        self._free += 1
        self._last_answer = self._loop.time()
        if not flight.answer.done():
            flight.answer.set_result(answers.published(code))

    def _readable(self) -> None:
        """Everything that is here now."""
        while not self.ended.is_set():
            try:
                data = self._sock.recv(READ)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                data = None
            except OSError as error:
                self._lost(error)
                return
            try:
                self._read(data)
            except (ValueError, LookupError):
                self._end(answers.NOT_MQTT)
            if not self._wire.unread():
                return

    def _read(self, data: bytes | None) -> None:
        """*data* from the socket: b'' at its end, None if nothing whole is here. Raises ValueError."""
        if data is None:
            return
        if not data:
            self._lost(None)
            return
        self._last_in = self._loop.time()
        for kind, flags, body in self._reader.feed(data):
            self._meet(kind, flags, body)
            if self.ended.is_set():
                return
        self._pump()

    def _meet(self, kind: int, flags: int, body: bytes) -> None:
        if (kind == packets.CONNACK) == self.answered.is_set():
            raise ValueError("not the packet that comes first, or again")
        match kind:
            case packets.PUBACK | packets.PUBCOMP:
                self._acknowledged(*packets.acknowledgement(body))
            case packets.PUBREC:
                self._half_acknowledged(*packets.acknowledgement(body))
            case packets.CONNACK:
                self._accepted(packets.connack(body, is_five=self._is_five))
            case packets.PUBLISH:
                payload = packets.received(flags, body, is_five=self._is_five)
                if self._settings.heard:
                    self._settings.heard(payload)
            case packets.PINGRESP:
                self._pinged = False
            case packets.DISCONNECT if self._is_five:
                self._end(answers.disconnected(body[0] if body else 0))
            case packets.SUBACK:
                pass
            case _:
                raise ValueError("a packet that only clients send")

    def _half_acknowledged(self, mid: int, code: int) -> None:
        """PUBREC. Refused, there is no PUBREL: the identifier is free again (MQTT 5 §4.3.3)."""
        if code < answers.FAILED:
            self._send(packets.pubrel(mid))
        else:
            self._acknowledged(mid, code)

    def _accepted(self, connack: packets.Connack) -> None:
        code, limits = connack.code, connack.limits
        if limits.get(packets.MAXIMUM_QOS, 2) < self._settings.qos:
            code = answers.QOS_NOT_SUPPORTED
        elif self._settings.retain and not limits.get(packets.RETAIN_AVAILABLE, 1):
            code = answers.RETAIN_NOT_SUPPORTED
        if code >= answers.FAILED:
            self._end(answers.refused(code))
            return
        self._packet_limit = limits.get(packets.MAXIMUM_PACKET_SIZE)
        self._keepalive = limits.get(packets.SERVER_KEEP_ALIVE, KEEPALIVE) or float("inf")
        blind = not self._is_five and self._settings.qos == 2
        self._free = limits.get(packets.RECEIVE_MAXIMUM, FEW if blind else MANY)
        if self._settings.subscribe:
            self._send(packets.subscribe(self._settings.subscribe, is_five=self._is_five))
        self.answered.set()

    def _lost(self, error: OSError | None) -> None:
        """The connection is gone: the broker closed it, or *error*."""
        if answers.is_tls(error) and error is not None and not self.answered.is_set():
            self._end(answers.unreachable(error))
        elif self.answered.is_set():
            self._end(RetryLater(Failure("connect", "connection lost")))
        else:
            self._end(RetryLater(Failure("connect", "the broker closed the connection before it answered")))

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
        if not blocked and self._is_leaving:
            self._end(RetryLater(Failure("connect", "connection closed")))
        elif not blocked:
            written, self._written = self._written, []
            for mid in written:
                self._acknowledged(mid, 0)
            if written:
                self._pump()

    def _tick(self) -> None:
        """Ask a silent broker whether it is there, and believe it for as long again (MQTT 5 §3.1.2.10)."""
        now = self._loop.time()
        if now - min(self._last_in, self._last_out) >= self._keepalive:
            if self._pinged:
                self._lost(None)
                return
            self._pinged = True
            self._last_in = now
            self._send(packets.PING)
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
