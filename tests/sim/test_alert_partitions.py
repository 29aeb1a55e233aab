"""Alerts shared by replicas: readers that die and are followed, owners that are killed, stopped, and split.

Readers, owners and engines are the real ones; bucket and logs are kept in memory. What all partitions tell
together is what one engine for all tells to which nothing ever happens.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from bridge.alerts.partition import PARTITIONS
from bridge.event import Event, entities
from bridge.outbox.jetstream.judged import Commit, Judged
from bridge.sources.plan import shard
from tests.partitions import PARTS, Logs, Process, Reader, Script, Stage, alone, done
from tests.sim.test_alert_restarts import LASTS, PLAIN, script

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]

CALM = 120  # seconds at the end in which nothing happens any more
UNREAD = 20  # seconds until a dead reader's parts are read again
READS_BACK = 6  # seconds that takes
OVERLAP = 20  # seconds from before its death that are read again

Events = Sequence[tuple[int, Event]]
"""Second of arrival and event."""


def part_of(event: Event) -> str:
    return PARTS[shard(entities(event)[0], len(PARTS))]


@dataclass
class Reading:
    """Three replicas read eu1; one that dies or leaves comes back under another name and takes its parts."""

    logs: Logs
    rng: random.Random
    events: Events
    hasty: bool = False
    """Planted: who reads back says that it is not behind."""
    deaths: int = 0
    readers: dict[str, Reader] = field(default_factory=dict)
    behind: dict[str, int] = field(default_factory=dict)
    """Until when who reads back."""
    coming: list[tuple[int, int, frozenset[str]]] = field(default_factory=list)
    """When somebody takes which parts, and from which second it reads them again."""

    def begin(self) -> None:
        for number in range(3):
            self._open(f"r{number}", frozenset(PARTS[number::3]))

    def _open(self, name: str, parts: frozenset[str]) -> None:
        self.readers[name] = Reader(name, self.logs, PLAIN, parts)

    def second(self, now: int, *, calm: bool) -> None:
        self.logs.now = now
        for at, since, parts in [each for each in self.coming if each[0] == now]:
            self.deaths += 1
            name = f"r{self.deaths + 2}"
            self._open(name, parts)
            self.behind[name] = at + READS_BACK
            self.coming = [each for each in self.coming if each[2] != parts]
            self.readers[name].history = [each for each in self.events if since <= each[0] < now]
        for name, reader in list(self.readers.items()):
            self._read(name, reader, now)
            if not calm and self.rng.random() < 0.01:
                self._end(name, now)

    def _read(self, name: str, reader: Reader, now: int) -> None:
        is_behind = now < self.behind.get(name, 0)
        if not is_behind:
            self._bring(reader, reader.history)
            reader.history = []
        self._bring(reader, [each for each in self.events if each[0] == now])
        reader.beat({"eu1": None} if is_behind and not self.hasty else {})

    def _bring(self, reader: Reader, events: Events) -> None:
        for _, event in events:
            if part_of(event) in reader.parts:
                reader.see(event)
        reader.send()

    def _end(self, name: str, now: int) -> None:
        """Killed, with a last batch that nobody knows to be read, or in order."""
        reader = self.readers.pop(name)
        since = min([now - OVERLAP, *(at for at, _ in reader.history)])
        if self.rng.random() < 0.3:
            done(reader.passing.leave())
            self.coming.append((now + 3, since, reader.parts))
        else:
            self.coming.append((now + self.rng.randint(3, UNREAD), since, reader.parts))


@dataclass
class Owners:
    """Of one partition: one that should be it, and others that were stopped and do not know."""

    stage: Stage
    rng: random.Random
    now: Process = field(init=False)
    stopped: list[Process] = field(default_factory=list)
    takeovers: int = 0

    def __post_init__(self) -> None:
        self.now = Process(self.stage, "o0")

    def second(self, at: int, *, calm: bool) -> None:
        self.stage.seconds = at
        if not calm and self.rng.random() < 0.05:
            for _ in range(self.rng.randrange(12)):
                self.now.go()
            self.takeovers += 1
            if self.rng.random() < 0.5:
                self.stopped.append(self.now)
            self.now = Process(self.stage, f"o{self.takeovers}")
        if self.stopped and (calm or self.rng.random() < 0.1):
            woken = self.stopped.pop(0)
            for _ in range(self.rng.randrange(12)):
                woken.go()
        self.now.idle = 0
        while self.now.idle < 2:
            self.now.go()


@dataclass
class Result:
    told: Counter[str]
    takeovers: int
    deaths: int


def simulated(seed: int, store: type[Judged] = Judged, **more: Any) -> Result:
    """Announcements by their ids."""
    rng, logs = random.Random(seed), Logs()
    reading = Reading(logs, rng, script(random.Random(seed)), **more)
    owners = [Owners(Stage(PLAIN, logs, number, store=store, page=3), rng) for number in range(PARTITIONS)]
    reading.begin()
    for now in range(LASTS + CALM):
        calm = now > LASTS - UNREAD
        reading.second(now, calm=calm)
        for each in owners:
            each.second(now, calm=calm)
    told = Counter(id for each in owners for id in each.stage.announced)
    return Result(told, sum(each.takeovers for each in owners), reading.deaths)


def undisturbed(seed: int) -> set[str]:
    """By one engine that sees all."""
    events = script(random.Random(seed))
    story: Script = [
        step
        for now in range(LASTS + CALM)
        for step in [*((float(now), each) for at, each in events if at == now), (float(now), None)]
    ]
    return set(alone(PLAIN, story))


@pytest.mark.parametrize("seed", range(6))
def test_replicas_together_tell_what_one_alone_tells(seed: int) -> None:
    """Nothing is lost and nothing false is told; what is announced again is so at takeovers, under its id."""
    found = simulated(seed)
    assert found.deaths > 2
    assert found.takeovers > 100
    assert set(found.told) == undisturbed(seed)
    assert len(found.told) > 30
    assert sum(found.told.values()) - len(found.told) < found.takeovers / 4


class Ahead(Judged):
    """Planted: a commit says how far its owner is, and not what follows from that."""

    async def commit(self, commit: Commit) -> None:
        await super().commit(Commit(commit.through))


@pytest.mark.parametrize("bug", [{"store": Ahead}, {"hasty": True}], ids=["how far first", "in a replay"])
def test_planted_bugs_are_seen(bug: dict[str, Any]) -> None:
    """In one of some seeds at least."""
    assert any(set(simulated(seed, **bug).told) != undisturbed(seed) for seed in range(6))
