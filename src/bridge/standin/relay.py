"""A wire that can be cut: bytes go through to another port, until somebody cuts them off."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskGroup

from bridge.standin.peer import GONE


class Relay:
    """Listens on *port* and passes everything on to the port *to*; made by `relayed`."""

    def __init__(self, port: int, to: int, host: str) -> None:
        self.port = port
        self.to = to
        self._host = host
        self._open: set[anyio.CancelScope] = set()

    @property
    def connections(self) -> int:
        return len(self._open)

    def cut(self) -> None:
        """Drop all connections where they are; new ones get through."""
        for each in tuple(self._open):
            each.cancel()

    async def pass_on(self, near: SocketStream) -> None:
        with suppress(OSError, *GONE), anyio.CancelScope() as scope:
            self._open.add(scope)
            try:
                async with near:
                    far = await anyio.connect_tcp(self._host, self.to)
                    async with far, anyio.create_task_group() as both:
                        both.start_soon(_pump, near, far, both)
                        both.start_soon(_pump, far, near, both)
            finally:
                self._open.discard(scope)


async def _pump(source: SocketStream, into: SocketStream, both: TaskGroup) -> None:
    with suppress(*GONE):
        async for data in source:
            await into.send(data)
    both.cancel_scope.cancel()


@asynccontextmanager
async def relayed(to: int, *, port: int = 0, host: str = "127.0.0.1") -> AsyncIterator[Relay]:
    """A relay to the port *to* of *host*; *port* 0 takes a free one."""
    listener = await anyio.create_tcp_listener(local_host=host, local_port=port)
    relay = Relay(listener.extra(SocketAttribute.local_port), to, host)  # noqa: S610  # not Django's
    async with listener, anyio.create_task_group() as connections:
        connections.start_soon(listener.serve, relay.pass_on)
        try:
            yield relay
        finally:
            connections.cancel_scope.cancel()
