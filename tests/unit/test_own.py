"""Events of bridge itself look like any other."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.decode import is_sparse
from bridge.event import Entity, entities
from bridge.own import own_event

NS = 1_795_468_146_123_456_789


def test_an_own_event_has_the_shape_of_a_real_one() -> None:
    """Name, time, identifiers, data and a ULID of its time; not sparse, for bridge is its origin."""
    found = [Entity("device", "plant-a/meter-01"), Entity("gateway", "gw-roof")]
    made = own_event(
        "bridge.source.gap", ns=NS, rng=random.Random(1), entities=found, data={"source": "eu1", "count": 2}
    )
    assert made.name == "bridge.source.gap"
    assert made.time_ns == NS
    assert entities(made) == tuple(found)
    assert made.document()["data"] == {"source": "eu1", "count": 2}
    assert len(made.unique_id) == 26
    assert made.document()["unique_id"] == made.unique_id
    assert not is_sparse(made)


def test_two_events_of_one_moment_have_different_ids() -> None:
    """Their millisecond is the same, their randomness is not; the same seed makes the same id."""
    rng = random.Random(1)
    first, second = (own_event("bridge.x", ns=NS, rng=rng) for _ in range(2))
    assert first.unique_id != second.unique_id
    assert first.unique_id[:10] == second.unique_id[:10]
    assert own_event("bridge.x", ns=NS, rng=random.Random(1)).unique_id == first.unique_id


def test_only_own_names_are_made() -> None:
    """A name of The Things Stack would be a forgery."""
    with pytest.raises(ValueError, match="own events"):
        own_event("as.up.data.forward", ns=NS, rng=random.Random(1))


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.text(), st.lists)))
def test_data_survive_as_json_values(data: dict[str, object]) -> None:
    """Whatever they are."""
    assert own_event("bridge.x", ns=NS, rng=random.Random(1), data=data).document()["data"] == data
