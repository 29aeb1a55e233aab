"""A scripted MQTT broker for what mosquitto cannot be made to do: acknowledge nothing, refuse, throw out.

It speaks enough of 5 and 3.1.1 for one publisher, subscribes nobody, and keeps what it was sent.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = (kind << 4 for kind in range(1, 8))
SUBSCRIBE, SUBACK, PINGREQ, PINGRESP, DISCONNECT = (kind << 4 for kind in (8, 9, 12, 13, 14))
RECEIVE_MAXIMUM, MAXIMUM_QOS, RETAIN_AVAILABLE, MAXIMUM_PACKET_SIZE = 0x21, 0x24, 0x25, 0x27


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """PUBACK, or PUBREC, with *code*."""

    code: int = 0


@dataclass(frozen=True, slots=True)
class Hold:
    """No acknowledgement, until `Peer.release`."""


@dataclass(frozen=True, slots=True)
class Break:
    """The connection goes, with a DISCONNECT of *code* first if there is one."""

    code: int | None = None


Reaction = Acknowledge | Hold | Break


@dataclass(frozen=True, slots=True)
class Published:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    dup: bool
    mid: int
    user: dict[str, str]
    """User properties."""
    size: int
    """Bytes of the packet."""

    @property
    def delivery_id(self) -> str:
        return self.user.get("bridge-delivery", "")


@dataclass(slots=True)
class Peer:
    """A listening peer; what it answers may be changed while it runs."""

    port: int
    answer: Reaction = Acknowledge()
    reaction: Callable[[Published], Reaction] | None = None
    """What to do with one message; default: *answer* for deliveries, acknowledgement for the rest."""
    connack: int = 0
    limits: bytes = b""
    """The CONNACK's properties."""
    is_deaf: bool = False
    """Read nothing more once a client is connected."""
    published: list[Published] = field(default_factory=list)
    """Every PUBLISH, oldest first."""
    clean: list[bool] = field(default_factory=list)
    """Whether each CONNECT asked for a clean start."""
    client_ids: list[str] = field(default_factory=list)
    pubrels: list[int] = field(default_factory=list)
    unacknowledged: int = 0
    most_unacknowledged: int = 0
    _connections: set[_Connection] = field(default_factory=set)

    @property
    def deliveries(self) -> list[Published]:
        return [each for each in self.published if each.delivery_id]

    def react(self, message: Published) -> Reaction:
        if self.reaction:
            return self.reaction(message)
        return self.answer if message.delivery_id else Acknowledge()

    def release(self) -> None:
        """Acknowledge all that is held."""
        for connection in self._connections:
            connection.release()


class _Connection:
    def __init__(self, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._peer = peer
        self._reader = reader
        self._writer = writer
        self._five = True
        self._held: list[Published] = []

    async def serve(self) -> None:
        while True:
            first = (await self._reader.readexactly(1))[0]
            length = await self._length()
            body = await self._reader.readexactly(length)
            if not self._packet(first, body):
                return
            if self._peer.is_deaf:
                await asyncio.Event().wait()

    def break_off(self) -> None:
        self._peer.unacknowledged -= len(self._held)
        self._held.clear()
        self._writer.transport.abort()

    def release(self) -> None:
        for message in self._held:
            self._acknowledge(message, 0)
        self._held.clear()

    async def _length(self) -> int:
        length = shift = 0
        while True:
            byte = (await self._reader.readexactly(1))[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return length

    def _packet(self, first: int, body: bytes) -> bool:
        match first & 0xF0:
            case 0x10:
                return self._connect(body)
            case 0x30:
                return self._publish(first, body)
            case 0x60:
                mid = int.from_bytes(body[:2], "big")
                self._peer.pubrels.append(mid)
                self._send(PUBCOMP, struct.pack("!H", mid))
            case 0x80:
                self._send(SUBACK, body[:2] + (b"\0" if self._five else b"") + b"\0")
            case 0xC0:
                self._send(PINGRESP, b"")
            case _:
                return False
        return True

    def _connect(self, body: bytes) -> bool:
        self._five = body[6] == 5
        self._peer.clean.append(bool(body[7] & 2))
        at = 10 + (1 + body[10] if self._five else 0)
        length = int.from_bytes(body[at : at + 2], "big")
        self._peer.client_ids.append(body[at + 2 : at + 2 + length].decode())
        limits = bytes([len(self._peer.limits)]) + self._peer.limits if self._five else b""
        self._send(CONNACK, bytes([0, self._peer.connack]) + limits)
        return not self._peer.connack

    def _publish(self, first: int, body: bytes) -> bool:
        message = parsed(first, body, five=self._five)
        self._peer.published.append(message)
        self._peer.unacknowledged += bool(message.qos)
        self._peer.most_unacknowledged = max(self._peer.most_unacknowledged, self._peer.unacknowledged)
        match self._peer.react(message):
            case Acknowledge(code):
                self._acknowledge(message, code)
            case Hold():
                self._held.append(message)
            case Break(code):
                if code is not None:
                    self._send(DISCONNECT, bytes([code, 0]))
                self._peer.unacknowledged -= 1
                return False
        return True

    def _acknowledge(self, message: Published, code: int) -> None:
        if message.qos:
            self._peer.unacknowledged -= 1
            said = bytes([code]) if code and self._five else b""
            self._send(PUBACK if message.qos == 1 else PUBREC, struct.pack("!H", message.mid) + said)

    def _send(self, kind: int, body: bytes) -> None:
        self._writer.write(bytes([kind, len(body)]) + body)


def parsed(first: int, body: bytes, *, five: bool) -> Published:
    """The PUBLISH with the fixed header's *first* byte."""
    length = int.from_bytes(body[:2], "big")
    at = 2 + length
    qos = first >> 1 & 3
    mid = int.from_bytes(body[at : at + 2], "big") if qos else 0
    at += 2 if qos else 0
    user: dict[str, str] = {}
    if five:
        user, at = user_properties(body, at)
    header = 2 if len(body) < 0x80 else 3 if len(body) < 0x4000 else 4
    topic = body[2 : 2 + length].decode()
    return Published(topic, body[at:], qos, bool(first & 1), bool(first & 8), mid, user, header + len(body))


def user_properties(body: bytes, at: int) -> tuple[dict[str, str], int]:
    """The user properties that begin at *at*, with their length; and where what follows begins."""
    length = shift = 0
    while True:
        byte = body[at]
        length |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            break
    end, user = at + length, {}

    def text(at: int) -> tuple[str, int]:
        size = int.from_bytes(body[at : at + 2], "big")
        return body[at + 2 : at + 2 + size].decode(), at + 2 + size

    while at < end:
        kind = body[at]
        if kind == 0x02:
            at += 5
        elif kind == 0x03:
            _, at = text(at + 1)
        else:
            name, at = text(at + 1)
            user[name], at = text(at)
    return user, end


@asynccontextmanager
async def mqtt_peer(peer: Peer) -> AsyncIterator[Peer]:
    """*peer* listening on its port of 127.0.0.1; on leaving every connection breaks."""

    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(peer, reader, writer)
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        peer._connections.add(connection)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await connection.serve()
            with suppress(ConnectionError):
                await writer.drain()
            writer.close()
        finally:
            peer._connections.discard(connection)
            peer.unacknowledged -= len(connection._held)

    server = await asyncio.start_server(serve, "127.0.0.1", peer.port)
    try:
        yield peer
    finally:
        server.close()
        for connection in list(peer._connections):
            connection.break_off()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
