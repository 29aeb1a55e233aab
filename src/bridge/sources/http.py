"""The Things Stack over HTTP: the client, event streams, and what its refusals mean (UPSTREAM.md §1)."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import httpx

from bridge.decode import Decoder, ErrorFrame, Frame
from bridge.errors import SourceError, SourceErrorKind
from bridge.event import Entity, rfc3339
from bridge.sources.plan import identifier
from bridge.sources.upstream import TAIL, RateBudget, Stream, framed_error, stream_error
from bridge.tls import TlsConfig, context

CONNECT = 10.0  # seconds; also for the head of an answer
ERROR_BODY = 65_536  # bytes of an error answer that are read

KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPIDLE", 0x10), 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""A peer that vanished is noticed in a minute: the stream itself has no heartbeat."""


def http_client(url: str, api_key: str, tls: TlsConfig) -> httpx.AsyncClient:
    """A client for the API of the server at *url*. `aclose` it.

    It reads without a timeout, for a silent stream is no error; single questions set their own.
    """
    return httpx.AsyncClient(
        base_url=f"{url}/api/v3/",
        headers={
            "Authorization": f"Bearer {api_key}",
            "Accept-Encoding": "identity",
            "User-Agent": "bridge",
        },
        timeout=httpx.Timeout(CONNECT, read=None, pool=None),
        transport=httpx.AsyncHTTPTransport(
            verify=context(tls),
            socket_options=KEEPALIVE,
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=4),
        ),
        follow_redirects=False,
    )


@dataclass(frozen=True, slots=True)
class HttpStream:
    """The body of one answer, as frames.

    Read as the transport gives it: `aiter_raw` puts a layer over it that costs a twentieth of an event.
    """

    body: httpx.AsyncByteStream
    warnings: tuple[str, ...]
    budget: RateBudget | None

    async def frames(self) -> AsyncIterator[Frame]:
        decoder = Decoder()
        try:
            async for chunk in self.body:
                for frame in decoder.feed(chunk):
                    if isinstance(frame, ErrorFrame):
                        raise stream_error(frame)
                    yield frame
        except httpx.HTTPError as error:
            raise SourceError(f"connection lost: {plain(error)}") from None
        for frame in decoder.close():
            if isinstance(frame, ErrorFrame):
                raise stream_error(frame)
            yield frame


class HttpUpstream:
    """Event streams over *client*."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    @asynccontextmanager
    async def open(
        self, entities: Sequence[Entity], after: int | None, names: Sequence[str]
    ) -> AsyncIterator[Stream]:
        request: dict[str, Any] = {"identifiers": [identifier(each) for each in entities], "tail": TAIL}
        if after is not None:
            request["after"] = rfc3339(after)
        if names:
            request["names"] = list(names)
        try:
            async with self._client.stream(
                "POST", "events", json=request, headers={"Accept": "text/event-stream"}
            ) as response:
                if response.status_code != 200:
                    raise answer_error(response.status_code, await _head(response), response.headers)
                warnings = tuple(response.headers.get_list("X-Warning"))
                body = cast(httpx.AsyncByteStream, response.stream)  # an AsyncClient's
                yield HttpStream(body, warnings, rate_budget(response.headers))
        except httpx.HTTPError as error:
            raise SourceError(f"cannot reach the server: {plain(error)}") from None


async def _head(response: httpx.Response) -> bytes:
    """The beginning of an error body."""
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) >= ERROR_BODY:
            break
    return body[:ERROR_BODY]


def plain(error: httpx.HTTPError) -> str:
    """*error* without the URL or anything else that was configured."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def answer_error(status: int, body: bytes, headers: Mapping[str, str]) -> SourceError:
    """Why a request was not answered with what it asked for (UPSTREAM.md §1.5)."""
    decoder = Decoder()
    frames = [*decoder.feed(body), *decoder.close()]
    frame = next((each for each in frames if isinstance(each, ErrorFrame)), ErrorFrame(2, ""))
    wait = _seconds(headers.get("X-Rate-Limit-Retry")) if status == 429 else None
    return framed_error(f"HTTP {status}", frame, answer_kind(status, frame), wait)


def answer_kind(status: int, frame: ErrorFrame) -> SourceErrorKind:
    """How an HTTP *status* is met; a malformed token is 400, and no credentials may be 403."""
    if status == 429:
        return "rate_limited"
    if status in (401, 403) or (frame.namespace, frame.name) == ("pkg/auth", "token"):
        return "refused"
    if status == 499:  # grpc-gateway's word for a call that the server itself gave up
        return "transient"
    return "rejected" if status < 500 or status == 501 else "transient"


def rate_budget(headers: Mapping[str, str]) -> RateBudget | None:
    """The headers of a limit that applies; None without."""
    limit = _seconds(headers.get("X-Rate-Limit-Limit"))
    if not limit:
        return None
    available, reset = (_seconds(headers.get(f"X-Rate-Limit-{each}")) for each in ("Available", "Reset"))
    return RateBudget(int(limit), int(available or 0), int(reset or 0))


def _seconds(header: str | None) -> float | None:
    return float(header[:9]) if header and header.isascii() and header.isdigit() else None
