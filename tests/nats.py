"""Real nats-servers with JetStream, and outboxes on them that a test of any event loop can use.

What all tests of a process share is the installed one (Debian's is the oldest that bridge supports); one of
their own is the current one, if `.ci/programs` has built it.
"""

from __future__ import annotations

import asyncio
import atexit
import shutil
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar, cast

import anyio
import anyio.to_thread
import pytest
from anyio.abc import SocketAttribute, SocketStream, TaskGroup

from bridge.outbox import Outbox
from tests.servers import HOST, START_WITHIN, built, free_port, is_listening, lack, need, poll

T = TypeVar("T")

MEMORY = Path("/dev/shm")  # no disk to wait for


@dataclass(slots=True)
class NatsServer:
    """A nats-server on a port of its own, its streams in *directory*."""

    program: str
    directory: Path
    port: int
    more: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None)

    def url(self, stream: str = "bridge", **options: object) -> str:
        more = "".join(f"&{key}={value}" for key, value in options.items())
        return f"nats://{HOST}:{self.port}?stream={stream}{more}"

    @property
    def log(self) -> str:
        return (self.directory / "nats.log").read_text(errors="replace")

    def start(self) -> None:
        config = self.directory / "nats.conf"
        config.write_text(
            f"listen: {HOST}:{self.port}\njetstream {{ store_dir: {str(self.directory)!r} }}\n{self.more}\n"
        )
        with (self.directory / "nats.log").open("ab") as out:
            self.process = subprocess.Popen([self.program, "-c", str(config)], stdout=out, stderr=out)
        poll(self._up, f"nats-server on port {self.port}")

    def _up(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            pytest.fail(f"nats-server ended at start:\n{self.log}")
        return is_listening(self.port)

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(START_WITHIN)
            self.process = None

    def restart(self) -> None:
        self.kill()
        self.start()


@contextmanager
def nats_server(directory: Path, more: str = "", *, oldest: bool = False) -> Iterator[NatsServer]:
    """A running server; *more* is added to its config file."""
    program = need("nats-server") if oldest else built("nats-server")
    directory.mkdir(parents=True, exist_ok=True)
    server = NatsServer(program, directory, free_port(), more)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@dataclass(slots=True)
class NatsCluster:
    """Servers by their names."""

    servers: dict[str, NatsServer]

    def url(self, stream: str = "bridge", **options: object) -> str:
        """Of all of them."""
        first, *others = self.servers.values()
        hosts = ",".join(f"{HOST}:{each.port}" for each in (first, *others))
        return first.url(stream, **options).replace(f"{HOST}:{first.port}", hosts)


@contextmanager
def nats_cluster(directory: Path, size: int = 3) -> Iterator[NatsCluster]:
    """So many servers that keep streams together; who leads what is decided within seconds of the start."""
    routes = {f"n{number}": free_port() for number in range(size)}
    known = ", ".join(f'"nats://{HOST}:{port}"' for port in routes.values())
    program = built("nats-server")
    if b"v2.9." in subprocess.run([program, "-v"], capture_output=True, check=True).stdout:
        lack(
            "integration: no cluster can rely on nats-server 2.9 (docs/nats.md); .ci/programs builds another"
        )
    cluster = NatsCluster({})
    for name, port in routes.items():
        more = (
            f"server_name: {name}\ncluster {{ name: bridge, listen: {HOST}:{port}, routes: [{known}],"
            " no_advertise: true }"
        )
        (directory / name).mkdir(parents=True)
        cluster.servers[name] = NatsServer(program, directory / name, free_port(), more)
    try:
        for server in cluster.servers.values():
            server.start()
        yield cluster
    finally:
        for server in cluster.servers.values():
            server.kill()


@cache
def shared_server() -> NatsServer:
    """One for all tests of this process that use streams of their own."""
    program = need("nats-server")
    directory = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
    server = NatsServer(program, directory, free_port())
    server.start()
    atexit.register(partial(shutil.rmtree, directory, ignore_errors=True))
    atexit.register(server.kill)
    return server


class Elsewhere:
    """An asyncio loop on a thread of its own: nats-py knows no other, and no virtual time."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    async def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return await anyio.to_thread.run_sync(self.begin(coroutine).result)

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """In an empty context: the caller's says that trio runs."""
        return Context().run(asyncio.run_coroutine_threadsafe, coroutine, self.loop)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def outbox(self, real: Outbox, around: Mapping[str, Callable[..., Coroutine[Any, Any, Any]]]) -> Outbox:
        """*real*, which lives there, to be called from here; *around* some calls something is done."""
        return cast(Outbox, _Across(self, real, around))


class _Across:
    """Every coroutine of the outbox runs on its own loop; what is no coroutine is asked in place."""

    def __init__(self, elsewhere: Elsewhere, real: Outbox, around: Mapping[str, Any]) -> None:
        self._elsewhere = elsewhere
        self._real = real
        self._around = around

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            async def asked() -> Any:
                return await self._elsewhere.call(found(*args, **kwargs))

            return await (self._around[name](asked) if name in self._around else asked())

        return call


class Cable:
    """Between a client and the server; while it is *apart* nothing gets through, and nobody is told."""

    def __init__(self, port: int, to: int) -> None:
        self.port = port
        self.apart = False
        self._to = to

    async def pass_on(self, near: SocketStream) -> None:
        async with near:
            with suppress(OSError):
                far = await anyio.connect_tcp(HOST, self._to)
                async with far, anyio.create_task_group() as both:
                    both.start_soon(self._pump, near, far, both)
                    both.start_soon(self._pump, far, near, both)

    async def _pump(self, source: SocketStream, into: SocketStream, both: TaskGroup) -> None:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            while True:
                data = await source.receive()
                while self.apart:
                    await anyio.sleep(0.02)
                await into.send(data)
        both.cancel_scope.cancel()


@asynccontextmanager
async def cable(to: int, host: str = HOST) -> AsyncIterator[Cable]:
    """One from a port of *host* to the port *to* of this machine."""
    listener = await anyio.create_tcp_listener(local_host=host)
    found = Cable(listener.extra(SocketAttribute.local_port), to)
    async with listener, anyio.create_task_group() as connections:
        connections.start_soon(listener.serve, found.pass_on)
        try:
            yield found
        finally:
            connections.cancel_scope.cancel()
