"""`bridge record` against the stand-in: what it writes, a replay plays."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from bridge.commands.record import Until, chosen, into_file
from bridge.config import Config, load
from bridge.decode import Decoder
from bridge.errors import ConfigError, StartError
from bridge.event import Entity, Event
from bridge.metrics import Metrics
from bridge.sources.models import ReplaySourceConfig
from bridge.sources.replay import ReplaySource
from bridge.standin import ALL, Cut, Server, World, serve
from bridge.standin.player import merged
from tests.recordings import RECORDED

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

TOKEN = "NNSXS.KEY.SECRET"
PLANT_A = Entity("application", "plant-a")


def bodies(count: int) -> list[bytes]:
    """Recorded events of plant-a, as of a day that is still to come."""
    recorded = merged([(RECORDED / "overlap.sse").read_bytes()])
    found = [each.body for each in recorded if b'"name":"as.up.data.forward"' in each.body][:count]
    return [each.replace(b'"time":"2026-11-23T', b'"time":"2036-11-23T', 1) for each in found]


def config(folder: Path, server: Server, token: str = TOKEN) -> Config:
    path = folder / "bridge.yaml"
    path.write_text(
        f"sources:\n  eu1: {{type: tts, url: '{server.url}', api_key: {token},"
        " identifiers: [{application: plant-a}]}\n  lab: {type: replay, path: x.sse}\n"
    )
    return load(path, {})


async def recorded(
    folder: Path, server: Server, output: str, happen: Callable[[], Awaitable[None]], **more: Any
) -> int:
    """Record while *happen* lets events happen."""
    count = 0
    sources = chosen(config(folder, server), ())

    async def recording() -> None:
        nonlocal count
        count = await into_file(sources, folder / output, more.get("secret"), more["until"])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(recording)
        while not server.streams:
            await anyio.sleep(0.02)
        await happen()
    return count


def events(path: Path) -> list[Event]:
    decoder = Decoder()
    frames = [*decoder.feed(path.read_bytes()), *decoder.close()]
    assert all(isinstance(each, Event) for each in frames)
    return [each for each in frames if isinstance(each, Event)]


@pytest.mark.parametrize("output", ["live.sse", "live.ndjson"])
async def test_what_came_is_written_once_in_either_framing_and_plays_again(
    tmp_path: Path, output: str
) -> None:
    """Across a cut, after which the server repeats itself; bytes as they came."""
    world = World({TOKEN: ALL}, entities=[PLANT_A])
    world.faults.on_open(Cut(after=3))
    sent = bodies(8)

    async def happen() -> None:
        for each in sent:
            await anyio.sleep(0.05)
            world.publish(each)

    async with serve(world) as server:
        count = await recorded(tmp_path, server, output, happen, until=Until(events=8))
    assert count == 8
    found = events(tmp_path / output)
    assert [each.body for each in found] == sent
    settings = ReplaySourceConfig(type="replay", path=tmp_path / output, speed="max", verbatim=True)
    metrics = Metrics()
    source = ReplaySource("lab", settings, metrics, now=lambda: 0.0, rng=random.Random(0))
    send, receive = anyio.create_memory_object_stream[Any](100)
    async with send, receive:
        await source.run(send)
        assert receive.statistics().current_buffer_used == 8


async def test_a_masked_recording_has_no_eui_and_no_payload(tmp_path: Path) -> None:
    world = World({TOKEN: ALL}, entities=[PLANT_A])
    sent = bodies(5)

    async def happen() -> None:
        for each in sent:
            world.publish(each)

    async with serve(world) as server:
        await recorded(tmp_path, server, "m.sse", happen, until=Until(events=5), secret=b"s" * 32)
    text = (tmp_path / "m.sse").read_bytes()
    for each in sent:
        ids = msgspec.json.decode(each)["identifiers"][0]["device_ids"]
        assert ids["dev_eui"].encode() not in text.upper()
        assert msgspec.json.decode(each)["data"]["uplink_message"]["frm_payload"].encode() not in text
    assert [each.unique_id for each in events(tmp_path / "m.sse")] == [
        msgspec.json.decode(each)["unique_id"] for each in sent
    ]


async def test_it_ends_after_the_time_asked_for(tmp_path: Path) -> None:
    world = World({TOKEN: ALL}, entities=[PLANT_A])
    async with serve(world) as server:
        with anyio.fail_after(5):
            assert (
                await into_file(
                    chosen(config(tmp_path, server), ["eu1"]), tmp_path / "e.sse", None, Until(seconds=0.3)
                )
                == 0
            )


async def test_an_impossible_recording_says_why(tmp_path: Path) -> None:
    """A file that exists, an ending without a framing, a source that does not exist."""
    world = World({TOKEN: ALL}, entities=[PLANT_A])
    async with serve(world) as server:
        found = config(tmp_path, server)
        (tmp_path / "old.sse").write_text("x")
        for output, advice in (
            ("old.sse", "--force"),
            ("x.txt", "ends in"),
            ("no/such.sse", "cannot be written"),
        ):
            with pytest.raises(ConfigError, match=advice):
                await into_file(chosen(found, ()), tmp_path / output, None, Until())
        with pytest.raises(ConfigError, match="there is eu1"):
            chosen(found, ["lab"])
    assert (tmp_path / "old.sse").read_text() == "x"


async def test_a_refused_key_ends_it_with_the_reason(tmp_path: Path) -> None:
    async with serve(World({TOKEN: ALL}, entities=[PLANT_A])) as server:
        sources = chosen(config(tmp_path, server, "NNSXS.OTHER.SECRET"), ())
        with pytest.raises(BaseExceptionGroup) as caught:
            await into_file(sources, tmp_path / "x.sse", None, Until())
    assert caught.value.subgroup(StartError) is not None
