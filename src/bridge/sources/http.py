"""One event stream of The Things Stack over HTTP: the request, the answer, the errors."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import httpx

from bridge.decode import Decoder, ErrorFrame, Frame
from bridge.errors import SourceError, SourceErrorKind
from bridge.event import Entity, rfc3339
from bridge.sources.models import TtsSourceConfig
from bridge.sources.plan import identifier
from bridge.tls import context

TAIL = 1024  # the server's largest channel; anything less loses events silently (UPSTREAM.md §2.5)
CONNECT = 10.0  # seconds
ERROR_BODY = 65_536  # bytes of an error answer that are read

NAME_ERRORS = frozenset({"unknown_event_name", "no_matching_events", "invalid_regexp"})
"""The request names an event this server does not know (pkg/events/pattern.go in v3.32)."""

KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPIDLE", 0x10), 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""A peer that vanished is noticed in a minute: the stream itself has no heartbeat."""


class Stream(Protocol):
    """An open stream."""

    @property
    def warnings(self) -> tuple[str, ...]: ...

    def frames(self) -> AsyncIterator[Frame]:
        """Ends, or raises SourceError, when the stream does."""
        ...


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """What `auth_info` said: the server's clock in ns if it told, and why the key is refused, or ''."""

    server_ns: int | None
    refused: str


class Upstream(Protocol):
    """The server, as a source uses it."""

    def open(
        self, entities: Sequence[Entity], after: int | None, names: Sequence[str]
    ) -> AbstractAsyncContextManager[Stream]:
        """A stream from *after* (ns of server time) on; raises SourceError."""
        ...

    async def check(self) -> KeyCheck:
        """Ask about the key; never raises, and knows nothing when the server does not answer."""
        ...


@dataclass(frozen=True, slots=True)
class HttpStream:
    """The body of one answer, as frames."""

    response: httpx.Response
    warnings: tuple[str, ...]

    async def frames(self) -> AsyncIterator[Frame]:
        decoder = Decoder()
        try:
            async for chunk in self.response.aiter_raw():
                for frame in decoder.feed(chunk):
                    if isinstance(frame, ErrorFrame):
                        raise stream_error(frame)
                    yield frame
        except httpx.HTTPError as error:
            raise SourceError(f"connection lost: {_plain(error)}") from None
        for frame in decoder.close():
            yield frame


class HttpUpstream:
    """The server over HTTP, with a client of its own. `aclose` it."""

    def __init__(self, config: TtsSourceConfig) -> None:
        self._base = f"{config.url}/api/v3"
        self._client = httpx.AsyncClient(
            headers={
                "Authorization": f"Bearer {config.api_key.get_secret_value()}",
                "Accept-Encoding": "identity",
                "User-Agent": "bridge",
            },
            timeout=httpx.Timeout(CONNECT, read=None, pool=None),
            transport=httpx.AsyncHTTPTransport(
                verify=context(config.tls), socket_options=KEEPALIVE, trust_env=False
            ),
            follow_redirects=False,
        )

    async def aclose(self) -> None:
        await self._client.aclose()

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
                "POST", f"{self._base}/events", json=request, headers={"Accept": "text/event-stream"}
            ) as response:
                if response.status_code != 200:
                    raise answer_error(response.status_code, await _head(response), response.headers)
                yield HttpStream(response, tuple(response.headers.get_list("X-Warning")))
        except httpx.HTTPError as error:
            raise SourceError(f"cannot reach the server: {_plain(error)}") from None

    async def check(self) -> KeyCheck:
        try:
            response = await self._client.get(f"{self._base}/auth_info", timeout=CONNECT)
        except httpx.HTTPError:
            return KeyCheck(None, "")
        refused = ""
        if response.status_code == 401:
            refused = answer_error(401, response.content[:ERROR_BODY], response.headers).args[0]
        return KeyCheck(date_ns(response.headers.get("Date")), refused)


async def _head(response: httpx.Response) -> bytes:
    """The beginning of an error's body."""
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) >= ERROR_BODY:
            break
    return body[:ERROR_BODY]


def _plain(error: httpx.HTTPError) -> str:
    """*error* without the URL or anything else that was configured."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def date_ns(header: str | None) -> int | None:
    """A `Date` header in ns since 1970; None if there is none that can be read."""
    try:
        return int(parsedate_to_datetime(header or "").timestamp()) * 1_000_000_000
    except ValueError:
        return None


def answer_error(status: int, body: bytes, headers: Mapping[str, str]) -> SourceError:
    """Why a request was not answered with a stream (UPSTREAM.md §1.5)."""
    decoder = Decoder()
    frames = [*decoder.feed(body), *decoder.close()]
    frame = next((each for each in frames if isinstance(each, ErrorFrame)), ErrorFrame(2, ""))
    kind: SourceErrorKind = "transient"
    wait: float | None = None
    if status == 429:
        kind, wait = "rate_limited", _seconds(headers.get("X-Rate-Limit-Retry"))
    elif status in (401, 403) or (frame.namespace, frame.name) == ("pkg/auth", "token"):
        kind = "refused"
    elif status < 500 or status == 501:
        kind = "rejected"
    return _error(f"HTTP {status}", frame, kind, wait)


STREAM_KINDS: Mapping[int, SourceErrorKind] = {
    1: "ended",
    3: "rejected",
    4: "ended",
    5: "rejected",
    7: "refused",
    8: "rate_limited",
    16: "refused",
}
"""gRPC codes of an error inside a stream: 1 is a server that stops, 4 a deadline, 16 a key that expired."""


def stream_error(frame: ErrorFrame) -> SourceError:
    """Why an open stream ended with an error frame."""
    return _error("stream ended", frame, STREAM_KINDS.get(frame.code, "transient"), None)


def _error(what: str, frame: ErrorFrame, kind: SourceErrorKind, wait: float | None) -> SourceError:
    return SourceError(
        f"{what}: {frame.message}" if frame.message else what,
        kind=kind,
        retry_after=wait,
        namespace=frame.namespace,
        name=frame.name,
        attributes=dict(frame.attributes),
    )


def _seconds(header: str | None) -> float | None:
    return float(header[:9]) if header and header.isascii() and header.isdigit() else None
