"""The Things Stack over gRPC (extra `grpc`): streams, related events, notifications (UPSTREAM.md §7).

No generated stubs: requests and answers are bytes here, and `bridge.proto` turns them into the JSON that HTTP
would have brought, so that nobody above has to know the transport. grpcio is bound to asyncio.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec

from bridge.decode import ErrorFrame, Frame, Malformed, result
from bridge.decode import error as error_frame
from bridge.errors import FrameError, SourceError, SourceErrorKind, StartError
from bridge.event import Entity, Kind, rfc3339
from bridge.proto import Reader, encode
from bridge.proto.table import PACKAGE, STATUS
from bridge.sources.api import PAGE, Api, AuthInfo, Notifications, Page
from bridge.sources.http import rate_budget
from bridge.sources.plan import identifier
from bridge.sources.upstream import TAIL, RateBudget, Stream, framed_error, stream_error
from bridge.tls import TlsConfig

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read on import: it would write a line for each GOAWAY
import grpc
from grpc import aio

MESSAGE = 16 << 20  # bytes; the server's own limit (pkg/rpcserver/rpcserver.go in v3.32), grpcio's is 4 MiB
WINDOW = 4 << 20  # bytes a stream may be ahead of its reader: the server drops events for one that is slow
ANSWER = 10.0  # seconds for a unary call
TEXT = 300  # characters of a status text that are kept

OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.primary_user_agent", "bridge"),
    ("grpc.max_receive_message_length", MESSAGE),
    ("grpc.max_send_message_length", MESSAGE),
    ("grpc.http2.lookahead_bytes", WINDOW),
    ("grpc.keepalive_time_ms", 75_000),  # the server calls pings closer than 60 s "too many" and hangs up
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_reconnect_backoff_ms", 5_000),  # the waits between our attempts are the source's
    ("grpc.enable_http_proxy", 0),  # proxies come from the config, never from the environment
    ("grpc.use_local_subchannel_pool", 1),
)

SERVICE = f"/{PACKAGE}"
STREAM = f"{SERVICE}Events/Stream"
FIND_RELATED = f"{SERVICE}Events/FindRelated"
LIST = f"{SERVICE}NotificationService/List"
UPDATE_STATUS = f"{SERVICE}NotificationService/UpdateStatus"

ANSWER_KINDS: Mapping[int, SourceErrorKind] = {
    3: "rejected",
    5: "rejected",
    6: "rejected",
    7: "refused",
    8: "rate_limited",
    9: "rejected",
    10: "rejected",
    11: "rejected",
    12: "rejected",
    16: "refused",
}
"""gRPC codes of a call that was not answered; the same kinds as their HTTP statuses have (http.py)."""


@dataclass(frozen=True, slots=True)
class Connection:
    """One HTTP/2 connection, made when it is first used and again whenever it is lost. `aclose` it."""

    channel: aio.Channel
    metadata: tuple[tuple[str, str], ...]

    async def aclose(self) -> None:
        await self.channel.close()


def connect(address: str, api_key: str, tls: TlsConfig | None) -> Connection:
    """To the server at *address* (`host:port`), without *tls* in plain text; raises StartError for a file."""
    metadata = (("authorization", f"Bearer {api_key}"),)
    if tls is None:
        return Connection(aio.insecure_channel(address, options=OPTIONS), metadata)
    return Connection(aio.secure_channel(address, credentials(tls), options=OPTIONS), metadata)


def credentials(tls: TlsConfig) -> grpc.ChannelCredentials:
    """grpcio takes the bytes of the files, and without a CA its own list: give it the system's."""
    try:
        ca = tls.ca_file.read_bytes() if tls.ca_file else _system_authorities()
        certificate = tls.cert_file.read_bytes() if tls.cert_file else None
        key_file = tls.key_file or tls.cert_file
        key = key_file.read_bytes() if key_file else None
    except OSError as error:
        raise StartError(f"tls: a certificate or key file cannot be used: {error}") from None
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _system_authorities() -> bytes | None:
    found = ssl.create_default_context().get_ca_certs(binary_form=True)
    return "".join(map(ssl.DER_cert_to_PEM_cert, found)).encode() or None


@dataclass(frozen=True, slots=True)
class GrpcStream:
    """The messages of one call, as frames."""

    call: aio.UnaryStreamCall[bytes, bytes]
    first: bytes
    headers: httpx.Headers
    frame: Callable[[bytes], Frame]

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self.headers.get_list("X-Warning"))

    @property
    def budget(self) -> RateBudget | None:
        return rate_budget(self.headers)

    async def frames(self) -> AsyncIterator[Frame]:
        message: Any = self.first
        while message is not aio.EOF:
            yield self.frame(message)
            try:
                message = await self.call.read()
            except aio.AioRpcError as error:
                raise ended(error) from None


class GrpcUpstream:
    """Event streams over *connection*; *opaque* is told each type of data that is passed as base64."""

    def __init__(self, connection: Connection, opaque: Callable[[str], None] = lambda name: None) -> None:
        self._connection = connection
        self._opaque = opaque
        self._reader = Reader()
        self._stream: aio.UnaryStreamMultiCallable[bytes, bytes] = connection.channel.unary_stream(STREAM)

    @asynccontextmanager
    async def open(
        self, entities: Sequence[Entity], after: int | None, names: Sequence[str]
    ) -> AsyncIterator[Stream]:
        request: dict[str, Any] = {
            "identifiers": [identifier(each) for each in entities],
            "tail": TAIL,
            "names": list(names),
        }
        if after is not None:
            request["after"] = rfc3339(after)
        call = self._stream(
            encode(f"{PACKAGE}StreamEventsRequest", request), metadata=self._connection.metadata
        )
        try:
            first = await self._first(call)
            yield GrpcStream(call, first, headers(await call.initial_metadata()), self._frame)
        finally:
            call.cancel()

    async def _first(self, call: aio.UnaryStreamCall[bytes, bytes]) -> bytes:
        """The start event: only when it is there has the server taken the request."""
        try:
            first = await call.read()
        except aio.AioRpcError as error:
            raise refusal(error) from None
        if isinstance(first, bytes):
            return first
        raise SourceError("the server ended the stream before its start event", kind="ended")

    def _frame(self, message: bytes) -> Frame:
        try:
            rendering = self._reader.render(f"{PACKAGE}Event", message)
            for name in rendering.opaque:
                self._opaque(name)
            return result(msgspec.json.encode(rendering.value))
        except FrameError as wrong:
            return Malformed(str(wrong))
        except RecursionError:
            return Malformed("an event is nested too deeply")


class GrpcApi:
    """`Api`: related events and notifications over *connection*, and all the rest over HTTP."""

    def __init__(self, connection: Connection, http: Api) -> None:
        self._connection = connection
        self._http = http
        self._reader = Reader()

    async def auth_info(self) -> AuthInfo:
        return await self._http.auth_info()

    async def rights(self, entity: Entity) -> frozenset[str]:
        return await self._http.rights(entity)

    async def listed(self, kind: Kind, application: str = "", *, page: int = 1, limit: int = PAGE) -> Page:
        return await self._http.listed(kind, application, page=page, limit=limit)

    async def connection_stats(self, gateways: Sequence[str]) -> dict[str, bytes]:
        return await self._http.connection_stats(gateways)

    async def related(self, correlation_id: str) -> tuple[bytes, ...]:
        request = encode(f"{PACKAGE}FindRelatedEventsRequest", {"correlation_id": correlation_id})
        answer, _ = await self._ask(FIND_RELATED, request)
        return self._items(f"{PACKAGE}FindRelatedEventsResponse", "events", answer)

    async def notifications(
        self, user: str, *, status: Sequence[str] = (), page: int = 1, limit: int = PAGE
    ) -> Notifications:
        message = {"receiver_ids": {"user_id": user}, "status": list(status), "limit": limit, "page": page}
        answer, said = await self._ask(LIST, encode(f"{PACKAGE}ListNotificationsRequest", message))
        items = self._items(f"{PACKAGE}ListNotificationsResponse", "notifications", answer)
        return Notifications(items, int(seconds(said.get("X-Total-Count")) or 0))

    async def mark_notifications(self, user: str, ids: Sequence[str], status: str) -> None:
        message = {"receiver_ids": {"user_id": user}, "ids": list(ids), "status": status}
        await self._ask(UPDATE_STATUS, encode(f"{PACKAGE}UpdateNotificationStatusRequest", message))

    async def _ask(self, method: str, request: bytes) -> tuple[bytes, httpx.Headers]:
        ask: aio.UnaryUnaryMultiCallable[bytes, bytes] = self._connection.channel.unary_unary(method)
        call = ask(request, metadata=self._connection.metadata, timeout=ANSWER)
        try:
            return await call, headers(await call.initial_metadata())
        except aio.AioRpcError as error:
            raise refusal(error) from None

    def _items(self, message: str, field: str, answer: bytes) -> tuple[bytes, ...]:
        try:
            found = self._reader.render(message, answer).value.get(field, [])
        except FrameError as wrong:
            raise SourceError(f"the server's answer cannot be read: {wrong}") from None
        return tuple(map(msgspec.json.encode, found))


def headers(metadata: Iterable[tuple[str, str | bytes]] | None) -> httpx.Headers:
    """The text values of *metadata* by names of any case."""
    return httpx.Headers([(key, value) for key, value in metadata or () if isinstance(value, str)])


def seconds(header: str | None) -> float | None:
    """A count; None if there is none."""
    return float(header[:9]) if header and header.isascii() and header.isdigit() else None


def refusal(error: aio.AioRpcError) -> SourceError:
    """Why a call was not answered."""
    frame = status(error)
    said = httpx.Headers(
        [*headers(error.trailing_metadata()).items(), *headers(error.initial_metadata()).items()]
    )
    if is_local(error, frame):
        return SourceError(f"cannot reach the server: {frame.message}")
    kind = ANSWER_KINDS.get(frame.code, "transient")
    if (frame.namespace, frame.name) == ("pkg/auth", "token"):
        kind = "refused"
    wait = seconds(said.get("X-Rate-Limit-Retry")) if kind == "rate_limited" else None
    return framed_error(f"gRPC {error.code().name}", frame, kind, wait)


def ended(error: aio.AioRpcError) -> SourceError:
    """Why an open stream ended."""
    frame = status(error)
    if is_local(error, frame):
        return SourceError(f"connection lost: {frame.message}")
    return stream_error(frame)


def is_local(error: aio.AioRpcError, frame: ErrorFrame) -> bool:
    """Does the status come from grpcio and not from the server: no connection, or a message too large?"""
    too_large = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in frame.message
    return not frame.namespace and (error.code() is grpc.StatusCode.UNAVAILABLE or too_large)


def status(error: aio.AioRpcError) -> ErrorFrame:
    """The status with the `ErrorDetails` in `grpc-status-details-bin`, if the server sent them."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                return error_frame(msgspec.json.encode(Reader().render(STATUS, value).value))
            except (FrameError, RecursionError):
                break
    code: int = error.code().value[0]
    return ErrorFrame(code, (error.details() or "")[:TEXT])
