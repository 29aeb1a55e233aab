"""The HTTP client against sockets: connections that are kept, closed, raced for."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import anyio
import pytest
from anyio.abc import AnyByteStream, SocketAttribute, SocketStream
from anyio.streams.tls import TLSListener

from bridge.errors import AnswerError
from bridge.sinks.http1 import Response
from bridge.sinks.http1.client import Address, Client, Resolver, Route, race, through
from tests.servers import HOST, certificates

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

Handle: TypeAlias = Callable[[int, SocketStream], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Listing(Resolver):
    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked = 0

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[dict[str, object]]:
        self.asked += 1
        return [{"host": each} for each in self.addresses]


@asynccontextmanager
async def client(url: str, *, timeout: float = 5.0, names: Resolver | None = None) -> AsyncIterator[Client]:
    route = Route(url, lambda _: None, ssl.create_default_context())
    if names:
        route = Route(url, route.blocked, route.tls, lookup=through(names))
    made = Client(route, timeout=timeout, connect=5.0, keep_idle=4, keep=100, headers={})
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def serving(
    handle: Callable[[int, SocketStream], Awaitable[None]],
) -> AsyncIterator[tuple[str, list[int]]]:
    """A server that handles its *n*th connection, from 0; its URL, and how often it was connected to."""
    listener = await anyio.create_tcp_listener(local_host=HOST)
    connections: list[int] = []

    async def accept(stream: SocketStream) -> None:
        connections.append(len(connections))
        async with stream:
            await handle(connections[-1], stream)

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, accept)
        yield f"http://{HOST}:{listener.extra(SocketAttribute.local_port)}", connections
        tasks.cancel_scope.cancel()


async def answering(stream: SocketStream, *answers: bytes) -> None:
    """One of *answers* to each request that comes."""
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        for answer in answers:
            await stream.receive()
            await stream.send(answer)


async def test_a_connection_is_used_again() -> None:
    """Ten requests one after another, one connection."""

    async def handle(_: int, stream: SocketStream) -> None:
        await answering(stream, *[OK] * 10)

    async with serving(handle) as (url, connections), client(url) as to:
        for _ in range(10):
            assert (await to.post(b"{}", {})).status == 200
    assert connections == [0]


@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_a_kept_connection_that_ends_as_we_write_costs_no_attempt(how: str) -> None:
    """The request is written once more, on a new connection."""
    got: list[int] = []

    async def handle(number: int, stream: SocketStream) -> None:
        await answering(stream, OK)
        await stream.receive()
        got.append(number)
        if number == 0:
            if how == "reset":
                linger = stream.extra(SocketAttribute.raw_socket)
                linger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return
        await stream.send(OK)

    async with serving(handle) as (url, connections), client(url) as to:
        assert (await to.post(b"1", {})).status == 200
        assert (await to.post(b"2", {})).status == 200
    assert connections == [0, 1]
    assert got == [0]


async def test_an_answer_that_has_begun_is_not_asked_for_again() -> None:
    """Half a status line on a kept connection: an error, and no second request."""

    async def handle(_: int, stream: SocketStream) -> None:
        await answering(stream, OK, b"HTTP/1.1 20")

    async with serving(handle) as (url, connections), client(url) as to:
        await to.post(b"1", {})
        with pytest.raises(AnswerError):
            await to.post(b"2", {})
    assert connections == [0]


async def test_a_new_connection_that_ends_is_not_tried_twice() -> None:
    """The dispatcher decides when to come again."""

    async def handle(_: int, stream: SocketStream) -> None:
        await stream.receive()

    async with serving(handle) as (url, connections), client(url) as to:
        with pytest.raises(AnswerError):
            await to.post(b"1", {})
    assert connections == [0]


async def test_bytes_nobody_asked_for_end_the_connection() -> None:
    """They could be taken for the answer to the next request, which is another delivery's."""
    more = anyio.Event()

    async def handle(number: int, stream: SocketStream) -> None:
        await answering(stream, OK)
        if number == 0:
            await more.wait()
            await stream.send(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
        await anyio.sleep_forever()

    async with serving(handle) as (url, connections), client(url) as to:
        await to.post(b"1", {})
        more.set()
        with anyio.fail_after(5):
            while any(each.is_open for each in to._idle):
                await anyio.sleep(0.01)
        assert (await to.post(b"2", {})).status == 200
    assert connections == [0, 1]


async def test_a_receiver_that_keeps_connections_short_is_believed() -> None:
    """`Keep-Alive: timeout=1`: the next request does not risk to meet the close."""
    short = b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 0\r\n\r\n"

    async def handle(_: int, stream: SocketStream) -> None:
        await answering(stream, short, short)

    async with serving(handle) as (url, connections), client(url) as to:
        await to.post(b"1", {})
        await to.post(b"2", {})
    assert connections == [0, 1]


async def test_a_timeout_does_not_outlive_its_request() -> None:
    """The timer of one request does not end a later one on the same connection."""

    async def handle(_: int, stream: SocketStream) -> None:
        for _ in range(4):
            await stream.receive()
            await anyio.sleep(0.2)
            await stream.send(OK)

    async with serving(handle) as (url, connections), client(url, timeout=0.5) as to:
        for _ in range(4):
            assert (await to.post(b"1", {})).status == 200
    assert connections == [0]


async def test_many_at_once_have_a_connection_each() -> None:
    """And only as many as asked for are kept."""

    async def handle(_: int, stream: SocketStream) -> None:
        await stream.receive()
        together.append(stream)
        if len(together) == 8:
            for each in together:
                await each.send(OK)
        await anyio.sleep_forever()

    found: list[Response] = []
    together: list[SocketStream] = []
    async with serving(handle) as (url, connections), client(url) as to:

        async def one() -> None:
            found.append(await to.post(b"1", {}))

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(one)
        assert len(to._idle) == 4
    assert [each.status for each in found] == [200] * 8
    assert len(connections) == 8


async def test_names_are_looked_up_once_in_a_while() -> None:
    """Not for each connection."""

    async def handle(_: int, stream: SocketStream) -> None:
        await answering(stream, b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")

    names = Listing(HOST)
    async with serving(handle) as (url, _), client(url.replace(HOST, "crm.example"), names=names) as to:
        for _ in range(3):
            await to.post(b"1", {})
    assert names.asked == 1


async def test_ipv6_by_address() -> None:
    """Brackets in the URL."""
    listener = await anyio.create_tcp_listener(local_host="::1")

    async def handle(stream: SocketStream) -> None:
        async with stream:
            heads.append(await stream.receive())
            await stream.send(OK)

    heads: list[bytes] = []
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        port = listener.extra(SocketAttribute.local_port)
        async with client(f"http://[::1]:{port}/") as to:
            assert (await to.post(b"1", {})).status == 200
        tasks.cancel_scope.cancel()
    assert f"Host: [::1]:{port}\r\n".encode() in heads[0]


async def test_an_address_that_is_silent_does_not_hold_the_others_up() -> None:
    """The next one begins beside it, and wins."""
    addresses = [Address(socket.AF_INET, f"127.0.0.{n}", ()) for n in (1, 2, 3)]
    ours, theirs = socket.socketpair()

    async def attempt(address: Address) -> socket.socket:
        if address is addresses[0]:
            await anyio.sleep_forever()
        if address is addresses[1]:
            raise ConnectionRefusedError
        return ours

    began = time.monotonic()
    with ours, theirs:
        assert await race(addresses, attempt, 0.05) is ours
    assert time.monotonic() - began < 2


async def test_of_addresses_that_all_fail_the_first_says_why() -> None:
    """Not the one that failed first."""
    addresses = [Address(socket.AF_INET, f"127.0.0.{n}", ()) for n in (1, 2)]

    async def attempt(address: Address) -> socket.socket:
        if address is addresses[0]:
            await anyio.sleep(0.05)
            raise ConnectionRefusedError("first")
        raise ConnectionResetError("second")

    with pytest.raises(ConnectionRefusedError):
        await race(addresses, attempt, 0.01)


async def test_a_proxy_may_itself_be_reached_by_tls(tmp_path: Path) -> None:
    """CONNECT inside TLS, and the receiver's TLS inside of that."""
    certs = certificates(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certs.server, certs.server_key)
    ports = [await anyio.create_tcp_listener(local_host=HOST) for _ in range(2)]
    proxy_port, crm_port = (each.extra(SocketAttribute.local_port) for each in ports)
    proxy, crm = (TLSListener(each, tls, standard_compatible=False) for each in ports)

    async def receive(stream: AnyByteStream) -> None:
        async with stream:
            got.append(await stream.receive())
            await stream.send(OK)

    async def tunnel(stream: AnyByteStream) -> None:
        async with stream:
            heads.append(await stream.receive())
            async with await anyio.connect_tcp(HOST, crm_port) as onward:
                await stream.send(b"HTTP/1.1 200 OK\r\n\r\n")
                async with anyio.create_task_group() as pumping:
                    pumping.start_soon(pump, stream, onward)
                    await pump(onward, stream)
                    pumping.cancel_scope.cancel()

    async def pump(source: AnyByteStream, drain: AnyByteStream) -> None:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            while True:
                await drain.send(await source.receive())

    got: list[bytes] = []
    heads: list[bytes] = []
    route = Route(
        f"https://localhost:{crm_port}/",
        lambda _: None,
        ssl.create_default_context(cafile=str(certs.ca)),
        proxy=f"https://localhost:{proxy_port}",
    )
    made = Client(route, timeout=5.0, connect=5.0, keep_idle=1, keep=100, headers={})
    async with proxy, crm, anyio.create_task_group() as tasks:
        tasks.start_soon(proxy.serve, tunnel)
        tasks.start_soon(crm.serve, receive)
        assert (await made.post(b"1", {})).status == 200
        await made.close()
        tasks.cancel_scope.cancel()
    assert heads[0].startswith(b"CONNECT localhost:")
    assert got[0].startswith(b"POST / HTTP/1.1\r\n")


async def test_nothing_is_left_behind() -> None:
    """Closing the client closes its connections, idle or in use."""

    async def handle(_: int, stream: SocketStream) -> None:
        await answering(stream, OK)
        await anyio.sleep_forever()

    async def once() -> None:
        async with serving(handle) as (url, _), client(url) as to, anyio.create_task_group() as tasks:
            await to.post(b"1", {})
            tasks.start_soon(to.post, b"2", {})
            await anyio.sleep(0.05)
            tasks.cancel_scope.cancel()

    await once()  # what the event loop opens for itself
    before = open_files()
    await once()
    with anyio.fail_after(5):
        while open_files() > before:
            await anyio.sleep(0.01)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
