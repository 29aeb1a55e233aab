"""The gRPC face of the stand-in: `Events` and `NotificationService` of one `World`, in TLS or plain text.

    async with serve_grpc(world) as server:
        ...  # a client opens ttn.lorawan.v3.Events/Stream at server.address

Events are published as JSON, as everywhere in the stand-in, and leave as protobuf. Of the faults it knows
Refuse, Cut, End, ErrorFrame, Stall, Silence, Garbage, Duplicate and Drop. Needs the extra `grpc`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, TypeAlias

import anyio
import grpc
import msgspec
from grpc import aio

from bridge.event import Entity, entity_of
from bridge.proto import Reader, encode
from bridge.proto.table import PACKAGE, STATUS
from bridge.standin import calls
from bridge.standin.calls import Call, Reply
from bridge.standin.faults import (
    Cut,
    Drop,
    Duplicate,
    End,
    ErrorFrame,
    Fault,
    Garbage,
    Refuse,
    Silence,
    Stall,
)
from bridge.standin.problems import Malformed, Problem, RefusedError, status_object
from bridge.standin.relay import Relay, relayed
from bridge.standin.request import Asked, StreamRequest, read, resolve
from bridge.standin.server import refusal
from bridge.standin.stream import Gate
from bridge.standin.subscription import Subscription
from bridge.standin.wire import Budget, spend
from bridge.standin.world import World, key_id

Context: TypeAlias = "aio.ServicerContext[bytes, bytes]"
Options: TypeAlias = Sequence[tuple[str, int]]

OPTIONS: Options = (("grpc.max_receive_message_length", 16 << 20), ("grpc.max_send_message_length", 16 << 20))
CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class GrpcServer:
    """A listening stand-in; made by `serve_grpc`."""

    def __init__(
        self, world: World, relay: Relay, secret: grpc.ServerCredentials | None, options: Options
    ) -> None:
        self.world = world
        self.requests: list[dict[str, Any]] = []
        """The StreamEventsRequests that came, oldest first."""
        self._relay = relay
        self._secret = secret
        self._options = [*OPTIONS, *options]
        self._server: aio.Server | None = None
        self._gate = Gate()
        self._reader = Reader()
        self._paid: dict[str, float] = {}

    @property
    def address(self) -> str:
        return f"localhost:{self._relay.port}"

    @property
    def streams(self) -> int:
        """How many are open."""
        return len(self.world.subscriptions)

    @property
    def connections(self) -> int:
        return self._relay.connections

    async def start(self) -> None:
        """Serve; after `stop` at the same address again."""
        self._server = aio.server(options=self._options)
        self._server.add_generic_rpc_handlers((self._events(), self._notifications()))
        if self._secret:
            self._relay.to = self._server.add_secure_port("127.0.0.1:0", self._secret)
        else:
            self._relay.to = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()

    async def stop(self) -> None:
        """Go down at once: GOAWAY, and all calls end."""
        if self._server:
            await self._server.stop(None)

    def cut(self) -> None:
        """Drop all connections where they are."""
        self._relay.cut()

    def resume(self) -> None:
        """End every Stall without seconds."""
        self._gate.open()

    def _events(self) -> grpc.GenericRpcHandler:
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Stream": grpc.unary_stream_rpc_method_handler(self._stream),
            "FindRelated": grpc.unary_unary_rpc_method_handler(self._unary(_related)),
        }
        return grpc.method_handlers_generic_handler(f"{PACKAGE}Events", methods)

    def _notifications(self) -> grpc.GenericRpcHandler:
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "List": grpc.unary_unary_rpc_method_handler(self._unary(_list)),
            "UpdateStatus": grpc.unary_unary_rpc_method_handler(self._unary(_update)),
        }
        return grpc.method_handlers_generic_handler(f"{PACKAGE}NotificationService", methods)

    def _unary(self, answer: Answerer) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def handler(request: bytes, context: Context) -> bytes:
            try:
                token = self.world.authenticate(_authorization(context))
                reply, message = answer(self.world, token, self._reader, request)
            except RefusedError as refused:
                await self._abort(context, refused.why)
                raise
            if reply.total is not None:
                await context.send_initial_metadata((("x-total-count", str(reply.total)),))
            return encode(message, msgspec.json.decode(reply.body))

        return handler

    async def _stream(self, message: bytes, context: Context) -> None:
        faults = self.world.faults.take()
        fields: dict[str, str] = {"X-Request-Id": self.world.new_id()}
        why: Problem | Malformed | None = None
        try:
            request = self._admitted(message, _authorization(context), faults, fields)
        except RefusedError as refused:
            why = refused.why
        await context.send_initial_metadata(tuple((key.lower(), value) for key, value in fields.items()))
        if why is None:
            why = await self._feed(request, context, faults, fields["X-Request-Id"])
        if why is not None:
            await self._abort(context, why)

    async def _feed(
        self, request: StreamRequest, context: Context, faults: Sequence[Fault], request_id: str
    ) -> Problem | None:
        """Write the stream until one side ends it; returns what it ends with."""
        world = self.world
        token = world.authenticate(_authorization(context))
        subscription = world.subscribe(request, token)
        try:
            await context.write(_event(world.start_event(request, request_id)))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(world.replay, subscription)
                ending = await self._write(subscription, context, faults)
                tasks.cancel_scope.cancel()
        finally:
            world.unsubscribe(subscription)
        return ending

    async def _write(
        self, subscription: Subscription, context: Context, faults: Sequence[Fault]
    ) -> Problem | None:
        sent = 0
        while True:
            for fault in faults:
                match fault:
                    case Stall(after, seconds) if after == sent:
                        await (self._gate.resumed() if seconds is None else anyio.sleep(seconds))
                    case Garbage(after, line) if after == sent:
                        await context.write(line)
                    case ErrorFrame(after, problem) if after == sent:
                        return problem
                    case End(after) if after == sent:
                        return None
                    case Cut(after) if after == sent:
                        self.cut()
            try:
                body = await subscription.receive.receive()
            except anyio.EndOfStream:
                return subscription.problem
            for _ in range(self._times(faults, sent)):
                await context.write(_event(body))
            sent += 1

    def _times(self, faults: Sequence[Fault], sent: int) -> int:
        """How often an event is written: once, twice or not at all."""
        times, chance = 1, self.world.rng.random
        for fault in faults:
            match fault:
                case Duplicate(share) if chance() < share:
                    times = 2
                case Drop(share) if chance() < share:
                    times = 0
                case Silence(after) if after <= sent:
                    times = 0
        self.world.dropped += times == 0
        return times

    def _admitted(
        self, message: bytes, authorization: str | None, faults: Sequence[Fault], fields: dict[str, str]
    ) -> StreamRequest:
        """The request, in the order of the real checks: limit, form, names, key, rights."""
        rendered = self._reader.render(f"{PACKAGE}StreamEventsRequest", message).value
        self.requests.append(rendered)
        asked = read(msgspec.json.encode(rendered))
        for fault in faults:
            if isinstance(fault, Refuse):
                _refuse(fault, asked, authorization, fields)
        self._spend(authorization or "", fields)
        request = resolve(asked, self.world.names)
        self.world.require_any(self.world.authenticate(authorization), request.entities)
        if not self.world.storage and (request.tail or request.after is not None):
            fields["X-Warning"] = "Events storage is not enabled"
        return request

    def _spend(self, key: str, fields: dict[str, str]) -> None:
        """Every opening counts, per key."""
        limit = self.world.rate_limit
        if limit is None:
            return
        self._paid[key], budget = spend(limit, self._paid.get(key, 0.0), self.world.clock())
        fields |= budget.headers()
        if not budget.allowed:
            raise RefusedError(refusal(429, Entity("application", "unknown"), key_id(key)))

    async def _abort(self, context: Context, why: Problem | Malformed) -> None:
        status = encode(STATUS, status_object(why, self.world.rng))
        await context.abort(CODES[why.code], why.message, (("grpc-status-details-bin", status),))


@asynccontextmanager
async def serve_grpc(
    world: World,
    *,
    secret: grpc.ServerCredentials | None = None,
    port: int = 0,
    options: Options = (),
) -> AsyncIterator[GrpcServer]:
    """A listening stand-in for *world*; with *secret* in TLS, and *port* 0 takes a free one.

    *options* are channel arguments of grpcio. Leaving closes everything at once.
    """
    async with relayed(0, port=port) as relay:
        server = GrpcServer(world, relay, secret, options)
        await server.start()
        try:
            yield server
        finally:
            await server.stop()


Answerer: TypeAlias = "Callable[[World, str | None, Reader, bytes], tuple[Reply, str]]"
"""What a unary call does with its request: the reply as JSON, and the message that is."""


def _related(world: World, token: str | None, reader: Reader, request: bytes) -> tuple[Reply, str]:
    asked = reader.render(f"{PACKAGE}FindRelatedEventsRequest", request).value
    call = Call(token, query={"correlation_id": [asked.get("correlation_id", "")]})
    return calls.related(world, call), f"{PACKAGE}FindRelatedEventsResponse"


def _list(world: World, token: str | None, reader: Reader, request: bytes) -> tuple[Reply, str]:
    asked = reader.render(f"{PACKAGE}ListNotificationsRequest", request).value
    query = {
        "status": asked.get("status", []),
        "limit": [str(asked.get("limit", 0))],
        "page": [str(asked.get("page", 0))],
    }
    call = Call(token, (asked.get("receiver_ids", {}).get("user_id", ""),), query)
    return calls.notifications(world, call), f"{PACKAGE}ListNotificationsResponse"


def _update(world: World, token: str | None, reader: Reader, request: bytes) -> tuple[Reply, str]:
    asked = reader.render(f"{PACKAGE}UpdateNotificationStatusRequest", request).value
    user = asked.pop("receiver_ids", {}).get("user_id", "")
    call = Call(token, (user,), content=msgspec.json.encode(asked))
    return calls.update_notifications(world, call), "google.protobuf.Empty"


def _refuse(fault: Refuse, asked: Asked, authorization: str | None, fields: dict[str, str]) -> None:
    first = next(filter(None, map(entity_of, asked.identifiers)), Entity("application", "unknown"))
    if fault.status == 429:
        fields |= Budget(False, 4, 0, fault.retry + 45, fault.retry).headers()
    raise RefusedError(refusal(fault.status, first, key_id(authorization)), fault.status)


@lru_cache(maxsize=32)
def _event(body: bytes) -> bytes:
    """One event goes into many streams."""
    return encode(f"{PACKAGE}Event", msgspec.json.decode(body))


def _authorization(context: Context) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            return value if isinstance(value, str) else value.decode()
    return None
