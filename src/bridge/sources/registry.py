"""From a source's config to the source."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, TypeAlias

import tenacity
from pydantic import Field

from bridge.metrics import Metrics
from bridge.outbox import Outbox
from bridge.sources import Source
from bridge.sources.follow import TtsSource
from bridge.sources.http import HttpUpstream
from bridge.sources.models import ReplaySourceConfig, TtsSourceConfig
from bridge.sources.replay import ReplaySource

SourceConfig: TypeAlias = Annotated[TtsSourceConfig | ReplaySourceConfig, Field(discriminator="type")]

LONGEST_WAIT = 60.0  # seconds between reconnects

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
) -> AsyncIterator[Source]:
    """The source of *config*; *names* are what the rules need, empty for all (`names: auto`)."""
    if isinstance(config, ReplaySourceConfig):
        yield ReplaySource(name, config, metrics, now=now, rng=random.Random())  # noqa: S311  # ids, no secrets
        return
    upstream = HttpUpstream(config)

    async def cursors() -> dict[str, int]:
        return await outbox.cursors(name)

    try:
        yield TtsSource(
            name,
            config,
            upstream,
            metrics,
            cursors=cursors,
            wait=reconnect_wait,
            now=now,
            names=names if config.names == "auto" else config.names,
        )
    finally:
        await upstream.aclose()
