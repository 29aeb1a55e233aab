"""The stand-in's server: HTTP/1.1 as Go's net/http and grpc-gateway speak it.

Requests are read with h11; responses are written as bytes, so that a fault can stop anywhere and headers
are those of the recordings.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from urllib.parse import parse_qs

import anyio
import h11
from anyio.abc import AnyByteStream, Listener, SocketAttribute, TaskGroup, TaskStatus
from anyio.streams.tls import TLSListener

from bridge.event import Entity, entity_of
from bridge.standin.calls import Call, find
from bridge.standin.faults import Answer, Fault, Refuse, Stall
from bridge.standin.peer import GONE, Peer, Received
from bridge.standin.problems import (
    INVALID_TOKEN,
    NO_IDENTITY_SERVER,
    STORE,
    Malformed,
    Problem,
    RefusedError,
    flat,
    no_rights,
    not_found,
    rate_limited,
    unknown_key,
    wrapped,
)
from bridge.standin.request import Asked, StreamRequest, read, resolve
from bridge.standin.shaper import chunks
from bridge.standin.stream import Ending, Gate, Stream
from bridge.standin.wire import BAD_REQUEST, DELIMITERS, LAST_CHUNK, Budget, content_type, head, spend
from bridge.standin.world import World, key_id

PREFIX = "/api/v3"
STOP_WITHIN = 1.0  # seconds in which a stopping server says goodbye to its streams


class Server:
    """A listening stand-in; made by `serve`."""

    def __init__(
        self, world: World, host: str, port: int, tls: ssl.SSLContext | None, tasks: TaskGroup
    ) -> None:
        self.world = world
        self.host = host
        self.port = port
        self.requests: list[Received] = []
        """Everything that was asked, oldest first."""
        self._tls = tls
        self._tasks = tasks
        self._gate = Gate()
        self._streams: set[Stream] = set()
        self._all_ended = anyio.Event()
        self._scope = anyio.CancelScope()
        self._paid: dict[str, float] = {}

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}"

    @property
    def streams(self) -> int:
        """How many are open."""
        return len(self._streams)

    async def start(self) -> None:
        """Listen; after `stop` on the same port again."""
        listener = await anyio.create_tcp_listener(local_host=self.host, local_port=self.port)
        self.port = listener.extra(SocketAttribute.local_port)  # noqa: S610  # not Django's
        self._scope = anyio.CancelScope()
        await self._tasks.start(self._listen, listener)

    async def stop(self) -> None:
        """Go down as The Things Stack does: an error frame to every stream, then no listener."""
        for stream in tuple(self._streams):
            stream.stop()
        with anyio.move_on_after(STOP_WITHIN):
            while self._streams:
                await self._all_ended.wait()
        self._scope.cancel()

    def cut(self) -> None:
        """Drop the connections of all streams where they are."""
        for stream in tuple(self._streams):
            stream.cut()

    def stall(self) -> None:
        """No bytes any more, connections stay open, channels fill up."""
        self._gate.shut()

    def resume(self) -> None:
        """End `stall`, and every Stall without seconds."""
        self._gate.open()

    async def _listen(
        self, listener: Listener[AnyByteStream], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        secured = TLSListener(listener, self._tls, standard_compatible=False) if self._tls else listener
        with self._scope:
            async with secured, anyio.create_task_group() as connections:
                task_status.started()
                await secured.serve(self._connection, connections)

    async def _connection(self, stream: AnyByteStream) -> None:
        with suppress(*GONE):
            async with stream:
                peer = Peer(stream)
                try:
                    await self._converse(peer)
                except h11.RemoteProtocolError:
                    await peer.send(BAD_REQUEST)

    async def _converse(self, peer: Peer) -> None:
        """Answer request after request until one side has enough."""
        while (received := await peer.request()) is not None:
            self.requests.append(received)
            ending = await self._answer(peer, received)
            if ending is Ending.CLOSED or not received.keep_alive:
                return

    async def _answer(self, peer: Peer, received: Received) -> Ending:
        path = received.path.removeprefix(PREFIX) if received.path.startswith(PREFIX) else ""
        fields = {
            "Content-Type": content_type(received.headers.get("accept")),
            "X-Request-Id": received.headers.get("x-request-id") or self.world.new_id(),
        }
        try:
            if (received.method, path) == ("POST", "/events"):
                return await self._stream(peer, received, fields)
            body = await self._call(peer, path, received, fields)
            if body is None:
                return Ending.CLOSED
            await peer.send(head(200, fields, self.world.clock(), len(body)) + body)
        except RefusedError as refused:
            if refused.status == 401:
                fields["Www-Authenticate"] = refused.why.message
            body = flat(refused.why, self.world.rng)
            await peer.send(head(refused.status, fields, self.world.clock(), len(body)) + body)
        return Ending.FINISHED

    async def _call(self, peer: Peer, path: str, received: Received, fields: dict[str, str]) -> bytes | None:
        """The body that answers a unary call, None if a fault has answered it."""
        handler, ids = find(received.method, path)
        authorization = received.headers.get("authorization")
        match self.world.faults.take_call(path):
            case Answer(raw):
                await peer.send(raw)
                return None
            case Stall(seconds=None):
                await self._gate.resumed()
            case Stall(seconds=seconds):
                await anyio.sleep(seconds or 0.0)
            case Refuse() as fault:
                self._refuse(fault, Asked(), authorization, fields)
        query = parse_qs(received.query, keep_blank_values=True)
        token = self.world.authenticate(authorization)
        answer = handler(self.world, Call(token, ids, query, received.content))
        if answer.total is not None:
            fields["X-Total-Count"] = str(answer.total)
        return answer.body

    async def _stream(self, peer: Peer, received: Received, fields: dict[str, str]) -> Ending:
        """Open a stream, or say why not; only Malformed goes up, which grpc-gateway answers by itself."""
        world = self.world
        delimiter = DELIMITERS[fields["Content-Type"]]
        faults = world.faults.take()
        for fault in faults:
            if isinstance(fault, Answer):
                await peer.send(fault.raw)
                return Ending.CLOSED
        try:
            request = self._admitted(received, faults, fields)
        except RefusedError as refused:
            if isinstance(refused.why, Malformed):
                raise
            body = chunks(wrapped(refused.why, world.rng), delimiter)
            await peer.send(head(refused.status, fields, world.clock()) + body + LAST_CHUNK)
            return Ending.FINISHED
        subscription = world.subscribe(request, world.authenticate(received.headers.get("authorization")))
        stream = Stream(world, peer, subscription, faults=faults, delimiter=delimiter, gate=self._gate)
        self._streams.add(stream)
        try:
            first = head(200, fields, world.clock())
            return await stream.run(first, world.start_event(request, fields["X-Request-Id"]))
        finally:
            world.unsubscribe(subscription)
            self._streams.discard(stream)
            self._all_ended.set()
            self._all_ended = anyio.Event()

    def _admitted(self, received: Received, faults: Sequence[Fault], fields: dict[str, str]) -> StreamRequest:
        """The request, in the order of the real checks: limit, form, names, key, rights."""
        asked = read(received.content)
        authorization = received.headers.get("authorization")
        for fault in faults:
            if isinstance(fault, Refuse):
                self._refuse(fault, asked, authorization, fields)
        self._spend(authorization, fields)
        request = resolve(asked, self.world.names)
        self.world.require_any(self.world.authenticate(authorization), request.entities)
        if not self.world.storage and (request.tail or request.after is not None):
            fields["X-Warning"] = "Events storage is not enabled"
        return request

    def _refuse(self, fault: Refuse, asked: Asked, authorization: str | None, fields: dict[str, str]) -> None:
        first = next(filter(None, map(entity_of, asked.identifiers)), Entity("application", "unknown"))
        if fault.status == 429:
            fields |= Budget(False, 4, 0, fault.retry + 45, fault.retry).headers()
        raise RefusedError(refusal(fault.status, first, key_id(authorization)), fault.status)

    def _spend(self, authorization: str | None, fields: dict[str, str]) -> None:
        """Every opening counts, per key."""
        limit = self.world.rate_limit
        if limit is None:
            return
        key = authorization or ""
        self._paid[key], budget = spend(limit, self._paid.get(key, 0.0), self.world.clock())
        fields |= budget.headers()
        if not budget.allowed:
            raise RefusedError(rate_limited(limit, key_id(authorization)))


def refusal(status: int, entity: Entity, key: str) -> Problem:
    """What a `Refuse` of *status* says; a status of its own is a failing store."""
    return {
        400: INVALID_TOKEN,
        401: unknown_key(key),
        403: no_rights(entity),
        404: not_found(entity),
        429: rate_limited(4, key),
        503: NO_IDENTITY_SERVER,
    }.get(status, STORE)


@asynccontextmanager
async def serve(
    world: World, host: str = "127.0.0.1", port: int = 0, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """A listening stand-in for *world*; *port* 0 takes a free one. Leaving closes everything at once."""
    async with anyio.create_task_group() as tasks:
        server = Server(world, host, port, tls, tasks)
        await server.start()
        try:
            yield server
        finally:
            tasks.cancel_scope.cancel()
