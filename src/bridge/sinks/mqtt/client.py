"""A socket to a broker: opened in a thread, then buffered both ways for the event loop.

Nothing comes from the environment. Only the WebSocket is paho's: it overrides `_create_frame`, a private
name, so paho is pinned: look at it when it is updated.
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

from bridge.sinks.mqtt.address import Address
from bridge.sinks.mqtt.message import Message
from bridge.sinks.mqtt.packets import acknowledgement

__all__ = ["Buffered", "Opened", "Opening", "Settings", "acknowledgement", "masked", "opened"]

READ = 1 << 16  # bytes
WRITE = 1 << 18  # bytes at once

Protocol: TypeAlias = Literal[5, "3.1.1"]


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
    """A connected socket, not blocking, with one system call for many packets both ways."""

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
        """It never blocks once corked, which is all that a WebSocket asks for."""

    def pending(self) -> int:
        return self.unread()

    def close(self) -> None:
        """Once what can be written without waiting is: the last packet may be a DISCONNECT."""
        if self._sock.fileno() >= 0:
            with suppress(OSError):
                self.flush()
        self._sock.close()


def masked(data: bytes | bytearray, key: bytes) -> bytes:
    """*data* XOR *key*, repeated (RFC 6455 §5.3)."""
    length = len(data)
    repeated = (key * (length // 4 + 1))[:length]
    return (int.from_bytes(data) ^ int.from_bytes(repeated)).to_bytes(length)


@dataclass(frozen=True, slots=True)
class Opened:
    """*sock* is what MQTT is spoken to: *wire* itself, or a WebSocket over it."""

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
    """paho's WebSocket, masking at once: byte by byte it has a third of the rate and a second for 16 MiB.

    Imported only where it is wanted: few brokers are reached so.
    """
    from paho.mqtt import client as paho

    class WebSocket(paho._WebsocketWrapper):
        def _create_frame(self, opcode: int, data: bytearray, do_masking: int = 1) -> bytearray:
            return framed(opcode, data)

    return WebSocket(cast(socket.socket, wire), at.host, at.port, at.is_secured, at.path, None)


def framed(opcode: int, data: bytearray) -> bytearray:
    """One frame from a client (RFC 6455 §5.2)."""
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
