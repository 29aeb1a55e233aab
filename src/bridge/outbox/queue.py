"""What waits, since when and why; whether the store is whole; its contents as lines and back.

Questions are asked with a connection, on the reader's thread; see `SqliteReader.read`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bridge.delivery import Route, delivery_id
from bridge.outbox import Attempt, Batch, Intake, PauseState, Waiting
from bridge.outbox.exchange import Exported, ExportedDelivery
from bridge.outbox.queries import (
    accounts,
    attempts,
    oldest,
    pauses,
    sink_totals,
    sinks,
    snapshot,
    stored_event,
    totals,
)
from bridge.outbox.transactions import ROUTE_BITS, Row, Transaction, accept, remove
from bridge.outbox.verify import violations

PAGE = 500  # events read, or taken in, at a time

WAITING = """
SELECT d.id, d.sink, d.rule, d.attempt, d.due, d.order_key, d.error, e.unique_id, e.received, e.body
FROM deliveries d JOIN events e ON e.id = d.id >> 20
WHERE d.sink = ?1 AND d.id > ?2 AND (?3 IS NULL OR d.rule = ?3) ORDER BY d.id LIMIT ?4
"""


@dataclass(frozen=True, slots=True)
class Queue:
    """One sink's queue: how many wait, the oldest since *oldest*; its pause if it is paused."""

    sink: str
    waiting: int
    dead: int
    oldest: float | None
    pause: PauseState | None


def queues(db: sqlite3.Connection) -> list[Queue]:
    """Of every sink that ever got a delivery; from the totals, so that a long queue is no work."""
    with snapshot(db):
        paused, stored = pauses(db), sorted(sink_totals(totals(db)).items())
        return [
            Queue(sink, sums.waiting, sums.dead, oldest(db, sink), paused.get(sink)) for sink, sums in stored
        ]


def waiting(
    db: sqlite3.Connection,
    sink: str | None = None,
    rule: str | None = None,
    after: int = 0,
    limit: int = PAGE,
) -> list[Waiting]:
    """Up to *limit* deliveries in the order received, beyond row *after*."""
    found: list[Waiting] = []
    for each in sinks(db) if sink is None else (sink,):
        rows = db.execute(WAITING, (each, after, rule, limit)).fetchall()
        found += (_waiting(*row) for row in rows)
    return sorted(found, key=lambda each: each.row)[:limit]


def _waiting(
    row: int,
    sink: str,
    rule: str,
    attempt: int,
    due: float | None,
    order_key: str | None,
    error: str,
    unique_id: str,
    received: float,
    body: bytes,
) -> Waiting:
    name = stored_event(unique_id, body).name
    key = delivery_id(unique_id, rule, sink)
    return Waiting(row, key, sink, rule, name, unique_id, received, attempt, due, order_key, error)


@dataclass(frozen=True, slots=True)
class Shown:
    """All that is known of one delivery that waits."""

    waiting: Waiting
    pause: PauseState | None
    attempts: tuple[Attempt, ...]
    body: bytes


def show(db: sqlite3.Connection, identifier: str) -> list[Shown]:
    """The deliveries that wait under the delivery id or unique_id *identifier*.

    A delivery id is not kept but made of its parts, so every row is looked at: seconds for a million.
    """
    paused = pauses(db)
    return [
        Shown(each, paused.get(each.sink), attempts(db, each.row), _body(db, each.row))
        for each in (_by_event(db, identifier) or _by_delivery(db, identifier))
    ]


def _body(db: sqlite3.Connection, row: int) -> bytes:
    body: bytes = db.execute("SELECT body FROM events WHERE id = ?", (row >> ROUTE_BITS,)).fetchone()[0]
    return body


def _by_event(db: sqlite3.Connection, unique_id: str) -> list[Waiting]:
    found = db.execute("SELECT event FROM seen WHERE unique_id = ?", (unique_id,)).fetchone()
    if found is None:
        return []
    before = (found[0] << ROUTE_BITS) - 1
    return [each for each in waiting(db, after=before) if each.unique_id == unique_id]


def _by_delivery(db: sqlite3.Connection, identifier: str) -> list[Waiting]:
    rows = db.execute(
        "SELECT d.id, d.sink, d.rule, e.unique_id FROM deliveries d JOIN events e ON e.id = d.id >> 20"
    )
    for row, sink, rule, unique_id in rows:
        if delivery_id(unique_id, rule, sink) == identifier:
            return waiting(db, sink, after=row - 1, limit=1)
    return []


def check(db: sqlite3.Connection) -> list[str]:
    """What is wrong with the store: its pages, what belongs together, the sums; empty if nothing is."""
    with snapshot(db):
        wrong = [line for (line,) in db.execute("PRAGMA integrity_check(20)").fetchall() if line != "ok"]
        if wrong:
            return wrong
        counts = [(db.execute(question).fetchone()[0], sentence) for sentence, question in CHECKS.items()]
        found = [f"{count} {sentence}" for count, sentence in counts if count]
        return [*found, *violations(accounts(db))]


CHECKS = {
    "deliveries have no body": (
        "SELECT count(*) FROM deliveries WHERE id >> 20 NOT IN (SELECT id FROM events)"
    ),
    "dead letters have no body": (
        "SELECT count(*) FROM dead_letters WHERE id >> 20 NOT IN (SELECT id FROM events)"
    ),
    "bodies are kept for another number of deliveries than there are": (
        "SELECT count(*) FROM events LEFT JOIN (SELECT event, count(*) AS n FROM (SELECT id >> 20 AS event"
        " FROM deliveries UNION ALL SELECT id >> 20 FROM dead_letters) GROUP BY event) ON event = id"
        " WHERE open IS NOT n"
    ),
    "entities have not exactly one delivery whose turn it is": (
        "SELECT count(*) FROM (SELECT count(due) AS turns FROM deliveries WHERE order_key IS NOT NULL"
        " GROUP BY sink, order_key) WHERE turns <> 1"
    ),
    "events wait whose id is not known": (
        "SELECT count(*) FROM events WHERE id NOT IN (SELECT event FROM seen)"
    ),
}
"""What has to be 0, by the sentence that says what it is if not."""


def exported(db: sqlite3.Connection, after: int) -> tuple[list[Exported], int | None]:
    """Up to PAGE events beyond number *after* with what waits or is dead of them, and where to go on."""
    rows = db.execute(
        "SELECT id, unique_id, source, received, body FROM events WHERE id > ? ORDER BY id LIMIT ?",
        (after, PAGE),
    ).fetchall()
    names = sinks(db)
    lines = [
        Exported.of(unique_id, source, received, body, _deliveries(db, event, names))
        for event, unique_id, source, received, body in rows
    ]
    return lines, rows[-1][0] if len(rows) == PAGE else None


def _deliveries(db: sqlite3.Connection, event: int, names: Sequence[str]) -> Iterator[ExportedDelivery]:
    rows = event << ROUTE_BITS, (event + 1) << ROUTE_BITS
    for sink in names:
        found = db.execute(
            "SELECT rule, order_key, attempt, due, error FROM deliveries"
            " WHERE sink = ? AND id >= ? AND id < ?",
            (sink, *rows),
        )
        for rule, order_key, attempt, due, error in found.fetchall():
            yield ExportedDelivery(
                rule=rule, sink=sink, order_key=order_key, attempt=attempt, due=due, error=error
            )
    dead = db.execute(
        "SELECT rule, sink, order_key, attempts, error, reason, first, last, status, response"
        " FROM dead_letters WHERE id >= ? AND id < ?",
        rows,
    )
    for rule, sink, order_key, attempt, error, reason, first, last, status, response in dead.fetchall():
        yield ExportedDelivery(
            rule=rule,
            sink=sink,
            order_key=order_key,
            attempt=attempt,
            error=error,
            state="dead",
            reason=reason,
            first=first,
            last=last,
            status=status,
            response=response,
        )


@dataclass(frozen=True, slots=True)
class Imported:
    """How many events came in, were known before, and deliveries and dead letters with them."""

    events: int = 0
    duplicates: int = 0
    deliveries: int = 0
    dead_letters: int = 0

    def __add__(self, other: Imported) -> Imported:
        return Imported(
            self.events + other.events,
            self.duplicates + other.duplicates,
            self.deliveries + other.deliveries,
            self.dead_letters + other.dead_letters,
        )


def intakes(lines: Sequence[Exported], now: float) -> list[Intake]:
    """*lines* as if received now."""
    return [
        Intake(
            line.source,
            stored_event(line.unique_id, bytes(line.event)),
            now,
            True,
            tuple(Route(each.rule, each.sink, each.order_key) for each in line.deliveries),
        )
        for line in lines
    ]


def take_in(tx: Transaction, lines: Sequence[Exported], window: float, now: float) -> Imported:
    """Accept *lines* as if received now; what waits starts again as attempt 1, what is dead stays so."""
    first = tx.next_event()
    accepted = accept(tx, Batch(intakes(lines, now)), window)
    fresh = [line for line, new in zip(lines, accepted.fresh, strict=True) if new]
    dead = 0
    for event, line in enumerate(fresh, first):
        dead += _bury(tx, event, line, now)
    return Imported(
        len(fresh), len(lines) - len(fresh), sum(len(line.deliveries) for line in fresh) - dead, dead
    )


def _bury(tx: Transaction, event: int, line: Exported, now: float) -> int:
    """The dead letters of *line* become what they were; returns how many."""
    name = stored_event(line.unique_id, bytes(line.event)).name
    buried = 0
    for row, each in enumerate(line.distinct(), event << ROUTE_BITS):
        if each.state != "dead":
            continue
        key = delivery_id(line.unique_id, each.rule, each.sink)
        tx.db.execute(
            "INSERT INTO dead_letters VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(row, key, each.rule, each.sink, each.order_key, name, line.unique_id, each.reason),
                *(each.attempt, each.first or now, each.last or now, each.status, each.error, each.response),
            ),
        )
        remove(tx.db, [Row(each.sink, row, each.order_key)], now)
        tx.move("sink", each.sink, waiting=-1, dead=1, died=1)
        buried += 1
    return buried
