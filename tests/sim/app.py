"""The app in its world: lives that end by the power switch or by a stop, one after another on one store."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import trio
import trio.testing
from trio._core import _run as trio_run

from bridge.delivery import Delivery, Settlement
from bridge.dispatch import Dispatcher
from bridge.ingest import Ingest
from bridge.metrics import Metrics
from bridge.outbox import DeadLetterFilter, Outbox
from bridge.outbox.sqlite import SqliteOutbox, open_outbox
from bridge.outbox.verify import verify
from bridge.pipeline import Reads, flow
from bridge.redact import Redactor
from bridge.report import SelfReport
from bridge.retry import RetryPolicy
from bridge.rulefile import parse
from bridge.rules import RuleSet
from bridge.sources.follow import TtsSource
from bridge.sources.models import TtsSourceConfig
from bridge.sources.registry import propagates
from tests.sim.upstream import FOLLOWED, Server
from tests.sim.world import Crash, Faults, FlakySink, Ledger, World

RULES = """
rules:
  - name: everything
    match: {}
    send: [crm, broker]
  - name: uplinks
    match: {name: as.up.data.forward}
    send: [slow]
  - name: in-order
    match: {application: plant-a}
    send: [ordered]
"""
IN_FLIGHT = {"crm": 4, "broker": 8, "slow": 1, "ordered": 8}
POLICY = RetryPolicy(initial=5.0, max=600.0, give_up_after=1e9)
DRAIN = 20.0  # seconds
PATIENCE = 86_400.0  # seconds; a sink that was wrong is probed once an hour at least


class Through:
    """An outbox that hands everything on to *real*; its subclasses change something."""

    def __init__(self, real: Outbox, world: World) -> None:
        self.real = real
        self.world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class Observed(Through):
    """Tells the world what it has settled."""

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        await self.real.settle(settlements)
        self.world.unsettled -= {(each.delivery.sink, each.delivery.id) for each in settlements}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulation came to, after everything has calmed down."""

    ledger: Ledger
    dead: dict[str, set[str]]
    violations: list[str]
    accepted: dict[str, int]
    """Sink to deliveries that were ever accepted for it."""

    def wanted(self, sink: str) -> set[str]:
        """What the rules want at *sink*."""
        published = self.ledger.published.items()
        match sink:
            case "slow":
                return {each for each, about in published if about.name == "as.up.data.forward"}
            case "ordered":
                return {each for each, about in published if about.is_plant_a}
            case _:
                return {each for each, _ in published}

    def missing(self, sink: str) -> set[str]:
        """What *sink* neither got nor refused, although the server never failed to give it."""
        excused = self.ledger.lost_live | self.dead.get(sink, set())
        return self.wanted(sink) - self.ledger.arrived(sink) - excused

    def known(self, sink: str) -> set[str]:
        """Everything that was ever to be delivered to *sink*, own events included."""
        return self.wanted(sink) | self.dead.get(sink, set()) | set(self.ledger.own.get(sink, ()))

    @property
    def lost(self) -> set[str]:
        return set().union(*map(self.missing, IN_FLIGHT))

    @property
    def explained_repeats(self) -> int:
        """As many repeats as lost replies and what was in flight at crashes can explain."""
        return self.ledger.lost_replies + self.ledger.unsettled


class Simulation:
    def __init__(self, world: World, path: Path, *, overlap: float, bug: type[Through]) -> None:
        self.world = world
        self.server = Server(world)
        self._path = path
        self._bug = bug
        self._rules = RuleSet.of(parse(RULES, "rules.yaml", sinks=IN_FLIGHT).rules)
        self._metrics = Metrics()
        self._config = TtsSourceConfig.model_validate(
            {
                "type": "tts",
                "url": "http://tts.invalid",
                "api_key": "none",
                "overlap": f"{overlap}s",
                "identifiers": [{each.kind: each.id} for each in FOLLOWED],
            }
        )

    @asynccontextmanager
    async def store(self) -> AsyncIterator[SqliteOutbox]:
        async with open_outbox(
            self._path,
            durability="process",
            dedup_window=172_800.0,
            dead_letter_retention=1e9,
            trace_retention=3600.0,
            offload_write=self.world.write,
            offload_read=self.world.read,
            reserve=4096,
        ) as outbox:
            yield outbox

    def source(self, outbox: Outbox) -> TtsSource:
        async def cursors() -> dict[str, int]:
            return await outbox.cursors("eu1")

        async def recent_ids(identifier: str) -> tuple[str, ...]:
            return await outbox.recent_ids("eu1", identifier)

        return TtsSource(
            "eu1",
            self._config,
            self.server,
            self.server,
            self._metrics,
            cursors=cursors,
            recent_ids=recent_ids,
            wait=lambda attempt: min(60.0, 2.0**attempt) * self.world.chance(),
            now=self.world.now,
            rng=self.world.random,
            propagates=propagates(),
        )

    async def live(self, until: Callable[[Outbox], Awaitable[None]]) -> None:
        """One life of the process: until *until* returns, then a stop in order; or the power goes."""
        world = self.world
        world.is_dark = False
        world.note("start")
        try:
            async with self.store() as real, anyio.create_task_group() as beside:
                outbox = cast(Outbox, Observed(cast(Outbox, self._bug(real, world)), world))
                stop = anyio.Event()
                beside.start_soon(self._power_cut)
                beside.start_soon(self._stop, until, outbox, stop)
                await self._flow(outbox, stop)
                beside.cancel_scope.cancel()
        except* Crash:
            await trio.lowlevel.checkpoint()
        world.end_of_life()

    async def _flow(self, outbox: Outbox, stop: anyio.Event) -> None:
        world = self.world
        report = SelfReport(world.now, world.random)
        dispatchers = {
            name: Dispatcher(
                FlakySink(name, world, most),
                outbox,
                POLICY,
                self._metrics,
                now=world.now,
                chance=world.chance,
                tell=report.tell,
                adaptive=name == "crm",
            )
            for name, most in IN_FLIGHT.items()
        }

        def wake(sinks: frozenset[str], ready: Mapping[str, Sequence[Delivery]]) -> None:
            for name in sorted(sinks):
                dispatchers[name].hand(ready.get(name, ()))

        ingest = Ingest(
            outbox,
            lambda: self._rules,
            Redactor.of([]),
            self._metrics,
            wake,
            ordered=frozenset({"ordered"}),
            tell=report.tell,
        )
        sources: list[Reads] = [self.source(outbox), report]
        await flow(sources, ingest, list(dispatchers.values()), stop, drain=DRAIN)

    async def _power_cut(self) -> None:
        """The power goes wherever the tasks happen to be."""
        if self.world.faults.life:
            await anyio.sleep(self.world.random.expovariate(1 / self.world.faults.life))
            raise self.world.crash("switched off")

    async def _stop(
        self, until: Callable[[Outbox], Awaitable[None]], outbox: Outbox, stop: anyio.Event
    ) -> None:
        await until(outbox)
        self.world.note("stop")
        stop.set()

    async def run(self, hours: float, faults: Faults, rate: float) -> Outcome:
        """A calm start, *hours* of trouble, then calm until nothing waits."""
        await self.live(self._has_cursors)
        async with anyio.create_task_group() as publishing:
            publishing.start_soon(self.server.live, rate)
            self.world.faults = faults
            end = trio.current_time() + hours * 3600.0
            while trio.current_time() < end:
                stop_at = min(end, trio.current_time() + self.world.random.expovariate(1 / 1200.0))
                await self.live(partial(_sleep_until, stop_at))
                await anyio.sleep(self.world.random.uniform(0.0, 30.0))
            self.world.calm()
            publishing.cancel_scope.cancel()
        await self.live(self._is_settled)
        return await self._outcome()

    async def _has_cursors(self, outbox: Outbox) -> None:
        while len(await outbox.cursors("eu1")) < len(FOLLOWED):
            await anyio.sleep(1.0)

    async def _is_settled(self, outbox: Outbox) -> None:
        """Ten minutes, in which the source catches up and re-reads, and then until nothing waits."""
        await anyio.sleep(600.0)
        with anyio.move_on_after(PATIENCE):
            while any(totals.waiting for totals in outbox.sink_totals().values()):
                await anyio.sleep(30.0)

    async def _outcome(self) -> Outcome:
        async with self.store() as outbox:
            dead = {
                name: {
                    letter.unique_id
                    for letter in await outbox.dead_letters(DeadLetterFilter(sink=name), limit=1_000_000)
                }
                for name in IN_FLIGHT
            }
            accepted = {name: totals.accepted for name, totals in outbox.sink_totals().items()}
            return Outcome(self.world.ledger, dead, await verify(outbox), accepted)


async def _sleep_until(at: float, _outbox: Outbox) -> None:
    await trio.sleep_until(at)


def simulate(
    seed: int,
    path: Path,
    faults: Faults,
    *,
    hours: float = 1.0,
    rate: float = 0.1,
    overlap: float = 10.0,
    bug: type[Through] = Through,
) -> Outcome:
    """One seeded run from an empty store; *rate* in events a second of virtual time.

    *bug* stands between the app and its store.

    trio has no public way to make its order of tasks repeatable: the two private names are those that
    tests/conftest.py sets for `virtual_time`.
    """
    repeatable = "_ALLOW_DETERMINISTIC_SCHEDULING"
    before = getattr(trio_run, repeatable)
    setattr(trio_run, repeatable, True)
    trio_run._r.seed(seed)
    random.seed(seed)

    async def main() -> Outcome:
        simulation = Simulation(World(seed, Faults()), path, overlap=overlap, bug=bug)
        return await simulation.run(hours, faults, rate)

    try:
        clock = trio.testing.MockClock(autojump_threshold=0)
        return anyio.run(main, backend="trio", backend_options={"clock": clock})
    finally:
        setattr(trio_run, repeatable, before)
