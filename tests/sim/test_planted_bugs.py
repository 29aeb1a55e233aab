"""Three bugs that a bridge must not have, each planted before the real store: the simulation sees them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import anyio
import pytest

from bridge.delivery import Delivered, Done, Settlement
from bridge.outbox import Accepted, Batch, Due, Intake, Outbox
from tests.sim.app import Through, simulate
from tests.sim.world import Faults, World

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]

SEEDS = range(8)
BEHIND = 60.0  # seconds by which the commit of events is late
TROUBLE = Faults(reset=0.02, refuse=0.2, late=0.2, late_by=0.4, crash=0.003, life=300.0, disk_full=0.01)


class DedupBeforeDelivery(Through):
    """The id is on disk before the delivery is: a crash between the two makes the event a duplicate."""

    def __init__(self, real: Outbox, world: World) -> None:
        super().__init__(real, world)
        self._seen: set[str] = world.__dict__.setdefault("seen", set())

    async def accept(self, batch: Batch) -> Accepted:
        known = [intake.event.unique_id in self._seen for intake in batch.intakes]
        self._seen.update(intake.event.unique_id for intake in batch.intakes)
        await anyio.sleep(0.05)
        new = [intake for intake, old in zip(batch.intakes, known, strict=True) if not old]
        accepted = await self.real.accept(Batch(new, batch.cursors, batch.starts, batch.recent))
        return Accepted(tuple(not old for old in known), accepted.sinks)


class SettledBeforeSent(Through):
    """What is handed out is forgotten at once: a crash or a failure after that loses it."""

    async def due(self, sink: str, *, now: float, horizon: float, limit: int, taken: Collection[int]) -> Due:
        found = await self.real.due(sink, now=now, horizon=horizon, limit=limit, taken=taken)
        done = [Settlement(each, now, 0.0, Delivered(), Done()) for each in found.deliveries]
        await self.real.settle(done)
        return found


class CursorAheadOfCommit(Through):
    """The cursor moves before the events are on disk: after a crash nobody asks for them again."""

    def __init__(self, real: Outbox, world: World) -> None:
        super().__init__(real, world)
        self._behind: list[Intake] = []
        self._stored_at = anyio.current_time()

    async def accept(self, batch: Batch) -> Accepted:
        accepted = await self.real.accept(Batch((), batch.cursors, batch.starts, batch.recent))
        self._behind += batch.intakes
        if anyio.current_time() - self._stored_at > BEHIND:
            accepted = await self.real.accept(Batch(self._behind))
            self._behind, self._stored_at = [], anyio.current_time()
        return Accepted((True,) * len(batch.intakes), accepted.sinks)


def losses(bug: type[Through], path: Path) -> int:
    """In how many of SEEDS something was lost."""
    outcomes = [
        simulate(seed, path / f"{seed}.db", TROUBLE, hours=0.5, overlap=0.5, bug=bug) for seed in SEEDS
    ]
    return sum(bool(outcome.lost) for outcome in outcomes)


def test_without_a_bug_nothing_is_lost(tmp_path: Path) -> None:
    """In the world in which the bugs are seen."""
    assert losses(Through, tmp_path) == 0


@pytest.mark.parametrize("bug", [DedupBeforeDelivery, SettledBeforeSent, CursorAheadOfCommit])
def test_a_planted_bug_is_seen(bug: type[Through], tmp_path: Path) -> None:
    """In several of the seeds."""
    assert losses(bug, tmp_path) >= 2
