"""The notifications source on virtual time, against the stand-in's world without a wire."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bridge.decode import Frame, frame
from bridge.errors import FrameError, SourceError
from bridge.event import Entity
from bridge.metrics import Metrics
from bridge.outbox import Trace, TracedDelivery
from bridge.sources import Arrival
from bridge.sources.api import AuthInfo, Notifications, Page
from bridge.sources.notification import NotificationsSourceConfig, notification, unique_id
from bridge.sources.notifications import NotificationsSource
from bridge.sources.upstream import RateBudget
from bridge.standin import Key, World
from bridge.standin.calls import Call, find
from bridge.standin.inbox import Status
from bridge.standin.problems import RefusedError
from bridge.standin.request import Asked, resolve
from bridge.standin.subscription import Channel
from tests.recordings import RECORDED

pytestmark = pytest.mark.anyio
virtual = pytest.mark.usefixtures("virtual_time")

TOKEN = "NNSXS.KEY.SECRET"
JANE = Entity("user", "jane")
UNSEEN: tuple[Status, ...] = ("UNSEEN",)
PLANT_A = Entity("application", "plant-a")


@dataclass(frozen=True)
class WorldStream:
    """A stream of the world, decoded."""

    channel: Channel
    start: bytes
    warnings: tuple[str, ...] = ()
    budget: RateBudget | None = None

    async def frames(self) -> AsyncIterator[Frame]:
        yield frame(b'{"result":%s}' % self.start)
        while True:
            yield frame(b'{"result":%s}' % await self.channel.receive())


@dataclass
class Direct:
    """The stand-in's world as `Api` and `Upstream`, called directly instead of over a wire.

    *between* is called before every page after the first.
    """

    world: World
    between: Callable[[], None] = lambda: None
    deaf: bool = False
    calls: list[str] = field(default_factory=list)

    def _ask(
        self, method: str, path: str, query: dict[str, list[str]] | None = None, body: Any = None
    ) -> Any:
        self.calls.append(f"{method} {path}")
        handler, ids = find(method, path)
        try:
            token = self.world.authenticate(f"Bearer {TOKEN}")
            return handler(self.world, Call(token, ids, query or {}, msgspec.json.encode(body or {})))
        except RefusedError as refused:
            kind = "refused" if refused.status in (401, 403) else "rejected"
            raise SourceError(refused.why.message, kind=kind) from None  # type: ignore[arg-type]

    async def notifications(
        self, user: str, *, status: Sequence[str] = (), page: int = 1, limit: int = 1000
    ) -> Notifications:
        await anyio.sleep(0.01)
        if page > 1:
            self.between()
        query = {"status": list(status), "page": [str(page)], "limit": [str(limit)]}
        answer = self._ask("GET", f"/users/{user}/notifications", query)
        items = msgspec.json.decode(answer.body, type=dict[str, tuple[msgspec.Raw, ...]])
        return Notifications(tuple(map(bytes, items.get("notifications", ()))), answer.total or 0)

    async def mark_notifications(self, user: str, ids: Sequence[str], status: str) -> None:
        await anyio.sleep(0.01)
        self._ask("PATCH", f"/users/{user}/notifications", body={"ids": ids, "status": status})

    @asynccontextmanager
    async def open(
        self, entities: Sequence[Entity], after: int | None, names: Sequence[str]
    ) -> AsyncIterator[WorldStream]:
        if self.deaf:
            raise SourceError("no rights for user", kind="refused")
        ids = [{f"{each.kind}_ids": {f"{each.kind}_id": each.id}} for each in entities]
        asked = msgspec.convert({"identifiers": ids, "names": names, "tail": 1024}, Asked)
        request = resolve(asked, self.world.names)
        subscription = self.world.subscribe(request, TOKEN)
        try:
            await self.world.replay(subscription)
            yield WorldStream(subscription.receive, self.world.start_event(request, "x"))
        finally:
            self.world.unsubscribe(subscription)

    async def auth_info(self) -> AuthInfo:
        raise NotImplementedError

    async def rights(self, entity: Entity) -> frozenset[str]:
        raise NotImplementedError

    async def listed(self, kind: Any, application: str = "", *, page: int = 1, limit: int = 1000) -> Page:
        raise NotImplementedError

    async def connection_stats(self, gateways: Sequence[str]) -> dict[str, bytes]:
        raise NotImplementedError

    async def related(self, correlation_id: str) -> tuple[bytes, ...]:
        raise NotImplementedError


@dataclass
class Store:
    """What an outbox keeps of a source: cursors, the last ids, and what became of deliveries."""

    cursors: dict[str, int] = field(default_factory=dict)
    recent: list[str] = field(default_factory=list)
    traces: dict[str, Trace] = field(default_factory=dict)
    events: list[Any] = field(default_factory=list)

    own: list[str] = field(default_factory=list)

    def take(self, arrival: Arrival) -> None:
        if arrival.event.name.startswith("bridge."):
            self.own.append(arrival.event.name)
            return
        self.events.append(arrival.event)
        for identifier, at in arrival.cursors.items():
            self.cursors[identifier] = max(at, self.cursors.get(identifier, 0))
            self.recent = [*self.recent, arrival.event.unique_id][-8:]

    @property
    def ids(self) -> list[str]:
        return [each.unique_id for each in self.events]


def a_world() -> World:
    clock = 1_795_000_000.0
    return World({TOKEN: Key.of(JANE)}, clock=lambda: clock + anyio.current_time())


@asynccontextmanager
async def running(direct: Direct, store: Store, **config: Any) -> AsyncIterator[NotificationsSource]:
    settings = NotificationsSourceConfig.model_validate(
        {"type": "tts-notifications", "url": "http://tts.example", "api_key": "k", "user": "jane"} | config
    )
    metrics = Metrics()
    metrics.prepare(sources=["inbox"], sinks=[], rules=[])

    async def cursors() -> dict[str, int]:
        return dict(store.cursors)

    async def recent(identifier: str) -> tuple[str, ...]:
        return tuple(store.recent) if identifier in store.cursors else ()

    async def trace(id: str) -> Trace | None:
        return store.traces.get(id)

    source = NotificationsSource(
        "inbox",
        settings,
        direct,
        direct,
        metrics,
        cursors=cursors,
        recent=recent,
        trace=trace,
        wait=lambda attempt: min(60.0, float(attempt)),
        now=direct.world.clock,
        rng=random.Random(0),
    )
    send, receive = anyio.create_memory_object_stream[Any](100_000)
    async with send, receive, anyio.create_task_group() as tasks:
        tasks.start_soon(source.run, send)

        async def keep() -> None:
            async for reading in receive:
                store.take(reading)

        tasks.start_soon(keep)
        try:
            yield source
        finally:
            tasks.cancel_scope.cancel()


def traced(id: str, *states: str) -> Trace:
    made = tuple(TracedDelivery(f"d{n}", "r", "s", state, ()) for n, state in enumerate(states))
    return Trace(id, 0.0, "notification.x", "inbox", made)


@virtual
async def test_what_is_unseen_comes_oldest_first_with_the_notification_as_data() -> None:
    """Named by type, about its entity and its receiver, at the time it was created."""
    world, store = a_world(), Store()
    first = world.notify("jane", "api_key_created", about=PLANT_A, data={"@type": "t", "name": "k"})
    await anyio.sleep(1)
    second = world.notify("jane", "password_changed")
    async with running(Direct(world), store) as source:
        await anyio.sleep(1)
        assert source.status().ready
    assert store.ids == [f"notification/jane/{first}", f"notification/jane/{second}"]
    event = store.events[0]
    written = world.inbox.listed("jane", ())[1].written()
    assert (event.name, event.time) == ("notification.api_key_created", written["created_at"])
    assert event.document()["data"] == written
    assert event.document()["identifiers"] == [
        {"application_ids": {"application_id": "plant-a"}},
        {"user_ids": {"user_id": "jane"}},
    ]
    assert store.events[1].document()["identifiers"] == [{"user_ids": {"user_id": "jane"}}]
    assert store.cursors == {"user:jane": store.events[1].time_ns}


@virtual
async def test_an_event_of_the_server_wakes_it_and_silent_ones_wait_for_the_poll() -> None:
    """Requests to admins are told by no event (UPSTREAM.md §5)."""
    world, store = a_world(), Store()
    async with running(Direct(world), store):
        await anyio.sleep(5)
        world.notify("jane", "api_key_created")
        await anyio.sleep(2)
        assert len(store.events) == 1
        world.notify("jane", "user_requested")
        await anyio.sleep(10)
        assert len(store.events) == 1
        await anyio.sleep(60)
        assert len(store.events) == 2


@virtual
async def test_a_key_that_is_good_for_no_stream_still_polls() -> None:
    world, store = a_world(), Store()
    async with running(Direct(world, deaf=True), store) as source:
        await anyio.sleep(1)
        world.notify("jane", "api_key_created")
        await anyio.sleep(70)
        assert source.status().connected
        assert "no rights" in source.status().warnings[0]
    assert len(store.events) == 1


@virtual
async def test_nothing_is_taken_in_again_whatever_its_status_and_after_a_restart() -> None:
    """The mark is the source's own: people may set a notification unseen again."""
    world, store = a_world(), Store()
    ids = [world.notify("jane", "api_key_created") for _ in range(20)]
    direct = Direct(world)
    async with running(direct, store):
        await anyio.sleep(5)
        world.mark("jane", ids[:10], "SEEN")
        await anyio.sleep(70)
        world.mark("jane", ids[:10], "UNSEEN")
        await anyio.sleep(70)
    store.traces = {each: traced(each, "delivered") for each in store.ids}
    async with running(direct, store):
        await anyio.sleep(200)
    assert len(store.events) == 20


@virtual
async def test_one_that_becomes_visible_late_is_still_taken_in() -> None:
    """Two transactions overlap: the older notification is committed after the newer one was read."""
    world, store = a_world(), Store()
    async with running(Direct(world), store):
        await anyio.sleep(1)
        world.notify("jane", "api_key_created")
        await anyio.sleep(3)
        world.notify("jane", "api_key_changed")
        world.inbox.of_user["jane"][-1].created -= 4_000_000_000 - 500_000_000
        await anyio.sleep(70)
        assert len(store.events) == 2


@virtual
@pytest.mark.parametrize("seed", range(12))
async def test_pages_that_shift_while_they_are_read_lose_and_repeat_nothing(seed: int) -> None:
    """New ones push the rest down, and people who read pull it up: whatever stays unseen comes once."""
    world, store = a_world(), Store()
    rng = random.Random(seed)
    for number in range(3500):
        world.notify("jane", "api_key_created", event=False)
        world.inbox.of_user["jane"][-1].created -= (3500 - number) * 10_000_000_000

    def shift() -> None:
        unseen = [each.id for each in world.inbox.listed("jane", UNSEEN)]
        if rng.random() < 0.6:
            world.inbox.mark("jane", frozenset(rng.sample(unseen, min(len(unseen), 300))), "SEEN", world.now)
        for _ in range(rng.randrange(300)):
            world.notify("jane", "api_key_changed", event=False)

    direct = Direct(world, between=shift)
    async with running(direct, store):
        await anyio.sleep(100)
        direct.between = lambda: None
        await anyio.sleep(200)
    unseen = {unique_id("jane", each.id) for each in world.inbox.listed("jane", UNSEEN)}
    assert unseen <= set(store.ids)
    store.traces = {each: traced(each, "delivered") for each in store.ids}
    async with running(direct, store):
        await anyio.sleep(100)
    assert len(set(store.ids)) == len(store.ids)


@virtual
async def test_a_notification_is_marked_only_after_every_delivery_is_confirmed() -> None:
    """One that waits, died, or that no rule wanted stays unseen."""
    world, store = a_world(), Store()
    done, waits, dead, unwanted = (world.notify("jane", "api_key_created") for _ in range(4))

    def name(id: str) -> str:
        return unique_id("jane", id)

    store.traces[name(done)] = traced(name(done), "delivered", "delivered")
    store.traces[name(waits)] = traced(name(waits), "delivered", "waiting")
    store.traces[name(dead)] = traced(name(dead), "delivered", "dead")
    async with running(Direct(world), store, mark="seen"):
        await anyio.sleep(400)
        assert [each.status for each in world.inbox.of_user["jane"]] == ["SEEN", "UNSEEN", "UNSEEN", "UNSEEN"]
        store.traces[name(waits)] = traced(name(waits), "delivered", "delivered")
        await anyio.sleep(10)
        assert [each.status for each in world.inbox.of_user["jane"]] == ["SEEN", "SEEN", "UNSEEN", "UNSEEN"]
    assert len(store.events) == 4
    assert unwanted


@virtual
async def test_what_was_delivered_before_a_restart_is_marked_after_it() -> None:
    """Nothing but the list and the outbox is needed to know."""
    world, store = a_world(), Store()
    id = world.notify("jane", "api_key_created")
    direct = Direct(world)
    async with running(direct, store, mark="archived"):
        await anyio.sleep(1)
    store.traces[unique_id("jane", id)] = traced(unique_id("jane", id), "delivered")
    async with running(direct, store, mark="archived"):
        await anyio.sleep(10)
    assert world.inbox.of_user["jane"][0].status == "ARCHIVED"
    assert len(store.events) == 1


@virtual
async def test_without_mark_nothing_is_ever_changed_in_the_console() -> None:
    world, store = a_world(), Store()
    world.notify("jane", "api_key_created")
    direct = Direct(world)
    async with running(direct, store):
        store.traces = {unique_id("jane", world.inbox.of_user["jane"][0].id): traced("x", "delivered")}
        await anyio.sleep(300)
    assert not [each for each in direct.calls if each.startswith("PATCH")]


@virtual
async def test_a_key_that_is_revoked_makes_it_unready_and_is_tried_every_two_minutes() -> None:
    world, store = a_world(), Store()
    direct = Direct(world, deaf=True)
    async with running(direct, store) as source:
        await anyio.sleep(1)
        key = world.keys[TOKEN]
        world.revoke(TOKEN)
        await anyio.sleep(70)
        assert not source.status().ready
        assert store.own == ["bridge.source.unready"]
        assert "API key not found" in source.status().error
        asked = len(direct.calls)
        await anyio.sleep(100)
        assert len(direct.calls) == asked
        world.keys[TOKEN] = key
        world.notify("jane", "api_key_created", event=False)
        await anyio.sleep(30)
        assert source.status().ready
    assert store.own == ["bridge.source.unready", "bridge.source.ready"]
    assert len(store.events) == 1


@given(st.binary(max_size=40) | st.recursive(st.none() | st.text(), st.lists).map(msgspec.json.encode))
def test_garbage_is_no_notification_and_nothing_else(body: bytes) -> None:
    with pytest.raises(FrameError):
        notification("jane", body)


def test_the_recorded_notifications_become_events() -> None:
    """Name, entity first and receiver behind it, data as it came."""
    recorded = msgspec.json.decode((RECORDED / "notifications.json").read_bytes())["notifications"]
    for each in recorded:
        made = notification("admin", msgspec.json.encode(each))
        assert made.event.name == f"notification.{each['notification_type']}"
        assert made.event.unique_id == f"notification/admin/{each['id']}"
        assert made.event.document()["data"] == each
        assert made.event.document()["identifiers"][0] == each["entity_ids"]
        assert made.created == made.event.time_ns > 0


GRPC = {"transport": "grpc"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"user": "No One"},
        {"interval": "10ms"},
        {"mark": "read"},
        {"url": "eu1"},
        {"grpc_address": "x:1"},
        GRPC | {"grpc_address": "x"},
    ],
)
def test_a_wrong_setting_is_refused(wrong: dict[str, str]) -> None:
    right = {"type": "tts-notifications", "url": "https://tts.example", "api_key": "k", "user": "jane"}
    NotificationsSourceConfig.model_validate(right)
    with pytest.raises(ValidationError):
        NotificationsSourceConfig.model_validate(right | wrong)
