"""paho with what it leaves out: sockets opened elsewhere, every reason code, nothing from the environment.

It overrides `_create_socket`, `_sock_recv`, `_handle_pubackcomp`, `_handle_pubrec` and the WebSocket's
`_create_frame`. These names are private, so paho is pinned: look at them when it is updated. Why (2.2.0):

- it ignores the reason code of PUBREC ("TODO" in `_handle_pubrec`) and sends PUBREL to a broker that refused;
- it ends the connection over a code that MQTT 5 does not list for PUBACK: mosquitto's packet too large;
- of a TLS alert after the handshake it keeps only that the connection is lost;
- it connects blocking, and through a proxy from the environment if PySocks is there;
- it makes a system call for each packet, and masks WebSocket frames byte by byte.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from paho.mqtt import MQTTException
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from bridge.sinks.mqtt_address import Address
from bridge.sinks.mqtt_answers import FAILED
from bridge.sinks.mqtt_message import Message

READ = 1 << 16  # bytes
WRITE = 1 << 18  # bytes at once
KEEPALIVE = 30  # seconds without traffic after which the broker is asked whether it is there

Protocol: TypeAlias = Literal[5, "3.1.1"]

BROKEN = (ValueError, LookupError, ArithmeticError, struct.error, MQTTException)
"""What paho raises over bytes that are no MQTT."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to connect; *timeout* in seconds, until the broker has accepted the client."""

    address: Address
    tls: ssl.SSLContext | None
    protocol: Protocol
    client_id: str
    username: str | None
    password: str | None
    will: Message | None
    timeout: float
    qos: int
    retain: bool
    subscribe: str | None = None
    heard: Callable[[bytes], None] | None = None
    """Called with the payload of each message on the topic *subscribe*."""


class Buffered:
    """A connected socket, not blocking, with one system call for many packets both ways.

    paho makes three to read an acknowledgement and one to write a publish.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._in = b""
        self._at = 0
        self._out = bytearray()
        self._is_corked = False

    def cork(self) -> None:
        """Keep from now on what is sent until `flush`."""
        self._sock.setblocking(False)
        self._is_corked = True

    def recv(self, most: int) -> bytes:
        if self._at == len(self._in):
            self._in, self._at = self._sock.recv(READ if self._is_corked else most), 0
        found = self._in[self._at : self._at + most]
        self._at += len(found)
        return found

    def send(self, data: bytes | bytearray) -> int:
        if not self._is_corked:
            return self._sock.send(data)
        self._out += data
        return len(data)

    def flush(self) -> bool:
        """Is everything written? Raises OSError if it never will be."""
        try:
            while self._out:
                del self._out[: self._sock.send(self._out[:WRITE])]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        return True

    def unread(self) -> int:
        """Bytes that are here already, of which the event loop knows nothing."""
        decrypted = self._sock.pending() if isinstance(self._sock, ssl.SSLSocket) else 0
        return len(self._in) - self._at + decrypted

    def fileno(self) -> int:
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        """It never blocks once corked, which is all that paho asks for."""

    def pending(self) -> int:
        return self.unread()

    def close(self) -> None:
        """Once what can be written without waiting is: the last packet may be a DISCONNECT."""
        if self._sock.fileno() >= 0:
            with suppress(OSError):
                self.flush()
        self._sock.close()


class Packed:
    """Properties that are packed already, in the one place where paho asks for it."""

    __slots__ = ("_bytes",)

    def __init__(self, packed: bytes) -> None:
        self._bytes = packed

    def pack(self) -> bytes:
        return self._bytes


class Client(paho.Client):
    """A client for one connection over *sock*, which is connected; it starts clean."""

    def __init__(self, settings: Settings, sock: Any, acknowledged: Callable[[int, int], None]) -> None:
        """*acknowledged* gets the packet identifier and reason code of each last acknowledgement."""
        five = settings.protocol == 5
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            clean_session=None if five else True,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        self.read_error: OSError | None = None
        self._given = sock
        self._acknowledged = acknowledged
        self.max_inflight_messages_set(0)  # no limit here: the link keeps to the broker's
        if settings.username is not None:
            self.username_pw_set(settings.username, settings.password)
        if settings.will:
            will = settings.will
            self.will_set(will.topic, will.payload, will.qos, will.retain)
        at = settings.address
        if five:
            self.connect_async(at.host, at.port, KEEPALIVE, clean_start=True)
        else:
            self.connect_async(at.host, at.port, KEEPALIVE)

    def _create_socket(self) -> Any:
        return self._given

    def _sock_recv(self, bufsize: int) -> bytes:
        try:
            return super()._sock_recv(bufsize)
        except BlockingIOError:
            raise
        except OSError as error:
            self.read_error = error
            raise

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        self._settle(*acknowledgement(self._in_packet["packet"]))
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_pubrec(self) -> MQTTErrorCode:
        mid, code = acknowledgement(self._in_packet["packet"])
        if code < FAILED:
            return self._send_pubrel(mid)
        self._settle(mid, code)  # without PUBREL: the identifier is free again (MQTT 5 §4.3.3)
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _settle(self, mid: int, code: int) -> None:
        if self._out_messages.pop(mid, None):
            self._acknowledged(mid, code)


def acknowledgement(packet: bytes | bytearray) -> tuple[int, int]:
    """Packet identifier and reason code of a PUBACK, PUBREC or PUBCOMP; raises ValueError.

    Without a code it is success (MQTT 5 §3.4.2.1); 3.1.1 has none.
    """
    if len(packet) < 2:
        raise ValueError("acknowledgement too short")
    return packet[0] << 8 | packet[1], packet[2] if len(packet) > 2 else 0


class WebSocket(paho._WebsocketWrapper):
    """paho's, which masks byte by byte: a third of its rate, and a second for a message of 16 MiB."""

    def _create_frame(self, opcode: int, data: bytearray, do_masking: int = 1) -> bytearray:
        key = os.urandom(4)
        frame = bytearray([0x80 | opcode])  # final: nothing is sent in pieces
        length = len(data)
        if length < 126:
            frame.append(0x80 | length)
        elif length < 1 << 16:
            frame += struct.pack("!BH", 0x80 | 126, length)
        else:
            frame += struct.pack("!BQ", 0x80 | 127, length)
        return frame + key + masked(data, key)


def masked(data: bytes | bytearray, key: bytes) -> bytes:
    """*data* XOR *key*, repeated (RFC 6455 §5.3)."""
    length = len(data)
    repeated = (key * (length // 4 + 1))[:length]
    return (int.from_bytes(data) ^ int.from_bytes(repeated)).to_bytes(length)


@dataclass(frozen=True, slots=True)
class Opened:
    """*sock* is what paho talks to: *wire* itself, or a WebSocket over it."""

    wire: Buffered
    sock: Any


class Opening:
    """A socket on its way in a thread; if nobody waits for it any more, it is closed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._opened: Opened | None = None
        self._is_abandoned = False

    def run(self) -> Opened:
        """Blocks until it is connected; raises OSError, or ValueError for an impossible name."""
        made = opened(self._settings)
        with self._lock:
            if self._is_abandoned:
                made.wire.close()
            self._opened = made
        return made

    def abandon(self) -> None:
        with self._lock:
            self._is_abandoned = True
            if self._opened is not None:
                self._opened.wire.close()


def opened(settings: Settings) -> Opened:
    """Name, connection, TLS, WebSocket; raises OSError. Blocks."""
    at = settings.address
    sock = socket.create_connection((at.host, at.port), settings.timeout)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if settings.tls:
            sock = settings.tls.wrap_socket(sock, server_hostname=at.host, do_handshake_on_connect=False)
            sock.do_handshake()
        wire = Buffered(sock)
        made = Opened(wire, _websocket(wire, at) if at.is_websocket else wire)
        wire.cork()
    except BaseException:
        sock.close()
        raise
    return made


def _websocket(wire: Buffered, at: Address) -> Any:
    return WebSocket(cast(socket.socket, wire), at.host, at.port, at.is_secured, at.path, None)
