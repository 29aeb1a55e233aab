"""Questions to the store, each one short read.  Called with a connection, on the reader's thread."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from bridge.delivery import Delivery, delivery_id
from bridge.event import Event, Identifiers, nanoseconds
from bridge.outbox import (
    Attempt,
    DeadLetter,
    DeadLetterFilter,
    Due,
    PauseState,
    SinkTotals,
    SourceTotals,
    Trace,
    TracedDelivery,
)
from bridge.outbox.letting_go import chosen
from bridge.outbox.transactions import ROUTE_BITS, Total, ids
from bridge.outbox.verify import Accounts

DUE_BYTES = 16 << 20  # of bodies, after which no more is read at once
DUE = """
SELECT d.id, d.rule, d.attempt, d.tried_since, d.due, d.order_key,
    e.unique_id, e.source, e.received, e.body
FROM deliveries d JOIN events e ON e.id = d.id >> 20
WHERE d.sink = ? AND {} AND d.id NOT IN (SELECT value FROM json_each(?))
ORDER BY d.due, d.id LIMIT ?
"""
NEXT_DUE = """
SELECT due FROM deliveries WHERE sink = ? AND due > ? AND id NOT IN (SELECT value FROM json_each(?))
ORDER BY due LIMIT 1
"""
OLDEST = """
SELECT e.received FROM deliveries d JOIN events e ON e.id = d.id >> 20 WHERE d.sink = ? ORDER BY d.id LIMIT 1
"""
LETTER = (
    "delivery, sink, rule, name, unique_id, reason, attempts, first, last, status, error, response"
    " FROM dead_letters"
)


class _Envelope(msgspec.Struct):
    name: str = ""
    time: str = ""
    identifiers: tuple[Identifiers, ...] = ()


def stored_event(unique_id: str, body: bytes) -> Event:
    """The event of a stored *body*; its id was given to it when it came in.

    A body the disk has damaged becomes an event without a name: rendering it fails, so it is told as a
    dead letter instead of stopping its sink.
    """
    try:
        read = msgspec.json.decode(body, type=_Envelope)
        time_ns = nanoseconds(read.time)
    except msgspec.DecodeError:
        read, time_ns = _Envelope(), 0
    except ValueError:
        time_ns = 0
    return Event(read.name, read.time, time_ns, unique_id, read.identifiers, body)


def due(
    db: sqlite3.Connection, sink: str, now: float, horizon: float, limit: int, taken: Collection[int]
) -> Due:
    found: list[Any] = []
    size = 0
    with closing(_due_rows(db, sink, now, horizon, limit, ids(taken))) as rows:
        for row in rows:
            if len(found) == limit or size > DUE_BYTES:
                following: float | None = min(row[4], now)
                break
            found.append(row)
            size += len(row[-1])
        else:
            following = next_due(db, sink, now, taken, found)
    return Due(tuple(_delivery(sink, *row) for row in found), following)


def _due_rows(
    db: sqlite3.Connection, sink: str, now: float, horizon: float, limit: int, taken: str
) -> Generator[Any, None, None]:
    """One more than *limit*: what is due, then what the clock has put out of sight."""
    for when, at in (("d.due <= ?", now), ("d.due > ?", now + horizon)):
        with closing(db.execute(DUE.format(when), (sink, at, taken, limit + 1))) as rows:
            yield from rows


def next_due(
    db: sqlite3.Connection, sink: str, now: float, taken: Collection[int], found: Sequence[tuple[int, object]]
) -> float | None:
    """When one falls due that is neither *taken* nor *found*."""
    known = ids((*taken, *(row[0] for row in found)))
    following = db.execute(NEXT_DUE, (sink, now, known)).fetchone()
    return following[0] if following else None


def _delivery(
    sink: str,
    row: int,
    rule: str,
    attempt: int,
    tried_since: float | None,
    _due: float,
    order_key: str | None,
    unique_id: str,
    source: str,
    received: float,
    body: bytes,
) -> Delivery:
    event = stored_event(unique_id, body)
    delivery = delivery_id(unique_id, rule, sink)
    return Delivery(row, delivery, event, source, rule, sink, attempt, received, tried_since, order_key)


def cursors(db: sqlite3.Connection, source: str) -> dict[str, int]:
    return dict(db.execute("SELECT identifier, time_ns FROM cursors WHERE source = ?", (source,)).fetchall())


def memory(db: sqlite3.Connection, sink: str) -> dict[str, bytes]:
    rows = db.execute("SELECT key, value FROM sink_memory WHERE sink = ?", (sink,))
    return {key: value.encode() for key, value in rows}


def oldest(db: sqlite3.Connection, sink: str) -> float | None:
    """Rows are in the order in which events came."""
    found = db.execute(OLDEST, (sink,)).fetchone()
    return found[0] if found else None


def pauses(db: sqlite3.Connection) -> dict[str, PauseState]:
    rows = db.execute(
        "SELECT name, reason, error, since, until, probes FROM sinks WHERE reason IS NOT NULL"
    ).fetchall()
    return {name: PauseState(*rest) for name, *rest in rows}


def paused_seconds(db: sqlite3.Connection, sink: str, now: float) -> float:
    found = db.execute(
        "SELECT paused + CASE WHEN reason IS NULL THEN 0 ELSE max(0, ? - since) END"
        " FROM sinks WHERE name = ?",
        (now, sink),
    ).fetchone()
    return float(found[0]) if found else 0.0


def dead_letters(
    db: sqlite3.Connection, wanted: DeadLetterFilter, limit: int, after: str | None
) -> list[DeadLetter]:
    where, values = chosen(wanted)
    rows = db.execute(
        f"SELECT {LETTER} WHERE {where}"
        " AND id > ifnull((SELECT id FROM dead_letters WHERE delivery = ?), 0) ORDER BY id LIMIT ?",
        (*values, after, limit),
    )
    return [DeadLetter(*row) for row in rows.fetchall()]


def trace(db: sqlite3.Connection, unique_id: str) -> Trace | None:
    seen = db.execute(
        "SELECT event, received, name, source FROM seen WHERE unique_id = ?", (unique_id,)
    ).fetchone()
    if seen is None:
        return None
    event, received, name, source = seen
    return Trace(unique_id, received, name, source, tuple(_traced(db, unique_id, event)))


def _traced(db: sqlite3.Connection, unique_id: str, event: int) -> Iterator[TracedDelivery]:
    rows = event << ROUTE_BITS, (event + 1) << ROUTE_BITS
    for sink in sinks(db):
        waiting = db.execute(
            "SELECT id, rule, due FROM deliveries WHERE sink = ? AND id >= ? AND id < ?", (sink, *rows)
        )
        for row, rule, at in waiting.fetchall():
            yield _one(db, unique_id, row, rule, sink, "waiting", due=at)
    dead = db.execute("SELECT id, rule, sink, last FROM dead_letters WHERE id >= ? AND id < ?", rows)
    for row, rule, sink, at in dead.fetchall():
        yield _one(db, unique_id, row, rule, sink, "dead", at=at)
    settled = db.execute("SELECT id, rule, sink, state, at FROM settled WHERE id >= ? AND id < ?", rows)
    for row, rule, sink, state, at in settled.fetchall():
        yield _one(db, unique_id, row, rule, sink, state, at=at)


def sinks(db: sqlite3.Connection) -> list[str]:
    """Every sink that ever got a delivery."""
    rows = db.execute("SELECT DISTINCT name FROM totals WHERE kind = 'sink' ORDER BY name").fetchall()
    return [name for (name,) in rows]


def _one(
    db: sqlite3.Connection,
    unique_id: str,
    row: int,
    rule: str,
    sink: str,
    state: str,
    *,
    due: float | None = None,
    at: float | None = None,
) -> TracedDelivery:
    return TracedDelivery(delivery_id(unique_id, rule, sink), rule, sink, state, attempts(db, row), due, at)


def attempts(db: sqlite3.Connection, row: int) -> tuple[Attempt, ...]:
    """Those of delivery *row* that are kept, in their order."""
    made = db.execute(
        "SELECT number, at, duration, outcome, reason, status, error, response FROM attempts"
        " WHERE delivery = ? ORDER BY rowid",
        (row,),
    ).fetchall()
    return tuple(Attempt(*each) for each in made)


def bytes_used(db: sqlite3.Connection, path: Path) -> int:
    """Pages in use and the write-ahead log (DESIGN.md §3)."""
    return pages_used(db) + log_bytes(path)


def pages_used(db: sqlite3.Connection) -> int:
    """Bytes of pages that are not free; inside a transaction with what it did so far."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def log_bytes(path: Path) -> int:
    try:
        return Path(f"{path}-wal").stat().st_size
    except OSError:
        return 0


def totals(db: sqlite3.Connection) -> dict[Total, int]:
    rows = db.execute("SELECT kind, name, what, value FROM totals").fetchall()
    return {(kind, name, what): value for kind, name, what, value in rows}


def source_totals(stored: Mapping[Total, int]) -> dict[str, SourceTotals]:
    return {name: SourceTotals(**values) for name, values in _by_name(stored, "source").items()}


def sink_totals(stored: Mapping[Total, int]) -> dict[str, SinkTotals]:
    return {name: SinkTotals(**values) for name, values in _by_name(stored, "sink").items()}


def _by_name(stored: Mapping[Total, int], wanted: str) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for (kind, name, what), value in stored.items():
        if kind == wanted:
            found[name][what] = value
    return found


@contextmanager
def snapshot(db: sqlite3.Connection) -> Iterator[None]:
    """Everything asked inside is of one moment; one inside another is of the outer one's."""
    if db.in_transaction:
        yield
        return
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("COMMIT")


def accounts(db: sqlite3.Connection) -> Accounts:
    """The totals, and what is counted in the tables."""
    with snapshot(db):
        stored = totals(db)
        waiting, dead = (
            dict(db.execute(f"SELECT sink, count(*) FROM {table} GROUP BY sink").fetchall())
            for table in ("deliveries", "dead_letters")
        )
    return Accounts(source_totals(stored), sink_totals(stored), waiting, dead)
