"""MQTT as a client that publishes speaks it, versions 5 and 3.1.1 (OASIS): packets to bytes and back.

No I/O, no clock, no logging in this file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bridge.sinks.mqtt.message import Message, variable_length

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = range(1, 8)
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT, AUTH = range(8, 16)

LARGEST = 1 << 20  # bytes of a packet from a broker: what it has to say to a publisher is short
PING = bytes([PINGREQ << 4, 0])
LEAVE = bytes([DISCONNECT << 4, 0])

SERVER_KEEP_ALIVE, RECEIVE_MAXIMUM, MAXIMUM_QOS, RETAIN_AVAILABLE, MAXIMUM_PACKET_SIZE = (
    0x13,
    0x21,
    0x24,
    0x25,
    0x27,
)
_FORMATS: Mapping[int, str] = {
    0x01: "!B",
    0x02: "!I",
    0x11: "!I",
    SERVER_KEEP_ALIVE: "!H",
    0x17: "!B",
    0x19: "!B",
    RECEIVE_MAXIMUM: "!H",
    0x22: "!H",
    0x23: "!H",
    MAXIMUM_QOS: "!B",
    RETAIN_AVAILABLE: "!B",
    MAXIMUM_PACKET_SIZE: "!I",
    0x28: "!B",
    0x29: "!B",
    0x2A: "!B",
}
"""Properties that are numbers (MQTT 5 §2.2.2.2)."""
_STRINGS: Mapping[int, int] = {
    0x03: 1,
    0x08: 1,
    0x09: 1,
    0x12: 1,
    0x15: 1,
    0x16: 1,
    0x1A: 1,
    0x1C: 1,
    0x1F: 1,
    0x26: 2,
}
"""How many strings each of the others is."""

_REFUSALS: Mapping[int, int] = {1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87}
"""Return codes of a CONNACK of 3.1.1 (§3.2.2.3) as reason codes of 5."""


def packet(kind: int, flags: int, *parts: bytes) -> bytes:
    rest = b"".join(parts)
    return b"".join((bytes([kind << 4 | flags]), variable_length(len(rest)), rest))


def string(text: str | bytes) -> bytes:
    """Raises ValueError for one that is too long."""
    encoded = text.encode() if isinstance(text, str) else text
    if len(encoded) > 0xFFFF:
        raise ValueError("longer than a string may be")
    return struct.pack("!H", len(encoded)) + encoded


def connect(
    client_id: str,
    *,
    is_five: bool,
    keepalive: int,
    username: str | None = None,
    password: str | None = None,
    will: Message | None = None,
) -> bytes:
    """A CONNECT that starts clean; *keepalive* in seconds."""
    flags = 0x02
    payload = [string(client_id)]
    if will is not None:
        flags |= 0x04 | will.qos << 3 | will.retain << 5
        payload += [b"\0"] if is_five else []
        payload += [string(will.topic), string(will.payload)]
    if username is not None:
        flags |= 0x80
        payload.append(string(username))
    if password is not None:
        flags |= 0x40
        payload.append(string(password))
    head = string("MQTT") + struct.pack("!BBH", 5 if is_five else 4, flags, keepalive)
    return packet(CONNECT, 0, head, b"\0" if is_five else b"", *payload)


def publish(message: Message, mid: int, *, is_five: bool) -> bytes:
    """*message* under the packet identifier *mid*, which QoS 0 has none of."""
    topic = message.topic.encode()
    properties = (message.properties or b"\0") if is_five else b""
    identifier = mid.to_bytes(2) if message.qos else b""
    rest = 2 + len(topic) + len(identifier) + len(properties) + len(message.payload)
    first = PUBLISH << 4 | message.qos << 1 | message.retain
    return b"".join(
        (
            bytes((first,)),
            variable_length(rest),
            len(topic).to_bytes(2),
            topic,
            identifier,
            properties,
            message.payload,
        )
    )


def pubrel(mid: int) -> bytes:
    return packet(PUBREL, 0x02, mid.to_bytes(2))


def subscribe(topic: str, *, is_five: bool) -> bytes:
    """One topic at QoS 0; nothing else of ours is ever subscribed to, so its identifier is free."""
    return packet(SUBSCRIBE, 0x02, b"\0\1", b"\0" if is_five else b"", string(topic), b"\0")


class Packet(NamedTuple):
    kind: int
    flags: int
    body: bytes


class Reader:
    """Feed it what the broker sends, in any pieces; it gives the packets that are complete."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Packet]:
        """Raises ValueError for what is no MQTT, or too much of it: nothing more can be read then."""
        buffer = self._rest + data if self._rest else data
        at = 0
        while (found := _framed(buffer, at)) is not None:
            begin, end = found
            if end > len(buffer):
                break
            self._rest = b""
            yield Packet(buffer[at] >> 4, buffer[at] & 0x0F, buffer[begin:end])
            at = end
        self._rest = buffer[at:] if at else buffer


def _framed(buffer: bytes, at: int) -> tuple[int, int] | None:
    """Where the body of the packet at *at* begins and ends; None if its length is not there yet."""
    length = shift = 0
    for place in range(at + 1, min(at + 5, len(buffer))):
        length |= (buffer[place] & 0x7F) << shift
        if buffer[place] < 0x80:
            if length > LARGEST:
                raise ValueError("a packet longer than a broker has reason to send")
            return place + 1, place + 1 + length
        shift += 7
    if len(buffer) - at > 4:
        raise ValueError("a length without end")
    return None


@dataclass(frozen=True, slots=True)
class Connack:
    """Whether the broker took us: a reason code of MQTT 5, and what it limits us to."""

    code: int
    limits: Mapping[int, int]


def connack(body: bytes, *, is_five: bool) -> Connack:
    """Raises ValueError."""
    if len(body) < (3 if is_five else 2):
        raise ValueError("acknowledgement too short")
    code = body[1]
    if is_five:
        return Connack(code, numbers(body[2:]))
    return Connack(_REFUSALS.get(code, 0x80) if code else 0, {})


def numbers(body: bytes) -> dict[int, int]:
    """The properties at the beginning of *body* that are numbers; raises ValueError."""
    length, at = _variable(body, 0)
    end = at + length
    if end > len(body):
        raise ValueError("properties longer than their packet")
    found: dict[int, int] = {}
    while at < end:
        kind, at = body[at], at + 1
        if kind == 0x0B:
            _, at = _variable(body, at)
        elif kind in _FORMATS:
            size = struct.calcsize(_FORMATS[kind])
            if at + size > end:
                raise ValueError("a property without its value")
            (found[kind],) = struct.unpack_from(_FORMATS[kind], body, at)
            at += size
        elif kind in _STRINGS:
            for _ in range(_STRINGS[kind]):
                at += 2 + int.from_bytes(body[at : at + 2])
        else:
            raise ValueError("a property MQTT does not have")
    if at != end:
        raise ValueError("properties longer than they say")
    return found


def _variable(body: bytes, at: int) -> tuple[int, int]:
    """A Variable Byte Integer and where it ends."""
    number = 0
    for place, byte in enumerate(body[at : at + 4]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    raise ValueError("a number without end")


def acknowledgement(body: bytes) -> tuple[int, int]:
    """Packet identifier and reason code of a PUBACK, PUBREC or PUBCOMP; raises ValueError.

    Without a code it is success (MQTT 5 §3.4.2.1); 3.1.1 has none.
    """
    if len(body) < 2:
        raise ValueError("acknowledgement too short")
    return body[0] << 8 | body[1], body[2] if len(body) > 2 else 0


def received(flags: int, body: bytes, *, is_five: bool) -> bytes:
    """The payload of a PUBLISH at QoS 0, which is all that is asked for; raises ValueError."""
    if flags & 0x06:
        raise ValueError("a message at a QoS that was not asked for")
    at = 2 + int.from_bytes(body[:2])
    if is_five:
        length, at = _variable(body, at)
        at += length
    if at > len(body):
        raise ValueError("a message shorter than it says")
    return body[at:]
