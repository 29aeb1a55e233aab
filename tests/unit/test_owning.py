"""One partition and its owners: killed at any moment, stopped beyond their leases, several at once.

The owners are the real ones, on a bucket and a log in memory; every call of theirs waits for its turn. So all
schedules of two owners with two changes between them are gone through, and nobody asks the lease: whatever it
says, the outcome is that of one engine for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

import pytest

from bridge.alerts.engine import Row
from bridge.alerts.partition import PARTITIONS, partition
from bridge.alerts.parts import SECOND
from bridge.outbox.jetstream.judged import Commit, Judged, Together, stored_rows
from tests.alerting import Life, alert_set, device, event, gateway
from tests.partitions import Bucket, Logs, Process, Reader, Script, Stage, alone, done, fill

ALERTS = alert_set("""
alerts:
  - name: down
    kind: state
    down: {name: gs.gateway.disconnect}
    up: {name: gs.gateway.connect}
    by: gateway
    send: [ops]
  - name: joins
    kind: threshold
    match: {name: ns.up.join.drop}
    by: application
    count: 3
    within: 100s
    send: [ops]
""")
HERE = partition(ALERTS.by_name["joins"], "plant-a")
GATEWAY = next(
    name for name in map("gw-{}".format, range(99)) if partition(ALERTS.by_name["down"], name) == HERE
)
SCRIPT: Script = [
    (1.0, event("gs.gateway.disconnect", 1.0, gateway(GATEWAY))),
    (1.1, event("ns.up.join.drop", 1.1, device("m1"))),
    (1.2, event("ns.up.join.drop", 1.2, device("m1"))),
    (13.0, None),
    (30.0, event("gs.gateway.connect", 30.0, gateway(GATEWAY))),
    (45.0, None),
    (50.0, event("gs.gateway.disconnect", 50.0, gateway(GATEWAY))),
    (70.0, None),
    (71.0, None),
    (250.0, event("ns.up.join.drop", 250.0, device("m1"))),
    (265.0, None),
    (266.0, None),
]
"""Down, up (of the group nothing is left then), down again; and never so many joins as it takes."""
EXPECTED = alone(ALERTS, SCRIPT)
LATER: Script = [
    (300.0, event("gs.gateway.connect", 300.0, gateway(GATEWAY))),
    (301.0, event("ns.up.join.drop", 301.0, device("m1"))),
    (302.0, event("ns.up.join.drop", 302.0, device("m1"))),
    (320.0, None),
]
FOLLOWS = alone(ALERTS, (*SCRIPT, *LATER))[len(EXPECTED) :]
"""It is up again, and there have been enough joins."""


def stage(store: Callable[..., Judged] = Judged, page: int = 3) -> Stage:
    logs = Logs()
    fill(logs, [Reader("a", logs, ALERTS)], SCRIPT)
    return Stage(ALERTS, logs, HERE, store=store, page=page)


def finish(found: Stage, *owners: Process) -> None:
    """All of them by turns until nothing comes any more, and then the first alone until all is stored."""
    for those in (owners, owners[:1], owners[:1]):
        found.seconds += 100.0
        for each in those:
            each.idle = 0
        for _ in range(50):
            for each in those:
                for _ in range(60):
                    if each.idle < 2:
                        each.go()


def follows(found: Stage) -> list[str]:
    """What an engine would tell later that begins with what is stored."""

    async def stored() -> list[tuple[str, str, str, bytes]]:
        return [(*names, state) async for names, state in stored_rows(found.bucket)]

    return alone(ALERTS, LATER, rows=done(stored()))


def once(announced: Sequence[str]) -> list[str]:
    """As a store has it that knows the ids."""
    return list(dict.fromkeys(announced))


def test_one_owner_tells_what_one_engine_tells() -> None:
    """Down, up and down again, each once; what is stored is a track each and the group that is down."""
    found = stage()
    finish(found, Process(found, "a"))
    assert len(EXPECTED) == 3
    assert found.announced == EXPECTED
    assert follows(found) == FOLLOWS
    assert Counter(key.split(".")[3] for key in found.bucket.rows()) == {"track": 2, "group": 1}


class Small(Judged):
    """A commit is larger than a message, and takes several."""

    def __init__(self, bucket: Bucket, number: int, me: str, at_once: Together) -> None:
        super().__init__(bucket, number, me, at_once, chunk=1000)


def turns(store: Callable[..., Judged] = Judged) -> int:
    """How many an owner takes that is alone."""
    found = stage(store)
    process, count = Process(found, "a"), 0
    while process.idle < 1:
        process.go()
        count += 1
    return count


@pytest.mark.parametrize("store", [Judged, Small])
def test_an_owner_killed_at_any_turn_is_followed_by_one_that_tells_the_same(store: type[Judged]) -> None:
    """Nothing is lost, in the same order, and what is stored means the same in the end."""
    for step in range(turns(store) + 1):
        found = stage(store)
        first = Process(found, "a")
        for _ in range(step):
            first.go()
        del first
        finish(found, Process(found, "b"))
        assert once(found.announced) == EXPECTED, step
        assert len(found.announced) <= len(EXPECTED) + 2, step
        assert follows(found) == FOLLOWS, step


def outcomes(store: Callable[..., Judged] = Judged) -> Iterator[tuple[list[str], list[str]]]:
    """What owners tell, and what would follow from what they leave, in every schedule.

    The first has some turns, then the second, then the first again: a few, and both are killed then and
    followed by a third; or all it needs, and both go on.
    """
    longest = turns() + 4
    for first, second, again in product(range(longest), range(longest), (1, 3, longest)):
        found = stage(store)
        a, b = Process(found, "a"), Process(found, "b")
        for owner, count in ((a, first), (b, second), (a, again)):
            for _ in range(count):
                owner.go()
        if again == longest:
            finish(found, a, b)
        else:
            del a, b
            finish(found, Process(found, "c"))
        yield once(found.announced), follows(found)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("store", [Judged, Small])
def test_two_owners_at_once_tell_what_one_tells_in_every_schedule(store: type[Judged]) -> None:
    """As if the lease were split all the time: nothing is lost, and nothing else is told."""
    found = list(outcomes(store))
    assert len(found) > 1400
    assert all(each == (EXPECTED, FOLLOWS) for each in found)


class Unfenced(Judged):
    """Planted: a commit is written whoever has the partition by now."""

    async def commit(self, commit: Commit) -> None:
        known = await self._bucket.get(f"{self._under}.commit")
        self._revision = known.revision if known else 0
        await super().commit(commit)


class Forgetful(Judged):
    """Planted: what was committed last is not done again, only how far it went is believed."""

    async def take(self) -> tuple[Commit, Mapping[Row, bytes]]:
        commit, rows = await super().take()
        return Commit(commit.through), rows


class Blunt(Judged):
    """Planted: a row is written whatever another owner has made of it."""

    async def _put(self, key: str, body: bytes, _before: int) -> int | None:
        return await self._bucket.put(key, body)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("bug", [Unfenced, Forgetful, Blunt])
def test_planted_bugs_are_seen(bug: type[Judged]) -> None:
    """In some of the schedules."""
    assert any(each != (EXPECTED, FOLLOWS) for each in outcomes(bug))


SILENT = """
alerts:
  - name: silent
    kind: absent
    match: {name: as.up.data.forward}
    by: device
    for: 1m
    send: [ops]
"""


def test_with_another_group_by_what_is_known_moves_to_the_new_owners() -> None:
    """Nobody is missed who sends, and who is silent is missed once; as with one engine that is reloaded."""
    first, then = alert_set(SILENT), alert_set(SILENT + "    group_by: [application]\n")
    uplinks = [event("as.up.data.forward", at, device(f"m{n}")) for at in (1.0, 40.0) for n in range(8)]
    life, logs = Life(first), Logs()
    reader = Reader("a", logs, first)
    stages = [Stage(first, logs, number) for number in range(PARTITIONS)]
    owners = [Process(each, "a") for each in stages]
    for second in range(1, 450):
        logs.now = second
        if second == 35:
            life.engine.configure(then, 10 * SECOND)
            reader.passing.configure(then)
            for each in stages:
                each.alerts = then
            owners = [Process(each, "b") for each in stages]
        for uplink in uplinks[:8] if second == 1 else uplinks[8:12] if second == 40 else ():
            life.see(uplink)
            reader.see(uplink)
        reader.beat()
        life.tick(second)
        for each, owner in zip(stages, owners, strict=True):
            each.seconds = second
            owner.idle = 0
            while owner.idle < 1:
                owner.go()
    told = [id for each in stages for id in each.announced]
    assert sorted(told) == sorted(notice.document["unique_id"] for _, notice in life.notices)
    assert len(told) == 2
    rows = {
        key.partition(".row.")[0] for each in stages for key in each.bucket.rows() if ".row.track." in key
    }
    assert rows == {f"judged.{partition(then.by_name['silent'], 'plant-a/m1')}"}
