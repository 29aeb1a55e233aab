"""Everything the key can see is followed, whoever comes and goes; on virtual time."""

from __future__ import annotations

import anyio
import pytest

from bridge.decode import event
from bridge.errors import SourceError
from bridge.event import Entity
from bridge.own import identifier
from bridge.sources.discovery import NOTHING, Change, Scope, applications, change, discover
from bridge.sources.models import IdentifierConfig, TtsSourceConfig
from tests.recordings import json_bytes
from tests.unit.following import UP, Rig, rig, until
from tests.upstreams import happened

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]

APPS = [Entity("application", f"plant-{each}") for each in "abc"]
DEVICES = [Entity("device", f"plant-{app}/meter-{number}") for app in "abc" for number in range(4)]
GATEWAYS = [Entity("gateway", f"gw-{number}") for number in range(3)]
EVERYTHING = Scope(kinds=frozenset({"application", "gateway"}), devices_of=frozenset({"*"}))


def tenant(*more: Entity) -> Rig:
    it = rig(*APPS, *DEVICES, *GATEWAYS, *more)
    it.api.listed_entities = {*APPS, *DEVICES, *GATEWAYS, *more}
    return it


ALL_OF_IT = [{"application": "*", "devices": "*"}, {"gateway": "*"}]


def says(name: str, *found: Entity) -> bytes:
    return json_bytes({"name": name, "identifiers": [identifier(each) for each in found]})


async def test_all_pages_are_read() -> None:
    """2,500 gateways are three pages; nobody is followed twice."""
    many = [Entity("gateway", f"gw-{number:04}") for number in range(2_500)]
    it = rig(*many)
    it.api.listed_entities = set(many)
    async with it.following([{"gateway": "*"}]):
        await until(lambda: it.upstream.carrying() == set(many))
        assert it.api.asked.count("gateway  3") == 1
        assert it.source.status().entities == 2_500


async def test_applications_gateways_and_devices_are_followed() -> None:
    """`application: "*"` with `devices: "*"`, and `gateway: "*"`."""
    it = tenant()
    async with it.following(ALL_OF_IT, names=[UP]):
        await until(lambda: it.upstream.carrying() == {*APPS, *DEVICES, *GATEWAYS})
        names = set(it.upstream.openings[-1].names)
        assert {UP, "end_device.create", "end_device.delete", "gateway.delete", "application.delete"} <= names


async def test_devices_of_one_application_only() -> None:
    """The application itself and its devices, nobody else's."""
    it = tenant()
    async with it.following([{"application": "plant-b", "devices": "*"}]):
        mine = {APPS[1], *(each for each in DEVICES if each.id.startswith("plant-b/"))}
        await until(lambda: it.upstream.carrying() == mine)


async def test_the_key_of_an_application_follows_its_own() -> None:
    """Its lists are empty; whose key it is stands in `auth_info`."""
    it = tenant()
    it.api.listed_entities = {each for each in DEVICES if each.id.startswith("plant-a/")}
    it.api.key_owner = APPS[0]
    async with it.following([{"application": "*", "devices": "*"}, {"gateway": "*"}]):
        await until(lambda: it.upstream.carrying() == {APPS[0], *it.api.listed_entities})


async def test_a_created_device_is_followed_from_its_creation_on() -> None:
    """On a stream of its own, with what it sent before that opened; nobody else's stream is touched."""
    it = tenant()
    async with it.following(ALL_OF_IT):
        await until(lambda: it.upstream.carrying() == {*APPS, *DEVICES, *GATEWAYS})
        await anyio.sleep(20)
        streams = set(it.upstream.streams)
        new = Entity("device", "plant-a/meter-9")
        it.api.listed_entities.add(new)
        happened(it.world, "end_device.create", new)
        first = happened(it.world, "ns.up.data.drop", new)
        await until(lambda: new in it.upstream.carrying(), 10)
        await until(lambda: first in it.store.ids, 10)
        assert streams <= it.upstream.streams
        assert it.store.cursors["device:plant-a/meter-9"] > 0
    assert it.store.gaps() == []


async def test_a_deleted_device_is_left_out_at_the_next_renewal() -> None:
    """No stream is closed for it, and its history is not asked for any more."""
    it = tenant()
    async with it.following(ALL_OF_IT):
        await until(lambda: it.upstream.carrying() == {*APPS, *DEVICES, *GATEWAYS})
        await anyio.sleep(20)
        streams = set(it.upstream.streams)
        it.api.listed_entities.discard(DEVICES[0])
        happened(it.world, "end_device.delete", DEVICES[0])
        await anyio.sleep(1)
        assert it.source.status().entities == 17
        assert streams <= it.upstream.streams
        await anyio.sleep(300)
        assert DEVICES[0] not in it.upstream.carrying()


async def test_a_batch_that_was_deleted_is_noticed_by_listing_again() -> None:
    """The event names the application only."""
    it = tenant()
    async with it.following(ALL_OF_IT):
        await until(lambda: it.upstream.carrying() == {*APPS, *DEVICES, *GATEWAYS})
        it.api.listed_entities -= set(DEVICES[:3])
        happened(it.world, "end_device.batch.delete", APPS[0])
        await until(lambda: it.source.status().entities == 15, 10)


async def test_a_created_gateway_is_found_by_the_next_listing_and_has_lost_nothing() -> None:
    """No stream can tell of it: its first events come out of history."""
    it = tenant()
    async with it.following(ALL_OF_IT):
        await until(lambda: it.upstream.carrying() == {*APPS, *DEVICES, *GATEWAYS})
        await anyio.sleep(60)
        new = Entity("gateway", "gw-new")
        it.api.listed_entities.add(new)
        first = happened(it.world, "gs.gateway.connect", new)
        await until(lambda: first in it.store.ids, 300)
    assert it.store.gaps() == []


async def test_a_list_that_fails_takes_nobody_away() -> None:
    """What was known stays, the reason is shown, and it is tried again soon."""
    it = tenant()
    async with it.following(ALL_OF_IT):
        await until(lambda: it.upstream.carrying() == {*APPS, *DEVICES, *GATEWAYS})
        it.api.failing = SourceError("HTTP 503")
        await anyio.sleep(300)
        assert it.source.status().entities == 18
        assert any("cannot list gateways: HTTP 503" in each for each in it.source.status().warnings)
        it.api.failing = None
        await until(lambda: not it.source.status().warnings, 70)


async def test_lists_that_fail_at_the_start_keep_no_named_entity_from_being_followed() -> None:
    """DESIGN: side calls that fail never keep a stream from opening."""
    it = tenant()
    it.api.failing = SourceError("HTTP 503")
    async with it.following([{"application": "plant-a"}, {"gateway": "*"}]):
        await until(lambda: it.upstream.carrying() == {APPS[0]})
        it.api.failing = None
        await until(lambda: it.upstream.carrying() == {APPS[0], *GATEWAYS}, 70)


async def test_a_tenant_that_grows_one_by_one_does_not_keep_a_stream_for_each() -> None:
    """Small streams are put together again, make before break."""
    it = tenant()
    async with it.following(ALL_OF_IT):
        await until(lambda: it.upstream.carrying() == {*APPS, *DEVICES, *GATEWAYS})
        for number in range(40):
            new = Entity("device", f"plant-a/new-{number:02}")
            it.api.listed_entities.add(new)
            happened(it.world, "end_device.create", new)
            await anyio.sleep(5)
        await anyio.sleep(300)
        assert it.source.status().streams <= 3
        assert it.source.status().entities == 58
        assert len(it.upstream.carrying()) == 58


async def test_pages_that_shift_while_they_are_read_are_read_again() -> None:
    """Something deleted between two pages pulls another over the edge: fewer came than there are."""
    it = tenant()
    it.upstream.tasks = None  # type: ignore[assignment]  # no stream is opened here
    many = [Entity("gateway", f"gw-{number:04}") for number in range(1_500)]
    it.api.listed_entities = set(many)

    async def delete_between_pages() -> None:
        await until(lambda: "gateway  1" in it.api.asked)
        await anyio.sleep(0.001)
        it.api.listed_entities.discard(many[5])

    it.upstream.latency = 1.0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(delete_between_pages)
        found = await discover(it.api, Scope(kinds=frozenset({"gateway"})))
    assert set(many) - found.entities <= {many[5]}


# What events say


def test_creation_and_deletion_are_read_from_names_and_identifiers() -> None:
    """Devices of applications that are followed, kinds that are; a named one is never deleted."""
    new = Entity("device", "plant-a/new")
    scope = Scope((APPS[0],), frozenset({"gateway"}), frozenset({"plant-a"}))
    assert change(event(says("end_device.create", new)), scope) == Change(created=(new,))
    assert change(event(says("end_device.delete", new)), scope) == Change(deleted=(new,))
    assert change(event(says("gateway.restore", GATEWAYS[0])), scope) == Change(created=(GATEWAYS[0],))
    assert change(event(says("gateway.purge", GATEWAYS[0])), scope) == Change(deleted=(GATEWAYS[0],))
    assert change(event(says("end_device.batch.delete", APPS[0])), scope) == Change(lists_changed=True)
    assert change(event(says("end_device.create", Entity("device", "other/new"))), scope) == NOTHING
    assert change(event(says("application.delete", APPS[0])), scope) == NOTHING
    assert change(event(says("gateway.update", GATEWAYS[0])), scope) == NOTHING
    assert change(event(says("application.api-key.create", APPS[0])), scope) == NOTHING


def test_whose_devices_are_listed() -> None:
    """Those that are named, and with `*` those of every application there is."""
    assert applications(Scope(devices_of=frozenset({"x"})), APPS) == ["x"]
    assert applications(Scope(devices_of=frozenset({"*", "x"})), APPS) == [
        "plant-a",
        "plant-b",
        "plant-c",
        "x",
    ]


def test_how_it_is_written() -> None:
    """The keys of `bridge.yaml`, and what each means."""
    config = TtsSourceConfig.model_validate(
        {
            "type": "tts",
            "url": "https://tts.example",
            "api_key": "x",
            "identifiers": [
                {"application": "plant-a"},
                {"application": "plant-b", "devices": "*"},
                {"gateway": "*"},
                {"device": "plant-a/meter-1"},
            ],
        }
    )
    assert config.scope == Scope(
        (APPS[0], APPS[1], Entity("device", "plant-a/meter-1")),
        frozenset({"gateway"}),
        frozenset({"plant-b"}),
    )


@pytest.mark.parametrize(
    ("written", "advice"),
    [
        ({"gateway": "gw-1", "devices": "*"}, "devices goes with application"),
        ({"application": "plant-a", "devices": "meter-*"}, "devices goes with application"),
        ({"application": "plant-*"}, r"\* stands alone"),
        ({"device": "*"}, r"\* stands alone"),
        ({"device": "plant-a/*"}, r"\* stands alone"),
    ],
)
def test_what_cannot_be_written(written: dict[str, str], advice: str) -> None:
    """Told with what to write instead."""
    with pytest.raises(ValueError, match=advice):
        IdentifierConfig.model_validate(written)


def test_an_open_scope_takes_what_is_created_in_it() -> None:
    """A device of an application that appears later, where all applications are followed."""
    assert EVERYTHING.takes(Entity("device", "plant-new/meter-1"))
    assert EVERYTHING.takes(Entity("application", "plant-new"))
    assert not EVERYTHING.takes(Entity("user", "somebody"))
    assert not Scope((APPS[0],), devices_of=frozenset({"*"})).takes(Entity("device", "plant-b/m"))
