"""Responses as bytes, in the server's own order and casing.  No I/O, no clock in this file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

EVENT_STREAM = "text/event-stream"
JSON = "application/json"
DELIMITERS = {EVENT_STREAM: b"\n\n", JSON: b"\n"}
LAST_CHUNK = b"0\r\n\r\n"

SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Pragma": "no-cache",
    "Referrer-Policy": "strict-origin-when-cross-origin",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "X-Xss-Protection": "1; mode=block",
}

EPSILON = 1e-6  # seconds: unix time as a float has steps of a quarter of a microsecond

BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    b"400 Bad Request"
)
"""What Go's net/http says to bytes that are no HTTP."""


def content_type(accept: str | None) -> str:
    """A map lookup in the server: only exactly `text/event-stream` gives that (marshaler_registry.go)."""
    return EVENT_STREAM if accept == EVENT_STREAM else JSON


def head(status: int, fields: Mapping[str, str], now: float, length: int | None = None) -> bytes:
    """Status line and headers: *fields* by name, then Date of *now* (unix seconds), then the framing.

    Chunked without a *length*.
    """
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = [
        f"HTTP/1.1 {status} {_phrase(status)}",
        *(f"{name}: {value}" for name, value in sorted((SECURITY_HEADERS | dict(fields)).items())),
        f"Date: {formatdate(now, usegmt=True)}",
        framing,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"status code {status}"  # Go's text for 499


@dataclass(frozen=True, slots=True)
class Budget:
    """What is left of a rate limit, in seconds where it is time."""

    allowed: bool
    limit: int
    available: int
    reset: int
    retry: int

    def headers(self) -> dict[str, str]:
        return {
            "X-Rate-Limit-Available": str(self.available),
            "X-Rate-Limit-Limit": str(self.limit),
            "X-Rate-Limit-Reset": str(self.reset),
            "X-Rate-Limit-Retry": str(self.retry),
        }


def spend(limit: int, paid_until: float, now: float) -> tuple[float, Budget]:
    """One call against *limit* a minute: the new *paid_until*, and what is left (seconds, GCRA).

    The algorithm of pkg/ratelimit's throttled store; a call that is refused costs nothing.
    """
    interval, window = 60 / limit, 60.0
    after = max(paid_until, now) + interval
    if after - now > window + EPSILON:
        return paid_until, _budget(limit, paid_until - now, after - now - window)
    return after, _budget(limit, after - now, None)


def _budget(limit: int, reset: float, retry: float | None) -> Budget:
    available = int((60.0 - reset) * limit / 60 + EPSILON)
    return Budget(retry is None, limit, available, int(reset + EPSILON), int((retry or 0.0) + EPSILON))
