"""What a broker's answers mean."""

from __future__ import annotations

import socket
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.delivery import Delivered, Outcome, Rejected
from bridge.sinks.mqtt.answers import disconnected, published, refused, too_large, unreachable
from bridge.sinks.mqtt.client import acknowledgement, masked


def named(outcome: Outcome) -> str:
    """Such as `Pause auth`."""
    kind = type(outcome).__name__
    return kind if isinstance(outcome, Delivered) else f"{kind} {outcome.failure.reason}"


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        (0x00, "Delivered"),
        (0x10, "Delivered"),
        (0x80, "RetryLater server_error"),
        (0x83, "RetryLater server_error"),
        (0x87, "Pause auth"),
        (0x90, "Rejected rejected"),
        (0x91, "RetryLater server_error"),
        (0x95, "Rejected rejected"),
        (0x97, "RetryLater rate_limited"),
        (0x99, "Rejected rejected"),
        (0xFF, "RetryLater server_error"),
    ],
)
def test_an_acknowledgement_means(code: int, meaning: str) -> None:
    """Only codes below 0x80 are success; the message's own fault is a dead letter."""
    assert named(published(code)) == meaning


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        (0x84, "Pause client_error"),
        (0x85, "Pause client_error"),
        (0x86, "Pause auth"),
        (0x87, "Pause auth"),
        (0x88, "RetryLater server_error"),
        (0x89, "RetryLater server_error"),
        (0x8A, "Pause auth"),
        (0x8C, "Pause auth"),
        (0x97, "Pause rate_limited"),
        (0x9A, "Pause client_error"),
        (0x9B, "Pause client_error"),
        (0x9C, "Pause redirect"),
        (0x9D, "Pause redirect"),
        (0x9F, "Pause rate_limited"),
        (0xFE, "RetryLater connect"),
    ],
)
def test_a_refused_connection_means(code: int, meaning: str) -> None:
    """What an operator has to see to pauses the sink; what goes by does not."""
    assert named(refused(code)) == meaning


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        (0x00, "RetryLater connect"),
        (0x81, "RetryLater client_error"),
        (0x82, "RetryLater client_error"),
        (0x87, "Pause auth"),
        (0x8B, "RetryLater connect"),
        (0x8E, "RetryLater connect"),
        (0x93, "RetryLater other"),
        (0x95, "RetryLater rejected"),
        (0x96, "Pause rate_limited"),
    ],
)
def test_a_disconnect_means(code: int, meaning: str) -> None:
    """A DISCONNECT one message may have caused does not pause the sink for the others."""
    assert named(disconnected(code)) == meaning


@given(st.integers(0, 255))
def test_every_code_means_something(code: int) -> None:
    """Success is below 0x80 and nowhere else; the code and its number reach the operator."""
    outcome = published(code)
    assert isinstance(outcome, Delivered) == (code < 0x80)
    assert outcome.status == code if isinstance(outcome, Delivered) else outcome.failure.status == code
    for trouble in (refused(code), disconnected(code)):
        assert f"0x{code:02x}" in trouble.failure.error


def verification() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate in certificate chain"
    return error


@pytest.mark.parametrize(
    ("error", "meaning", "text"),
    [
        (socket.gaierror(-2, "Name or service not known"), "Pause dns", "the name does not resolve"),
        (UnicodeError("label too long"), "Pause dns", "the name does not resolve"),
        (verification(), "Pause tls", "TLS failed: self-signed certificate in certificate chain"),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), "RetryLater connect", ""),
        (TimeoutError(), "RetryLater timeout", "no connection in time"),
        (ConnectionRefusedError(111, "Connection refused"), "RetryLater connect", "Connection refused"),
        (ConnectionError("handshake"), "RetryLater connect", "the server opens no WebSocket at this path"),
    ],
)
def test_no_connection_means(error: Exception, meaning: str, text: str) -> None:
    """Names and certificates pause the sink; what goes by does not."""
    trouble = unreachable(error)
    assert named(trouble) == meaning
    assert text in trouble.failure.error


def test_what_is_too_large_for_the_broker_is_a_dead_letter() -> None:
    """Both sizes are named."""
    assert too_large(2000, 1000) == Rejected(too_large(2000, 1000).failure)
    assert "2000" in too_large(2000, 1000).failure.error
    assert "1000" in too_large(2000, 1000).failure.error


@pytest.mark.parametrize(
    ("packet", "found"),
    [(b"\x01\x02", (258, 0)), (b"\x00\x07\x87", (7, 0x87)), (b"\x00\x07\x10\x00", (7, 0x10))],
)
def test_an_acknowledgement_is_read(packet: bytes, found: tuple[int, int]) -> None:
    """Identifier, and the reason code where there is one."""
    assert acknowledgement(packet) == found


def test_an_acknowledgement_that_is_cut_short_is_an_error() -> None:
    """One byte is no packet identifier."""
    with pytest.raises(ValueError, match="too short"):
        acknowledgement(b"\x01")


@given(st.binary(max_size=70), st.binary(min_size=4, max_size=4))
def test_masking_is_byte_by_byte(data: bytes, key: bytes) -> None:
    """RFC 6455 §5.3: octet i with octet i modulo 4 of the key; twice is not at all."""
    assert masked(data, key) == bytes(octet ^ key[i % 4] for i, octet in enumerate(data))
    assert masked(masked(data, key), key) == data
