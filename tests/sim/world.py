"""One seeded world around the real app: upstream, disk and receivers that fail, on virtual time.

Everything of bridge between the socket and the receiver is the real thing: `TtsSource`, `Ingest`, the SQLite
outbox (called in place: a thread would break virtual time), `Dispatcher`, and `flow` around them. The world
plays the server, the sinks, the disk that fills up and the power switch.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
import trio

from bridge.delivery import Delivered, Delivery, Failure, Outcome, Pause, Rejected, RetryLater
from bridge.errors import OutboxError

T = TypeVar("T")

EPOCH = 1_795_468_146.0  # unix seconds at virtual time 0: when the recordings were made


class Crash(BaseException):
    """The power goes: not an Exception, so that nothing in the app can catch it."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Chances, each per occasion, unless a unit is given."""

    reset: float = 0.0
    refuse: float = 0.0
    stall: float = 0.0
    repeat: float = 0.0
    late: float = 0.0
    late_by: float = 4.0
    """Seconds by which a late event comes into the server's store, at most; less than the overlap."""
    lost_live: float = 0.0
    """The server drops the event for a stream that is open, and keeps it in its history."""
    http_503: float = 0.0
    http_400: float = 0.0
    http_401: float = 0.0
    http_429: float = 0.0
    hang: float = 0.0
    lost_reply: float = 0.0
    crash: float = 0.0
    """At an await of the disk, a sink or a stream."""
    life: float = 0.0
    """Mean seconds until the power goes wherever the tasks are; 0 for never."""
    disk_full: float = 0.0
    """At a commit; it lasts for up to a minute."""


CALM = Faults()


@dataclass(frozen=True, slots=True)
class Published:
    """An event as far as rules tell it from others."""

    name: str
    is_plant_a: bool


@dataclass
class Ledger:
    """What really happened, seen from outside."""

    published: dict[str, Published] = field(default_factory=dict)
    """By unique_id, what the server took in."""
    lost_live: set[str] = field(default_factory=set)
    """What the server did not give to a stream that was open."""
    received: dict[str, list[str]] = field(default_factory=dict)
    """Sink to unique_ids in the order they arrived, repeats included."""
    own: dict[str, dict[str, str]] = field(default_factory=dict)
    """Sink to bridge's own events that arrived there, unique_id to name."""
    disorder: list[str] = field(default_factory=list)
    """Deliveries that came before one of their entity that was accepted earlier."""
    rejected: dict[str, set[str]] = field(default_factory=dict)
    lost_replies: int = 0
    crashes: int = 0
    unsettled: int = 0
    """Deliveries the receiver had and the store did not know of, when the power went or time was up."""
    fulls: int = 0
    trace: list[str] = field(default_factory=list)

    def repeats(self) -> int:
        counts = (Counter(ids) for ids in self.received.values())
        return sum(n - 1 for count in counts for n in count.values())

    def arrived(self, sink: str) -> set[str]:
        return set(self.received.get(sink, ()))


class World:
    """The seeded dice, the power and the ledger; *faults* may be exchanged between phases."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.ledger = Ledger()
        self.is_dark = False
        """The power is gone: whoever still runs, to clean up, gets no further."""
        self.unsettled: set[tuple[str, str]] = set()
        """Sink and delivery id of what was received and is not known to be settled."""
        self.last_row: dict[tuple[str, str], int] = {}
        self._full_until = 0.0

    def now(self) -> float:
        return EPOCH + trio.current_time()

    def chance(self) -> float:
        return self.random.random()

    def hits(self, probability: float) -> bool:
        return probability > 0.0 and self.random.random() < probability

    def note(self, *words: object) -> None:
        self.ledger.trace.append(f"{trio.current_time():.6f} " + " ".join(map(str, words)))

    def crash(self, where: str) -> Crash:
        if not self.is_dark:
            self.is_dark = True
            self.ledger.crashes += 1
            self.end_of_life()
            self.note("crash", where)
        return Crash(where)

    def end_of_life(self) -> None:
        """The process ends: what receivers had and the store does not know of will come again."""
        self.ledger.unsettled += len(self.unsettled)
        self.unsettled.clear()

    async def power(self, where: str) -> None:
        """An await at which the power may go."""
        if self.is_dark or self.hits(self.faults.crash):
            raise self.crash(where)
        await anyio.lowlevel.checkpoint()

    async def read(self, call: Callable[[], T]) -> T:
        """What the reading thread does in production, in place."""
        await self.power("read")
        return call()

    async def write(self, call: Callable[[], T]) -> T:
        """What the writing thread does in production, in place; the power may go before and after."""
        await self.power("before a commit")
        await anyio.sleep(self.random.uniform(0.0005, 0.02))
        self._fill_disk()
        result = call()
        await self.power("after a commit")
        return result

    def _fill_disk(self) -> None:
        now = trio.current_time()
        if self.hits(self.faults.disk_full):
            self._full_until = now + self.random.uniform(0.5, 60.0)
            self.note("disk full")
        if now < self._full_until:
            self.ledger.fulls += 1
            raise OutboxError("database or disk is full", full=True)

    def calm(self) -> None:
        self.faults = CALM
        self._full_until = 0.0


@dataclass
class FlakySink:
    """A receiver as they are: it answers late, wrongly, twice or not at all."""

    name: str
    world: World
    max_in_flight: int
    in_flight: int = 0

    async def send(self, delivery: Delivery) -> Outcome:
        self.in_flight += 1
        assert self.in_flight <= self.max_in_flight
        try:
            return await self._answer(delivery)
        finally:
            self.in_flight -= 1

    async def _answer(self, delivery: Delivery) -> Outcome:
        world, faults = self.world, self.world.faults
        await anyio.sleep(world.random.uniform(0.001, 0.2))
        await world.power(f"sending to {self.name}")
        refused = self._refusal(delivery, faults)
        if refused is not None:
            return refused
        if world.hits(faults.hang):
            await anyio.sleep(10.0)
            return RetryLater(Failure("timeout", "no answer"))
        unique_id = delivery.event.unique_id
        world.ledger.received.setdefault(self.name, []).append(unique_id)
        if delivery.event.name.startswith("bridge."):
            world.ledger.own.setdefault(self.name, {})[unique_id] = delivery.event.name
        self._keep_order(delivery)
        world.unsettled.add((self.name, delivery.id))
        world.note(self.name, "got", delivery.id, delivery.attempt)
        await world.power(f"{self.name} got it")
        if world.hits(faults.lost_reply):
            world.ledger.lost_replies += 1
            return RetryLater(Failure("connect", "reset"))
        return Delivered(200)

    def _refusal(self, delivery: Delivery, faults: Faults) -> Outcome | None:
        world = self.world
        if world.hits(faults.http_503):
            return RetryLater(Failure("server_error", "HTTP 503", 503))
        if world.hits(faults.http_401):
            return Pause(Failure("auth", "HTTP 401", 401))
        if world.hits(faults.http_429):
            return Pause(Failure("rate_limited", "HTTP 429", 429), world.random.uniform(0.0, 40.0))
        if world.hits(faults.http_400):
            world.ledger.rejected.setdefault(self.name, set()).add(delivery.event.unique_id)
            return Rejected(Failure("client_error", "HTTP 400", 400))
        return None

    def _keep_order(self, delivery: Delivery) -> None:
        """Of one entity nothing comes that was accepted before what has come; a repeat may."""
        if delivery.order_key is not None:
            key = self.name, delivery.order_key
            if delivery.row < self.world.last_row.get(key, 0):
                self.world.ledger.disorder.append(delivery.id)
            self.world.last_row[key] = delivery.row
