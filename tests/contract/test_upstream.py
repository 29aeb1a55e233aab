"""What a source may rely on, whatever carries the events. Every transport passes this suite unchanged."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import msgspec
import pytest

from bridge.decode import Frame, Malformed, StreamStart
from bridge.errors import SourceError
from bridge.event import Entity, Event, rfc3339
from bridge.sources.upstream import Upstream
from bridge.standin import ALL, Cut, End, ErrorFrame, Garbage, Key, Stall, World, entities_in
from bridge.standin.problems import NO_IDENTITY_SERVER, STORE, unknown_key
from tests.contract.upstreams import LINKERS, Link
from tests.recordings import RECORDED, documents, json_bytes
from tests.servers import Certificates, certificates

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

KEY = "NNSXS.ADMIN.SECRET"
PLANT = Entity("application", "plant-a")
OTHER = Entity("application", "plant-b")
SECOND = 1_000_000_000  # ns


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def world() -> World:
    existing = entities_in(path.read_bytes() for path in RECORDED.glob("*.sse"))
    return World({KEY: ALL}, entities=[*existing, PLANT, OTHER])


@pytest.fixture(params=sorted(LINKERS))
async def link(request: pytest.FixtureRequest, world: World, files: Certificates) -> AsyncIterator[Link]:
    async with LINKERS[request.param](world, files) as opened:
        yield opened


@pytest.fixture
async def upstream(link: Link) -> Upstream:
    return (await link.client(KEY))[0]


def event(name: str = "as.up.data.forward", number: int = 0, **more: Any) -> dict[str, Any]:
    """An event of plant-a, made now."""
    return {
        "name": name,
        "time": rfc3339(time.time_ns()),
        "identifiers": [{"application_ids": {"application_id": "plant-a"}}],
        "unique_id": f"01TEST{number:020d}",
        **more,
    }


async def until(condition: Callable[[], bool]) -> None:
    """Return once *condition* holds."""
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.01)


async def take(frames: AsyncIterator[Frame], count: int) -> list[Event]:
    """The next *count* events."""
    found: list[Event] = []
    with anyio.fail_after(10):
        while len(found) < count:
            frame = await anext(frames)
            if isinstance(frame, Event):
                found.append(frame)
    return found


async def refused(upstream: Upstream, *entities: Entity, names: tuple[str, ...] = ()) -> SourceError:
    """Why a stream is not opened."""
    with anyio.fail_after(10), pytest.raises(SourceError) as caught:
        async with upstream.open(entities or (PLANT,), None, names):
            pass
    return caught.value


async def rest_of(frames: AsyncIterator[Frame]) -> tuple[list[Frame], SourceError | None]:
    """What still comes, and how the stream ends: by an error, or in good order."""
    came: list[Frame] = []
    with anyio.fail_after(10):
        try:
            async for frame in frames:
                came.append(frame)
        except SourceError as error:
            return came, error
    return came, None


async def end_of(frames: AsyncIterator[Frame]) -> SourceError | None:
    return (await rest_of(frames))[1]


async def test_the_first_frame_is_the_clock_of_the_server(world: World, upstream: Upstream) -> None:
    """A server an hour ahead says so before anything else comes."""
    world.clock = lambda: time.time() + 3600
    async with upstream.open([PLANT], None, []) as stream:
        first = await anext(stream.frames())

    assert isinstance(first, StreamStart)
    assert abs(first.time_ns - time.time_ns() - 3600 * SECOND) < 60 * SECOND


@pytest.mark.parametrize("recording", ["apps.sse", "devices.sse", "gateways.sse", "identities.sse"])
async def test_events_come_as_the_json_that_was_recorded(
    recording: str, world: World, upstream: Upstream
) -> None:
    """Every recorded event is the same JSON value, whatever carried it."""
    recorded = list({each["unique_id"]: each for each in documents(recording)}.values())
    entities = entities_in([(RECORDED / recording).read_bytes()])
    came: dict[str, dict[str, Any]] = {}
    async with upstream.open(entities, world.now, []) as stream:
        frames = stream.frames()
        for begin in range(0, len(recorded), 100):
            part = recorded[begin : begin + 100]
            for each in part:
                world.publish(json_bytes(each))
            while not {each["unique_id"] for each in part} <= came.keys():
                (one,) = await take(frames, 1)
                came[one.unique_id] = one.document()

    assert came == {each["unique_id"]: each for each in recorded}


async def test_a_stream_resumes_behind_the_given_time(world: World, upstream: Upstream) -> None:
    """Of three stored events the two after the cursor come, then what happens now."""
    times = [world.now - back * SECOND for back in (30, 20, 10)]
    for number, at in enumerate(times):
        world.publish(json_bytes(event(number=number) | {"time": rfc3339(at)}))
    async with upstream.open([PLANT], times[0], []) as stream:
        frames = stream.frames()
        stored = await take(frames, 2)
        world.publish(json_bytes(event(number=9)))
        live = await take(frames, 1)

    assert [each.time_ns for each in stored] == times[1:]
    assert live[0].unique_id == event(number=9)["unique_id"]


async def test_without_a_time_the_whole_history_comes(world: World, upstream: Upstream) -> None:
    """`tail` alone asks for all that is kept."""
    for number in range(5):
        world.publish(json_bytes(event(number=number)))
    async with upstream.open([PLANT], None, []) as stream:
        came = await take(stream.frames(), 5)

    assert [each.unique_id[-1] for each in came] == list("01234")


async def test_only_the_names_asked_for_come(world: World, upstream: Upstream) -> None:
    """Exact names and expressions are the server's to filter."""
    async with upstream.open([PLANT], world.now, ["application.update", "/^as\\.up\\.join/"]) as stream:
        frames = stream.frames()
        for number, name in enumerate(["as.up.data.forward", "as.up.join.forward", "application.update"]):
            world.publish(json_bytes(event(name, number)))
        came = await take(frames, 2)

    assert [each.name for each in came] == ["as.up.join.forward", "application.update"]


async def test_a_name_the_server_does_not_know_is_named(upstream: Upstream) -> None:
    """*rejected*, with the name to leave out."""
    error = await refused(upstream, names=("as.up.data.forward", "no.such.event"))

    assert (error.kind, error.namespace, error.name) == ("rejected", "pkg/events", "unknown_event_name")
    assert error.attributes == {"name": "no.such.event"}


async def test_an_expression_that_matches_nothing_is_named(upstream: Upstream) -> None:
    """*rejected*, with the expression to leave out."""
    error = await refused(upstream, names=("/^nothing/",))

    assert (error.kind, error.name) == ("rejected", "no_matching_events")
    assert error.attributes == {"regexp": "^nothing"}


@pytest.mark.parametrize(
    ("key", "name"),
    [("NNSXS.UNKNOWN.SECRET", "api_key_not_found"), ("no-key-at-all", "token")],
)
async def test_a_wrong_key_is_refused(link: Link, key: str, name: str) -> None:
    """Unknown or malformed: *refused*, and the key is not repeated."""
    stranger, _ = await link.client(key)
    error = await refused(stranger)

    assert (error.kind, error.name) == ("refused", name)
    assert "SECRET" not in str(error)
    assert "no-key-at-all" not in str(error)


async def test_an_entity_without_rights_is_refused_and_named(link: Link) -> None:
    """*refused*, with the entity to leave out."""
    link.world.keys["NNSXS.PLANT.SECRET"] = Key.of(PLANT, "RIGHT_APPLICATION_INFO")
    narrow, _ = await link.client("NNSXS.PLANT.SECRET")
    error = await refused(narrow, PLANT, OTHER)

    assert (error.kind, error.name) == ("refused", "no_application_rights")
    assert error.attributes == {"uid": "plant-b"}


async def test_an_entity_that_does_not_exist_is_named(upstream: Upstream) -> None:
    """*rejected*, when an administrator asks."""
    error = await refused(upstream, PLANT, Entity("gateway", "gone"))

    assert (error.kind, error.name) == ("rejected", "gateway_not_found")
    assert error.attributes == {"gateway_id": "gone"}


async def test_a_rate_limit_says_how_long_to_wait(world: World, upstream: Upstream) -> None:
    """The third opening in a minute where two are allowed."""
    world.rate_limit = 2
    for left in (1, 0):
        async with upstream.open([PLANT], None, []) as stream:
            assert stream.budget is not None
            assert (stream.budget.limit, stream.budget.available) == (2, left)
    error = await refused(upstream)

    assert (error.kind, error.name) == ("rate_limited", "rate_limit_exceeded")
    assert error.retry_after is not None
    assert 0 < error.retry_after <= 30


async def test_a_server_without_a_store_warns(world: World, upstream: Upstream) -> None:
    """The warning comes with the stream."""
    world.storage = False
    async with upstream.open([PLANT], None, []) as stream:
        assert stream.warnings == ("Events storage is not enabled",)


async def test_a_server_with_a_store_does_not_warn(upstream: Upstream) -> None:
    """And there is no budget where there is no limit."""
    async with upstream.open([PLANT], None, []) as stream:
        assert stream.warnings == ()
        assert stream.budget is None


@pytest.mark.parametrize(
    ("problem", "kind"),
    [(STORE, "transient"), (unknown_key("X"), "refused"), (NO_IDENTITY_SERVER, "transient")],
    ids=["store", "key", "unavailable"],
)
async def test_an_error_in_mid_stream_comes_after_what_was_sent(
    world: World, upstream: Upstream, problem: Any, kind: str
) -> None:
    """The events before it arrive, then the reason by its name."""
    world.faults.on_open(ErrorFrame(2, problem))
    async with upstream.open([PLANT], world.now, []) as stream:
        frames = stream.frames()
        for number in range(2):
            world.publish(json_bytes(event(number=number)))
        came = await take(frames, 2)
        error = await end_of(frames)

    assert len(came) == 2
    assert error is not None
    assert (error.kind, error.namespace, error.name) == (kind, problem.namespace, problem.name)


async def test_a_stream_that_the_server_ends_just_ends(world: World, upstream: Upstream) -> None:
    """A deadline or a proxy: no error."""
    world.faults.on_open(End(1))
    async with upstream.open([PLANT], world.now, []) as stream:
        frames = stream.frames()
        world.publish(json_bytes(event()))
        await take(frames, 1)
        assert await end_of(frames) is None


async def test_a_server_that_stops_is_worth_another_try(link: Link, upstream: Upstream) -> None:
    """Every open stream ends as *ended* or *transient*; once it is back, so are the streams."""
    async with upstream.open([PLANT], link.world.now, []) as stream:
        frames = stream.frames()
        await anext(frames)
        await link.server.stop()
        error = await end_of(frames)
    down = await refused(upstream)
    await link.server.start()
    with anyio.fail_after(15):
        while True:
            try:
                async with upstream.open([PLANT], None, []) as stream:
                    assert isinstance(await anext(stream.frames()), StreamStart)
                    break
            except SourceError:
                await anyio.sleep(0.1)

    assert error is None or error.kind in ("ended", "transient")
    assert down.kind == "transient"


async def test_a_cut_connection_is_worth_another_try(link: Link, upstream: Upstream) -> None:
    """What came before the cut is there, then *transient*."""
    async with upstream.open([PLANT], link.world.now, []) as stream:
        frames = stream.frames()
        link.world.publish(json_bytes(event()))
        came = await take(frames, 1)
        link.server.cut()
        error = await end_of(frames)
    async with upstream.open([PLANT], None, []) as stream:
        again = await take(stream.frames(), 1)

    assert error is not None
    assert error.kind == "transient"
    assert [each.unique_id for each in again] == [each.unique_id for each in came]


async def test_a_cut_in_the_middle_loses_nothing_that_came_whole(world: World, upstream: Upstream) -> None:
    """The connection ends inside the third event."""
    world.faults.on_open(Cut(2))
    async with upstream.open([PLANT], world.now, []) as stream:
        frames = stream.frames()
        for number in range(3):
            world.publish(json_bytes(event(number=number)))
        came, error = await rest_of(frames)

    assert error is not None
    assert error.kind == "transient"
    assert not [frame for frame in came if isinstance(frame, Malformed)]


async def test_leaving_a_stream_closes_it_at_the_server(link: Link, upstream: Upstream) -> None:
    """In good order, and when the task that reads is cancelled."""
    async with upstream.open([PLANT], None, []):
        await until(lambda: link.server.streams == 1)
    await until(lambda: link.server.streams == 0)

    async def read() -> None:
        async with upstream.open([PLANT], None, []) as stream:
            async for _ in stream.frames():
                pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await until(lambda: link.server.streams == 1)
        tasks.cancel_scope.cancel()
    await until(lambda: link.server.streams == 0)


async def test_waiting_for_a_silent_server_can_be_cancelled(world: World, upstream: Upstream) -> None:
    """A deadline of the reader is obeyed, and the stream can be opened anew."""
    world.faults.on_open(Stall(0))
    with anyio.move_on_after(0.3) as scope:
        async with upstream.open([PLANT], None, []) as stream:
            async for _ in stream.frames():
                pass
    async with upstream.open([PLANT], None, []) as stream:
        assert isinstance(await anext(stream.frames()), StreamStart)

    assert scope.cancelled_caught


async def test_many_streams_share_a_client(link: Link, upstream: Upstream) -> None:
    """Twenty at once; each gets the event."""
    came: list[str] = []

    async def follow() -> None:
        async with upstream.open([PLANT], link.world.now, []) as stream:
            (one,) = await take(stream.frames(), 1)
            came.append(one.unique_id)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(follow)
        await until(lambda: link.server.streams == 20)
        link.world.publish(json_bytes(event()))

    assert len(came) == 20


async def test_an_event_of_five_megabytes_passes(world: World, upstream: Upstream) -> None:
    """The server's limit is 16 MiB, clients that keep a default of 4 MiB never see such an event."""
    big = event(
        data={"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "größe " * (5 << 17)}
    )
    assert len(json_bytes(big)) > 4 << 20
    async with upstream.open([PLANT], world.now, []) as stream:
        world.publish(json_bytes(big))
        (came,) = await take(stream.frames(), 1)

    assert came.document() == big


async def test_a_frame_that_is_no_event_is_skipped(world: World, upstream: Upstream) -> None:
    """It comes as Malformed, and the next event after it."""
    world.faults.on_open(Garbage(0, b'{"result":{"name":"as.up.'))
    async with upstream.open([PLANT], world.now, []) as stream:
        frames = stream.frames()
        kinds = [type(await anext(frames)) for _ in range(2)]
        world.publish(json_bytes(event()))
        (came,) = await take(frames, 1)

    assert kinds == [StreamStart, Malformed]
    assert came.name == "as.up.data.forward"


async def test_a_server_that_cannot_be_reached_is_worth_another_try(link: Link, upstream: Upstream) -> None:
    """*transient*, with a word on why."""
    await link.server.stop()
    error = await refused(upstream)

    assert error.kind == "transient"
    assert str(error)


async def test_related_events_come_newest_first(link: Link) -> None:
    """The chain of one correlation id, as the JSON that was published."""
    chain = [event(number=number, correlation_ids=["gs:uplink:1"]) for number in range(3)]
    for each in chain:
        link.world.publish(json_bytes(each))
    _, api = await link.client(KEY)
    found = await api.related("gs:uplink:1")
    nothing = await api.related("gs:uplink:2")

    assert [msgspec.json.decode(each) for each in found] == chain[::-1]
    assert nothing == ()


async def test_related_events_need_a_store(link: Link) -> None:
    """*rejected* where there is none."""
    link.world.storage = False
    _, api = await link.client(KEY)
    with pytest.raises(SourceError) as caught:
        await api.related("gs:uplink:1")

    assert (caught.value.kind, caught.value.name) == ("rejected", "storage_disabled")


async def test_notifications_are_listed_and_marked(link: Link) -> None:
    """Newest first, by pages, with the total; a mark is for one user."""
    ids = [link.world.notify("admin", "api_key_created", about=PLANT) for _ in range(3)]
    _, api = await link.client(KEY)
    first = await api.notifications("admin", status=["NOTIFICATION_STATUS_UNSEEN"], limit=2)
    second = await api.notifications("admin", status=["NOTIFICATION_STATUS_UNSEEN"], limit=2, page=2)
    await api.mark_notifications("admin", ids[:2], "NOTIFICATION_STATUS_SEEN")
    left = await api.notifications("admin", status=["NOTIFICATION_STATUS_UNSEEN"])

    listed = [msgspec.json.decode(each)["id"] for each in first.items + second.items]
    assert sorted(listed) == sorted(ids)
    assert (first.total, len(first.items), left.total) == (3, 2, 1)
    assert [msgspec.json.decode(each)["id"] for each in left.items] == ids[2:]


async def test_the_notifications_of_others_are_refused(link: Link) -> None:
    """An application key has no inbox."""
    link.world.keys["NNSXS.PLANT.SECRET"] = Key.of(PLANT, "RIGHT_APPLICATION_INFO")
    _, api = await link.client("NNSXS.PLANT.SECRET")
    with pytest.raises(SourceError) as caught:
        await api.notifications("admin")

    assert caught.value.kind == "refused"
