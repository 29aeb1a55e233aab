"""Accept and settle by batch size, beside a raw SQLite table that only takes and deletes the bodies.

The raw table has the same file settings, one transaction a batch to insert and one to delete: what remains is
what ids, deliveries, totals and traces cost. Figures are of one machine at one moment: compare within a run.
"""

from __future__ import annotations

import itertools
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import anyio
import msgspec

from bridge.delivery import Delivered, Delivery, Done, Route, Settlement
from bridge.event import Event
from bridge.outbox import Batch, Intake
from bridge.outbox.file import Durability, connect
from bridge.outbox.sqlite import open_outbox, threads
from tests.recordings import documents

BATCHES = {1: 1000, 10: 5000, 100: 20_000, 500: 20_000}
"""Batch size, and how many events are measured with it."""
NOW = 1_795_468_146.0  # unix seconds
ROUTE = (Route("uplinks-to-crm", "crm"),)


def events(count: int, prefix: str = "01BENCH") -> list[Event]:
    """*count* recorded events under ids of their own."""
    recorded = itertools.cycle(list(documents("devices.sse")))
    found = []
    for number, document in enumerate(itertools.islice(recorded, count)):
        unique_id = f"{prefix}{number:0{26 - len(prefix)}d}"
        body = msgspec.json.encode(document | {"unique_id": unique_id})
        found.append(Event(document["name"], document["time"], 0, unique_id, (), body))
    return found


def batches(items: Sequence[Event], size: int) -> Iterator[Sequence[Event]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def done(delivery: Delivery) -> Settlement:
    return Settlement(delivery, NOW, 0.01, Delivered(200), Done())


class Clock:
    """Seconds of wall and CPU since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


async def outbox(folder: Path, durability: Durability, size: int, items: Sequence[Event]) -> list[float]:
    """Seconds of accept, settle, and their CPU together."""
    async with (
        threads() as write,
        threads() as read,
        open_outbox(
            folder / "bridge.db",
            durability=durability,
            dedup_window=172_800,
            dead_letter_retention=1e6,
            trace_retention=86_400,
            offload_write=write,
            offload_read=read,
            max_size=4 << 30,
        ) as store,
    ):
        clock = Clock()
        for batch in batches(items, size):
            await store.accept(Batch([Intake("eu1", event, NOW, True, ROUTE) for event in batch], eager=()))
        accepted, cpu_accept = clock.read()
        waiting: list[Delivery] = []
        while len(waiting) < len(items):
            taken = [delivery.row for delivery in waiting]
            found = await store.due("crm", now=NOW, horizon=3600, limit=100_000, taken=taken)
            waiting += found.deliveries
        clock = Clock()
        for start in range(0, len(waiting), size):
            await store.settle([done(each) for each in waiting[start : start + size]])
        settled, cpu_settle = clock.read()
    return [accepted, settled, cpu_accept + cpu_settle]


def raw(folder: Path, durability: Durability, size: int, items: Sequence[Event]) -> list[float]:
    """The same with one table of bodies, in place."""
    with closing(connect(folder / "raw.db", durability)) as db:
        db.execute("CREATE TABLE raw (id INTEGER PRIMARY KEY, body BLOB)")
        clock = Clock()
        for number, batch in enumerate(batches(items, size)):
            rows = [(number * size + n, event.body) for n, event in enumerate(batch)]
            commit(db, "INSERT INTO raw VALUES (?, ?)", rows)
        inserted, cpu_insert = clock.read()
        clock = Clock()
        for start in range(0, len(items), size):
            gone = [(n,) for n in range(start, min(start + size, len(items)))]
            commit(db, "DELETE FROM raw WHERE id = ?", gone)
        deleted, cpu_delete = clock.read()
    return [inserted, deleted, cpu_insert + cpu_delete]


def commit(db: sqlite3.Connection, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
    db.execute("BEGIN IMMEDIATE")
    db.executemany(statement, rows)
    db.execute("COMMIT")


def in_folder(measure: Callable[[Path], list[float]]) -> list[float]:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        return measure(Path(folder))


def main() -> None:
    print(
        "durability batch    accept/s  settle/s   both/s  CPU s/10,000 |   raw both/s  CPU s/10,000   ratio"
    )
    durabilities: tuple[Durability, ...] = ("power", "process")
    for durability, (size, count) in itertools.product(durabilities, BATCHES.items()):
        items = events(count)
        ours = in_folder(lambda folder: anyio.run(outbox, folder, durability, size, items))  # noqa: B023
        bare = in_folder(lambda folder: raw(folder, durability, size, items))  # noqa: B023
        both, bare_both = count / (ours[0] + ours[1]), count / (bare[0] + bare[1])
        print(
            f"{durability:10} {size:5} {count / ours[0]:11,.0f} {count / ours[1]:9,.0f} {both:8,.0f}"
            f" {ours[2] / count * 10_000:12.2f} | {bare_both:10,.0f} {bare[2] / count * 10_000:12.2f}"
            f" {both / bare_both:7.2f}"
        )


if __name__ == "__main__":
    main()
