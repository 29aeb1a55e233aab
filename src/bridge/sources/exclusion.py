"""Entities the server refuses a stream for: left out, told, and tried again slowly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import anyio
import structlog

from bridge.errors import SourceError
from bridge.event import Entity
from bridge.metrics import Metrics
from bridge.sources.followed import Followed
from bridge.sources.live import SLOW_RETRY

log = structlog.get_logger()

SLOWEST_RETRY = 3600.0  # seconds between tries of an entity that stays refused
NAMED = 10  # entities a log line names


@dataclass(frozen=True, slots=True)
class Excluded:
    """*retry_at* is `anyio.current_time()`."""

    followed: Followed
    error: SourceError
    retry_at: float


class Exclusion:
    """Who of source *name* is left out now."""

    def __init__(self, name: str, metrics: Metrics) -> None:
        self.now: dict[Entity, Excluded] = {}
        self._name = name
        self._metrics = metrics
        self._waits: dict[Entity, float] = {}

    def leave_out(self, found: Sequence[Followed], error: SourceError) -> None:
        """For two minutes, and each time it is refused again for twice as long."""
        at = anyio.current_time()
        for each in found:
            wait = self._waits.get(each.entity, SLOW_RETRY)
            self._waits[each.entity] = min(SLOWEST_RETRY, wait * 2)
            self.now[each.entity] = Excluded(each, error, at + wait)
        self._show()
        if found:
            self._metrics.source_reconnects.labels(self._name, error.kind).inc()
            log.warning(
                "the server refuses to stream some entities, the others go on",
                source=self._name,
                entities=[str(each.entity) for each in found[:NAMED]],
                count=len(found),
                error=str(error),
            )

    def due(self) -> list[Followed]:
        """Who is to be tried again now; they are no longer left out."""
        at = anyio.current_time()
        found = [each.followed for each in self.now.values() if each.retry_at <= at]
        for each in found:
            del self.now[each.entity]
        self._show()
        return found

    def next_try(self) -> float:
        """When the next one is due; infinite if nobody is left out."""
        return min((each.retry_at for each in self.now.values()), default=math.inf)

    def streams_again(self, entity: Entity) -> None:
        """The server took it: should it be refused once more, the waits begin anew."""
        self._waits.pop(entity, None)

    def forget(self, entity: Entity) -> None:
        """It is no longer followed."""
        self._waits.pop(entity, None)
        if self.now.pop(entity, None):
            self._show()

    def _show(self) -> None:
        self._metrics.source_excluded.labels(self._name).set(len(self.now))
