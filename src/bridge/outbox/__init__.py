"""What was accepted and not yet delivered: the contract every outbox fulfils.

`accept` and `settle` are each one transaction: when they return, it is on disk; when they raise
`OutboxError`, nothing of it happened and the caller tries again with the same arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar

import msgspec

from bridge.delivery import Delivery, Reason, Route, Settlement
from bridge.event import Event

T = TypeVar("T")

AlertRow: TypeAlias = tuple[str, str, str]
"""Part (track, group, silence, blind), alert and key of something that alerts remember."""


class Offload(Protocol):
    """Run a blocking call elsewhere: a thread in production, in place on virtual time."""

    async def __call__(self, call: Callable[[], T], /) -> T: ...


class Intake(msgspec.Struct, frozen=True, gc=False):
    """One received event and what the rules want of it.

    *matched*: a rule or an alert looked at it (even if sampling or an empty `send` left no routes).
    """

    source: str
    event: Event
    """As it is to be stored: redacted."""
    received: float
    """Unix seconds."""
    matched: bool
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """One transaction's worth of input; *cursors* maps (source, identifier) to ns of server time.

    A stored cursor never moves back. *starts* sets cursors only where there are none. *recent* are the
    unique_ids that moved each cursor, in their order: the last of them are kept beside it.
    """

    intakes: Sequence[Intake] = ()
    cursors: Mapping[tuple[str, str], int] = field(default_factory=dict)
    starts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    recent: Mapping[tuple[str, str], Sequence[str]] = field(default_factory=dict)
    alerts: Mapping[AlertRow, bytes | None] = field(default_factory=dict)
    """What alerts remember, as JSON; None for what they forget."""
    eager: Collection[str] | None = None
    """The sinks that would take new deliveries at once (`Accepted.ready`); None for all."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a batch: *fresh* is False for each intake that was a duplicate, in its order."""

    fresh: tuple[bool, ...]
    sinks: frozenset[str]
    """Which sinks got a new delivery."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Deliveries and dead letters of each sink that had to go because of `max_size`."""
    superseded: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Rule and sink to the notifications that gave way to newer ones."""
    ready: Mapping[str, Sequence[Delivery]] = field(default_factory=dict)
    """Of some eager sinks all new deliveries, as `due` would give them now: they are spared the read."""


@dataclass(frozen=True, slots=True)
class Due:
    """*next_due*, unix seconds: when the earliest falls due that is neither in *deliveries* nor taken.

    None if no such one waits.
    """

    deliveries: tuple[Delivery, ...]
    next_due: float | None


@dataclass(frozen=True, slots=True)
class SourceTotals:
    """received = duplicate + unmatched + accepted, in events since the store was made."""

    received: int = 0
    duplicate: int = 0
    unmatched: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class SinkTotals:
    """accepted = delivered + dead + dropped + waiting, in deliveries; *dead* and *waiting* are held now.

    Beside the sum: *retried* attempts that will be made again, *died* dead letters ever written.
    """

    accepted: int = 0
    delivered: int = 0
    dead: int = 0
    dropped: int = 0
    waiting: int = 0
    retried: int = 0
    died: int = 0


@dataclass(frozen=True, slots=True)
class PauseState:
    """A paused sink: *since* and *until* in unix seconds, *probes* made so far, *paused* seconds before."""

    reason: Reason
    error: str
    since: float
    until: float
    probes: int = 0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Times in unix seconds. `dead-letters --json` shows the fields that DESIGN.md §2.1 names."""

    id: str
    sink: str
    rule: str
    name: str
    unique_id: str
    reason: Reason
    attempts: int
    first: float
    last: float
    status: int | None
    error: str = ""
    response: str = ""


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Fields are ANDed, None matches all; *since* in unix seconds of the last attempt."""

    ids: Collection[str] | None = None
    sink: str | None = None
    rule: str | None = None
    reason: str | None = None
    since: float | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt that was made; *at* unix seconds, *duration* seconds."""

    number: int
    at: float
    duration: float
    outcome: str
    reason: str = ""
    status: int | None = None
    error: str = ""
    response: str = ""


@dataclass(frozen=True, slots=True)
class TracedDelivery:
    """*state* is waiting, delivered, dead or dropped."""

    id: str
    rule: str
    sink: str
    state: str
    attempts: tuple[Attempt, ...]
    due: float | None = None
    """Unix seconds of the next attempt, while waiting."""
    at: float | None = None
    """Unix seconds at which it was settled."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Everything still known of one event."""

    unique_id: str
    received: float
    name: str = ""
    source: str = ""
    deliveries: tuple[TracedDelivery, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """One delivery in a queue; times in unix seconds.

    *due* None: it waits for the one before it of its *order_key*. *error* is that of its last attempt.
    """

    row: int
    id: str
    sink: str
    rule: str
    name: str
    unique_id: str
    received: float
    attempt: int
    due: float | None
    order_key: str | None
    error: str


class Outbox(Protocol):
    """Safe to call from any number of tasks at once; calls that wait together share one commit."""

    @property
    def read_ahead(self) -> int:
        """How many deliveries to take for each place of a sink: few where others may take them."""
        ...

    async def accept(self, batch: Batch) -> Accepted:
        """Store *batch*: ids, bodies, deliveries, cursors and totals, all or nothing.

        An id seen within the dedup window, counted from `Intake.received`, is a duplicate, matched or
        not; so is a repeat within *batch*. An id whose event still waits stays known, however old. An
        unmatched event leaves its cursor and its count, no id: when it comes again it is unmatched again.

        Beyond `max_size`, with `overflow: drop_oldest`, room is made (traces, then dead letters, then the
        oldest deliveries of the sink that holds most) and told in `Accepted.dropped`; with `block`, and
        while the disk is full, OutboxError with *full* is raised until there is room.
        """
        ...

    async def fresh(self, intakes: Sequence[Intake]) -> tuple[bool, ...]:
        """What `accept` would say now: which of *intakes* are no duplicates, if all of them are matched."""
        ...

    async def alert_states(self, part: str | None = None) -> list[tuple[str, str, str, bytes]]:
        """All that alerts remember, or only *part* of it: part, alert, key and JSON."""
        ...

    async def recall(self, sink: str) -> Mapping[str, bytes]:
        """What *sink* wants to know after a restart: its rows of JSON by key."""
        ...

    async def keep(self, sink: str, rows: Mapping[str, bytes | None]) -> None:
        """Put *rows* of *sink* in the place of those with their keys; None forgets one."""
        ...

    async def due(self, sink: str, *, now: float, horizon: float, limit: int, taken: Collection[int]) -> Due:
        """Up to *limit* deliveries for *sink* due at *now*, oldest due first, but not the rows *taken*.

        One due further ahead than *horizon* seconds is due now: the clock has jumped.

        Of those with one order key only the first that came is ever due; the next one is when that one is
        delivered, dead or dropped.
        """
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Record attempts and their verdicts. A delivery that is no longer waiting is passed over.

        Attempts are kept once one of a delivery has failed, the last 20.
        """
        ...

    def holds(self, delivery: Delivery) -> bool:
        """Is *delivery*, which `due` has given, still this process's to send? Asked right before."""
        ...

    async def cursors(self, source: str) -> dict[str, int]:
        """Identifier to ns of server time."""
        ...

    async def recent_ids(self, source: str, identifier: str) -> tuple[str, ...]:
        """The last ids seen at the cursor, newest last."""
        ...

    def source_totals(self) -> Mapping[str, SourceTotals]:
        """As of the last commit; sources that were ever seen."""
        ...

    def sink_totals(self) -> Mapping[str, SinkTotals]: ...

    async def oldest(self, sink: str) -> float | None:
        """Unix seconds at which the oldest waiting delivery of *sink* was received; None if none waits."""
        ...

    async def pauses(self) -> dict[str, PauseState]: ...

    async def set_pause(self, sink: str, pause: PauseState | None, now: float) -> None:
        """Begin, renew or (None) end the pause of *sink*; ending it adds to its paused seconds."""
        ...

    async def may_probe(self, sink: str, pause: PauseState) -> bool:
        """Is it this process that tries a paused sink whose time has come? Of several one does."""
        ...

    async def paused_seconds(self, sink: str, now: float) -> float:
        """All the seconds *sink* was paused, a running pause included."""
        ...

    async def dead_letters(
        self, wanted: DeadLetterFilter, *, limit: int, after: str | None = None
    ) -> list[DeadLetter]:
        """Oldest first; *after* is the id the previous page ended with."""
        ...

    async def waiting(
        self, sink: str | None, rule: str | None, *, after: int = 0, limit: int
    ) -> list[Waiting]:
        """Deliveries that wait, in the order received, beyond row *after*."""
        ...

    async def retry_dead_letters(self, wanted: DeadLetterFilter, now: float) -> int:
        """Make them wait again as attempt 1, due *now*, same delivery id; returns how many.

        Short steps, so that what comes meanwhile does not wait. One with an order key waits its turn.
        """
        ...

    async def drop_dead_letters(self, wanted: DeadLetterFilter, now: float) -> int:
        """Forget them, counted as dropped; returns how many."""
        ...

    async def trace(self, unique_id: str) -> Trace | None: ...

    async def tidy(self, now: float) -> None:
        """Let go of what its window or retention no longer keeps; give free pages back. Short steps."""
        ...

    async def bytes_used(self) -> int:
        """Bytes in use: pages plus write-ahead log."""
        ...
