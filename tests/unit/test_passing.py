"""What a reader sends to those that judge: once noted, in order, the same again after a failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from bridge.alerts.partition import PARTITIONS, Message, partition, unpacked
from bridge.errors import OutboxError
from bridge.event import Entity
from bridge.replicas.passing import NAMED, Outgoing, Passing
from tests.alerting import START, alert_set, event, gateway

pytestmark = pytest.mark.anyio

ALERTS = alert_set("""
alerts:
  - {name: down, kind: state, down: {name: gs.gateway.disconnect}, up: {name: gs.gateway.connect},
     by: gateway, send: [ops]}
  - {name: flaps, kind: threshold, match: {name: gs.gateway.disconnect}, by: gateway, count: 3, within: 1h,
     send: [ops]}
""")
GAP = {
    "entities": ["gateway:gw-1"],
    "count": 1,
    "from": "2026-11-23T21:20:00Z",
    "to": "2026-11-23T21:21:00Z",
}
PARTS = frozenset(f"eu1/{number}" for number in range(12))


@dataclass
class Sent:
    """What has arrived, by id; *fails*: so many times before anything does."""

    fails: int = 0
    tries: list[tuple[str, ...]] = field(default_factory=list)
    messages: dict[str, tuple[int, Message]] = field(default_factory=dict)

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        self.tries.append(tuple(each.id for each in messages))
        for number, body, id in messages[: len(messages) // 2 if self.fails else None]:
            self.messages.setdefault(id, (number, unpacked(body)))
        if self.fails:
            self.fails -= 1
            raise OutboxError("not connected")


def passing(sent: Sent, parts: frozenset[str] = PARTS) -> Passing:
    found = Passing("a", "boot", sent.publish, lambda: parts, lambda each: each)
    found.configure(ALERTS)
    return found


def beats(sent: Sent) -> list[Message]:
    return [message for _, message in sent.messages.values() if message.beat]


async def test_each_sight_goes_to_the_partition_of_its_alert_and_key() -> None:
    """One event to as many as judge it; what no alert looks at to none."""
    sent = Sent()
    reader = passing(sent)
    for name in ("gs.gateway.disconnect", "gs.up.receive"):
        found = event(name, 1.0, gateway("gw-1"), id=name)
        reader.observe("eu1", reader.look(found), START)
    await reader.hand_over()
    told = [
        (number, s.alert, s.key) for number, m in sent.messages.values() for i in m.items for s in i.sights
    ]
    assert sorted(told) == sorted(
        (partition(ALERTS.by_name[name], "gw-1"), name, "gw-1") for name in ("down", "flaps")
    )
    assert {item.id for _, message in sent.messages.values() for item in message.items} == {
        "gs.gateway.disconnect"
    }


async def test_every_second_tick_is_a_beat_for_all_after_what_came_before_it() -> None:
    """It claims what was read when the tick was made and is surely this replica's still."""
    sent = Sent()
    reader = passing(sent, frozenset(["eu1/0", "eu1/1"]))
    for second in range(2):
        found = event("gs.gateway.connect", second, gateway("gw-1"), id=f"u{second}")
        reader.observe("eu1", reader.look(found), START)
        reader.tick(START + second, {"eu1": frozenset({Entity("gateway", "gw-9")})}, {"eu1/1", "eu1/2"})
        await reader.hand_over()
    assert sorted(number for number, message in sent.messages.values() if message.beat) == list(
        range(PARTITIONS)
    )
    assert {(each.beat.clock, each.beat.parts) for each in beats(sent) if each.beat} == {
        (START + 1, ("eu1/1",))
    }
    (last,) = [each for each in beats(sent) if each.items]
    assert [item.id for item in last.items] == ["u1"]
    assert last.beat is not None
    assert last.beat.behind == {"eu1": (Entity("gateway", "gw-9"),)}


async def test_a_beat_names_only_so_many_that_are_behind() -> None:
    """Beyond that it says everybody: they wait, and nobody is told wrongly."""
    sent = Sent()
    reader = passing(sent)
    many = frozenset(Entity("gateway", f"gw-{number}") for number in range(NAMED + 1))
    for _ in range(2):
        reader.tick(START, {"eu1": many, "inbox": None}, PARTS)
    await reader.hand_over()
    assert all(each.beat and each.beat.behind == {"eu1": None, "inbox": None} for each in beats(sent))


async def test_after_a_failure_the_same_is_sent_again_before_anything_else() -> None:
    """Under the same ids, so that what had arrived is known."""
    sent = Sent(fails=2)
    reader = passing(sent)
    found = event("gs.gateway.disconnect", 1.0, gateway("gw-1"), id="u1")
    reader.observe("eu1", reader.look(found), START)
    for _ in range(2):
        with pytest.raises(OutboxError):
            await reader.hand_over()
    found = event("gs.gateway.connect", 2.0, gateway("gw-1"), id="u2")
    reader.observe("eu1", reader.look(found), START)
    await reader.hand_over()
    await reader.hand_over()
    await reader.hand_over()
    assert sent.tries[0] == sent.tries[1] == sent.tries[2]
    assert len(sent.tries) == 4
    ids = [item.id for _, message in sent.messages.values() for item in message.items]
    assert sorted(ids) == ["u1", "u1", "u2"]


async def test_a_gap_is_told_to_all_partitions_and_a_farewell_claims_nothing() -> None:
    """Whom it concerns may be judged anywhere. Without alerts nobody is told anything."""
    sent = Sent()
    reader = passing(sent)
    gap = event("bridge.source.gap", 60.0, gateway("gw-1"), GAP)
    reader.gap("eu1", gap)
    await reader.hand_over()
    assert sorted(number for number, message in sent.messages.values()) == list(range(PARTITIONS))
    assert all(item.missed for _, message in sent.messages.values() for item in message.items)
    await reader.leave()
    assert [each.beat.parts for each in beats(sent) if each.beat] == [()] * PARTITIONS
    reader.configure(alert_set("alerts: []"))
    quiet = len(sent.messages)
    reader.gap("eu1", gap)
    for _ in range(4):
        reader.tick(START, {}, PARTS)
    await reader.hand_over()
    assert len(sent.messages) == quiet
