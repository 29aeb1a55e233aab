"""The running bridge: everything real put together, and taken down in order."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import anyio
import structlog
import uvicorn
from starlette.types import ASGIApp

from bridge.config import Config
from bridge.control import opened_store
from bridge.dispatch import Dispatcher
from bridge.errors import OutboxError, StartError
from bridge.ingest import Ingest
from bridge.metrics import Metrics
from bridge.ops import Access, Parts, StoreCollector, admin_app, metrics_app
from bridge.outbox import Outbox
from bridge.pipeline import flow
from bridge.redact import Redactor
from bridge.retry import RetryPolicy
from bridge.rules import RuleSet
from bridge.sinks.registry import open_sink
from bridge.sources import Source
from bridge.sources.registry import open_source

log = structlog.get_logger()

TIDY_EVERY = 30.0  # seconds between rounds of letting go of what is no longer kept
FIRST_OPEN = 10.0  # seconds in which some source has to open, or `run` exits with 3
SERVER_EXIT = 2.0  # seconds for requests to the admin address when shutting down


@dataclass(frozen=True, slots=True)
class Running:
    """What `serve` announces once everything is up: where the admin address really is."""

    host: str
    port: int
    parts: Parts

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


async def serve(
    config: Config, stop: anyio.Event, announce: Callable[[Running], None] = lambda _running: None
) -> None:
    """Run *config* until *stop* is set.

    Raises StartError if the address is taken, the store cannot be opened, or no source opens and
    nothing waits to be delivered (DESIGN.md §2.2).
    """
    started = time.time()
    metrics = Metrics()
    rules: RuleSet = config.rule_set
    metrics.prepare(sources=config.sources, sinks=config.sinks, rules=[rule.name for rule in rules.rules])
    async with AsyncExitStack() as stack:
        listening = stack.enter_context(listen(config.admin.listen))
        scraping = (
            stack.enter_context(listen(config.admin.metrics_listen)) if config.admin.metrics_listen else None
        )
        outbox = await stack.enter_async_context(opened_store(config))
        sources = [
            await stack.enter_async_context(
                open_source(name, each, metrics=metrics, outbox=outbox, names=rules.names(), now=time.time)
            )
            for name, each in config.sources.items()
        ]
        dispatchers = [
            Dispatcher(
                await stack.enter_async_context(open_sink(name, each, now=time.time)),
                outbox,
                RetryPolicy(each.retry.initial, each.retry.max, each.retry.give_up_after),
                metrics,
                now=time.time,
                chance=random.random,
            )
            for name, each in config.sinks.items()
        ]
        ingest = Ingest(outbox, lambda: rules, Redactor.of(config.redact), metrics, waker(dispatchers))
        parts = Parts(
            version("tts-event-bridge"),
            config.hash,
            started,
            time.time,
            metrics,
            outbox,
            ingest,
            sources,
            dispatchers,
        )
        describe(parts)
        access = Access(config.admin.token_value, tuple(config.admin.hosts))
        await stack.enter_async_context(http(admin_app(parts, access), listening))
        if scraping:
            await stack.enter_async_context(http(metrics_app(parts), scraping))
        host, port = listening.getsockname()[:2]
        running = Running(host, port, parts)
        Path(f"{config.outbox_path}.lock").write_text(running.url)
        announce(running)
        await _run(parts, stop, config.shutdown_timeout)


async def _run(parts: Parts, stop: anyio.Event, drain: float) -> None:
    failure: list[StartError] = []

    async def first_open() -> None:
        error = await nothing_opens(parts.sources)
        if error and not any(totals.waiting for totals in parts.outbox.sink_totals().values()):
            failure.append(error)
            stop.set()

    async with anyio.create_task_group() as beside:
        beside.start_soon(first_open)
        beside.start_soon(tidy, parts.outbox, parts.now)
        await flow(parts.sources, parts.ingest, parts.dispatchers, stop, drain=drain)
        beside.cancel_scope.cancel()
    if failure:
        raise failure[0]


async def nothing_opens(sources: Sequence[Source]) -> StartError | None:
    """Why no source has opened at the start; None as soon as one has.

    A refused key is known at once; a network that is not there yet gets FIRST_OPEN seconds.
    """
    began = anyio.current_time()
    while sources:
        states = {source.name: source.status() for source in sources}
        if any(state.connected or state.finished for state in states.values()):
            return None
        failed = all(state.error for state in states.values())
        refused = failed and not any(state.ready for state in states.values())
        if refused or (failed and anyio.current_time() - began > FIRST_OPEN):
            reasons = "; ".join(f"source {name}: {state.error}" for name, state in states.items())
            return StartError(f"no source opens and nothing waits to be delivered: {reasons}")
        await anyio.sleep(0.1)
    return None


def waker(dispatchers: Sequence[Dispatcher]) -> Callable[[frozenset[str]], None]:
    by_name = {each.sink.name: each for each in dispatchers}

    def wake(sinks: frozenset[str]) -> None:
        for name in sinks:
            by_name[name].wake()

    return wake


def describe(parts: Parts) -> None:
    """The metrics that say what runs."""
    metrics = parts.metrics
    metrics.registry.register(
        StoreCollector(
            parts.outbox,
            [source.name for source in parts.sources],
            [each.sink.name for each in parts.dispatchers],
        )
    )
    metrics.build_info.labels(parts.version).set(1)
    metrics.config_hash.set(int(parts.config_hash[:12], 16))
    metrics.reload_successful.set(1)
    metrics.reload_time.set(parts.started)


async def tidy(outbox: Outbox, now: Callable[[], float]) -> None:
    while True:
        await anyio.sleep(TIDY_EVERY)
        try:
            await outbox.tidy(now())
        except OutboxError as error:
            log.warning("store not tidied", error=str(error))


@contextmanager
def listen(address: str) -> Iterator[socket.socket]:
    """A listening socket on `host:port`; raises StartError that says what to change."""
    host, _, port = address.rpartition(":")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartError(f"cannot listen on {address}: {error.strerror}") from None
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(where)
            sock.listen(128)
        except OSError as error:
            advice = "another program listens there; set admin.listen to a free port"
            if not isinstance(error, PermissionError) and "in use" not in str(error):
                advice = "set admin.listen to an address of this machine"
            raise StartError(f"cannot listen on {address}: {error.strerror}; {advice}") from None
        yield sock


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
