"""From a source's config to the source."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Annotated, TypeAlias

import structlog
import tenacity
from pydantic import Field

from bridge.event import Entity
from bridge.metrics import Metrics
from bridge.outbox import Outbox
from bridge.shared import catalogue
from bridge.sources import Source
from bridge.sources.api import Api, HttpApi
from bridge.sources.follow import TtsSource
from bridge.sources.http import HttpUpstream, http_client
from bridge.sources.models import ReplaySourceConfig, TtsSourceConfig, grpc_target
from bridge.sources.names import matching
from bridge.sources.notification import NotificationsSourceConfig
from bridge.sources.notifications import NotificationsSource
from bridge.sources.replay import ReplaySource
from bridge.sources.upstream import Upstream

SourceConfig: TypeAlias = Annotated[
    TtsSourceConfig | NotificationsSourceConfig | ReplaySourceConfig, Field(discriminator="type")
]

log = structlog.get_logger()

LONGEST_WAIT = 60.0  # seconds between reconnects
TYPES_TOLD = 100  # types of data that are logged

_exponential = tenacity.wait_random_exponential(multiplier=1, max=LONGEST_WAIT)


def reconnect_wait(attempt: int) -> float:
    """Seconds before reconnecting for the *attempt*th time in a row, from 1: growing, with full jitter."""
    state = tenacity.RetryCallState(tenacity.AsyncRetrying(), None, (), {})
    state.attempt_number = attempt
    return _exponential(state)


@asynccontextmanager
async def open_source(
    name: str,
    config: SourceConfig,
    *,
    metrics: Metrics,
    outbox: Outbox,
    names: Sequence[str],
    now: Callable[[], float],
    owns: Callable[[Entity], bool] = lambda _: True,
) -> AsyncIterator[Source]:
    """The source of *config*; *names* are what the rules need, empty for all (`names: auto`).

    *owns*: is it this replica that follows an entity?
    """
    rng = random.Random()  # noqa: S311  # ids and jitter, no secrets

    async def cursors() -> dict[str, int]:
        return await outbox.cursors(name)

    async def recent(identifier: str) -> tuple[str, ...]:
        return await outbox.recent_ids(name, identifier)

    if isinstance(config, ReplaySourceConfig):
        yield ReplaySource(name, config, metrics, now=now, rng=rng)
        return
    async with connected(config, opaque(name, metrics)) as (upstream, api):
        if isinstance(config, NotificationsSourceConfig):
            yield NotificationsSource(
                name,
                config,
                api,
                upstream,
                metrics,
                cursors=cursors,
                recent=recent,
                trace=outbox.trace,
                wait=reconnect_wait,
                now=now,
                rng=rng,
            )
            return
        yield TtsSource(
            name,
            config,
            upstream,
            api,
            metrics,
            cursors=cursors,
            recent_ids=recent,
            wait=reconnect_wait,
            now=now,
            rng=rng,
            names=names if config.names == "auto" else config.names,
            propagates=propagates(),
            reconcile=True,
            owns=owns,
        )


@asynccontextmanager
async def connected(
    config: TtsSourceConfig | NotificationsSourceConfig,
    opaque: Callable[[str], None] = lambda type: None,
) -> AsyncIterator[tuple[Upstream, Api]]:
    """Streams and single questions over the transport of *config*; StartError for a certificate file.

    *opaque* is told each type of data that gRPC brings and this version does not know.
    """
    async with http_client(config.url, config.api_key.get_secret_value(), config.tls) as client:
        if config.transport == "http":
            yield HttpUpstream(client), HttpApi(client)
            return
        from bridge.sources.grpc import GrpcApi, GrpcUpstream, connect

        tls = config.tls if config.url.startswith("https:") else None
        address = grpc_target(config.url, config.grpc_address)
        connection = connect(address, config.api_key.get_secret_value(), tls)
        try:
            yield GrpcUpstream(connection, opaque), GrpcApi(connection, HttpApi(client))
        finally:
            await connection.aclose()


def opaque(source: str, metrics: Metrics) -> Callable[[str], None]:
    """Counts data that is passed as base64, and logs each type of it once."""
    told: set[str] = set()

    def tell(type: str) -> None:
        metrics.source_opaque.labels(source).inc()
        if type not in told and len(told) < TYPES_TOLD:
            told.add(type)
            log.warning("data of an unknown type, passed as base64", source=source, type=type)

    return tell


@cache
def propagates() -> Mapping[str, bool]:
    """The names of the catalogue, each with whether application streams carry it."""
    return {name: each.propagates_to_application for name, each in catalogue().names.items()}


def needed(names: Sequence[str]) -> list[frozenset[str]]:
    """The rights of each event of the catalogue that *names* ask for, empty for all: any of them shows it."""
    known = catalogue().names
    found = matching(names, known) if names else known
    return [frozenset(known[name].rights) for name in found if known[name].rights]
