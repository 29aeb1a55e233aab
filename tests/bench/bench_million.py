"""One million deliveries of recorded size wait: memory, start, listing, a healthy sink beside it.

Each figure is of a process of its own, so that its memory is what it needs. The limits are those of the
issues: memory below 256 MB, start below 5 s, `queue list` below 1 s, the healthy sink not below 0.8 of an
empty store, ingest not below 0.6 of a raw SQLite insert (in batches of 500, `durability: power`).
"""

from __future__ import annotations

import contextlib
import io
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import anyio
import msgspec

from bridge.commands.queue import listed
from bridge.config import Config
from bridge.delivery import Delivered, Delivery, Done, Failure, Later, RetryLater, Route, Settlement
from bridge.event import Event
from bridge.outbox import Batch, Intake
from bridge.outbox.file import connect
from bridge.outbox.sqlite import SqliteOutbox, open_outbox, threads
from tests.recordings import documents

MILLION = 1_000_000
BATCH = 500
HEALTHY = 20_000  # deliveries a round
ROUNDS = 5
NOW = 1_795_468_146.0  # unix seconds
DEAD, OK = Route("archive", "dead"), Route("uplinks", "ok")


def events(start: int, count: int) -> Iterator[Event]:
    """Recorded events, each under an id of its own."""
    bodies = [(each["name"], each["time"], msgspec.json.encode(each)) for each in documents("devices.sse")]
    for number in range(start, start + count):
        name, at, body = bodies[number % len(bodies)]
        yield Event(name, at, 0, f"01MILLION{number:017d}", (), body)


@asynccontextmanager
async def store(path: Path) -> AsyncIterator[SqliteOutbox]:
    async with (
        threads() as write,
        threads() as read,
        open_outbox(
            path,
            durability="power",
            dedup_window=172_800,
            dead_letter_retention=1e9,
            trace_retention=86_400,
            offload_write=write,
            offload_read=read,
            max_size=4 << 30,
        ) as outbox,
    ):
        yield outbox


async def accept(outbox: SqliteOutbox, start: int, count: int, route: Route) -> None:
    batch: list[Intake] = []
    for event in events(start, count):
        batch.append(Intake("eu1", event, NOW, True, (route,)))
        if len(batch) == BATCH:
            await outbox.accept(Batch(batch))
            batch = []
    if batch:
        await outbox.accept(Batch(batch))


async def ingest(path: Path, count: int) -> None:
    began = time.perf_counter()
    async with store(path) as outbox:
        await accept(outbox, 0, count, DEAD)
        took = time.perf_counter() - began
        tell(f"ingest            {count / took:10,.0f} events/s   {await outbox.bytes_used() / 1e9:.2f} GB")


async def raw(path: Path, count: int) -> None:
    """What SQLite does with the bodies alone."""
    with closing(connect(path, "power")) as db:
        db.execute("CREATE TABLE raw (id INTEGER PRIMARY KEY, body BLOB)")
        began = time.perf_counter()
        for start in range(0, count, BATCH):
            db.execute("BEGIN")
            rows = [(start + n, event.body) for n, event in enumerate(events(start, BATCH))]
            db.executemany("INSERT INTO raw VALUES (?, ?)", rows)
            db.execute("COMMIT")
    tell(f"raw insert        {count / (time.perf_counter() - began):10,.0f} events/s")


async def start(path: Path, _count: int) -> None:
    began = time.perf_counter()
    async with store(path) as outbox:
        first = await outbox.due("dead", now=NOW, horizon=3600, limit=16, taken=())
        took = time.perf_counter() - began
        assert len(first.deliveries) in (0, 16)
    tell(f"start to first due{took:10.3f} s")


async def listing(path: Path, _count: int) -> None:
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        await listed(Config(outbox=f"sqlite:{path}"), None, None, 100, as_json=False)
    tell(f"queue list        {time.perf_counter() - began:10.3f} s")


async def put_off(path: Path, count: int) -> None:
    """Every delivery of the dead sink fails once: the worst there is for `due` and `oldest`."""
    began = time.perf_counter()
    failed = RetryLater(Failure("timeout", "no answer within 10 s"))
    async with store(path) as outbox:
        left = count
        while left > 0:
            found = await outbox.due("dead", now=NOW, horizon=7200, limit=2000, taken=())
            later = [
                Settlement(each, NOW, 10.0, failed, Later(NOW + 3600, 2, NOW)) for each in found.deliveries
            ]
            await outbox.settle(later)
            left -= len(later)
            if not later:
                break
    tell(f"each fails once   {count / (time.perf_counter() - began):10,.0f} deliveries/s")


async def healthy(path: Path, number: int) -> None:
    """Accept, due and settle of a sink that is well, a hundred at a time, round *number*."""
    started = 2 * MILLION + number * HEALTHY
    async with store(path) as outbox:
        began = time.perf_counter()
        for offset in range(0, HEALTHY, BATCH):
            await accept(outbox, started + offset, BATCH, OK)
            await drain(outbox)
        took = time.perf_counter() - began
    print(HEALTHY / took)


async def drain(outbox: SqliteOutbox) -> None:
    while found := (await outbox.due("ok", now=NOW, horizon=3600, limit=100, taken=())).deliveries:
        await outbox.due("dead", now=NOW, horizon=3600, limit=16, taken=range(16))
        await outbox.settle([done(each) for each in found])


def done(delivery: Delivery) -> Settlement:
    return Settlement(delivery, NOW, 0.01, Delivered(200), Done())


def tell(line: str) -> None:
    print(f"{line}   {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB peak", flush=True)


STEPS = {each.__name__: each for each in (ingest, raw, start, listing, put_off, healthy)}


def alone(step: str, path: Path, number: int) -> str:
    """*step* in a process of its own; what it printed."""
    command = [sys.executable, "-m", "tests.bench.bench_million", step, str(path), str(number)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.rstrip()


def rates(full: Path, empty: Path, first: int) -> None:
    """Interleaved, so that both see the same machine; rounds are numbered from *first*, for fresh ids."""
    found: dict[Path, list[float]] = {full: [], empty: []}
    for number in range(first, first + ROUNDS):
        for path, figures in found.items():
            figures.append(float(alone("healthy", path, number)))
    beside, by_itself = (statistics.median(found[path]) for path in (full, empty))
    print(
        f"healthy sink      {beside:10,.0f} deliveries/s beside a million, {by_itself:,.0f} in an empty"
        f" store: {beside / by_itself:.2f}"
    )


def main() -> None:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        full, empty, bare = (Path(folder) / name for name in ("full.db", "empty.db", "raw.db"))
        print(alone("raw", bare, 200_000))
        print(alone("ingest", full, MILLION))
        for step in ("start", "listing"):
            print(alone(step, full, 0))
        rates(full, empty, 0)
        print(alone("put_off", full, MILLION))
        for step in ("start", "listing"):
            print(alone(step, full, 0))
        rates(full, empty, ROUNDS)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        anyio.run(STEPS[sys.argv[1]], Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
