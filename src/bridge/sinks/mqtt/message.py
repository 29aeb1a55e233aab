"""What is published: topic, payload, properties.  No I/O, no clock in this file.

Properties are packed here and not by paho, whose `Properties` cost half of the whole publish (measured in
`link`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from bridge.errors import RenderError

LIMIT = 0xFFFF  # bytes of a string on the wire (MQTT 5 §1.5.4)
CONTENT_TYPE = 0x03
MESSAGE_EXPIRY = 0x02
USER_PROPERTY = 0x26

_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]")
"""What a string should not contain (MQTT 5 §1.5.4); mosquitto closes the connection on it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One PUBLISH, without the packet identifier; *properties* as on the wire, b'' for MQTT 3.1.1."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of the whole packet: what a broker's maximum packet size is about (MQTT 5 §3.3)."""
        identifier = 2 if self.qos else 0
        rest = 2 + len(self.topic.encode()) + identifier + len(self.properties) + len(self.payload)
        return 1 + len(variable_length(rest)) + rest


def topic_name(text: str) -> str:
    """*text*, if one can publish on it (MQTT 5 §4.7); raises RenderError, which makes it a dead letter."""
    if not text:
        raise RenderError("the topic is empty")
    if "+" in text or "#" in text:
        raise RenderError("the topic has a wildcard, + or #")
    if _UNFIT.search(text):
        raise RenderError("the topic has a control character")
    if len(text.encode()) > LIMIT:
        raise RenderError(f"the topic is longer than {LIMIT} bytes")
    return text


def properties(
    user: Iterable[tuple[str, str]], *, content_type: str = "", message_expiry: int | None = None
) -> bytes:
    """The properties of a PUBLISH (MQTT 5 §3.3.2.3), their length first; *message_expiry* in seconds."""
    parts: list[bytes] = []
    if message_expiry is not None:
        parts.append(struct.pack("!BI", MESSAGE_EXPIRY, message_expiry))
    if content_type:
        parts.append(bytes([CONTENT_TYPE]) + _string(content_type))
    for name, value in user:
        parts += (_name(name), _string(value))
    packed = b"".join(parts)
    return variable_length(len(packed)) + packed


def variable_length(number: int) -> bytes:
    """A Variable Byte Integer (MQTT 5 §1.5.5)."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


@lru_cache(maxsize=1000)
def _name(name: str) -> bytes:
    """The beginning of a user property."""
    return bytes([USER_PROPERTY]) + _string(name)


def _string(text: str) -> bytes:
    """*text* as on the wire, what is unfit for it replaced: names of events come from elsewhere."""
    fits = text.isascii() and text.isprintable()
    encoded = (text if fits else _UNFIT.sub("\N{REPLACEMENT CHARACTER}", text)).encode()
    if len(encoded) > LIMIT:
        encoded = encoded[:LIMIT].decode(errors="ignore").encode()
    return len(encoded).to_bytes(2) + encoded
