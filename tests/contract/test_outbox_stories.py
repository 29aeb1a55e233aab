"""Any story of accepting, settling, tidying, crashing: the outbox and a dict tell the same one."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bridge.delivery import Delivery, Route, delivery_id
from bridge.outbox import Batch, DeadLetterFilter, PauseState, SinkTotals, SourceTotals
from tests.contract.outboxes import (
    DEDUP,
    HORIZON,
    KINDS,
    LETTERS,
    NOW,
    TRACES,
    Crash,
    Opened,
    dead,
    done,
    intake,
    later,
)

pytestmark = pytest.mark.timeout(120)

T = TypeVar("T")

SINKS = ("crm", "ops")
ROUTES = tuple(
    Route(f"rule-{sink}-{key}", sink, key) for sink in SINKS for key in (None, "device:a", "device:b")
)
ids = st.sampled_from([f"u{number}" for number in range(6)])
route_sets = st.sets(st.sampled_from(ROUTES), max_size=3).map(lambda routes: tuple(sorted(routes, key=str)))
sources = st.sampled_from(["eu1", "us1"])
identifiers = st.sampled_from(["application a", "gateway g"])
MINUTE = 60 * 10**9
MEMORY = Path("/dev/shm")  # no disk to wait for; a kill of a process loses nothing there


@dataclass(frozen=True)
class Held:
    """One delivery or dead letter of the model; *place* is in the order received."""

    place: int
    unique_id: str
    route: Route
    received: float
    due: float | None
    attempt: int = 1
    last: float = 0.0

    @property
    def id(self) -> str:
        return delivery_id(self.unique_id, self.route.rule, self.route.sink)


@dataclass
class Model:
    """What the contract says, in dicts."""

    known: dict[str, float] = field(default_factory=dict)
    waiting: dict[str, Held] = field(default_factory=dict)
    dead: dict[str, Held] = field(default_factory=dict)
    sources: dict[str, Counter[str]] = field(default_factory=dict)
    sinks: dict[str, Counter[str]] = field(default_factory=dict)
    cursors: dict[tuple[str, str], int] = field(default_factory=dict)
    pauses: dict[str, PauseState] = field(default_factory=dict)
    paused: Counter[str] = field(default_factory=Counter)
    settled: dict[str, tuple[str, float]] = field(default_factory=dict)
    places: int = 0

    def copy(self) -> Model:
        return replace(
            self,
            known=dict(self.known),
            waiting=dict(self.waiting),
            dead=dict(self.dead),
            sources={name: Counter(each) for name, each in self.sources.items()},
            sinks={name: Counter(each) for name, each in self.sinks.items()},
            cursors=dict(self.cursors),
        )

    def is_held(self, unique_id: str) -> bool:
        return any(each.unique_id == unique_id for each in (*self.waiting.values(), *self.dead.values()))

    def accept(self, batch: Batch) -> list[bool]:
        fresh = []
        for each in batch.intakes:
            unique_id, since = each.event.unique_id, each.received - DEDUP
            new = not (
                unique_id in self.known and (self.known[unique_id] >= since or self.is_held(unique_id))
            )
            fresh.append(new)
            counts = self.sources.setdefault(each.source, Counter())
            counts["received"] += 1
            counts["duplicate" if not new else "accepted" if each.matched else "unmatched"] += 1
            if new and each.matched:
                self.known[unique_id] = each.received
                for route in each.routes:
                    self.places += 1
                    held = Held(self.places, unique_id, route, each.received, each.received)
                    self.settled.pop(held.id, None)
                    self.wait(held)
                    self.count(route.sink, accepted=1, waiting=1)
        for key, at in batch.starts.items():
            self.cursors.setdefault(key, at)
        for key, at in batch.cursors.items():
            self.cursors[key] = max(at, self.cursors.get(key, at))
        return fresh

    def wait(self, held: Held) -> None:
        blocked = held.route.order_key is not None and any(self.entity(held.route))
        self.waiting[held.id] = replace(held, due=None) if blocked else held

    def entity(self, route: Route) -> list[Held]:
        """What waits of the same entity for the same sink, in the order received."""
        same = [
            each
            for each in self.waiting.values()
            if (each.route.sink, each.route.order_key) == (route.sink, route.order_key)
        ]
        return sorted(same, key=lambda each: each.place)

    def count(self, sink: str, **by: int) -> None:
        self.sinks.setdefault(sink, Counter()).update(by)

    def leave(self, held: Held) -> None:
        del self.waiting[held.id]
        if held.route.order_key is not None and (same := self.entity(held.route)):
            self.waiting[same[0].id] = replace(same[0], due=same[0].received)

    def due(self, sink: str, now: float) -> list[Held]:
        found = [each for each in self.waiting.values() if each.route.sink == sink and each.due is not None]
        now_due = [each for each in found if each.due is not None and each.due <= now]
        jumped = [each for each in found if each.due is not None and each.due > now + HORIZON]
        return [
            *sorted(now_due, key=lambda each: (each.due, each.place)),
            *sorted(jumped, key=lambda each: (each.due, each.place)),
        ]

    def tidy(self, now: float) -> None:
        for each in [each for each in self.dead.values() if each.last < now - LETTERS]:
            self.drop(each, now)
        for unique_id, received in list(self.known.items()):
            if received < now - DEDUP and not self.is_held(unique_id):
                del self.known[unique_id]
        self.settled = {key: found for key, found in self.settled.items() if found[1] >= now - TRACES}

    def drop(self, letter: Held, now: float) -> None:
        del self.dead[letter.id]
        self.count(letter.route.sink, dead=-1, dropped=1)
        self.settled[letter.id] = "dropped", now


class OutboxStories(RuleBasedStateMachine):
    """One outbox and one model; the clock only goes forward."""

    kind = "sqlite"

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
        self.runner = asyncio.Runner()
        self.model = Model()
        self.now = self.tidied = NOW
        self.opened: Opened = self.run(KINDS[self.kind](Path(self.folder.name)))

    def teardown(self) -> None:
        if hasattr(self, "opened"):
            self.run(self.opened.close())
            self.runner.close()
            self.folder.cleanup()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)

    @rule(seconds=st.sampled_from([1.0, 100.0, 450.0, 1100.0, 4000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        wanted=st.lists(st.tuples(ids, route_sets, sources, st.booleans()), min_size=1, max_size=4),
        cursor=st.none() | st.tuples(sources, identifiers, st.integers(0, 9)),
        start=st.none() | st.tuples(sources, identifiers, st.integers(0, 9)),
        crash=st.sampled_from([*[None] * 30, "before", "after", *range(10)]),
    )
    def accept(
        self,
        wanted: list[tuple[str, tuple[Route, ...], str, bool]],
        cursor: tuple[str, str, int] | None,
        start: tuple[str, str, int] | None,
        crash: Literal["before", "after"] | int | None,
    ) -> None:
        intakes = [
            intake(unique_id, *routes, at=self.now, source=source, matched=bool(routes) or looked)
            for unique_id, routes, source, looked in wanted
        ]
        cursors = {cursor[:2]: cursor[2] * MINUTE} if cursor else {}
        starts = {start[:2]: start[2] * MINUTE} if start else {}
        batch = Batch(intakes, cursors, starts)
        if isinstance(crash, int):
            self.opened.crash_during(crash)
        elif crash:
            self.opened.power.fails = crash
            with pytest.raises(Crash):
                self.run(self.opened.outbox.accept(batch))
            self.run(self.opened.crash())
            if crash == "after":
                self.model.accept(batch)
            return
        all_matched = all(each.matched for each in intakes)
        told = self.run(self.opened.outbox.fresh(intakes)) if all_matched else None
        accepted = self.run(self.opened.outbox.accept(batch))
        assert told in (None, accepted.fresh)
        if self.comes_back():
            return
        before = self.model.copy()
        assert list(accepted.fresh) == self.model.accept(batch)
        gained = {
            sink for sink in SINKS if self.model.sinks.get(sink, Counter())["accepted"]
            > before.sinks.get(sink, Counter())["accepted"]
        }  # fmt: skip
        assert accepted.sinks == gained

    def comes_back(self) -> bool:
        """After a kill in the middle of the last call: nothing of it happened."""
        crashed = self.opened.has_crashed()
        if crashed:
            self.run(self.opened.crash())
        return crashed

    def taken(self, data: st.DataObject) -> tuple[Held, Delivery] | None:
        """One delivery that is due, as the outbox gives it."""
        sink = data.draw(st.sampled_from(SINKS))
        found = self.run(
            self.opened.outbox.due(sink, now=self.now, horizon=HORIZON, limit=100, taken=())
        ).deliveries
        if not found:
            return None
        delivery = data.draw(st.sampled_from(found))
        return self.model.waiting[delivery.id], delivery

    @precondition(lambda self: self.model.waiting)
    @rule(data=st.data(), crash=st.sampled_from([*[None] * 20, *range(10)]))
    def deliver(self, data: st.DataObject, crash: int | None) -> None:
        if taken := self.taken(data):
            held, delivery = taken
            if crash is not None:
                self.opened.crash_during(crash)
            self.run(self.opened.outbox.settle([done(delivery, self.now)]))
            if self.comes_back():
                return
            self.model.leave(held)
            self.model.count(held.route.sink, delivered=1, waiting=-1)
            self.model.settled[held.id] = "delivered", self.now + 0.25

    @precondition(lambda self: self.model.waiting)
    @rule(data=st.data(), wait=st.sampled_from([0.0, 30.0, 3000.0, 5000.0]))
    def put_off(self, data: st.DataObject, wait: float) -> None:
        if taken := self.taken(data):
            held, delivery = taken
            self.run(self.opened.outbox.settle([later(delivery, self.now + wait, self.now)]))
            self.model.waiting[held.id] = replace(held, due=self.now + wait, attempt=held.attempt + 1)
            self.model.count(held.route.sink, retried=1)

    @precondition(lambda self: self.model.waiting)
    @rule(data=st.data(), crash=st.sampled_from([*[None] * 20, *range(10)]))
    def give_up(self, data: st.DataObject, crash: int | None) -> None:
        if taken := self.taken(data):
            held, delivery = taken
            if crash is not None:
                self.opened.crash_during(crash)
            self.run(self.opened.outbox.settle([dead(delivery, self.now)]))
            if self.comes_back():
                return
            self.model.leave(held)
            self.model.dead[held.id] = replace(held, last=self.now)
            self.model.count(held.route.sink, dead=1, died=1, waiting=-1)

    @precondition(lambda self: self.model.waiting)
    @rule(data=st.data())
    def settle_twice(self, data: st.DataObject) -> None:
        if taken := self.taken(data):
            held, delivery = taken
            self.run(self.opened.outbox.settle([done(delivery, self.now)]))
            self.run(self.opened.outbox.settle([dead(delivery, self.now), later(delivery, 0.0)]))
            self.model.leave(held)
            self.model.count(held.route.sink, delivered=1, waiting=-1)
            self.model.settled[held.id] = "delivered", self.now + 0.25

    def wanted(self, data: st.DataObject) -> tuple[DeadLetterFilter, list[Held]]:
        """A filter, and the dead letters it chooses, in the order received."""
        letters = sorted(self.model.dead.values(), key=lambda each: each.place)
        some = data.draw(st.sampled_from(["all", "sink", "rule", "ids", "since"]))
        if some == "all":
            return DeadLetterFilter(), letters
        if some == "ids":
            chosen = data.draw(st.sets(st.sampled_from(letters))) if letters else set()
            ids = {each.id for each in chosen}
            return DeadLetterFilter(ids=ids), [each for each in letters if each.id in ids]
        if some == "since":
            since = self.now - 500
            return DeadLetterFilter(since=since), [each for each in letters if each.last >= since]
        route = data.draw(st.sampled_from(ROUTES))
        if some == "sink":
            return DeadLetterFilter(sink=route.sink), [
                each for each in letters if each.route.sink == route.sink
            ]
        return DeadLetterFilter(rule=route.rule), [each for each in letters if each.route.rule == route.rule]

    @precondition(lambda self: self.model.dead)
    @rule(data=st.data())
    def retry_dead_letters(self, data: st.DataObject) -> None:
        wanted, chosen = self.wanted(data)
        assert self.run(self.opened.outbox.retry_dead_letters(wanted, self.now)) == len(chosen)
        for each in chosen:
            del self.model.dead[each.id]
            self.model.wait(replace(each, due=self.now, attempt=1))
            self.model.count(each.route.sink, dead=-1, waiting=1)

    @precondition(lambda self: self.model.dead)
    @rule(data=st.data())
    def drop_dead_letters(self, data: st.DataObject) -> None:
        wanted, chosen = self.wanted(data)
        assert self.run(self.opened.outbox.drop_dead_letters(wanted, self.now)) == len(chosen)
        for each in chosen:
            self.model.drop(each, self.now)

    @precondition(lambda self: self.now > self.tidied)
    @rule()
    def tidy(self) -> None:
        self.tidied = self.now
        self.run(self.opened.outbox.tidy(self.now))
        self.model.tidy(self.now)
        self.model.tidy(self.now)
        self.run(self.opened.outbox.tidy(self.now))

    @rule(sink=st.sampled_from(SINKS), wait=st.integers(1, 100))
    def pause(self, sink: str, wait: int) -> None:
        before = self.model.pauses.get(sink)
        pause = PauseState("auth", "HTTP 401", before.since if before else self.now, self.now + wait)
        self.run(self.opened.outbox.set_pause(sink, pause, self.now))
        self.model.pauses[sink] = pause

    @precondition(lambda self: self.model.pauses)
    @rule(sink=st.sampled_from(SINKS))
    def resume(self, sink: str) -> None:
        self.run(self.opened.outbox.set_pause(sink, None, self.now))
        if before := self.model.pauses.pop(sink, None):
            self.model.paused[sink] += int(self.now - before.since)

    @precondition(lambda self: self.model.waiting)
    @rule()
    def crash(self) -> None:
        self.run(self.opened.crash())

    @invariant()
    def the_same_waits(self) -> None:
        for sink in SINKS:
            found = self.run(self.opened.outbox.due(sink, now=self.now, horizon=HORIZON, limit=100, taken=()))
            expected = self.model.due(sink, self.now)
            assert [(each.id, each.attempt, each.received) for each in found.deliveries] == [
                (each.id, each.attempt, each.received) for each in expected
            ]
            rest = [
                each.due
                for each in self.model.waiting.values()
                if each.route.sink == sink and each not in expected and each.due is not None
            ]
            assert found.next_due == min(rest, default=None)
            waiting = [each.received for each in self.model.waiting.values() if each.route.sink == sink]
            assert self.run(self.opened.outbox.oldest(sink)) == min(waiting, default=None)

    @invariant()
    def the_same_is_dead(self) -> None:
        found = self.run(self.opened.outbox.dead_letters(DeadLetterFilter(), limit=100))
        letters = sorted(self.model.dead.values(), key=lambda each: each.place)
        assert [(each.id, each.attempts, each.last) for each in found] == [
            (each.id, each.attempt, each.last) for each in letters
        ]

    @invariant()
    def the_same_is_traced(self) -> None:
        for unique_id in self.model.known:
            trace = self.run(self.opened.outbox.trace(unique_id))
            assert trace is not None
            told = {each.id: each.state for each in trace.deliveries}
            for word, held in (("waiting", self.model.waiting), ("dead", self.model.dead)):
                for each in held.values():
                    if each.unique_id == unique_id:
                        assert told.pop(each.id) == word
            assert all(told[key] == self.model.settled[key][0] for key in told)

    @invariant()
    def the_same_is_counted(self) -> None:
        assert dict(self.opened.outbox.source_totals()) == {
            name: SourceTotals(**counts) for name, counts in self.model.sources.items()
        }
        assert dict(self.opened.outbox.sink_totals()) == {
            name: SinkTotals(**counts) for name, counts in self.model.sinks.items()
        }
        assert self.run(self.opened.sums()) == []

    @invariant()
    def cursors_and_pauses_are_the_same(self) -> None:
        for source in ("eu1", "us1"):
            expected = {key[1]: at for key, at in self.model.cursors.items() if key[0] == source}
            assert self.run(self.opened.outbox.cursors(source)) == expected
        assert self.run(self.opened.outbox.pauses()) == self.model.pauses
        for sink in SINKS:
            running = self.model.pauses.get(sink)
            seconds = self.model.paused[sink] + (self.now - running.since if running else 0)
            assert self.run(self.opened.outbox.paused_seconds(sink, self.now)) == seconds


class SqliteStories(OutboxStories):
    """On SQLite."""


class NatsStories(OutboxStories):
    """On JetStream: a kill comes between two calls."""

    kind = "nats"


TestSqliteStories = SqliteStories.TestCase
TestSqliteStories.settings = settings(max_examples=200 if "CI" in os.environ else 40, stateful_step_count=40)

TestNatsStories = NatsStories.TestCase
TestNatsStories.settings = settings(
    max_examples=30 if "CI" in os.environ else 8,
    stateful_step_count=40,
    phases=[
        Phase.explicit,
        Phase.generate,
    ],  # shrinking would take hours
)
