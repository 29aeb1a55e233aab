"""The source over real HTTP against the stand-in: framings, refusals, cuts, recycling."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from bridge.event import Entity
from bridge.metrics import Metrics
from bridge.sources import Reading
from bridge.sources.api import HttpApi
from bridge.sources.follow import TtsSource
from bridge.sources.http import HttpUpstream, http_client
from bridge.sources.models import TtsSourceConfig
from bridge.sources.registry import propagates
from bridge.standin import (
    ALL,
    Answer,
    Cut,
    Drip,
    ErrorFrame,
    Garbage,
    Refuse,
    Server,
    Silence,
    World,
    play,
    serve,
)
from bridge.standin.problems import STOPPING
from tests.recordings import RECORDED, unique_ids
from tests.unit.following import Store
from tests.upstreams import happened

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

TOKEN = "NNSXS.AAAAAAAA.BBBBBBBB"
APP = Entity("application", "plant-a")
GATEWAY = Entity("gateway", "gw-roof")
UP = "as.up.data.forward"


@dataclass
class Rig:
    world: World
    server: Server
    source: TtsSource
    store: Store = field(default_factory=Store)
    metrics: Metrics = field(default_factory=Metrics)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"source": "eu1", **labels}) or 0.0

    def bodies(self) -> list[dict[str, Any]]:
        """What was asked of the event stream, oldest first."""
        return [each.body for each in self.server.requests if each.path.endswith("/events")]  # type: ignore[misc]

    async def connected(self) -> None:
        await until(lambda: self.source.status().connected)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.01)


@asynccontextmanager
async def following(
    *identifiers: dict[str, str],
    world: World | None = None,
    prepare: Callable[[World], None] = lambda _: None,
    start: str = "now",
    **options: Any,
) -> AsyncIterator[Rig]:
    """A stand-in and a source on it; waits between reconnects are short."""
    world = world or World({TOKEN: ALL})
    prepare(world)
    async with serve(world) as server:
        config = TtsSourceConfig.model_validate(
            {
                "type": "tts",
                "url": server.url,
                "api_key": TOKEN,
                "identifiers": list(identifiers or [{"application": "plant-a"}]),
                "overlap": "500ms",
                "from": start,
            }
            | options
        )
        metrics, store = Metrics(), Store()
        metrics.prepare(sources=["eu1"], sinks=(), rules=())

        async def cursors() -> dict[str, int]:
            return dict(store.cursors)

        async def recent(identifier: str) -> tuple[str, ...]:
            return tuple(store.recent.get(identifier, ()))

        async with http_client(config.url, TOKEN, config.tls) as client:
            source = TtsSource(
                "eu1",
                config,
                HttpUpstream(client),
                HttpApi(client),
                metrics,
                cursors=cursors,
                recent_ids=recent,
                wait=lambda attempt: 0.05 * attempt,
                now=anyio.current_time,
                rng=random.Random(0),
                propagates=propagates(),
            )
            send, receive = anyio.create_memory_object_stream[Reading](math.inf)

            async def storing() -> None:
                async for reading in receive:
                    store.take(reading)

            async with receive, anyio.create_task_group() as tasks:
                tasks.start_soon(storing)
                tasks.start_soon(source.run, send)
                try:
                    yield Rig(world, server, source, store, metrics)
                finally:
                    tasks.cancel_scope.cancel()
                    send.close()


def recorded(name: str) -> bytes:
    """A recorded answer. Its body was kept without chunk framing: it ends with the connection."""
    return (RECORDED / name).read_bytes().replace(b"Transfer-Encoding: chunked\r\n", b"", 1)


async def test_a_recorded_stream_arrives_whole() -> None:
    """Every event of the recording, in TTS's bare framing, with the request the real server expects."""
    async with following({"application": "plant-a"}, {"application": "plant-b"}) as it:
        await it.connected()
        await play(it.world, RECORDED / "apps.sse", math.inf, shift=False)
        wanted = set(unique_ids("apps.sse"))
        await until(lambda: wanted <= set(it.store.ids))
    request = next(each for each in it.server.requests if each.path.endswith("/events"))
    assert request.headers["accept"] == "text/event-stream"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert "content-length" in request.headers
    assert it.bodies()[0]["tail"] == 1024
    assert it.bodies()[0]["names"] == ["/./"]


async def test_true_server_sent_events_are_read_as_well() -> None:
    """A proxy that writes `data:` lines: told apart by content."""
    lines = (RECORDED / "apps.sse").read_bytes().split(b"\n\n")
    body = b"".join(b"data: %s\n\n" % line for line in lines if line)
    raw = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + body
    async with following(prepare=lambda world: world.faults.on_open(Answer(raw)), start="oldest") as it:
        wanted = set(unique_ids("apps.sse"))
        await until(lambda: wanted <= set(it.store.ids))


async def test_one_object_a_line_is_read_as_well() -> None:
    """The other framing of the real server."""
    body = (RECORDED / "apps.ndjson").read_bytes()
    raw = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + body
    async with following(prepare=lambda world: world.faults.on_open(Answer(raw)), start="oldest") as it:
        wanted = set(unique_ids("apps.ndjson"))
        await until(lambda: wanted <= set(it.store.ids))


async def test_chunk_boundaries_do_not_matter() -> None:
    """Every message in pieces of seven bytes."""
    async with following(prepare=lambda world: world.faults.on_open(Drip(7))) as it:
        await it.connected()
        wanted = {happened(it.world, UP, APP) for _ in range(20)}
        await until(lambda: wanted <= set(it.store.ids))
    assert it.metric("bridge_source_frame_errors_total") == 0


async def test_a_cut_in_the_middle_of_an_event_loses_nothing() -> None:
    """The torn frame is no error of a frame; it comes whole out of history."""

    def cut_three_times(world: World) -> None:
        for after in (3, 0, 7):
            world.faults.on_open(Cut(after=after))

    async with following(prepare=cut_three_times) as it:
        await it.connected()
        wanted = set()
        for _ in range(40):
            wanted.add(happened(it.world, UP, APP))
            await anyio.sleep(0.01)
        await until(lambda: wanted <= set(it.store.ids))
    assert it.metric("bridge_source_frame_errors_total") == 0
    assert it.metric("bridge_source_reconnects_total", reason="transient") == 3


async def test_recycling_makes_before_it_breaks() -> None:
    """Two streams for a moment, none never; the new one goes back behind the start of the old one."""
    async with following(recycle="1s") as it:
        await it.connected()
        wanted, most, least = set(), 0, 9
        for _ in range(150):
            wanted.add(happened(it.world, UP, APP))
            most, least = max(most, it.server.streams), min(least, it.server.streams)
            await anyio.sleep(0.02)
        await until(lambda: wanted <= set(it.store.ids))
        assert least >= 1
        assert most >= 2
    first, second = (body["after"] for body in it.bodies()[:2])
    assert second < first or second.startswith(first[:16])
    assert it.metric("bridge_source_reconnects_total", reason="recycle") >= 2


async def test_silence_is_healed_by_recycling() -> None:
    """The server stays connected and says nothing: what it swallowed comes with the next stream."""
    async with following(prepare=lambda world: world.faults.on_open(Silence(1)), recycle="1s") as it:
        await it.connected()
        wanted = {happened(it.world, UP, APP) for _ in range(10)}
        await until(lambda: wanted <= set(it.store.ids))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "api_key_not_found"),
        (400, "pkg/auth:token"),
        (403, "no_application_rights"),
        (404, "application_not_found"),
    ],
)
async def test_a_refusal_makes_the_source_unready(status: int, words: str) -> None:
    """The key, its form, its rights or the only entity: told by name, retried slowly, never in a hurry."""
    async with following(prepare=lambda world: world.faults.on_open(Refuse(status))) as it:
        await until(lambda: bool(it.source.status().error))
        status_now = it.source.status()
        assert words in status_now.error
        assert not status_now.ready
        assert status_now.retry_in is not None
        assert status_now.retry_in > 100
        await anyio.sleep(0.5)
        assert len(it.bodies()) == 1


@pytest.mark.parametrize("status", [500, 503])
async def test_a_failing_server_is_tried_again_soon(status: int) -> None:
    """A 5xx is a known backoff, not a refusal."""
    async with following(prepare=lambda world: world.faults.on_open(Refuse(status))) as it:
        await it.connected()
        assert it.source.status().ready
    assert it.metric("bridge_source_reconnects_total", reason="transient") == 1


async def test_a_recorded_429_is_waited_out() -> None:
    """`X-Rate-Limit-Retry: 6` in the recording: nothing is opened before."""
    raw = recorded("rate_limited.http")
    async with following(prepare=lambda world: world.faults.on_open(Answer(raw))) as it:
        await until(lambda: "rate_limit_exceeded" in it.source.status().error)
        assert it.source.status().ready
        assert 5 < (it.source.status().retry_in or 0) < 8
        began = anyio.current_time()
        await it.connected()
        assert anyio.current_time() - began > 5


async def test_a_recorded_server_stop_is_a_normal_end() -> None:
    """The error frame with code 1 inside the 200; its events are read, then the stream is opened again."""
    raw = recorded("server_stop.http")
    prepare = lambda world: world.faults.on_open(Answer(raw))  # noqa: E731
    async with following({"gateway": "gw-roof"}, prepare=prepare, start="oldest") as it:
        await until(lambda: it.metric("bridge_source_reconnects_total", reason="ended") == 1)
        await it.connected()
        assert len(it.store.ids) > 3


async def test_an_error_frame_of_the_store_is_transient() -> None:
    """`pkg/redis:store` in the middle of a stream."""
    async with following(prepare=lambda world: world.faults.on_open(ErrorFrame(2))) as it:
        await it.connected()
        wanted = {happened(it.world, UP, APP) for _ in range(5)}
        await until(lambda: wanted <= set(it.store.ids))
    assert it.metric("bridge_source_reconnects_total", reason="transient") == 1


async def test_a_stopping_server_ends_streams_in_good_order() -> None:
    """Down and up again on the same port: nothing in between is lost."""
    async with following() as it:
        await it.connected()
        await anyio.sleep(0.6)
        await it.server.stop()
        wanted = {happened(it.world, UP, APP) for _ in range(10)}
        await until(lambda: not it.source.status().connected)
        await it.server.start()
        await until(lambda: wanted <= set(it.store.ids))
    assert STOPPING.code == 1
    assert it.metric("bridge_source_reconnects_total", reason="ended") == 1


async def test_a_recorded_answer_without_a_store_shows_its_warning() -> None:
    """`X-Warning: Events storage is not enabled`, and the events are read."""
    raw = recorded("storage_disabled.http")
    prepare = lambda world: world.faults.on_open(Answer(raw))  # noqa: E731
    world = World({TOKEN: ALL}, storage=False)
    async with following({"gateway": "gw-roof"}, world=world, prepare=prepare) as it:
        await until(lambda: it.source.status().warnings == ("Events storage is not enabled",))
        await it.connected()
        mine = happened(it.world, "gs.gateway.connect", GATEWAY)
        await until(lambda: mine in it.store.ids)


async def test_garbage_between_frames_is_counted_and_skipped() -> None:
    """One bad line costs nothing but itself."""
    async with following(prepare=lambda world: world.faults.on_open(Garbage(1))) as it:
        await it.connected()
        wanted = {happened(it.world, UP, APP) for _ in range(3)}
        await until(lambda: wanted <= set(it.store.ids))
    assert it.metric("bridge_source_frame_errors_total") == 1


async def test_one_forbidden_entity_does_not_stop_the_others() -> None:
    """Left out, shown with the reason, and the other is followed."""
    world = World({TOKEN: frozenset({APP})}, entities=[APP, GATEWAY])
    async with following({"application": "plant-a"}, {"gateway": "gw-roof"}, world=world) as it:
        await it.connected()
        [(who, why)] = it.source.status().excluded
        assert who == "gateway gw-roof"
        assert "no_gateway_rights" in why
        assert it.source.status().ready
        mine = happened(it.world, UP, APP)
        await until(lambda: mine in it.store.ids)
    assert it.metric("bridge_source_excluded") == 1


async def test_a_key_revoked_while_the_stream_flows_is_noticed() -> None:
    """The all-in-one server goes on delivering; bridge asks, and says so in state, metric and event."""
    async with following(recycle="1s") as it:
        await it.connected()
        assert it.source.status().ready
        streams = it.server.streams
        del it.world.keys[TOKEN]
        await until(lambda: not it.source.status().ready, 2)
        assert it.server.streams >= streams
        flows = happened(it.world, UP, APP)
        await until(lambda: flows in it.store.ids)
        await until(lambda: bool(it.store.own("bridge.source.unready")))
        [told] = it.store.own("bridge.source.unready")
    assert told.document()["data"]["reason"] == "refused"
    assert told.document()["data"]["source"] == "eu1"
    assert it.metric("bridge_source_refused") == 1
