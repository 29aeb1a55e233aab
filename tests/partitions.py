"""Alerts in partitions under test: a bucket and logs in memory, readers that fill them, owners to be driven.

The bucket and the logs keep what JetStream promises of them: revisions, compare-and-set, order. Each call is
a turn that a test can give, withhold for ever (the process is dead) or for a while (it was stopped).
"""

from __future__ import annotations

from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeVar, cast

from bridge.alerts.engine import Alerting, Row
from bridge.alerts.groups import Notice
from bridge.alerts.judging import Judge
from bridge.alerts.partition import PARTITIONS, partition
from bridge.alerts.parts import SECOND
from bridge.alerts.settling import Unsettled
from bridge.alerts.sights import AlertSet
from bridge.errors import OutboxError
from bridge.event import Entity, Event, entities
from bridge.ingest import Notification, notification
from bridge.outbox.jetstream.bucket import Entry
from bridge.outbox.jetstream.judged import Judged
from bridge.outbox.jetstream.outbox import JetStreamOutbox
from bridge.outbox.jetstream.sights import Logged
from bridge.replicas.owning import Owner
from bridge.replicas.passing import Outgoing, Passing
from bridge.sources.plan import shard
from tests.alerting import START

T = TypeVar("T")

PARTS = tuple(f"eu1/{number}" for number in range(12))
OVERLAP = 10 * SECOND
PATIENCE = 15 * SECOND


class Turn:
    """What a call waits for; the test decides when, and whether, it comes."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __await__(self) -> Generator[Turn, None, None]:
        yield self


@dataclass
class Bucket:
    """Entries by key, each with the number of its last change."""

    entries: dict[str, Entry] = field(default_factory=dict)
    last: int = 0

    async def get(self, key: str, /) -> Entry | None:
        await Turn(f"get {key}")
        return self.entries.get(key)

    async def put(self, key: str, value: bytes, expect: int | None = None, /) -> int | None:
        await Turn(f"put {key}")
        known = self.entries.get(key)
        if expect is not None and expect != (known.revision if known else 0):
            return None
        self.last += 1
        self.entries[key] = Entry(key, value, self.last, "")
        return self.last

    async def forget(self, key: str, /, *, upto: int) -> None:
        await Turn(f"forget {key}")
        known = self.entries.get(key)
        if known and known.revision <= upto:
            del self.entries[key]

    async def newest(self, under: str, /) -> AsyncIterator[Entry]:
        await Turn(f"newest {under}")
        for entry in [each for each in self.entries.values() if fnmatchcase(each.key, f"{under}.*")]:
            yield entry

    def rows(self) -> dict[str, bytes]:
        return {key: each.value for key, each in self.entries.items() if ".row." in key and each.value}


@dataclass
class Logs:
    """One log a partition; numbers go through all of them, *now* in seconds after START."""

    messages: dict[int, list[Logged]] = field(default_factory=lambda: {n: [] for n in range(PARTITIONS)})
    ids: set[str] = field(default_factory=set)
    now: float = 0.0
    last: int = 0

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        for number, body, id in messages:
            if id not in self.ids:
                self.ids.add(id)
                self.last += 1
                self.messages[number].append(Logged(self.last, START + round(self.now * SECOND), body))


class Log:
    """One reading of a log."""

    def __init__(self, logs: Logs, number: int, page: int) -> None:
        self._messages = logs.messages[number]
        self._page = page
        self._after = 0

    async def open(self) -> None:
        self._after = 0

    async def read(self) -> Sequence[Logged]:
        await Turn("read")
        found = [each for each in self._messages if each.number > self._after][: self._page]
        self._after = found[-1].number if found else self._after
        return found

    async def forget(self, before: int) -> None:
        self._messages[:] = [each for each in self._messages if each.number >= before]

    async def close(self) -> None:
        pass


class Reader:
    """A replica that reads some *parts* of the source eu1."""

    def __init__(self, name: str, logs: Logs, alerts: AlertSet, parts: Iterable[str] = PARTS) -> None:
        self.parts = frozenset(parts)
        self.history: Sequence[tuple[int, Event]] = ()
        """What it has still to read back."""
        self.passing = Passing(name, f"{name}1", logs.publish, lambda: self.parts, lambda event: event)
        self.passing.configure(alerts)
        self._logs = logs

    def reads(self, entity: Entity) -> bool:
        return f"eu1/{shard(entity, len(PARTS))}" in self.parts

    def see(self, event: Event) -> None:
        self.passing.observe("eu1", self.passing.look(event), START + round(self._logs.now * SECOND))

    def beat(self, unsettled: Unsettled | None = None) -> None:
        """Two ticks make a beat."""
        now = START + round(self._logs.now * SECOND)
        for _ in range(2):
            self.passing.tick(now, unsettled or {}, self.parts)
        self.send()

    def send(self) -> None:
        done(self.passing.hand_over())


def done(call: Coroutine[Turn, None, T]) -> T:
    """What a call returns, whose turns all come at once."""
    try:
        while True:
            call.send(None)
    except StopIteration as end:
        found: T = end.value
        return found


async def one_by_one(calls: Iterable[Awaitable[bool]]) -> list[bool]:
    waiting = deque(calls)
    try:
        return [await waiting.popleft() for _ in range(len(waiting))]
    finally:
        for each in waiting:
            cast(Coroutine[Any, Any, bool], each).close()


@dataclass
class Stage:
    """One partition of *alerts*, what is stored of it, and what was announced, in its order."""

    alerts: AlertSet
    logs: Logs
    number: int
    bucket: Bucket = field(default_factory=Bucket)
    announced: list[str] = field(default_factory=list)
    store: Callable[..., Judged] = Judged
    page: int = 1
    """Messages an owner reads at a time."""
    seconds: float = 0.0
    """An owner's monotonic clock."""

    async def announce(self, notices: Sequence[Notification]) -> None:
        for each in notices:
            await Turn(f"announce {each.event.unique_id}")
            self.announced.append(each.event.unique_id)

    def owner(self, name: str) -> Owner:
        async def yes() -> bool:
            return True

        return Owner(
            self.number,
            self.store(self.bucket, self.number, name, one_by_one),
            Log(self.logs, self.number, self.page),
            judge=self._judge,
            owns=yes,
            announce=self.announce,
            pass_on=self._pass_on,
            now=lambda: self.seconds,
        )

    async def _pass_on(self, messages: Sequence[tuple[int, bytes, str]]) -> None:
        await Turn("pass on")
        await self.logs.publish([Outgoing(*each) for each in messages])

    def _judge(self, rows: Mapping[Row, bytes]) -> Judge:
        judge = Judge(self.number, PATIENCE, shard, ((*row, state) for row, state in rows.items()))
        judge.configure(self.alerts, OVERLAP, {"eu1": PARTS})
        return judge


class Process:
    """An owner that goes on a turn at a time, and begins anew after a failure, as `Owner.run` does."""

    def __init__(self, stage: Stage, name: str) -> None:
        self._stage = stage
        self._owner = stage.owner(name)
        self._calls = self._live()
        self.waits: Turn | None = next(self._calls)
        self.idle = 0
        """Looks in a row that found nothing."""

    def go(self) -> None:
        """What it waits for happens, and it goes on to the next such thing."""
        self.waits = next(self._calls)

    def _live(self) -> Generator[Turn, None, None]:
        while True:
            try:
                judge = yield from self._owner.begin().__await__()
                while True:
                    found = yield from self._owner.step(judge).__await__()
                    self.idle = 0 if found else self.idle + 1
            except OutboxError:
                self.idle = 0


Script = Sequence[tuple[float, Event | None]]
"""Events and when they come, in seconds after START, in that order; None for a beat of all readers."""


def fill(logs: Logs, readers: Sequence[Reader], script: Script) -> None:
    """What *readers* make of *script*; each event goes to the one that reads its entity."""
    for at, event in script:
        logs.now = at
        if event is None:
            for each in readers:
                each.beat()
        else:
            entity = entities(event)[0]
            reader = next(each for each in readers if each.reads(entity))
            reader.see(event)
            reader.send()


def alone(
    alerts: AlertSet,
    script: Script,
    number: int | None = None,
    rows: Iterable[tuple[str, str, str, bytes]] = (),
) -> list[str]:
    """What one engine for all tells of *script*, beginning with *rows*.

    *number*: only the notifications of one partition.
    """
    engine = Alerting()
    engine.load(rows)
    engine.configure(alerts, OVERLAP)
    told: list[str] = []
    for at, event in script:
        now = START + round(at * SECOND)
        if event is not None:
            engine.observe("eu1", engine.look(event), now)
            continue
        told += [
            notification(each).event.unique_id
            for each in engine.tick(now, {})
            if number is None or partition(each.alert, _member(each)) == number
        ]
    return told


def _member(notice: Notice) -> str:
    """One key of the notification's group."""
    group = notice.document["data"].get("group")
    key: str = group["members"][0]["key"] if group else notice.key
    return key


def owner_on(
    outbox: JetStreamOutbox,
    number: int,
    alerts: AlertSet,
    announce: Callable[[Sequence[Notification]], Awaitable[None]],
) -> Owner:
    """On a real server, of a partition that nobody else wants."""

    async def yes() -> bool:
        return True

    def judge(rows: Mapping[Row, bytes]) -> Judge:
        found = Judge(number, PATIENCE, shard, ((*row, state) for row, state in rows.items()))
        found.configure(alerts, OVERLAP, {"eu1": PARTS})
        return found

    return Owner(
        number,
        outbox.judged(number),
        outbox.sight_log(number),
        judge=judge,
        owns=yes,
        announce=announce,
        pass_on=outbox.publish_sights,
    )
