"""One seeded world around the real app: upstream, disk and receivers that fail, on virtual time.

Everything of bridge between the socket and the receiver is the real thing: `follow`, `Ingest`, the SQLite
outbox (called in place: a thread would break virtual time), `Dispatcher`. The world plays the upstream's
connection, the sinks and the power switch.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import anyio
import trio

from bridge.delivery import Delivered, Delivery, Failure, Outcome, Pause, Rejected, RetryLater

T = TypeVar("T")

EPOCH = 1_795_468_146.0  # unix seconds at virtual time 0: when the recordings were made


class Crash(BaseException):
    """The power goes: not an Exception, so that nothing in the app can catch it."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Chances, each per occasion; *rate* is events per second of virtual time."""

    rate: float = 0.2
    reset: float = 0.0
    refuse: float = 0.0
    stall: float = 0.0
    repeat: float = 0.0
    late: float = 0.0
    http_503: float = 0.0
    http_400: float = 0.0
    http_401: float = 0.0
    hang: float = 0.0
    lost_reply: float = 0.0
    crash: float = 0.0
    disk_full: float = 0.0


CALM = Faults()


@dataclass
class Ledger:
    """What really happened, seen from outside."""

    published: list[str] = field(default_factory=list)
    received: dict[str, list[str]] = field(default_factory=dict)
    """Sink to unique_ids in the order they arrived, repeats included."""
    lost_replies: int = 0
    crashes: int = 0
    rejected: set[tuple[str, str]] = field(default_factory=set)
    trace: list[str] = field(default_factory=list)

    def repeats(self) -> int:
        counts = (Counter(ids) for ids in self.received.values())
        return sum(n - 1 for count in counts for n in count.values())

    def missing(self, sink: str, wanted: set[str]) -> set[str]:
        """Published ids *sink* neither has nor refused."""
        refused = {unique_id for name, unique_id in self.rejected if name == sink}
        return wanted - set(self.received.get(sink, ())) - refused


class World:
    """The seeded dice and the ledger; *faults* may be exchanged between phases."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.ledger = Ledger()

    def now(self) -> float:
        return EPOCH + trio.current_time()

    def chance(self) -> float:
        return self.random.random()

    def hits(self, probability: float) -> bool:
        return self.random.random() < probability

    def note(self, *words: object) -> None:
        self.ledger.trace.append(f"{trio.current_time():.6f} " + " ".join(map(str, words)))

    async def power(self) -> None:
        """An await at which the power may go."""
        if self.faults.crash and self.hits(self.faults.crash):
            self.ledger.crashes += 1
            self.note("crash")
            raise Crash
        await anyio.lowlevel.checkpoint()

    async def offload(self, call: Callable[[], T]) -> T:
        """What a thread does in production: in place, and the power may go before and after."""
        await self.power()
        result = call()
        await self.power()
        return result

    def calm(self) -> None:
        self.faults = replace(CALM, rate=0.0)


@dataclass
class FlakySink:
    """A receiver as they are: it answers late, wrongly, twice or not at all."""

    name: str
    world: World
    max_in_flight: int = 4

    async def send(self, delivery: Delivery) -> Outcome:
        world, faults = self.world, self.world.faults
        await anyio.sleep(world.random.uniform(0.001, 0.2))
        await world.power()
        if world.hits(faults.hang):
            await anyio.sleep(10.0)
            return RetryLater(Failure("timeout", "no answer"))
        if world.hits(faults.http_503):
            return RetryLater(Failure("server_error", "HTTP 503", 503))
        if world.hits(faults.http_401):
            return Pause(Failure("auth", "HTTP 401", 401))
        if world.hits(faults.http_400):
            world.ledger.rejected.add((self.name, delivery.event.unique_id))
            return Rejected(Failure("client_error", "HTTP 400", 400))
        world.ledger.received.setdefault(self.name, []).append(delivery.event.unique_id)
        world.note(self.name, "got", delivery.id, delivery.attempt)
        await world.power()
        if world.hits(faults.lost_reply):
            world.ledger.lost_replies += 1
            return RetryLater(Failure("connect", "reset"))
        return Delivered(200)
