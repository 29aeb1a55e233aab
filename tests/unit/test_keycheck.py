"""A key that goes bad is noticed although its streams flow on; on virtual time."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.event import Entity
from bridge.sources.keycheck import Rights, missed, shows
from bridge.sources.registry import needed
from tests.unit.following import APP, UP, Rig, rig, until
from tests.upstreams import TOKEN, happened

virtual = pytest.mark.usefixtures("virtual_time")

READ, INFO, WRITE = "RIGHT_APPLICATION_TRAFFIC_READ", "RIGHT_APPLICATION_INFO", "RIGHT_APPLICATION_DELETE"
PLANT_A = [{"application": "plant-a"}]

rights = st.frozensets(st.sampled_from([READ, INFO, WRITE, "RIGHT_GATEWAY_INFO", "RIGHT_APPLICATION_ALL"]))


def told(it: Rig) -> list[tuple[str, str]]:
    """The events about the key, each with its reason."""
    names = ("bridge.source.unready", "bridge.source.ready")
    return [
        (each.event.name, each.event.document()["data"].get("reason", ""))
        for each in it.store.arrivals
        if each.event.name in names
    ]


@pytest.mark.anyio
@virtual
async def test_a_revoked_key_is_noticed_within_one_recycle() -> None:
    """Unready, metric, one event; the stream goes on; and back again when the key is good again."""
    it = rig()
    async with it.following(PLANT_A, needed=needed([UP])):
        await until(lambda: it.source.status().connected)
        await anyio.sleep(10)
        key = it.world.keys.pop(TOKEN)
        await until(lambda: not it.source.status().ready, 240)
        assert "api_key_not_found" in it.source.status().error
        assert it.metric("bridge_source_refused") == 1
        flows = happened(it.world, UP, APP)
        await until(lambda: flows in it.store.ids)
        await anyio.sleep(600)
        assert told(it) == [("bridge.source.unready", "refused")]
        it.world.keys[TOKEN] = key
        await until(lambda: it.source.status().ready, 241)
        assert it.metric("bridge_source_refused") == 0
        await anyio.sleep(1)
        assert told(it) == [("bridge.source.unready", "refused"), ("bridge.source.ready", "")]


@pytest.mark.anyio
@virtual
async def test_a_key_that_lost_a_right_of_its_own_is_narrowed() -> None:
    """`auth_info` shows fewer rights: events would be absent, and nobody would say so."""
    it = rig()
    it.api.key_rights = frozenset({READ, INFO, WRITE})
    async with it.following(PLANT_A, needed=needed([UP])):
        await anyio.sleep(10)
        it.api.key_rights = frozenset({READ, INFO})
        await anyio.sleep(300)
        assert it.source.status().ready
        it.api.key_rights = frozenset({INFO})
        await until(lambda: not it.source.status().ready, 240)
        assert it.source.status().error == f"the key has lost rights: {READ}"
        await anyio.sleep(1)
        assert told(it) == [("bridge.source.unready", "narrowed")]


@pytest.mark.anyio
@virtual
async def test_a_collaborator_that_lost_an_application_is_noticed() -> None:
    """The key is as it was; what it may do with the application is not."""
    it = rig()
    it.api.granted[APP] = frozenset({READ, INFO})
    async with it.following(PLANT_A, needed=needed([UP])):
        await anyio.sleep(10)
        it.api.granted[APP] = frozenset({INFO})
        await until(lambda: not it.source.status().ready, 240)
        assert it.source.status().error == f"the key has lost rights on application plant-a: {READ}"
        it.api.granted[APP] = frozenset({READ, INFO})
        await until(lambda: it.source.status().ready, 480)


@pytest.mark.anyio
@virtual
async def test_a_server_that_does_not_answer_says_nothing_about_the_key() -> None:
    """Side calls that fail are no refusals."""
    it = rig()
    async with it.following(PLANT_A):
        await until(lambda: it.source.status().connected)
        it.upstream.down = True
        await anyio.sleep(600)
        assert it.source.status().ready
        assert told(it) == []


@pytest.mark.anyio
@virtual
async def test_the_rights_on_many_entities_are_asked_for_in_turns() -> None:
    """Twenty a check, every one of them sooner or later."""
    many = [Entity("gateway", f"gw-{number:02}") for number in range(50)]
    it = rig(*many)
    async with it.following([{"gateway": each.id} for each in many]):
        await anyio.sleep(2.5 * 240)
        asked = [each for each in it.api.asked if each.startswith("rights")]
        assert set(asked) == {f"rights {each}" for each in many}
        assert len(asked) == 60


def test_a_right_is_missed_if_an_event_that_was_seen_is_seen_no_more() -> None:
    """Any one right shows an event; a right no rule needs is none."""
    wanted = [frozenset({READ, INFO})]
    assert missed(frozenset({READ, INFO, WRITE}), frozenset({INFO}), wanted) == frozenset()
    assert missed(frozenset({READ, WRITE}), frozenset({WRITE}), wanted) == {READ}
    assert missed(frozenset({READ, WRITE}), frozenset({READ}), None) == {WRITE}
    assert missed(frozenset(), frozenset(), wanted) == frozenset()


def test_rights_that_contain_others_count_for_them() -> None:
    """`RIGHT_ALL` and `RIGHT_APPLICATION_ALL` are written as such on a key."""
    assert shows({"RIGHT_ALL"}, {READ})
    assert shows({"RIGHT_APPLICATION_ALL"}, {READ})
    assert not shows({"RIGHT_GATEWAY_ALL"}, {READ})


@given(st.lists(rights, min_size=1))
def test_rights_that_only_grow_are_never_missed(seen: list[frozenset[str]]) -> None:
    """And whoever has back what there was misses nothing."""
    found = Rights()
    every = frozenset().union(*seen)
    for each in seen:
        found.note(None, each)
    found.note(None, every)
    assert found.told() == ""


def test_what_names_need() -> None:
    """The rights of the events an expression finds."""
    assert needed(["as.up.data.forward"]) == [frozenset({READ})]
    assert frozenset({"RIGHT_GATEWAY_INFO"}) in needed([])
    assert needed(["as.up.newer"]) == []
