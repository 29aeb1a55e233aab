"""Where events come from. A source only reads and hands over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import msgspec
from anyio.streams.memory import MemoryObjectSendStream

from bridge.event import Entity, Event


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """One event as a source read it.

    *cursors* is where the cursors of the identifiers that brought it may move when it is stored:
    nanoseconds of server time, one entry an identifier (`application:plant-a`); empty while the stream
    still replays (DESIGN.md §3).
    """

    source: str
    event: Event
    received: float
    """Unix seconds, local clock."""
    cursors: Mapping[str, int] = msgspec.field(default_factory=dict)
    sparse: bool = False
    """Its payload had expired on the server: no `data`, `origin` or `correlation_ids`."""


@dataclass(frozen=True, slots=True)
class Started:
    """A stream opened: where the cursors of identifiers that have none yet begin, in ns of server time.

    Stored at once, so that a crash before the first event does not lose what came in between.
    """

    source: str
    cursors: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What the server said when asked, in the shape of an event: only alerts look at it.

    *only_known*: and only those that have seen its entity before.
    """

    source: str
    event: Event
    only_known: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """Time, in order with what was read: everything of a settled source that came before it is before it.

    *now_ns* is the server's clock. *unsettled* are the sources that have not finished their replay, and
    for whom; None for everybody. *parts* are the leases by which this replica read then, if there are any.
    """

    now_ns: int
    unsettled: Mapping[str, frozenset[Entity] | None] = field(default_factory=dict)
    parts: frozenset[str] = frozenset()


Reading: TypeAlias = Arrival | Started | Reconciled | Tick


class Source(Protocol):
    """One configured source."""

    @property
    def name(self) -> str: ...

    async def run(self, into: MemoryObjectSendStream[Reading]) -> None:
        """Read until cancelled (a replay: until its file ends), reconnecting as often as it takes.

        Nothing here waits for rules, disk or sinks: *into* is a bounded buffer, and the seconds spent
        waiting for it are `bridge_source_blocked_seconds_total`. Failures of the upstream are logged when
        they begin and when they end; they never end `run`.
        """
        ...

    def status(self) -> SourceStatus: ...


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a source is: *clock_ns* the server's clock, None while unknown; *unsettled* as in `Tick`."""

    clock_ns: int | None
    unsettled: frozenset[Entity] | None


@runtime_checkable
class CatchesUp(Protocol):
    """A source that has a replay to finish after a break; others are always settled."""

    def standing(self) -> Standing: ...


@runtime_checkable
class Divisible(Protocol):
    """A source whose entities several replicas share."""

    async def rebalance(self) -> None:
        """Others are this replica's now."""
        ...


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """What `/api/status` and `/readyz` say of a source."""

    connected: bool
    ready: bool
    """Connected, or in a known backoff; a refused key is neither."""
    error: str = ""
    """Why it is not connected, one line; no secret."""
    streams: int = 0
    retry_in: float | None = None
    """Seconds until the next attempt."""
    warnings: tuple[str, ...] = ()
    """What the server said in `X-Warning`."""
    finished: bool = False
    """A replay whose file has ended."""
    entities: int = 0
    """How many it follows."""
    excluded: tuple[tuple[str, str], ...] = ()
    """Which it cannot follow and why, the first hundred: `application plant-b`, an error."""
    names_refused: tuple[str, ...] = ()
    """Event names the server does not know; rules match them all the same."""
