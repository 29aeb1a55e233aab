"""Alerts over crashes at any commit: the store ends with the same notifications as without (issue 7).

Everything from `Ingest` to the file is the real thing. After a crash the source reads back what it had, and
is unsettled until it has; the power goes before a commit or after it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import anyio
import pytest

from bridge.alerts.engine import Alerting
from bridge.alerts.parts import SECOND
from bridge.alerts.sights import AlertSet
from bridge.event import Entity, Event
from bridge.ingest import Ingest
from bridge.metrics import Metrics
from bridge.outbox import Accepted, Batch, Outbox
from bridge.outbox.sqlite import SqliteOutbox, open_outbox
from bridge.redact import Redactor
from bridge.rules import RuleSet
from bridge.sources import Arrival, Reading, Tick
from tests.alerting import START, alert_set, device, event, gateway

pytestmark = [pytest.mark.anyio, pytest.mark.sim, pytest.mark.timeout(120)]

TEXT = """
alerts:
  - name: down
    kind: state
    down: {name: gs.gateway.disconnect}
    up: {name: gs.gateway.connect}
    by: gateway
    for: 20s
    repeat_interval: 2m
    send: [ops]
  - name: silent
    kind: absent
    match: {name: as.up.data.forward}
    by: device
    for: 1m
    group_by: [application]
    group_wait: 5s
    group_interval: 20s
    send: [ops]
  - name: joins
    kind: threshold
    match: {name: ns.up.join.drop}
    by: application
    count: 3
    within: 30s
    send: [ops]
"""
ALERTS = alert_set(TEXT)
PLAIN = alert_set(
    TEXT.replace("    repeat_interval: 2m\n", "").replace(
        "    group_by: [application]\n    group_wait: 5s\n    group_interval: 20s\n", ""
    )
)
"""Whatever the pauses, the same notifications: nothing in them goes by when the last was sent."""
LASTS = 600  # seconds

T = TypeVar("T")
Replaying: TypeAlias = Mapping[str, frozenset[Entity] | None]


class Crash(BaseException):
    """The power goes: nothing in the app can catch it."""


@dataclass
class Power:
    """An offload that runs in place and fails at a chance, before the call or after it."""

    rng: random.Random
    chance: float

    async def write(self, call: Callable[[], T]) -> T:
        if self.rng.random() < self.chance:
            raise Crash
        found = call()
        if self.rng.random() < self.chance:
            raise Crash
        return found

    async def read(self, call: Callable[[], T]) -> T:
        return call()


class Through:
    """An outbox that hands everything on; its subclasses are bugs."""

    def __init__(self, real: SqliteOutbox) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class NotificationsApart(Through):
    """Planted: notifications are stored before the states that say that they were told."""

    async def accept(self, batch: Batch) -> Accepted:
        own = [each for each in batch.intakes if each.source == "alerts"]
        if own:
            rest = [each for each in batch.intakes if each.source != "alerts"]
            first = await self.real.accept(Batch(rest, alerts=batch.alerts))
            then = await self.real.accept(Batch(own))
            return Accepted((*first.fresh, *then.fresh), then.sinks)
        return await self.real.accept(batch)


def script(rng: random.Random) -> list[tuple[int, Event]]:
    """Second of arrival and event, late by less than the overlap."""
    found: list[tuple[int, Event]] = []
    for number in range(160):
        at = rng.uniform(0, LASTS)
        name, ids = rng.choice(
            [
                ("gs.gateway.disconnect", gateway(rng.choice("ab"))),
                ("gs.gateway.connect", gateway(rng.choice("ab"))),
                ("as.up.data.forward", device(rng.choice("xyz"))),
                ("ns.up.join.drop", device("x")),
            ]
        )
        found.append((int(at + rng.uniform(0, 8)) + 1, event(name, at, ids, id=f"{number:04}")))
    return sorted(found, key=lambda both: (both[0], both[1].unique_id))


@dataclass
class World:
    path: Path
    rng: random.Random
    chance: float
    bug: type[Through] = Through
    hasty: bool = False
    """Planted: timers run while the source still reads back."""
    alerts: AlertSet = ALERTS
    pauses: Sequence[int] = (0, 0, 0, 3)
    """Seconds until the next life begins."""
    crashes: int = 0
    stored: list[tuple[int, str]] = field(default_factory=list)

    @asynccontextmanager
    async def life(self) -> AsyncIterator[Ingest]:
        power = Power(self.rng, self.chance)
        async with open_outbox(
            self.path,
            durability="process",
            dedup_window=1e9,
            dead_letter_retention=1e9,
            trace_retention=1e9,
            offload_write=power.write,
            offload_read=power.read,
            reserve=4096,
        ) as real:
            outbox = cast(Outbox, self.bug(real))
            alerting = Alerting()
            alerting.load(await outbox.alert_states())
            alerting.configure(self.alerts, 10 * SECOND)
            rules = RuleSet.of(())
            yield Ingest(
                outbox,
                lambda: rules,
                Redactor.of([]),
                Metrics(),
                lambda _sinks, _ready: None,
                alerting=alerting,
                appending=frozenset({"ops"}),
                now=lambda: self.now,
            )

    now: float = START / SECOND

    async def run(self, events: Sequence[tuple[int, Event]]) -> None:
        second = 0
        while second < LASTS:
            try:
                async with self.life() as ingest:
                    await self._read_back(ingest, events, second)
                    while second < LASTS:
                        second += 1
                        came = [each for at, each in events if at == second]
                        await self._feed(ingest, second, came, {})
            except Crash:
                self.crashes += 1
                second = min(LASTS - 1, second + self.rng.choice(self.pauses))

    async def _read_back(self, ingest: Ingest, events: Sequence[tuple[int, Event]], second: int) -> None:
        """In two halves: the second half is not there yet when time goes on."""
        known = [each for at, each in events if at <= second]
        unsettled: Replaying = {} if self.hasty else {"eu1": None}
        for part in (known[: len(known) // 2], known[len(known) // 2 :]):
            await self._feed(ingest, second, part, unsettled)

    async def _feed(self, ingest: Ingest, second: int, events: Sequence[Event], unsettled: Replaying) -> None:
        self.now = START / SECOND + second
        send, receive = anyio.create_memory_object_stream[Reading](len(events) + 1)
        for each in events:
            send.send_nowait(Arrival("eu1", each, self.now))
        send.send_nowait(Tick(START + second * SECOND, unsettled))
        send.close()
        async with receive:
            await ingest.run(receive)

    async def notifications(self) -> Counter[str]:
        """The ids of all that were accepted, by what is still in the queue of the sink."""
        self.chance = 0.0
        async with self.life() as ingest:
            due = await ingest.outbox.due("ops", now=1e12, horizon=1e12, limit=10_000, taken=())
            return Counter(each.event.unique_id for each in due.deliveries)


async def simulated(seed: int, folder: Path, chance: float, **more: Any) -> tuple[Counter[str], int]:
    folder.mkdir()
    world = World(folder / "bridge.db", random.Random(seed), chance, **more)
    await world.run(script(random.Random(seed)))
    return await world.notifications(), world.crashes


@pytest.mark.parametrize("seed", range(8))
async def test_crashes_neither_lose_nor_repeat_a_notification(seed: int, tmp_path: Path) -> None:
    """The same ids, each once, whatever the commits at which the power went."""
    calm, _ = await simulated(seed, tmp_path / "calm", 0.0)
    rough, crashes = await simulated(seed, tmp_path / "rough", 0.03)

    assert crashes > 3
    assert set(calm.values()) == {1}
    assert len(calm) > 5
    assert rough == calm


@pytest.mark.parametrize("seed", range(6))
async def test_what_happens_while_bridge_is_away_is_told_later(seed: int, tmp_path: Path) -> None:
    """Away for up to a minute: what began and ended meanwhile too, once the source has read back."""
    more: dict[str, Any] = {"alerts": PLAIN, "pauses": (0, 20, 60)}
    calm, _ = await simulated(seed, tmp_path / "calm", 0.0, **more)
    rough, crashes = await simulated(seed, tmp_path / "rough", 0.02, **more)

    assert crashes
    assert rough == calm


@pytest.mark.parametrize(
    "bug",
    [{"bug": NotificationsApart}, {"hasty": True, "alerts": PLAIN, "pauses": (20, 60)}],
    ids=["not one transaction", "timers in a replay"],
)
async def test_planted_bugs_are_seen(bug: dict[str, Any], tmp_path: Path) -> None:
    """In one of some seeds at least."""
    seen = 0
    for seed in range(12):
        calm, _ = await simulated(seed, tmp_path / f"calm{seed}", 0.0, alerts=bug.get("alerts", ALERTS))
        rough, _ = await simulated(seed, tmp_path / f"rough{seed}", 0.03, **bug)
        seen += rough != calm

    assert seen
