"""Alerts in partitions on a nats-server: what a reader, an owner and a takeover cost, one process at a time.

    python -m tests.bench.bench_nats_alerts [devices]

Uplinks of so many devices, each seen by one `absent` alert, in batches of 256 as `Ingest` has them. It comes
on top of the event's own message.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from bridge.alerts.partition import PARTITIONS
from bridge.ingest import Notification
from bridge.outbox.jetstream.address import parse
from bridge.outbox.jetstream.outbox import JetStreamOutbox, open_jetstream
from bridge.replicas.passing import Passing
from tests.alerting import START, alert_set, device, event
from tests.nats import nats_server
from tests.partitions import PARTS, owner_on

BATCH = 256  # events
ALERTS = alert_set("""
alerts:
  - name: silent
    kind: absent
    match: {name: as.up.data.forward}
    by: device
    for: 1h
    send: [ops]
""")


async def measured(what: str, count: int, call: Callable[[], Awaitable[None]]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    await call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{what:40} {count / wall:9,.0f}/s  {cpu / count * 1e6:7.0f} µs CPU each  {wall:6.2f} s")


async def read(outbox: JetStreamOutbox, devices: int) -> None:
    """What a reader does for alerts beside everything else; two beats at the end."""
    reader = Passing("a", "a1", outbox.publish_sights, lambda: frozenset(PARTS), lambda event: event)
    reader.configure(ALERTS)
    for start in range(0, devices, BATCH):
        for number in range(start, min(devices, start + BATCH)):
            found = event("as.up.data.forward", number / 1000, device(f"m{number}"), id=f"u{number}")
            reader.observe("eu1", reader.look(found), START)
        await reader.hand_over()
    for _ in range(4):
        reader.tick(START + 600 * 1_000_000_000, {}, PARTS)
        await reader.hand_over()


async def announce(_: Sequence[Notification]) -> None:
    raise AssertionError("nobody is missed")


async def judge(outbox: JetStreamOutbox) -> None:
    for number in range(PARTITIONS):
        found = owner_on(outbox, number, ALERTS, announce)
        state = await found.begin()
        while await found.step(state):
            pass


async def take(outbox: JetStreamOutbox) -> None:
    for number in range(PARTITIONS):
        await owner_on(outbox, number, ALERTS, announce).begin()


async def measure(devices: int) -> None:
    with tempfile.TemporaryDirectory() as folder, nats_server(Path(folder)) as server:
        async with open_jetstream(
            parse(server.url()), dedup_window=3600.0, dead_letter_retention=3600.0, trace_retention=3600.0
        ) as outbox:
            await measured("reader: events to the log", devices, lambda: read(outbox, devices))
            await measured("owner: events judged, rows stored", devices, lambda: judge(outbox))
            await measured("takeover: rows loaded", devices, lambda: take(outbox))


def main(devices: int = 24_000) -> None:
    asyncio.run(measure(devices))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
