"""What an event costs on JetStream: accepted, routed, handed out and settled, by 1, 2 and 3 processes.

    python -m tests.bench.bench_nats [events a process]

One delivery an event, bodies of 1.4 kB, nothing is sent: this is the outbox alone, and beside it the same on
SQLite. Memory is the server's once it was started again with all that is kept: what known ids cost.
"""

from __future__ import annotations

import asyncio
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bridge.delivery import Delivered, Done, Route, Settlement
from bridge.event import Event
from bridge.ids import ulid
from bridge.outbox import Batch, Intake, Outbox
from bridge.outbox.jetstream.address import parse
from bridge.outbox.jetstream.outbox import open_jetstream
from bridge.outbox.sqlite import open_outbox, threads
from tests.nats import nats_server

COUNT = 5000
BATCH = 128
HEAD = b'{"name":"as.up.data.forward","unique_id":"%s","time":"2026-11-23T21:49:06Z","data":"'


async def work(outbox: Outbox, name: str, count: int) -> None:
    """Take in *count* events and deliver what there is, in turn."""
    left, delivered, rng = 0, 0, random.Random(name)
    now = time.time()
    for start in range(0, count, BATCH):
        intakes = [
            Intake("eu1", event(ulid(time.time_ns(), rng)), now, True, (Route("r", "crm"),))
            for n in range(start, min(start + BATCH, count))
        ]
        await outbox.accept(Batch(intakes))
        left += len(intakes)
        delivered += await deliver(outbox)
    while delivered < left and (more := await deliver(outbox)):
        delivered += more


async def deliver(outbox: Outbox) -> int:
    now = time.time()
    found = await outbox.due("crm", now=now + 1, horizon=3600.0, limit=BATCH, taken=())
    await outbox.settle([Settlement(each, now, 0.01, Delivered(200), Done()) for each in found.deliveries])
    return len(found.deliveries)


def event(unique_id: str) -> Event:
    return Event("as.up.data.forward", "", 0, unique_id, (), HEAD % unique_id.encode() + b"x" * 1300 + b'"}')


async def on_nats(url: str, name: str, count: int) -> None:
    async with open_jetstream(
        parse(f"{url}&replica={name}"),
        dedup_window=172_800.0,
        dead_letter_retention=2_592_000.0,
        trace_retention=86_400.0,
    ) as outbox:
        await work(outbox, name, count)


async def on_sqlite(folder: Path, count: int) -> None:
    async with (
        threads() as write,
        threads() as read,
        open_outbox(
            folder / "bridge.db",
            durability="power",
            dedup_window=172_800.0,
            dead_letter_retention=2_592_000.0,
            trace_retention=86_400.0,
            offload_write=write,
            offload_read=read,
        ) as outbox,
    ):
        await work(outbox, "s", count)


def child(arguments: list[str]) -> None:
    kind, where, name, count = arguments
    began, cpu = time.perf_counter(), cpu_seconds()
    asyncio.run(on_nats(where, name, int(count)) if kind == "nats" else on_sqlite(Path(where), int(count)))
    print(f"{time.perf_counter() - began} {cpu_seconds() - cpu}")


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measured(what: str, calls: list[list[str]], count: int) -> None:
    began = time.perf_counter()
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.bench_nats", "child", *call], stdout=subprocess.PIPE
        )
        for call in calls
    ]
    told = [each.communicate()[0].decode().split() for each in running]
    took = max(float(seconds) for seconds, _ in told)
    cpu = sum(float(used) for _, used in told)
    total = count * len(calls)
    print(
        f"{what:22} {total / took:8.0f} deliveries/s {cpu / total * 1e6:8.0f} µs of bridge's CPU a delivery"
        f"   (started and ended in {time.perf_counter() - began:.1f} s)"
    )


def server_kib(pid: int) -> tuple[int, float]:
    """Memory in KiB and CPU seconds of the process *pid*."""
    text = Path(f"/proc/{pid}/status").read_text()
    memory = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS"))
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return memory, (int(fields[11]) + int(fields[12])) / 100


def main(count: int = COUNT) -> None:
    with tempfile.TemporaryDirectory() as folder:
        measured("SQLite, 1 process", [["sqlite", folder, "s", str(count)]], count)
    for processes in (1, 2, 3):
        with tempfile.TemporaryDirectory() as folder, nats_server(Path(folder)) as server:
            assert server.process is not None
            calls = [["nats", server.url(), f"p{n}", str(count)] for n in range(processes)]
            memory, cpu = server_kib(server.process.pid)
            measured(f"JetStream, {processes} process{'es' * (processes > 1)}", calls, count)
            _, used = server_kib(server.process.pid)
            server.restart()
            after, _ = server_kib(server.process.pid)
            total = count * processes
            print(
                f"{'':22} {(used - cpu) / total * 1e6:8.0f} µs of the server's CPU a delivery,"
                f" {(after - memory) * 1024 / total:.0f} bytes of its memory an event"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2:])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else COUNT)
