"""What a broker's answers mean (DESIGN.md §2.5).  No I/O, no clock in this file.

The numbers are MQTT 5's reason codes (OASIS mqtt-v5.0 §2.4); the return codes of a 3.1.1 CONNACK come
translated into them.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from bridge.delivery import Delivered, Failure, Outcome, Pause, Reason, Rejected, RetryLater

Trouble: TypeAlias = RetryLater | Pause
"""Why there is no connection: it goes by, or somebody has to see to it."""

FAILED = 0x80  # from here on a reason code says no
PROTOCOL_ERROR = 0x82
NOT_AUTHORIZED = 0x87
PACKET_TOO_LARGE = 0x95
RETAIN_NOT_SUPPORTED = 0x9A
QOS_NOT_SUPPORTED = 0x9B

NOT_MQTT = RetryLater(
    Failure("other", "the broker does not speak MQTT as agreed; set protocol: 3.1.1 if it is an old one")
)


class _Meaning(NamedTuple):
    kind: Callable[[Failure], Outcome]
    reason: Reason
    text: str


_MESSAGE: Mapping[int, _Meaning] = {
    0x80: _Meaning(RetryLater, "server_error", "unspecified error"),
    0x83: _Meaning(RetryLater, "server_error", "implementation specific error"),
    NOT_AUTHORIZED: _Meaning(Pause, "auth", "not authorised to publish on this topic"),
    0x90: _Meaning(Rejected, "rejected", "topic name invalid"),
    0x91: _Meaning(RetryLater, "server_error", "packet identifier in use"),
    PACKET_TOO_LARGE: _Meaning(Rejected, "rejected", "packet too large"),
    0x97: _Meaning(RetryLater, "rate_limited", "quota exceeded"),
    0x99: _Meaning(Rejected, "rejected", "payload format invalid"),
}
"""PUBACK, PUBREC and PUBCOMP. Quota exceeded is about one message for all we know, so others go on.
Packet too large is no code of a PUBACK, but mosquitto answers so beyond its message_size_limit."""

_CONNECTION: Mapping[int, _Meaning] = {
    0x80: _Meaning(RetryLater, "server_error", "unspecified error"),
    0x81: _Meaning(Pause, "client_error", "malformed packet"),
    PROTOCOL_ERROR: _Meaning(Pause, "client_error", "protocol error"),
    0x83: _Meaning(RetryLater, "server_error", "implementation specific error"),
    0x84: _Meaning(Pause, "client_error", "unsupported protocol version; set protocol: 3.1.1 or 5"),
    0x85: _Meaning(Pause, "client_error", "client identifier not valid; set client_id"),
    0x86: _Meaning(Pause, "auth", "bad user name or password"),
    NOT_AUTHORIZED: _Meaning(Pause, "auth", "not authorised"),
    0x88: _Meaning(RetryLater, "server_error", "server unavailable"),
    0x89: _Meaning(RetryLater, "server_error", "server busy"),
    0x8A: _Meaning(Pause, "auth", "banned"),
    0x8B: _Meaning(RetryLater, "connect", "server shutting down"),
    0x8C: _Meaning(Pause, "auth", "bad authentication method"),
    0x8D: _Meaning(RetryLater, "timeout", "keep alive timeout"),
    0x8E: _Meaning(RetryLater, "connect", "session taken over: another client has the same client_id"),
    0x90: _Meaning(Pause, "client_error", "topic name invalid"),
    0x93: _Meaning(RetryLater, "other", "receive maximum exceeded"),
    PACKET_TOO_LARGE: _Meaning(RetryLater, "rejected", "packet too large"),
    0x96: _Meaning(Pause, "rate_limited", "message rate too high"),
    0x97: _Meaning(Pause, "rate_limited", "quota exceeded"),
    0x98: _Meaning(RetryLater, "connect", "administrative action"),
    0x99: _Meaning(RetryLater, "rejected", "payload format invalid"),
    RETAIN_NOT_SUPPORTED: _Meaning(
        Pause, "client_error", "retain not supported; set retain: false, status_topic: null"
    ),
    QOS_NOT_SUPPORTED: _Meaning(Pause, "client_error", "QoS not supported; set a lower qos"),
    0x9C: _Meaning(Pause, "redirect", "use another server"),
    0x9D: _Meaning(Pause, "redirect", "server moved"),
    0x9F: _Meaning(Pause, "rate_limited", "connection rate exceeded"),
    0xA0: _Meaning(RetryLater, "connect", "maximum connect time"),
}
"""CONNACK and DISCONNECT."""

BY_A_MESSAGE = frozenset({0x81, PROTOCOL_ERROR, 0x90, 0x93, PACKET_TOO_LARGE, 0x99})


def published(code: int) -> Outcome:
    """What the final acknowledgement of a PUBLISH means; "no matching subscribers" (0x10) is success."""
    if code < FAILED:
        return Delivered(code)
    kind, reason, text = _MESSAGE.get(code, _Meaning(RetryLater, "server_error", "refused"))
    return kind(Failure(reason, f"broker says {text} (0x{code:02x})", code))


def refused(code: int) -> Trouble:
    """What a CONNACK with *code* means for what waits to be sent."""
    meant = _CONNECTION.get(code, _Meaning(RetryLater, "connect", "no"))
    failure = Failure(meant.reason, f"broker says {meant.text} (0x{code:02x})", code)
    return Pause(failure) if meant.kind is Pause else RetryLater(failure)


def disconnected(code: int) -> Trouble:
    """What a DISCONNECT with *code* means: as `refused`, unless one message may have caused it.

    Then the others must not wait for somebody to see to it.
    """
    trouble = refused(code)
    return RetryLater(trouble.failure) if code in BY_A_MESSAGE else trouble


def unreachable(error: Exception) -> Trouble:
    """What a connection that did not come about means, in words that name neither host nor path."""
    if isinstance(error, socket.gaierror | UnicodeError):
        return Pause(Failure("dns", "the name does not resolve"))
    if isinstance(error, TimeoutError):
        return RetryLater(Failure("timeout", "no connection in time"))
    if is_tls(error):
        return Pause(Failure("tls", f"TLS failed: {tls_text(error)}"))
    if isinstance(error, ConnectionError) and error.errno is None:
        return RetryLater(Failure("connect", "the server opens no WebSocket at this path"))
    if isinstance(error, OSError):
        return RetryLater(Failure("connect", os_text(error)))
    return RetryLater(Failure("connect", type(error).__name__))


def is_tls(error: Exception | None) -> bool:
    """Is it about certificates or versions? A connection that ends within a handshake is not."""
    ended = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
    return isinstance(error, ssl.SSLError) and not isinstance(error, ended)


def tls_text(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message or "certificate verify failed"
    reason = error.reason if isinstance(error, ssl.SSLError) else None
    return (reason or "handshake failed").lower().replace("_", " ")


def os_text(error: OSError) -> str:
    return (error.strerror or "").partition("[")[0].strip() or type(error).__name__


def too_large(size: int, limit: int) -> Rejected:
    """A PUBLISH of *size* bytes is not even sent to a broker that takes *limit*."""
    return Rejected(
        Failure("rejected", f"packet of {size} bytes; the broker takes {limit}", PACKET_TOO_LARGE)
    )
