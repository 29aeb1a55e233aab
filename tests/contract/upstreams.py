"""The transports of an upstream, each against its own face of the stand-in, in TLS."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import grpc

from bridge.sources.api import Api, HttpApi
from bridge.sources.grpc import GrpcApi, GrpcUpstream, connect
from bridge.sources.http import HttpUpstream, http_client
from bridge.sources.upstream import Upstream
from bridge.standin import World, serve
from bridge.standin.grpc import serve_grpc
from bridge.tls import TlsConfig
from tests.servers import Certificates

Client = tuple[Upstream, Api]


class Served(Protocol):
    """A stand-in that listens."""

    @property
    def streams(self) -> int: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def cut(self) -> None: ...
    def resume(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Link:
    """A server, and clients of it by their keys."""

    world: World
    server: Served
    client: Callable[[str], Awaitable[Client]]


Linker = Callable[[World, Certificates], AbstractAsyncContextManager[Link]]


@asynccontextmanager
async def over_http(world: World, files: Certificates) -> AsyncIterator[Link]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(files.server, files.server_key)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serve(world, tls=tls))

        async def client(key: str) -> Client:
            url = server.url.replace("127.0.0.1", "localhost")
            opened = http_client(url, key, TlsConfig(ca_file=files.ca))
            stack.push_async_callback(opened.aclose)
            return HttpUpstream(opened), HttpApi(opened)

        yield Link(world, server, client)


@asynccontextmanager
async def over_grpc(world: World, files: Certificates) -> AsyncIterator[Link]:
    pair = (files.server_key.read_bytes(), files.server.read_bytes())
    secret = grpc.ssl_server_credentials([pair])
    async with AsyncExitStack() as stack:
        web = await stack.enter_async_context(serve(world))
        server = await stack.enter_async_context(serve_grpc(world, secret=secret))

        async def client(key: str) -> Client:
            connection = connect(server.address, key, TlsConfig(ca_file=files.ca))
            stack.push_async_callback(connection.aclose)
            side = http_client(web.url, key, TlsConfig())
            stack.push_async_callback(side.aclose)
            return GrpcUpstream(connection), GrpcApi(connection, HttpApi(side))

        yield Link(world, server, client)


LINKERS: dict[str, Linker] = {"http": over_http, "grpc": over_grpc}
