"""The network behind the stand-in: who sees what, and what happens to keys, entities and notifications."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.event import Entity, Identifiers
from bridge.standin import ALL, Key, World
from bridge.standin.history import identifiers_json, redacted
from bridge.standin.request import StreamRequest, expand
from bridge.standin.rights import EVERYTHING, OF_KIND, as_key, implied
from bridge.standin.subscription import Subscription
from bridge.standin.world import RIGHTS_TTL
from tests.recordings import documents

pytestmark = pytest.mark.anyio

TOKEN = "NNSXS.KEY.SECRET"
PLANT_A = Entity("application", "plant-a")
METER = Entity("device", "plant-a/meter-01")
ROOF = Entity("gateway", "gw-roof")
JANE = Entity("user", "jane")
TRAFFIC, INFO = "RIGHT_APPLICATION_TRAFFIC_READ", "RIGHT_APPLICATION_INFO"


def event(
    name: str = "as.up.data.forward", entity: Entity = METER, rights: tuple[str, ...] = (TRAFFIC,)
) -> bytes:
    whole: dict[str, Any] = {
        "name": name,
        "time": "2026-11-23T21:09:10.5Z",
        "identifiers": [identifiers_json(entity)],
    }
    whole |= {"visibility": {"rights": rights}} if rights else {}
    return msgspec.json.encode(whole | {"unique_id": "01M853Q23ZE14NE1EN25S8HE1X"})


@contextmanager
def following(
    world: World, *entities: Entity, token: str | None = TOKEN, names: tuple[str, ...] = ()
) -> Iterator[Subscription]:
    identifiers = msgspec.convert([identifiers_json(each) for each in entities], tuple[Identifiers, ...])
    request = StreamRequest(identifiers, 1024, world.now, expand(names, world.names))
    subscription = world.subscribe(request, token)
    try:
        yield subscription
    finally:
        world.unsubscribe(subscription)


def arrived(subscription: Subscription) -> list[dict[str, Any]]:
    found = []
    while True:
        try:
            found.append(msgspec.json.decode(subscription.receive.receive_nowait()))
        except (anyio.WouldBlock, anyio.EndOfStream):
            return found


async def test_an_event_is_seen_with_one_of_its_rights_and_takes_a_slot_without() -> None:
    """Visibility is looked at after the channel; an event that names no rights is for everybody."""
    world = World({TOKEN: Key.of(PLANT_A, INFO)})
    with following(world, PLANT_A) as stream:
        await world.replay(stream)
        world.publish(event())
        world.publish(event(rights=(TRAFFIC, INFO)))
        world.publish(event(rights=()))
        assert stream.receive.statistics().current_buffer_used == 3
        assert len(arrived(stream)) == 2


async def test_all_of_a_kind_implies_each_of_that_kind() -> None:
    world = World({TOKEN: Key.of(PLANT_A, "RIGHT_APPLICATION_ALL")})
    with following(world, PLANT_A) as stream:
        await world.replay(stream)
        world.publish(event())
        assert len(arrived(stream)) == 1


async def test_an_all_in_one_server_goes_on_sending_to_a_key_that_is_gone() -> None:
    """And to one that was narrowed: rights are looked up once a stream (UPSTREAM.md §2.6)."""
    clock = [1_000_000.0]
    world = World(
        {TOKEN: frozenset({PLANT_A}), "NNSXS.OTHER.S": frozenset({PLANT_A})}, clock=lambda: clock[0]
    )
    with following(world, PLANT_A) as stream, following(world, PLANT_A, token="NNSXS.OTHER.S") as other:
        await world.replay(stream)
        await world.replay(other)
        world.revoke(TOKEN)
        world.narrow("NNSXS.OTHER.S", rights=[INFO])
        clock[0] += 3600
        world.publish(event())
        assert [len(arrived(each)) for each in (stream, other)] == [1, 1]


async def test_a_split_deployment_ends_the_stream_of_a_key_that_is_gone_after_two_minutes() -> None:
    """With the next event, and not before; a narrowed key sees less, and no error."""
    clock = [1_000_000.0]
    keys = {TOKEN: frozenset({PLANT_A}), "NNSXS.OTHER.S": frozenset({PLANT_A})}
    world = World(keys, clock=lambda: clock[0], split=True)
    with following(world, PLANT_A) as stream, following(world, PLANT_A, token="NNSXS.OTHER.S") as other:
        await world.replay(stream)
        await world.replay(other)
        world.revoke(TOKEN)
        world.narrow("NNSXS.OTHER.S", rights=[INFO])
        clock[0] += RIGHTS_TTL / 1e9 - 1
        world.publish(event())
        assert [len(arrived(each)) for each in (stream, other)] == [1, 1]
        clock[0] += 2
        world.publish(event())
        assert [len(arrived(each)) for each in (stream, other)] == [0, 0]
        assert stream.problem is not None
        assert stream.problem.name == "api_key_not_found"
        assert other.problem is None
        with pytest.raises(anyio.EndOfStream):
            await stream.receive.receive()


async def test_what_is_created_and_deleted_is_told_by_events() -> None:
    """A device's to its application as well; what was deleted does not come back by a late event."""
    world = World({TOKEN: ALL}, entities=[PLANT_A, ROOF])
    with following(world, PLANT_A, ROOF) as stream:
        await world.replay(stream)
        world.create(METER, dev_eui="70B3D57ED0000001", name="Meter")
        world.delete(METER)
        world.publish(event())
        world.delete(ROOF)
        told = arrived(stream)
    assert [each["name"] for each in told] == [
        "end_device.create",
        "end_device.delete",
        "as.up.data.forward",
        "gateway.delete",
    ]
    assert told[1]["identifiers"][0]["device_ids"]["dev_eui"] == "70B3D57ED0000001"
    assert told[0]["visibility"] == {"rights": ["RIGHT_APPLICATION_DEVICES_READ"]}
    assert METER not in world.registry
    with pytest.raises(Exception, match="gateway_not_found"):
        world.require_any(TOKEN, [ROOF])


def test_a_deleted_entity_looks_like_one_without_rights_to_all_but_admins() -> None:
    world = World({TOKEN: frozenset({PLANT_A, ROOF})})
    world.require_any(TOKEN, [PLANT_A, ROOF])
    world.delete(ROOF)
    with pytest.raises(Exception, match="no_gateway_rights"):
        world.require_any(TOKEN, [PLANT_A, ROOF])


async def test_a_notification_is_told_to_its_receiver_and_requests_to_admins_are_not() -> None:
    """As in identities.sse: the event carries the notification."""
    world = World({TOKEN: ALL}, entities=[JANE])
    with following(world, JANE) as stream:
        await world.replay(stream)
        id = world.notify("jane", "api_key_created", about=PLANT_A, data={"@type": "x", "name": "k"})
        world.notify("jane", "user_requested")
        told = arrived(stream)
    recorded = next(
        each for each in documents("identities.sse") if each["name"] == "user.notification.create"
    )
    assert [each["data"]["id"] for each in told] == [id]
    assert set(told[0]["data"]) == set(recorded["data"]) - {"sender_ids"}
    assert told[0]["visibility"] == recorded["visibility"]
    assert len(id) == 36


async def test_managed_gateways_have_no_history_and_other_ids_in_every_stream() -> None:
    world = World({TOKEN: ALL}, entities=[ROOF])
    name = next(each for each in world.names if each.startswith("gcs.managed."))
    managed = event(name, ROOF, rights=())
    with following(world, ROOF, names=(name,)) as first, following(world, ROOF, names=(name,)) as second:
        for each in (first, second):
            await world.replay(each)
        world.publish(managed)
        ids = [arrived(each)[0]["unique_id"] for each in (first, second)]
    assert len({*ids, "01M853Q23ZE14NE1EN25S8HE1X"}) == 3
    assert not world.history.lists


def test_related_events_are_redacted_for_those_who_may_not_see_them() -> None:
    """Only name, time, identifiers, origin, visibility and id are left."""
    world = World({TOKEN: Key.of(ROOF), "all": ALL})
    body = next(documents("devices.sse"))
    world.publish(msgspec.json.encode(body))
    id = body["correlation_ids"][0]
    assert msgspec.json.decode(world.related(id, "all")[0]) == body
    left = msgspec.json.decode(world.related(id, TOKEN)[0])
    assert set(left) <= {"name", "time", "identifiers", "origin", "visibility", "unique_id"}
    assert left["unique_id"] == body["unique_id"]
    assert msgspec.json.decode(redacted(msgspec.json.encode(left))) == left


@given(st.sets(st.sampled_from(sorted(EVERYTHING))), st.sampled_from([PLANT_A, METER, ROOF, JANE]))
def test_a_key_never_has_more_than_itself_and_its_collaborator(rights: set[str], entity: Entity) -> None:
    """Nor anything on what its owner is no collaborator of; narrowing never adds."""
    key = Key(
        Entity("user", "joe"), frozenset(rights), on={PLANT_A: OF_KIND["application"], ROOF: frozenset()}
    )
    found = key.rights_on(entity)
    assert found <= implied(rights)
    assert not found or entity in (PLANT_A, METER)
    assert key.narrowed([INFO], [ROOF]).rights_on(entity) <= found


def test_short_forms_of_keys_stand_for_what_they_say() -> None:
    assert as_key(ALL).admin
    assert as_key(frozenset({PLANT_A})).owner == PLANT_A
    mixed = as_key(frozenset({PLANT_A, ROOF}))
    assert mixed.owner.kind == "user"
    assert mixed.rights_on(ROOF) == OF_KIND["gateway"]
    assert as_key(frozenset({METER})).rights_on(METER)
    assert not as_key(frozenset({METER})).rights_on(Entity("device", "plant-a/meter-02"))
    assert not as_key(frozenset()).rights_on(PLANT_A)
