"""A tenant of 10,000 devices and 200 gateways by streams of several sizes: start, memory, drops in a burst.

python -m tests.bench.bench_tenant

The server is a process of its own. A burst is 3,000 events of 3,000 devices at once, ten of them, a second
apart: what does not fit into the channels of the streams (1,024 each) is dropped, and read again later.
"""

from __future__ import annotations

import math
import random
import resource
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from bridge.event import Entity
from bridge.metrics import Metrics
from bridge.sources import Arrival, Reading
from bridge.sources.api import HttpApi
from bridge.sources.follow import TtsSource
from bridge.sources.http import HttpUpstream, http_client
from bridge.sources.models import TtsSourceConfig
from bridge.sources.registry import propagates
from bridge.standin import ALL, World, serve
from tests.upstreams import happened

KEY = "NNSXS.BENCH.SECRET"
APPS = [Entity("application", f"plant-{number:03}") for number in range(100)]
DEVICES = [Entity("device", f"{app.id}/meter-{number:03}") for app in APPS for number in range(100)]
GATEWAYS = [Entity("gateway", f"gw-{number:03}") for number in range(200)]
SIZES = (100, 500, 2_500, 10_500)
BURSTS, BURST = 10, 3_000


async def server() -> None:
    """Serve until stdin says what to do: `burst`, answered with how many events were dropped so far."""
    world = World({KEY: ALL}, entities=[*APPS, *DEVICES, *GATEWAYS])
    rng = random.Random(0)
    async with serve(world) as running:
        print(running.url, flush=True)
        while await anyio.to_thread.run_sync(sys.stdin.readline):
            for each in rng.sample(DEVICES, BURST):
                happened(world, "ns.up.data.drop", each)
            await anyio.sleep(1.0)
            print(world.dropped, flush=True)


@asynccontextmanager
async def following(url: str, live: int, into: list[str]) -> AsyncIterator[TtsSource]:
    config = TtsSourceConfig.model_validate(
        {
            "type": "tts",
            "url": url,
            "api_key": KEY,
            "identifiers": [{"application": "*", "devices": "*"}, {"gateway": "*"}],
            "recycle": "60s",
        }
    )

    async def cursors() -> dict[str, int]:
        return {}

    async def recent(identifier: str) -> tuple[str, ...]:
        return ()

    send, receive = anyio.create_memory_object_stream[Reading](math.inf)
    async with http_client(url, KEY, config.tls) as client, send, receive, anyio.create_task_group() as tasks:
        source = TtsSource(
            "eu1",
            config,
            HttpUpstream(client),
            HttpApi(client),
            Metrics(),
            cursors=cursors,
            recent_ids=recent,
            wait=lambda attempt: 0.2 * attempt,
            now=time.time,
            rng=random.Random(0),
            propagates=propagates(),
            live=live,
        )

        async def storing() -> None:
            async for reading in receive:
                if isinstance(reading, Arrival):
                    into.append(reading.event.unique_id)

        tasks.start_soon(storing)
        tasks.start_soon(source.run, send)
        yield source
        tasks.cancel_scope.cancel()


def resident() -> float:
    """MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


async def measure(live: int) -> None:
    command = [sys.executable, "-m", "tests.bench.bench_tenant", "serve"]
    async with await anyio.open_process(command, stderr=None) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines = BufferedByteReceiveStream(process.stdout)
        url = (await lines.receive_until(b"\n", 1000)).decode()
        got: list[str] = []
        cpu, memory, began = time.process_time(), resident(), time.monotonic()
        async with following(url, live, got) as source:
            wanted = math.ceil((len(APPS) + len(DEVICES) + len(GATEWAYS)) / live)
            while source.status().streams < wanted or source.status().entities < 10_300:
                await anyio.sleep(0.02)
            started = time.monotonic() - began
            dropped = 0
            for _ in range(BURSTS):
                await process.stdin.send(b"burst\n")
                dropped = int(await lines.receive_until(b"\n", 1000))
            live_rate = len(set(got)) / (BURSTS * BURST)
            with anyio.move_on_after(150):
                while len(set(got)) < BURSTS * BURST:
                    await anyio.sleep(0.5)
            print(
                f"{live:6} a stream: {source.status().streams:4} streams, start {started:5.1f} s,"
                f" {resident() - memory:4.0f} MiB more,"
                f" {time.process_time() - cpu:5.1f} CPU s; bursts: {live_rate:6.1%} live,"
                f" dropped {dropped}, {len(set(got)) / (BURSTS * BURST):6.1%} after reading again",
                flush=True,
            )
        process.terminate()


def main() -> None:
    for live in SIZES:
        anyio.run(measure, live)


if __name__ == "__main__":
    if "serve" in sys.argv:
        anyio.run(server)
    else:
        main()
