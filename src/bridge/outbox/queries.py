"""Questions to the store, each one short read.  Called with a connection, on the reader's thread."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

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
from bridge.outbox.transactions import Total, chosen

DUE = """
SELECT d.id, d.rule, d.attempt, d.tried_since, e.unique_id, e.source, e.received, e.body
FROM deliveries d JOIN events e ON e.id = d.event
WHERE d.sink = ? AND {} AND d.id NOT IN (SELECT value FROM json_each(?))
ORDER BY d.due, d.id LIMIT ?
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
    """The event of a stored *body*; its id was given to it when it came in."""
    read = msgspec.json.decode(body, type=_Envelope)
    try:
        time_ns = nanoseconds(read.time)
    except ValueError:
        time_ns = 0
    return Event(read.name, read.time, time_ns, unique_id, read.identifiers, body)


def due(
    db: sqlite3.Connection, sink: str, now: float, horizon: float, limit: int, taken: Collection[int]
) -> Due:
    rows = json.dumps(list(taken))
    found = db.execute(DUE.format("d.due <= ?"), (sink, now, rows, limit)).fetchall()
    if len(found) < limit:
        beyond = (sink, now + horizon, rows, limit - len(found))
        found += db.execute(DUE.format("d.due > ?"), beyond).fetchall()
    deliveries = tuple(
        Delivery(
            row,
            delivery_id(unique_id, rule, sink),
            stored_event(unique_id, body),
            source,
            rule,
            sink,
            attempt,
            received,
            tried_since,
        )
        for row, rule, attempt, tried_since, unique_id, source, received, body in found
    )
    if len(deliveries) == limit:
        return Due(deliveries, now)
    later = "SELECT due FROM deliveries WHERE sink = ? AND due > ? ORDER BY due LIMIT 1"
    following = db.execute(later, (sink, now)).fetchone()
    return Due(deliveries, following[0] if following else None)


def cursors(db: sqlite3.Connection, source: str) -> dict[str, int]:
    return dict(db.execute("SELECT identifier, time_ns FROM cursors WHERE source = ?", (source,)).fetchall())


def oldest(db: sqlite3.Connection, sink: str) -> float | None:
    """By event row: rows are numbered in the order in which events came."""
    found = db.execute(
        "SELECT e.received FROM deliveries d JOIN events e ON e.id = d.event"
        " WHERE d.sink = ? ORDER BY d.due LIMIT 1",
        (sink,),
    ).fetchone()
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
        "SELECT received, name, source, event FROM seen WHERE unique_id = ?", (unique_id,)
    ).fetchone()
    if seen is None:
        return None
    received, name, source, event = seen
    return Trace(unique_id, received, name, source, tuple(_traced(db, unique_id, event)))


def _traced(db: sqlite3.Connection, unique_id: str, event: int) -> Iterator[TracedDelivery]:
    waiting = db.execute("SELECT rule, sink, due FROM deliveries WHERE event = ? ORDER BY id", (event,))
    for rule, sink, at in waiting.fetchall():
        yield _one(db, unique_id, rule, sink, "waiting", due=at)
    dead = db.execute(
        "SELECT rule, sink, last FROM dead_letters WHERE unique_id = ? ORDER BY id", (unique_id,)
    )
    for rule, sink, at in dead.fetchall():
        yield _one(db, unique_id, rule, sink, "dead", at=at)
    settled = db.execute(
        "SELECT rule, sink, state, at FROM settled WHERE unique_id = ? ORDER BY at", (unique_id,)
    )
    for rule, sink, state, at in settled.fetchall():
        yield _one(db, unique_id, rule, sink, state, at=at)


def _one(
    db: sqlite3.Connection,
    unique_id: str,
    rule: str,
    sink: str,
    state: str,
    *,
    due: float | None = None,
    at: float | None = None,
) -> TracedDelivery:
    delivery = delivery_id(unique_id, rule, sink)
    made = db.execute(
        "SELECT number, at, duration, outcome, reason, status, error, response FROM attempts"
        " WHERE delivery = ? ORDER BY rowid",
        (delivery,),
    ).fetchall()
    return TracedDelivery(delivery, rule, sink, state, tuple(Attempt(*row) for row in made), due, at)


def bytes_used(db: sqlite3.Connection, path: Path) -> int:
    """Pages in use and the write-ahead log (DESIGN.md §3)."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    log = Path(f"{path}-wal")
    return int((pages - free) * size) + (log.stat().st_size if log.exists() else 0)


def totals(db: sqlite3.Connection) -> dict[Total, int]:
    rows = db.execute("SELECT kind, name, what, value FROM totals").fetchall()
    return {(kind, name, what): value for kind, name, what, value in rows}


def next_event(db: sqlite3.Connection) -> int:
    """A row number no event has or had: ids that are still known name theirs."""
    found: int = db.execute(
        "SELECT max(ifnull((SELECT max(id) FROM events), 0), ifnull((SELECT max(event) FROM seen), 0)) + 1"
    ).fetchone()[0]
    return found


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


def verify(db: sqlite3.Connection) -> list[str]:
    """The sums of promise 6 that do not hold, and the totals that are not what is in the tables."""
    db.execute("BEGIN")
    try:
        stored = totals(db)
        waiting, dead = (
            dict(db.execute(f"SELECT sink, count(*) FROM {table} GROUP BY sink").fetchall())
            for table in ("deliveries", "dead_letters")
        )
    finally:
        db.execute("COMMIT")
    wrong = [
        f"source {name}: received {each.received} is not duplicate {each.duplicate}"
        f" + unmatched {each.unmatched} + accepted {each.accepted}"
        for name, each in source_totals(stored).items()
        if each.received != each.duplicate + each.unmatched + each.accepted
    ]
    for name, sums in sink_totals(stored).items():
        if sums.accepted != sums.delivered + sums.dead + sums.dropped + sums.waiting:
            wrong.append(
                f"sink {name}: accepted {sums.accepted} is not delivered {sums.delivered}"
                f" + dead {sums.dead} + dropped {sums.dropped} + waiting {sums.waiting}"
            )
        for what, told, counted in (
            ("waiting", sums.waiting, waiting.get(name, 0)),
            ("dead", sums.dead, dead.get(name, 0)),
        ):
            if told != counted:
                wrong.append(f"sink {name}: {what} is {told}, but there are {counted}")
    return wrong
