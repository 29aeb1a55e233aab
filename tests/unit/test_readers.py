"""How far several readers are together, and for whom alerts have to wait; by what the log says alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from bridge.alerts.groups import Group, Member
from bridge.alerts.judging import slim
from bridge.alerts.partition import PARTITIONS, Beat, Item, Recent, Seen, packed, partition, unpacked
from bridge.alerts.parts import SECOND, Observation
from bridge.alerts.readers import Readers
from bridge.alerts.settling import Unsettled, is_behind
from bridge.event import Entity
from bridge.sources.plan import shard
from tests.alerting import alert_set

PARTS = tuple(f"eu1/{number}" for number in range(12))
SOURCES: Mapping[str, Sequence[str]] = {"eu1": PARTS, "lab": ["lab"]}
GATEWAY = Entity("gateway", "gw-1")
ITS_PART = PARTS[shard(GATEWAY, 12)]
ELSEWHERE = next(
    each for n in range(99) if shard(each := Entity("gateway", f"g{n}"), 12) != shard(GATEWAY, 12)
)
OTHERS = tuple(each for each in PARTS if each != ITS_PART)
ALERTS = alert_set("""
alerts:
  - {name: each, kind: absent, match: {name: as.up.data.forward}, by: device, for: 1m, send: [ops]}
  - {name: grouped, kind: absent, match: {name: as.up.data.forward}, by: device, for: 1m,
     group_by: [application], send: [ops]}
""")


def readers(**beats: tuple[float, float, Sequence[str], Mapping[str, Sequence[Entity] | None]]) -> Readers:
    """By name: when the beat was stored and its clock, in seconds, the parts, and who is behind."""
    found = Readers(15 * SECOND, shard)
    for name, (at, clock, parts, behind) in sorted(beats.items(), key=lambda each: each[1][0]):
        told = {source: None if who is None else tuple(who) for source, who in behind.items()}
        found.hear(name, int(at * SECOND), Beat(int(clock * SECOND), tuple(parts), told))
    return found


def waits(unsettled: Unsettled, entity: Entity = GATEWAY, source: str = "eu1") -> bool:
    return source in unsettled and is_behind(entity.kind, entity.id, unsettled[source])


def test_the_slowest_of_the_readers_is_the_clock() -> None:
    """One that reads nothing counts for nothing."""
    assert readers().clock() is None
    assert readers(a=(9, 8, PARTS, {})).clock() == 8 * SECOND
    assert readers(a=(9, 8, PARTS[:6], {}), b=(9, 7, PARTS[6:], {}), c=(9, 1, (), {})).clock() == 7 * SECOND


def test_who_belongs_to_a_part_that_nobody_reads_has_to_wait() -> None:
    """And what is about no entity waits until all of the source is read."""
    assert waits(readers().unsettled(SOURCES))
    found = readers(a=(9, 9, (*OTHERS, "lab"), {})).unsettled(SOURCES)
    assert waits(found)
    assert not waits(found, ELSEWHERE)
    assert is_behind("join_eui", "70B3D57ED0000000", found["eu1"])
    assert not waits(found, source="lab")
    assert readers(a=(9, 9, (*PARTS, "lab"), {})).unsettled(SOURCES) == {}


def test_a_reader_that_is_silent_for_too_long_is_gone_with_its_parts_and_its_clock() -> None:
    """By the time of the log: some other reader has to say something for that."""
    found = readers(a=(10, 10, [ITS_PART], {}), b=(25, 25, OTHERS, {}))
    assert found.clock() == 10 * SECOND
    assert not waits(found.unsettled(SOURCES))
    found.hear("b", 25 * SECOND + 1, None)
    assert found.clock() == 25 * SECOND
    assert waits(found.unsettled(SOURCES))


def test_a_reader_that_leaves_says_so() -> None:
    """Nobody waits for its clock, but for somebody to read its parts."""
    found = readers(a=(10, 10, [ITS_PART], {}), b=(10, 11, OTHERS, {}))
    found.hear("a", 11 * SECOND, Beat(10 * SECOND))
    assert found.clock() == 11 * SECOND
    assert waits(found.unsettled(SOURCES))


def test_who_is_behind_with_its_reader_waits() -> None:
    """Or everybody of what this reader reads; the others do not."""
    assert waits(readers(a=(9, 9, PARTS, {"eu1": [GATEWAY]})).unsettled(SOURCES))
    assert not waits(readers(a=(9, 9, PARTS, {"eu1": [Entity("gateway", "gw-2")]})).unsettled(SOURCES))
    found = readers(a=(9, 9, [ITS_PART], {}), b=(9, 9, OTHERS, {"eu1": None})).unsettled(SOURCES)
    assert not waits(found)
    assert all(waits(found, each) for each in [Entity("gateway", f"g{n}") for n in range(50)]
               if PARTS[shard(each, 12)] != ITS_PART)  # fmt: skip


def test_of_two_that_read_the_same_one_that_is_there_is_enough() -> None:
    """Two streams an identifier on two replicas: a takeover without a gap."""
    assert not waits(readers(a=(9, 9, PARTS, {"eu1": [GATEWAY]}), b=(9, 9, PARTS, {})).unsettled(SOURCES))
    assert not waits(readers(a=(9, 9, PARTS, {"eu1": None}), b=(9, 9, PARTS, {})).unsettled(SOURCES))
    both = {"eu1": [GATEWAY]}
    assert waits(readers(a=(9, 9, PARTS, both), b=(9, 9, PARTS, both)).unsettled(SOURCES))


devices = st.from_regex(r"[a-c]/[a-z0-9]{1,3}", fullmatch=True)


@given(first=devices, second=devices)
def test_a_notification_group_has_one_owner(first: str, second: str) -> None:
    """Without groups, each key by itself."""
    grouped, each = ALERTS.by_name["grouped"], ALERTS.by_name["each"]
    assert 0 <= partition(each, first) < PARTITIONS
    if first.partition("/")[0] == second.partition("/")[0]:
        assert partition(grouped, first) == partition(grouped, second)


def test_partitions_are_about_as_large() -> None:
    """And the same on every replica, whatever Python's hashes are."""
    sizes = [0] * PARTITIONS
    for number in range(12_000):
        sizes[partition(ALERTS.by_name["each"], f"plant/m{number}")] += 1
    assert min(sizes) > 900
    assert max(sizes) < 1100
    assert partition(ALERTS.by_name["each"], "plant-a/m1") == 6


def item(number: int, size: int) -> Item:
    return Item("eu1", f"u{number}", number, (Seen("each", "a/b", Observation(number, "x" * size)),))


items = st.lists(st.builds(item, st.integers(0, 99), st.integers(0, 300)), max_size=30)


@given(items=items, beat=st.none() | st.just(Beat(5, ("eu1/0",), {"eu1": (GATEWAY,), "lab": None})))
def test_what_is_packed_comes_out_in_order_and_the_beat_last(items: list[Item], beat: Beat | None) -> None:
    """In messages that are not too large, unless one item alone is."""
    bodies = packed("a", items, beat, largest=500)
    found = [unpacked(each) for each in bodies]
    assert [item for each in found for item in each.items] == items
    assert [each.beat for each in found if each.beat] == ([beat] if beat else [])
    assert all(each.beat is None for each in found[:-1])
    assert all(len(body) < 700 or len(each.items) < 2 for body, each in zip(bodies, found, strict=True))
    assert bool(bodies) == bool(items or beat)


def test_an_item_that_is_too_large_goes_without_the_data_of_its_event() -> None:
    """Each alert's by itself, under an id of its own; what is too large even so is left out."""
    large = Observation(1, "u1", data=msgspec.Raw(b'"%s"' % (b"x" * 5000)))
    sights = (Seen("each", "a/b", large), Seen("grouped", "a/b", large), Seen("each", "k" * 5000, large))
    both = [item(0, 5), Item("eu1", "u1", 1, sights)]
    found = [unpacked(each) for each in packed("a", both, None, largest=500)]
    items = [item for each in found for item in each.items]
    assert [each.id for each in items] == ["u0", "u1/0", "u1/1"]
    assert [bytes(each.sights[0].what.data) for each in items[1:]] == [b"null", b"null"]
    assert [each.sights[0].alert for each in items[1:]] == ["each", "grouped"]


def test_the_row_of_a_huge_group_is_kept_without_its_events() -> None:
    """Who is in it and who was told stays; a usual one is kept as it is."""
    member = Member(5, told=True, causes=[msgspec.Raw(b'"%s"' % (b"x" * 1000))])
    small, huge = (Group(5, {str(n): member for n in range(count)}, number=2) for count in (3, 1000))
    kept = msgspec.json.decode(slim(msgspec.json.encode(huge)), type=Group)
    assert slim(msgspec.json.encode(small)) == msgspec.json.encode(small)
    assert kept.number == 2
    assert kept.members == {str(n): Member(5, told=True) for n in range(1000)}


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from("abc"))))
def test_an_id_is_known_for_as_long_as_it_is_kept(found: list[tuple[int, str]]) -> None:
    """From the first time it came, as a dictionary of times says."""
    recent, first = Recent(10), dict[str, int]()
    for at, id in sorted(found):
        is_new = id not in first or first[id] < at - 10
        assert recent.is_new(id, at) == is_new
        if is_new:
            first[id] = at
