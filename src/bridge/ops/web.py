"""Listening sockets, and serving the admin address on them."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
import uvicorn
from starlette.types import ASGIApp

from bridge.errors import StartError

SERVER_EXIT = 2.0  # seconds for requests to the admin address when shutting down


@contextmanager
def listen(address: str, key: str) -> Iterator[socket.socket]:
    """A listening socket on `host:port`; raises StartError that says to change *key*."""
    host, _, port = address.rpartition(":")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartError(f"cannot listen on {address}: {error.strerror}; correct {key}") from None
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(where)
            sock.listen(128)
        except OSError as error:
            advice = f"another program listens there; set {key} to a free port"
            if not isinstance(error, PermissionError) and "in use" not in str(error):
                advice = f"set {key} to an address of this machine"
            raise StartError(f"cannot listen on {address}: {error.strerror}; {advice}") from None
        yield sock


def url_of(sock: socket.socket) -> str:
    """Where *sock* listens."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn, but signals are `run`'s business."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def http(app: ASGIApp, sock: socket.socket) -> AsyncIterator[None]:
    """Serve *app* on *sock* while inside."""
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=int(SERVER_EXIT),
        )
    )
    async with anyio.create_task_group() as serving:
        serving.start_soon(server.serve, [sock])
        try:
            yield
        finally:
            server.should_exit = True
            serving.cancel_scope.deadline = anyio.current_time() + SERVER_EXIT
