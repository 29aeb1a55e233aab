"""The running bridge as far as it is shown, and who may see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bridge.alerts.engine import Current, Tally
from bridge.alerts.sights import AlertSet
from bridge.alerts.silences import Silence
from bridge.config import Config
from bridge.dispatch import Dispatcher
from bridge.ingest import Ingest
from bridge.metrics import Metrics
from bridge.outbox import Outbox
from bridge.sources import Source


class Alerts(Protocol):
    """What alerts say; of several replicas each counts what it judges, and lists what all judge."""

    alerts: AlertSet
    silences: dict[str, Silence]

    @property
    def tally(self) -> Tally: ...

    def silent(self) -> Counter[str]:
        """How many are missed, by what their alert goes by."""
        ...

    def count(self, phase: str) -> int:
        """How many alerts of a key are in *phase*, told or not."""
        ...

    def current(self) -> Sequence[Current]: ...

    def silence(self, silence: Silence) -> None:
        """One that is stored."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """The running bridge, as far as it is shown; *now* is unix seconds, *started* the same of the start."""

    version: str
    started: float
    now: Callable[[], float]
    metrics: Metrics
    outbox: Outbox
    ingest: Ingest
    alerts: Alerts
    sources: Mapping[str, Source]
    dispatchers: Mapping[str, Dispatcher]
    config: Callable[[], Config]
    reload: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask: *token* None leaves reading open and changing shut; *hosts* besides loopback."""

    token: str | None = None
    hosts: tuple[str, ...] = ()


def ready(parts: Parts) -> list[str]:
    """Why bridge is not ready; empty if it is. A dead sink is no reason: a restart would not help."""
    reasons = [] if parts.ingest.storing else ["the store does not take events"]
    for source in parts.sources.values():
        status = source.status()
        if not (status.connected or status.ready):
            reasons.append(f"source {source.name}: {status.error or 'not connected yet'}")
    return reasons
