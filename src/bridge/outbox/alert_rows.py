"""What the store does for alerts: their states, and notifications that give way to newer ones."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence

from bridge.outbox import AlertRow, Batch, Intake
from bridge.outbox.transactions import Row, Transaction, ids, release, remove


def write(db: sqlite3.Connection, states: Mapping[AlertRow, bytes | None]) -> None:
    """In the transaction of what has caused it."""
    db.executemany(
        "INSERT OR REPLACE INTO alert_states VALUES (?, ?, ?, ?)",
        [(*row, state.decode()) for row, state in states.items() if state is not None],
    )
    db.executemany(
        "DELETE FROM alert_states WHERE part = ? AND alert = ? AND key = ?",
        [row for row, state in states.items() if state is None],
    )


def read(db: sqlite3.Connection, part: str | None) -> list[tuple[str, str, str, bytes]]:
    rows = db.execute(
        "SELECT part, alert, key, state FROM alert_states WHERE part = ifnull(?, part)", (part,)
    ).fetchall()
    return [(part, alert, key, state.encode()) for part, alert, key, state in rows]


def supersede(tx: Transaction, batch: Batch) -> Mapping[tuple[str, str], int]:
    """Of notifications with one key only the newest waits; the others are dropped: rule and sink to count."""
    keys = {
        (route.sink, route.supersedes, intake.received)
        for intake in batch.intakes
        for route in intake.routes
        if route.supersedes is not None
    }
    dropped: Counter[tuple[str, str]] = Counter()
    for sink, key, at in keys:
        rows = tx.db.execute(
            "SELECT id, rule, order_key FROM deliveries WHERE sink = ? AND supersedes = ? ORDER BY id DESC",
            (sink, key),
        ).fetchall()[1:]
        if not rows:
            continue
        tx.db.executemany(
            "INSERT OR REPLACE INTO settled VALUES (?, ?, ?, 'dropped', ?)",
            [(row, rule, sink, at) for row, rule, _ in rows],
        )
        release(tx.db, [row for row, _, _ in rows])
        remove(tx.db, [Row(sink, row, order_key) for row, _, order_key in rows], at)
        tx.move("sink", sink, dropped=len(rows), waiting=-len(rows))
        dropped.update((rule, sink) for _, rule, _ in rows)
    return dropped


def fresh(db: sqlite3.Connection, intakes: Sequence[Intake], window: float) -> tuple[bool, ...]:
    """Which of *intakes* are no duplicates (`transactions.new_ones`), without changing anything."""
    rows = db.execute(
        "SELECT s.unique_id, s.received, e.id FROM seen s LEFT JOIN events e ON e.id = s.event"
        " WHERE s.unique_id IN (SELECT value FROM json_each(?))",
        (ids(intake.event.unique_id for intake in intakes),),
    ).fetchall()
    known = {unique_id: (received, body is not None) for unique_id, received, body in rows}
    found: list[bool] = []
    for intake in intakes:
        received, waits = known.get(intake.event.unique_id, (float("-inf"), False))
        found.append(not waits and received < intake.received - window)
        known.setdefault(intake.event.unique_id, (intake.received, True))
        if found[-1]:
            known[intake.event.unique_id] = intake.received, True
    return tuple(found)
