"""What an event costs on JetStream: accepted, routed, handed out and settled, by 1, 2 and 3 processes.

    python -m tests.bench.bench_nats [events a process]

One delivery an event, bodies of 1.4 kB, nothing is sent: this is the outbox alone, and beside it the same on
SQLite. Disk is what is kept once everything is delivered, memory the server's once it was started again with
that: what an event costs for `dedup_window`. In and out are bytes of messages.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from bridge.delivery import Delivered, Done, Route, Settlement
from bridge.event import Event
from bridge.ids import ulid
from bridge.outbox import Batch, Intake, Outbox
from bridge.outbox.jetstream.address import parse
from bridge.outbox.jetstream.outbox import open_jetstream
from bridge.outbox.sqlite import open_outbox, threads
from tests.nats import NatsServer, nats_cluster, nats_server
from tests.servers import free_port

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
    what = on_nats(where, name, int(count)) if kind == "nats" else on_sqlite(Path(where), int(count))
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(what)
    print(f"{time.perf_counter() - began} {cpu_seconds() - cpu}")


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The loop that `bridge run` takes."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@dataclass(frozen=True, slots=True)
class Used:
    """Of nats-servers together: CPU seconds, KiB of memory, bytes on disk, written there, and sent."""

    cpu: float
    memory: float
    disk: int
    written: int
    received: int
    sent: int

    def __sub__(self, other: Used) -> Used:
        return Used(*(getattr(self, each.name) - getattr(other, each.name) for each in fields(self)))


def used(servers: Sequence[NatsServer]) -> Used:
    total = Used(0.0, 0.0, 0, 0, 0, 0)
    for server in servers:
        assert server.process is not None
        memory, cpu = server_kib(server.process.pid)
        disk = sum(each.stat().st_size for each in server.directory.rglob("*.blk"))
        asked = re.search(r"http: [^:]*:(\d+)", server.more)
        written = re.search(r"\nwrite_bytes: (\d+)", Path(f"/proc/{server.process.pid}/io").read_text())
        assert asked is not None
        assert written is not None
        with urllib.request.urlopen(f"http://127.0.0.1:{asked[1]}/varz") as answer:
            varz = json.load(answer)
        total = Used(
            total.cpu + cpu,
            total.memory + memory,
            total.disk + disk,
            total.written + int(written[1]),
            total.received + varz["in_bytes"],
            total.sent + varz["out_bytes"],
        )
    return total


def measured(what: str, calls: list[list[str]], count: int) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.bench_nats", "child", *call], stdout=subprocess.PIPE
        )
        for call in calls
    ]
    told = [each.communicate()[0].decode().split() for each in running]
    took = max(float(seconds) for seconds, _ in told)
    cpu = sum(float(seconds) for _, seconds in told)
    total = count * len(calls)
    print(f"{what:34} {total / took:6.0f} deliveries/s, {cpu / total * 1e6:4.0f} µs of bridge's CPU each")


def server_kib(pid: int) -> tuple[int, float]:
    """Memory in KiB and CPU seconds of the process *pid*."""
    text = Path(f"/proc/{pid}/status").read_text()
    memory = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS"))
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return memory, (int(fields[11]) + int(fields[12])) / 100


def on_servers(what: str, url: str, servers: Sequence[NatsServer], processes: int, count: int) -> None:
    calls = [["nats", url, f"p{n}", str(count)] for n in range(processes)]
    before, total = used(servers), count * processes
    measured(what, calls, count)
    cost = used(servers) - before
    for server in servers:
        server.restart()
    memory = (used(servers).memory - before.memory) * 1024
    told = [
        (cost.cpu / total * 1e6, "µs of the servers' CPU"),
        (cost.written / total, "bytes written"),
        (cost.disk / total, "of their disks"),
        (memory / total, "of their memory"),
        (cost.received / total, "in"),
        (cost.sent / total, "out"),
    ]
    print(f"{'':36}{', '.join(f'{value:.0f} {unit}' for value, unit in told)}, a delivery")


def main(count: int = COUNT) -> None:
    with tempfile.TemporaryDirectory() as folder:
        measured("SQLite, 1 process", [["sqlite", folder, "s", str(count)]], count)
    for processes in (1, 2, 3):
        with (
            tempfile.TemporaryDirectory() as folder,
            nats_server(Path(folder), f"http: 127.0.0.1:{free_port()}") as server,
        ):
            what = f"JetStream, {processes} process{'es' * (processes > 1)}"
            on_servers(what, server.url(), [server], processes, count)
    with tempfile.TemporaryDirectory() as folder, nats_cluster(Path(folder)) as cluster:
        servers = list(cluster.servers.values())
        for each in servers:
            each.more += f"\nhttp: 127.0.0.1:{free_port()}"
            each.restart()
        time.sleep(10.0)  # until they have elected each other
        on_servers("3 servers, 3 copies, 1 process", cluster.url(replicas=3), servers, 1, count)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2:])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else COUNT)
