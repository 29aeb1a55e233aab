"""What sinks that speak HTTP share: a client of their own, one attempt, and what its failure means."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from ipaddress import IPv6Address
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from pydantic import AfterValidator, SecretStr

from bridge.delivery import RESPONSE_LIMIT, Failure, Outcome, Pause, RetryLater
from bridge.errors import AnswerError
from bridge.retry import http_outcome
from bridge.sinks.guard import Policy, blocked, openable
from bridge.sinks.http1.client import BlockedError, Client, ProxyError, Resolver, Route, system, through

USER_AGENT = f"bridge/{version('tts-event-bridge')}"
CONNECT = 10.0  # seconds for name, connection and TLS, inside the attempt's timeout


def http_url(url: str) -> str:
    """Raises ValueError; never repeats *url*, which may hold a token."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("write a URL such as https://host.example/path")
    return url


def _secret_http_url(value: SecretStr) -> SecretStr:
    http_url(value.get_secret_value())
    return value


HttpUrl = Annotated[str, AfterValidator(http_url)]
SecretUrl = Annotated[SecretStr, AfterValidator(_secret_http_url)]
"""A URL with a token or a password in it."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where one sink posts to, and how.  *hidden*: what must not come back in an answer that is kept."""

    url: str
    client: Client
    refused: str | None = None
    """Why the URL's own address may not be reached, where a proxy would connect to it for us."""
    hidden: Sequence[str] = ()


@asynccontextmanager
async def target(
    url: str,
    policy: Policy,
    *,
    limit: int,
    timeout: float,
    tls: ssl.SSLContext,
    proxy: str | None = None,
    hidden: Sequence[str] = (),
    resolver: Resolver | None = None,
) -> AsyncIterator[Target]:
    """A client for one sink: nothing is shared with another. *timeout* in seconds for a whole attempt.

    *limit* connections are kept between attempts; each attempt that runs has one, more are not made.
    With *proxy* the address connected to is the proxy's, which the operator chose: it may be private.
    What it connects to for us is judged only where the URL holds an address; names are the proxy's
    business. Nothing is ever taken from the environment.
    """
    host = urlsplit(url).hostname or ""
    reached = urlsplit(proxy).hostname or "" if proxy else host
    let_through = Policy(allow_private=True) if proxy else policy
    client = Client(
        Route(
            url,
            lambda address: blocked(address, let_through, reached),
            tls,
            proxy,
            system if resolver is None else through(resolver),
        ),
        timeout=timeout,
        connect=CONNECT,
        keep_idle=limit,
        keep=RESPONSE_LIMIT,
        headers={"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"},
    )
    refused = blocked(literal(host) or "", policy, host) if proxy and literal(host) else None
    try:
        yield Target(url, client, refused, tuple(each for each in hidden if each))
    finally:
        await client.close()


def literal(host: str) -> str | None:
    """The address *host* spells, also as `2130706433`, `0x7f.1` or `0177.0.0.1`; None for a name."""
    try:
        return str(IPv6Address(host.partition("%")[0]))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return None


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What a receiver said; *body* is its first RESPONSE_LIMIT bytes as text."""

    status: int
    body: str
    retry_after: str | None


async def post(to: Target, body: bytes, headers: Mapping[str, str], head: bytes = b"") -> Answer | Outcome:
    """One POST: the answer, or the outcome of not getting one. Redirects are not followed.

    *head*: more headers, by `fields`.
    """
    if to.refused:
        return _refusal(to.refused)
    try:
        response = await to.client.post(body, headers, head)
    except (AnswerError, OSError, ValueError) as error:
        return failed(error)
    text = without(response.body.decode(errors="replace"), to.hidden) if response.body else ""
    return Answer(response.status, text, response.retry_after)


def without(text: str, hidden: Sequence[str]) -> str:
    """*text* with every secret in it replaced: some receivers echo what they were sent."""
    for secret in hidden:
        text = text.replace(secret, "[redacted]")
    return text


def _refusal(why: str) -> Outcome:
    advice = "list its network or host in allow_networks" if openable(why) else "no setting opens it"
    return Pause(Failure("blocked_address", f"address refused: {why}; {advice}"))


def failed(error: Exception) -> Outcome:
    """What an attempt without an answer means (DESIGN.md §2.5): names and TLS are the sink's fault."""
    if isinstance(error, BlockedError):
        return _refusal(str(error))
    if isinstance(error, ProxyError):
        return _proxy_refused(error.status)
    tls = _tls_error(error)
    if tls:
        return Pause(Failure("tls", f"TLS failed: {tls}"))
    if isinstance(error, socket.gaierror):
        return Pause(Failure("dns", "the name does not resolve"))
    if isinstance(error, TimeoutError):
        return RetryLater(Failure("timeout", "no answer in time"))
    return RetryLater(Failure("connect", _reason(error)))


def _proxy_refused(status: int) -> Outcome:
    """A proxy's answer to CONNECT: 5xx is about reaching the receiver, the rest about us."""
    judged = http_outcome(status if status >= 500 or status == 429 else 407)
    failure = Failure("connect" if status >= 500 else "auth", f"the proxy answered HTTP {status}", status)
    return Pause(failure) if isinstance(judged, Pause) else RetryLater(failure)


def _tls_error(error: BaseException | None) -> str | None:
    """What TLS complained about, somewhere in the chain of causes; None if it is not TLS.

    With TLS 1.3 a server refuses a client's certificate only when the client already reads.
    """
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, ssl.SSLError | ssl.CertificateError) and not isinstance(
            error, ssl.SSLEOFError | ssl.SSLZeroReturnError
        ):
            return getattr(error, "reason", None) or "handshake failed"
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None


def _reason(error: Exception) -> str:
    """What went wrong in words that name neither host nor path."""
    if isinstance(error, AnswerError):
        return str(error)
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return f"connection failed ({type(error).__name__})"
