"""A recorded stream, happening again: its pace, its times, its ids; on virtual time."""

from __future__ import annotations

import math
import random
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from bridge.event import nanoseconds
from bridge.metrics import Metrics
from bridge.sources import Arrival, Reading
from bridge.sources.models import ReplaySourceConfig
from bridge.sources.replay import ReplaySource
from tests.recordings import RECORDED, STREAMS, documents, unique_ids
from tests.upstreams import virtual_clock

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]


async def played(path: Path, **options: object) -> tuple[list[Arrival], ReplaySource, Metrics]:
    metrics = Metrics()
    config = ReplaySourceConfig.model_validate({"type": "replay", "path": path} | options)
    source = ReplaySource("lab", config, metrics, now=virtual_clock, rng=random.Random(1))
    send, receive = anyio.create_memory_object_stream[Reading](math.inf)
    async with send, receive:
        await source.run(send)
        found = [receive.receive_nowait() for _ in range(receive.statistics().current_buffer_used)]
    return [each for each in found if isinstance(each, Arrival)], source, metrics


def span(name: str) -> float:
    """Seconds from the first to the latest event of a recording."""
    times = [nanoseconds(each["time"]) for each in documents(name)]
    return (max(times) - times[0]) / 1e9


@pytest.mark.parametrize("name", STREAMS)
async def test_at_full_speed_everything_comes_verbatim_and_at_once(name: str) -> None:
    """Ids, times and bytes as recorded, repeats included."""
    arrivals, source, _ = await played(RECORDED / name, speed="max", verbatim=True)
    assert [each.event.unique_id for each in arrivals] == unique_ids(name)
    assert [each.event.document() for each in arrivals] == list(documents(name))
    assert anyio.current_time() == 0
    assert source.status().finished


async def test_what_is_no_event_is_counted_told_once_and_skipped(tmp_path: Path) -> None:
    """As on a live stream."""
    file = tmp_path / "some.ndjson"
    file.write_text('garbage\n{"name":"a.b","time":"2026-11-23T21:09:07Z","unique_id":"01"}\n{{{\n')
    with capture_logs() as logged:
        arrivals, _, metrics = await played(file, speed="max")
    assert [each.event.name for each in arrivals] == ["a.b"]
    assert [each["log_level"] for each in logged] == ["warning", "info"]
    errors = metrics.registry.get_sample_value("bridge_source_frame_errors_total", {"source": "lab"})
    assert errors == 2


async def test_at_normal_speed_it_takes_as_long_as_it_took() -> None:
    """And at ten times the speed a tenth."""
    took = span("gateway_flap.sse")
    await played(RECORDED / "gateway_flap.sse")
    assert anyio.current_time() == pytest.approx(took, abs=0.1)
    await played(RECORDED / "gateway_flap.sse", speed=10)
    assert anyio.current_time() == pytest.approx(took * 1.1, abs=0.2)


async def test_times_are_shifted_to_now_and_keep_their_distances() -> None:
    """The first event happens now, the others as long after it as they did, late ones stay late."""
    recorded = [nanoseconds(each["time"]) for each in documents("apps.sse")]
    began = int(virtual_clock() * 1e9)
    arrivals, _, _ = await played(RECORDED / "apps.sse", speed="max")
    times = [each.event.time_ns for each in arrivals]
    assert abs(times[0] - began) < 1_000
    assert [t - times[0] for t in times] == [t - recorded[0] for t in recorded]


async def test_ids_are_fresh_for_the_run_and_repeats_stay_repeats() -> None:
    """The body says the same as the envelope."""
    old = unique_ids("overlap.sse")
    arrivals, _, _ = await played(RECORDED / "overlap.sse", speed="max")
    new = [each.event.unique_id for each in arrivals]
    assert not set(new) & set(old)
    assert len(set(new)) == len(set(old)) < len(old)
    assert [old.index(each) for each in old] == [new.index(each) for each in new]
    for arrival in arrivals:
        document = arrival.event.document()
        assert document["unique_id"] == arrival.event.unique_id
        assert document["time"] == arrival.event.time


async def test_a_torn_line_is_counted_and_the_others_are_played(tmp_path: Path) -> None:
    """Recordings are files, and files get damaged."""
    lines = (RECORDED / "apps.ndjson").read_bytes().split(b"\n")
    lines[3] = lines[3][:50]
    (tmp_path / "torn.ndjson").write_bytes(b"\n".join(lines))
    arrivals, _, metrics = await played(tmp_path / "torn.ndjson", speed="max", verbatim=True)
    expected = unique_ids("apps.ndjson")
    assert [each.event.unique_id for each in arrivals] == expected[:2] + expected[3:]
    errors = metrics.registry.get_sample_value("bridge_source_frame_errors_total", {"source": "lab"})
    assert errors == 1


async def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    """As an error of the source; the process goes on."""
    arrivals, source, _ = await played(tmp_path / "missing.sse")
    assert arrivals == []
    assert "cannot be read" in source.status().error
    assert not source.status().ready
