"""What sinks that speak HTTP share: a client of their own, one attempt, and what its failure means."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated
from urllib.parse import urlsplit

import aiohttp
from pydantic import AfterValidator, Field

from bridge.delivery import RESPONSE_LIMIT, Failure, Outcome, Pause, RetryLater
from bridge.fields import Duration, Section
from bridge.sinks.guard import Policy, blocked

USER_AGENT = f"bridge/{version('tts-event-bridge')}"
CONNECT = 10.0  # seconds for name, connection and TLS, inside the attempt's timeout


class RetryConfig(Section):
    """When a failed delivery is tried again: exponential, with full jitter."""

    initial: Annotated[Duration, Field(gt=0)] = 5.0
    """The first wait is up to this long; it doubles each time."""
    max: Annotated[Duration, Field(gt=0)] = 3600.0
    """No wait is longer."""
    give_up_after: Annotated[Duration, Field(gt=0)] = 86400.0
    """From the first attempt on, pauses not counted; then it is a dead letter."""


def http_url(url: str) -> str:
    """Raises ValueError; never repeats *url*, which may hold a token."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("write a URL such as https://host.example/path")
    return url


HttpUrl = Annotated[str, AfterValidator(http_url)]


class BlockedError(OSError):
    """The guard does not let this address be reached."""


REFUSED = "address refused"  # how a BlockedError begins: it may come wrapped in others of several addresses


def guarded(policy: Policy, host: str) -> aiohttp.connector.SocketFactoryType:
    """Makes sockets for connections to *host*; raises BlockedError for an address that may not be reached.

    It is called with the very address of the connect that follows, so a name that resolves differently the
    second time gains nothing.
    """

    def make(info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, address = info
        why = blocked(str(address[0]), policy, host)
        if why:
            raise BlockedError(f"{REFUSED}: {why}")
        return socket.socket(family, kind, protocol)

    return make


def client(
    url: str, policy: Policy, *, limit: int, timeout: float, tls: ssl.SSLContext
) -> aiohttp.ClientSession:
    """A client for one sink: nothing is shared with another. *timeout* in seconds for a whole attempt."""
    connector = aiohttp.TCPConnector(
        limit=limit,
        ssl=tls,
        socket_factory=guarded(policy, urlsplit(url).hostname or ""),
        use_dns_cache=True,
        ttl_dns_cache=10,
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=timeout, connect=min(CONNECT, timeout)),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        headers={"User-Agent": USER_AGENT},
        auto_decompress=False,
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver said; *body* is its first RESPONSE_LIMIT bytes as text."""

    status: int
    body: str
    retry_after: str | None


async def post(
    session: aiohttp.ClientSession, url: str, body: bytes, headers: Mapping[str, str]
) -> Answer | Outcome:
    """One POST: the answer, or the outcome of not getting one. Redirects are not followed."""
    try:
        async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            text = (
                await response.content.read(RESPONSE_LIMIT)
                if response.status >= 300 or _says(response)
                else b""
            )
            return Answer(response.status, text.decode(errors="replace"), response.headers.get("Retry-After"))
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return failed(error)


def _says(response: aiohttp.ClientResponse) -> bool:
    """Is there a body worth reading?"""
    return response.content_length != 0


def failed(error: Exception) -> Outcome:
    """What an attempt without an answer means (DESIGN.md §2.5): names and TLS are the sink's fault."""
    if REFUSED in str(error):
        return Pause(Failure("blocked_address", str(error)[str(error).index(REFUSED) :][:200]))
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError | ssl.SSLError):
        return Pause(Failure("tls", f"TLS failed: {_reason(error)}"))
    if isinstance(error, aiohttp.ClientConnectorDNSError | aiohttp.InvalidURL):
        return Pause(Failure("dns", "the name does not resolve"))
    if isinstance(error, TimeoutError):
        return RetryLater(Failure("timeout", "no answer in time"))
    return RetryLater(Failure("connect", f"{type(error).__name__}: {_reason(error)}"))


def _reason(error: Exception) -> str:
    """What went wrong in words that name neither host nor path."""
    inner = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    if isinstance(inner, ssl.SSLError):
        return inner.reason or "handshake failed"
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror.partition("[")[0].strip() or "failed"
    return type(inner).__name__
