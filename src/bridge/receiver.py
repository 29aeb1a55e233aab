"""An HTTP receiver for webhooks: the other end of the demo, and of tests.

It keeps what it gets and answers as it is told. Rules can be told apart by the last segment of the path:
a webhook to `…/uplinks` is shown as `uplinks`.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import anyio
import msgspec

from bridge.event import Event, Identifiers, ids_of
from bridge.render import summary

if TYPE_CHECKING:
    from aiohttp import web  # imported where it is used: 45 ms and 14 MB that `bridge run` does without

LARGEST = 64 << 20  # bytes of one request
SHUTDOWN = 0.1  # seconds for answers on their way when the receiver closes
RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: closing sends RST instead of FIN


@dataclass(frozen=True, slots=True)
class Received:
    """One request; header names in lower case."""

    id: str
    """`webhook-id`, '' without one."""
    body: bytes
    path: str
    headers: Mapping[str, str]

    @property
    def rule(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Reply:
    """What the receiver answers, *delay* seconds later; *hang*: never; *reset*: the connection breaks."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    delay: float = 0.0
    hang: bool = False
    reset: bool = False


OnDelivery: TypeAlias = Callable[[Received], Reply | None]
OK = Reply()


@dataclass(slots=True)
class Receiver:
    """A listening receiver; made by `receive`. *answer* may be changed while it runs."""

    url: str
    port: int
    answer: Reply = OK
    on_delivery: OnDelivery | None = None
    deliveries: list[Received] = field(default_factory=list)
    """Everything that came, whatever was answered, oldest first."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        headers = {name.lower(): value for name, value in request.headers.items()}
        got = Received(headers.get("webhook-id", ""), await request.read(), request.path, headers)
        self.deliveries.append(got)
        reply = (self.on_delivery(got) if self.on_delivery else None) or self.answer
        if reply.hang:
            await anyio.sleep_forever()
        await anyio.sleep(reply.delay)
        if reply.reset and request.transport is not None:
            connection: socket.socket = request.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            request.transport.abort()
        return web.Response(status=reply.status, headers=dict(reply.headers), body=reply.body)


@asynccontextmanager
async def receive(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    on_delivery: OnDelivery | None = None,
    answer: Reply = OK,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Receiver]:
    """A receiver of POST requests on any path; *port* 0 takes a free one. Raises OSError if it is taken.

    *on_delivery* is called for each; what it returns, if anything, is answered instead of *answer*.
    """
    from aiohttp import web

    listening = socket.create_server((host, port))
    port = listening.getsockname()[1]
    receiver = Receiver(f"{'https' if tls else 'http'}://{host}:{port}", port, answer, on_delivery)
    app = web.Application(client_max_size=LARGEST)
    app.router.add_post("/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN, handler_cancellation=True)
    await runner.setup()
    try:
        await web.SockSite(runner, listening, ssl_context=tls).start()
        yield receiver
    finally:
        with anyio.CancelScope(shield=True):
            await runner.cleanup()
        listening.close()


class _Envelope(msgspec.Struct):
    name: str
    time: str = ""
    unique_id: str = ""
    identifiers: tuple[Identifiers, ...] = ()


def sentence(event_json: bytes, rule: str) -> str:
    """One line for a person: time of day, rule, what it is about, what happened; in columns.

    `21:09:10  uplinks     plant-a/meter-01    uplink, port 1, -79 dBm, 2 gateways`
    """
    read = msgspec.json.decode(event_json, type=_Envelope)
    event = Event(read.name, read.time, 0, read.unique_id, read.identifiers, event_json)
    path = ids_of(event)["path"]
    happened = summary(event).removeprefix(f"{path}: ")
    return f"{read.time[11:19]:8}  {rule:10}  {path:18}  {happened}"
