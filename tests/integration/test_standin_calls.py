"""The stand-in's unary calls on the wire, as JSON values against what The Things Stack v3.32.1 answered."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import msgspec
import pytest

from bridge.event import Entity, nanoseconds
from bridge.standin import ALL, Answer, Key, Refuse, Rights, Stall, World, serve
from bridge.standin.inbox import Notice
from bridge.standin.registry import Kept
from bridge.standin.request import Asked, StreamRequest, event_names, resolve
from tests.recordings import RECORDED

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

ADMIN = "NNSXS.U2VBFN53MVB5WN32MDM3T2PK7UEKX5IVYRRS66Q.SECRET"
NARROW = "NNSXS.JMP4TIZJ5EMCRCNDBUDONMZSEHO2DDIYJ2QPZRQ.SECRET"
USER = "NNSXS.USER.SECRET"
PLANT_A, PLANT_B = Entity("application", "plant-a"), Entity("application", "plant-b")
ROOF, FIELD = Entity("gateway", "gw-roof"), Entity("gateway", "gw-field")
JANE = Entity("user", "jane")
CLOCK = nanoseconds("2026-11-23T22:25:23Z") / 1e9

LISTS: list[dict[str, Any]] = msgspec.json.decode((RECORDED / "lists.json").read_bytes())
ERRORS: list[dict[str, Any]] = msgspec.json.decode((RECORDED / "errors.json").read_bytes())
UNARY = [each for each in ERRORS if each["path"] != "/events" and each["case"] != "auth_info"]
VARYING = re.compile(r'(?<="correlation_id": ")[0-9a-f]{32}')

KIND_OF_LIST = {"applications": "application", "gateways": "gateway", "organizations": "organization"} | {
    "clients": "client",
    "users": "user",
    "end_devices": "device",
}


def recorded_world() -> World:
    """The network as it was when lists.json and notifications.json were recorded."""
    keys: dict[str, Rights] = {
        ADMIN: ALL,
        NARROW: Key(PLANT_A, frozenset({"RIGHT_APPLICATION_INFO"}), name="narrow"),
    }
    world = World(keys, entities=[], clock=lambda: CLOCK)
    for number in range(3, 11):
        device = Entity("device", f"plant-b/sensor-{number:02}")
        world.create(device, event=False, dev_eui=f"70B3D57ED00000{number:02}")
    for each in LISTS:
        for name, kind in KIND_OF_LIST.items():
            for entry in each["body"].get(name, ()):
                restore(world, kind, entry)
    for entry in reversed(
        msgspec.json.decode((RECORDED / "notifications.json").read_bytes())["notifications"]
    ):
        message = {name: entry[name] for name in ("entity_ids", "data", "sender_ids", "receivers")}
        created = nanoseconds(entry["created_at"])
        notice = Notice(entry["id"], entry["notification_type"], created, created, message=message)
        world.inbox.add("admin", notice)
    return world


def restore(world: World, kind: str, entry: dict[str, Any]) -> None:
    """One recorded entry of a list exists again, with its times."""
    ids = dict(entry["ids"])
    id = ids.pop(f"{kind}_id")
    if kind == "device":
        id = f"{ids.pop('application_ids')['application_id']}/{id}"
    entity = Entity(kind, id)  # type: ignore[arg-type]  # one of the kinds above
    fields = {"name": entry["name"]} if "name" in entry else {}
    kept: Kept = world.registry.add(entity, 0, ids, fields)
    kept.created, kept.updated = nanoseconds(entry["created_at"]), nanoseconds(entry["updated_at"])


@asynccontextmanager
async def asking(world: World, token: str = ADMIN) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        serve(world) as server,
        httpx.AsyncClient(
            base_url=f"{server.url}/api/v3", headers={"Authorization": f"Bearer {token}"}, trust_env=False
        ) as client,
    ):
        yield client


def comparable(value: Any) -> Any:
    """*value* without what differs each time: the order of rights, ids of errors, when a key was made."""
    if isinstance(value, dict):
        return {
            name: sorted(each) if name == "rights" else comparable(each)
            for name, each in value.items()
            if name not in ("correlation_id", "microsecond")
        }
    return [comparable(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("recorded", LISTS, ids=[each["case"] for each in LISTS])
async def test_a_call_is_answered_as_it_was_recorded(recorded: dict[str, Any]) -> None:
    """Status, body as JSON value and `X-Total-Count` of every case of lists.json."""
    narrow = "application key" in recorded["case"] or "without that right" in recorded["case"]
    world = recorded_world()
    if "connected" in recorded["case"] and "never" not in recorded["case"]:
        world.stats["gw-roof"] = next(
            each["body"] for each in LISTS if each["case"] == "gateway connection stats, connected"
        )
    async with asking(world, NARROW if narrow else ADMIN) as client:
        answer = await client.request(recorded["method"], recorded["path"], json=recorded.get("request"))
    expected, found = comparable(recorded["body"]), comparable(answer.json())
    if "auth_info" in recorded["case"]:
        for each in (expected, found):
            key = each["api_key"]["api_key"]
            assert all(key.pop(name) for name in ("created_at", "updated_at", "name"))
    assert (answer.status_code, found) == (recorded["status"], expected)
    if "headers" in recorded:
        for name in ("X-Total-Count", "Content-Type"):
            assert answer.headers.get(name) == recorded["headers"].get(name)


@pytest.mark.parametrize("recorded", UNARY, ids=[each["case"] for each in UNARY])
async def test_a_recorded_unary_case_of_the_errors_comes_out_the_same(recorded: dict[str, Any]) -> None:
    async with asking(recorded_world()) as client:
        answer = await client.request(
            recorded["method"], recorded["path"], headers={"Accept": recorded["accept"]}
        )
    assert answer.status_code == recorded["status"]
    assert answer.headers["Content-Type"] == recorded["content_type"]
    assert comparable(answer.json()) == comparable(msgspec.json.decode(recorded["body"]))


async def test_all_recorded_notifications_come_byte_for_byte() -> None:
    async with asking(recorded_world()) as client:
        answer = await client.get("/users/admin/notifications")
    assert answer.content.strip() == (RECORDED / "notifications.json").read_bytes().strip()
    assert answer.headers["X-Total-Count"] == "5"


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("limit=1001", 400, "value must be less than or equal to 1000"),
        ("limit=ten", 400, 'parsing field "limit": strconv.ParseUint: parsing "ten": invalid syntax'),
        ("status=UNSEEN", 400, 'parsing list "status": "UNSEEN" is not a valid value'),
        ("status=0&status=2", 200, ""),
        ("status=NOTIFICATION_STATUS_SEEN", 200, ""),
        ("limit=0&page=0", 200, ""),
    ],
)
async def test_the_query_of_notifications_is_read_as_the_gateway_reads_it(
    query: str, status: int, message: str
) -> None:
    """UPSTREAM.md §5: full name or number, never the name alone; at most 1,000 a page."""
    async with asking(recorded_world()) as client:
        answer = await client.get(f"/users/admin/notifications?{query}")
    assert answer.status_code == status
    assert message in answer.json().get("message", "")
    if "SEEN" in query and status == 200:
        assert (answer.json(), answer.headers["X-Total-Count"]) == ({}, "0")


async def test_what_arrives_between_two_pages_shifts_the_second() -> None:
    """Newest first and by offset: the last of page 1 comes again as the first of page 2."""
    world = recorded_world()
    async with asking(world) as client:
        first = (await client.get("/users/admin/notifications?limit=2")).json()["notifications"]
        world.clock = lambda: CLOCK + 60
        fresh = world.notify("admin", "password_changed")
        second = (await client.get("/users/admin/notifications?limit=2&page=2")).json()["notifications"]
        newest = (await client.get("/users/admin/notifications?limit=1")).json()["notifications"]
    assert second[0]["id"] == first[1]["id"]
    assert newest[0]["id"] == fresh
    assert "status" not in newest[0]


async def test_a_status_is_set_for_up_to_a_thousand_distinct_ids() -> None:
    """And an update is told by an event; wrong ids are refused before anything is changed."""
    world = recorded_world()
    watching = world.subscribe(request_for(Entity("user", "admin")))
    await world.replay(watching)
    async with asking(world) as client:
        all_ids = [
            each["id"] for each in (await client.get("/users/admin/notifications")).json()["notifications"]
        ]
        refused = [
            await client.patch("/users/admin/notifications", json={"ids": ids, "status": "SEEN"})
            for ids in ([], ["short"], [all_ids[0]] * 2, [f"{number:036}" for number in range(1001)])
        ]
        done = await client.patch("/users/admin/notifications", json={"ids": all_ids[:2], "status": "SEEN"})
        archive = {"ids": all_ids[2:3], "status": "NOTIFICATION_STATUS_ARCHIVED"}
        await client.patch("/users/admin/notifications", json=archive)
        unseen = await client.get("/users/admin/notifications?status=0")
        seen = await client.get("/users/admin/notifications?status=1")
    assert [each.status_code for each in refused] == [400] * 4
    assert (done.status_code, done.json()) == (200, {})
    assert [each["id"] for each in unseen.json()["notifications"]] == all_ids[3:]
    assert {each["status"] for each in seen.json()["notifications"]} == {"NOTIFICATION_STATUS_SEEN"}
    told = msgspec.json.decode(watching.receive.receive_nowait())
    assert (told["name"], told["data"]["ids"]) == ("user.notification.update_status", all_ids[:2])
    world.unsubscribe(watching)


def request_for(entity: Entity) -> StreamRequest:
    """A subscription to *entity*, without history."""
    ids = {f"{entity.kind}_ids": {f"{entity.kind}_id": entity.id}}
    return resolve(msgspec.convert({"identifiers": [ids]}, Asked), event_names())


async def test_a_users_key_lists_what_the_user_collaborates_on() -> None:
    """Devices, rights and connections follow the rights that both key and collaborator have."""
    on = {
        PLANT_A: ["RIGHT_APPLICATION_ALL"],
        ROOF: ["RIGHT_GATEWAY_INFO"],
        PLANT_B: ["RIGHT_APPLICATION_LINK"],
    }
    key = Key.of(JANE, "RIGHT_USER_ALL", "RIGHT_APPLICATION_DEVICES_READ", "RIGHT_GATEWAY_INFO", on=on)
    world = World({USER: key}, entities=[FIELD])
    world.create(Entity("device", "plant-a/m-01"), event=False, dev_eui="70B3D57ED0000001", name="Meter")
    async with asking(world, USER) as client:
        applications = await client.get("/applications?order=-application_id")
        devices = await client.get("/applications/plant-a/devices?field_mask=name,attributes")
        rights = (await client.get("/applications/plant-a/rights")).json()
        none = [
            await client.get("/applications/plant-b/rights"),
            await client.get("/gateways/gw-field/rights"),
        ]
        refused = await client.get("/gs/gateways/gw-roof/connection/stats")
        users = await client.get("/users")
    found = [each["ids"]["application_id"] for each in applications.json()["applications"]]
    assert (found, applications.headers["X-Total-Count"]) == (["plant-b", "plant-a"], "2")
    assert devices.json()["end_devices"][0]["name"] == "Meter"
    assert devices.json()["end_devices"][0]["ids"]["dev_eui"] == "70B3D57ED0000001"
    assert rights == {"rights": ["RIGHT_APPLICATION_DEVICES_READ"]}
    assert [each.json() for each in none] == [{}, {}]
    assert "insufficient_gateway_rights" in refused.json()["message"]
    assert (users.status_code, users.json()["details"][0]["name"]) == (403, "no_admin")


async def test_a_key_of_another_kind_has_empty_lists_and_itself_in_auth_info() -> None:
    """lists.json: no count either."""
    for entity in (PLANT_A, ROOF):
        world = World({USER: frozenset({entity})})
        async with asking(world, USER) as client:
            listed = [await client.get(f"/{kind}s") for kind in ("application", "gateway", "organization")]
            info = (await client.get("/auth_info")).json()
        assert [each.json() for each in listed] == [{}] * 3
        assert not any("X-Total-Count" in each.headers for each in listed)
        assert info["api_key"]["entity_ids"] == {f"{entity.kind}_ids": {f"{entity.kind}_id": entity.id}}


async def test_a_revoked_key_gets_401_and_a_narrowed_one_less() -> None:
    world = World({ADMIN: ALL, USER: Key.of(JANE, on={PLANT_A: (), ROOF: ()})})
    async with asking(world, USER) as client:
        world.narrow(USER, rights=["RIGHT_APPLICATION_INFO", "RIGHT_USER_ALL"])
        rights = (await client.get("/applications/plant-a/rights")).json()
        gateway = (await client.get("/gateways/gw-roof/rights")).json()
        world.revoke(USER)
        gone = await client.get("/auth_info")
    assert (rights, gateway) == ({"rights": ["RIGHT_APPLICATION_INFO"]}, {})
    assert (gone.status_code, gone.json()["details"][0]["name"]) == (401, "api_key_not_found")


async def test_an_expired_key_is_refused_and_says_before_when() -> None:
    clock = [nanoseconds("2026-11-23T00:00:00Z") / 1e9]
    key = Key(PLANT_A, frozenset({"RIGHT_APPLICATION_INFO"}), expires="2026-11-24T00:00:00Z")
    async with asking(World({USER: key}, clock=lambda: clock[0]), USER) as client:
        before = (await client.get("/auth_info")).json()
        clock[0] += 86_400
        after = await client.get("/auth_info")
    assert before["api_key"]["api_key"]["expires_at"] == "2026-11-24T00:00:00Z"
    assert (after.status_code, after.json()["details"][0]["name"]) == (401, "api_key_expired")


async def test_connections_follow_the_events_of_gateways() -> None:
    """connect, statistics, the disconnect, and a last statistics event that comes after it."""
    world = recorded_world()
    ids = [{"gateway_ids": {"gateway_id": "gw-roof"}}]

    def happen(name: str, data: dict[str, Any] | None = None) -> None:
        world.publish(
            msgspec.json.encode(
                {
                    "name": name,
                    "time": "2026-11-23T22:25:23Z",
                    "identifiers": ids,
                    "unique_id": world.new_id(),
                }
                | ({"data": data} if data else {})
            )
        )

    async with asking(world) as client:
        path = "/gs/gateways/gw-roof/connection/stats"
        happen("gs.gateway.connect")
        connected = await client.get(path)
        happen("gs.gateway.connection.stats", {"@type": "x", "protocol": "udp", "uplink_count": "3"})
        counted = await client.get(path)
        happen("gs.gateway.disconnect")
        happen("gs.gateway.connection.stats", {"@type": "x", "disconnected_at": "2026-11-23T22:25:23Z"})
        gone = await client.get(path)
    assert connected.json() == {"connected_at": "2026-11-23T22:25:23Z"}
    assert counted.json() == {"protocol": "udp", "uplink_count": "3"}
    assert gone.status_code == 404


async def test_a_unary_call_meets_the_fault_it_was_given_once() -> None:
    world = recorded_world()
    world.faults.on_call("/auth_info", Refuse(503))
    world.faults.on_call("/auth_info", Stall(0, 0.01))
    world.faults.on_call("/auth_info", Answer(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"))
    async with asking(world) as client:
        answers = [(await client.get("/auth_info")).status_code for _ in range(4)]
    assert answers == [503, 200, 502, 200]


async def test_a_method_that_no_path_has_is_501_and_a_path_that_is_none_404() -> None:
    async with asking(recorded_world()) as client:
        assert (await client.delete("/applications")).status_code == 501
        assert (await client.get("/applications/plant-a/nothing")).status_code == 404
        assert (await client.get("/applications/UPPER/rights")).status_code == 400


async def test_ten_thousand_devices_are_listed_and_followed_in_seconds() -> None:
    """200 gateways and 10,000 devices: every page, and one stream on all of them."""
    devices = [Entity("device", f"app-{n % 50:02}/dev-{n:05}") for n in range(10_000)]
    gateways = [Entity("gateway", f"gw-{n:03}") for n in range(200)]
    world = World({ADMIN: ALL}, entities=[*devices, *gateways])
    async with asking(world) as client:
        with anyio.fail_after(10):
            total = (await client.get("/gateways?limit=1000")).headers["X-Total-Count"]
            found = 0
            for page in range(1, 51):
                listed = await client.get(f"/applications/app-{page - 1:02}/devices?limit=1000")
                found += len(listed.json()["end_devices"])
            asked = [
                {
                    "device_ids": {
                        "device_id": each.id.partition("/")[2],
                        "application_ids": {"application_id": each.id.partition("/")[0]},
                    }
                }
                for each in devices
            ]
            async with client.stream("POST", "/events", json={"identifiers": asked, "tail": 1024}) as stream:
                first = await anext(stream.aiter_raw())
    assert (total, found) == ("200", 10_000)
    assert b"events.stream.start" in first
