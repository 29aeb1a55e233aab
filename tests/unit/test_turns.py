"""Whose history is read next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.event import Entity
from bridge.sources.followed import Followed
from bridge.sources.plan import mixes_levels
from bridge.sources.turns import FULL_SOON, Turns

RECYCLE = 240.0
APPS = [Entity("application", f"plant-{each}") for each in "ab"]
DEVICES = [Entity("device", f"plant-{app}/meter-{number}") for app in "ab" for number in range(4)]
GATEWAYS = [Entity("gateway", f"gw-{number}") for number in range(8)]


def followed(*entities: Entity) -> list[Followed]:
    """Carried by a live stream, and read just now."""
    found = [Followed.of(each, None) for each in entities]
    for each in found:
        each.streams, each.cursor_ns, each.turn_at = 1, 1, RECYCLE
    return found


def turns(found: list[Followed]) -> Turns:
    made = Turns(RECYCLE)
    for each in found:
        made.add(each)
    return made


@given(
    st.lists(st.sampled_from([*APPS, *DEVICES, *GATEWAYS]), unique=True, min_size=1),
    st.integers(1, 5),
    st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 1.0, RECYCLE])), min_size=40, max_size=40),
)
def test_everybody_is_read_within_a_recycle_and_never_twice_at_once(
    entities: list[Entity], size: int, steps: list[tuple[bool, float]]
) -> None:
    """Streams hold no more than their size, and no application beside its own device."""
    queue = turns(followed(*entities))
    reading: list[list[Followed]] = []
    seen: set[Entity] = set()
    now = RECYCLE
    for has_ended, passes in steps:
        now += passes
        batch = queue.next(size, now)
        now_reading = [each.entity for other in reading for each in other]
        assert len(batch) <= size
        assert not {each.entity for each in batch} & set(now_reading)
        assert not mixes_levels(each.entity for each in batch)
        seen |= {each.entity for each in batch}
        if batch:
            reading.append(batch)
        if has_ended and reading:
            queue.release(reading.pop(0))
    assert seen == set(entities)


def test_what_a_break_may_have_lost_comes_before_all_else() -> None:
    """Then who fills up, busiest first, then whose turn it is."""
    found = followed(*GATEWAYS[:4])
    turn, lost, busy, busier = found
    queue = turns(found)
    turn.turn_at = 0.0
    queue.put_off(lost, 10.0)
    busy.events, busier.events = FULL_SOON, FULL_SOON + 10
    assert queue.is_full_soon(busy)
    assert queue.is_full_soon(busier)
    queue.resume([lost])
    assert [queue.next(1, 1.0)[0] for _ in range(4)] == [lost, busier, busy, turn]


def test_nobody_is_read_whom_no_live_stream_carries() -> None:
    """The server is not there for them; they are resumed when it is."""
    [each] = found = followed(GATEWAYS[0])
    queue = turns(found)
    each.streams = 0
    queue.resume(found)
    assert queue.next(5, RECYCLE) == []
    each.streams = 1
    assert queue.next(5, RECYCLE) == [each]


def test_who_is_removed_is_in_no_queue() -> None:
    """Whichever it was in."""
    found = followed(*GATEWAYS[:2])
    queue = turns(found)
    queue.resume(found[:1])
    queue.again(found[1])
    for each in found:
        queue.remove(each)
    assert queue.next(5, RECYCLE) == []
    assert queue.next_turn() is None
