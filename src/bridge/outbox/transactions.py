"""What each change of the store does, inside a transaction that somebody else begins and commits."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, assert_never

from bridge.delivery import (
    Dead,
    Delivered,
    Delivery,
    Done,
    Later,
    Outcome,
    Pause,
    Rejected,
    RetryLater,
    Settlement,
)
from bridge.outbox import Accepted, Batch, DeadLetterFilter, Intake, PauseState

Total: TypeAlias = tuple[str, str, str]
"""Kind (source or sink), name, and the field of its totals."""

ATTEMPTS_KEPT = 20
RECENT_IDS = 8  # ids kept beside a cursor: one is proof, the others are for those the server has trimmed


@dataclass(slots=True)
class Transaction:
    """One transaction under way: the connection, and by how much it moves the totals."""

    db: sqlite3.Connection
    moves: Counter[Total] = field(default_factory=Counter)

    def move(self, kind: str, name: str, **by: int) -> None:
        for what, value in by.items():
            self.moves[kind, name, what] += value

    def write_totals(self) -> None:
        self.db.executemany(
            "INSERT INTO totals VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
            [(*total, value) for total, value in self.moves.items() if value],
        )


def accept(tx: Transaction, batch: Batch, window: float, event: int) -> Accepted:
    """Store *batch*; its events get row numbers from *event* on. *window* in seconds."""
    fresh: list[bool] = []
    sinks: set[str] = set()
    for number, intake in enumerate(batch.intakes, event):
        new = remember(tx.db, intake, window, number)
        fresh.append(new)
        counted = "duplicate" if not new else "accepted" if intake.matched else "unmatched"
        tx.move("source", intake.source, received=1, **{counted: 1})
        if new and intake.routes:
            store(tx, intake, number)
            sinks.update(route.sink for route in intake.routes)
    move_cursors(tx.db, batch)
    return Accepted(tuple(fresh), frozenset(sinks))


def remember(db: sqlite3.Connection, intake: Intake, window: float, event: int) -> bool:
    """Is this id new? If a rule wanted the event, it is known from now on.

    An id whose event still waits stays known, however old it is.
    """
    oldest = intake.received - window
    if not intake.matched:
        known = "SELECT 1 FROM seen WHERE unique_id = ? AND received >= ?"
        return db.execute(known, (intake.event.unique_id, oldest)).fetchone() is None
    changed = db.execute(
        "INSERT INTO seen VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET received = excluded.received, source = excluded.source, event = excluded.event"
        " WHERE received < ? AND NOT EXISTS (SELECT 1 FROM events WHERE id = seen.event)",
        (intake.event.unique_id, intake.received, intake.event.name, intake.source, event, oldest),
    )
    return changed.rowcount == 1


def store(tx: Transaction, intake: Intake, event: int) -> None:
    """The body once, and a small row a delivery."""
    tx.db.execute(
        "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)",
        (
            event,
            intake.event.unique_id,
            intake.source,
            intake.received,
            len(intake.routes),
            intake.event.body,
        ),
    )
    tx.db.executemany(
        "INSERT INTO deliveries (event, rule, sink, order_key, due) VALUES (?, ?, ?, ?, ?)",
        [(event, route.rule, route.sink, route.order_key, intake.received) for route in intake.routes],
    )
    for route in intake.routes:
        tx.move("sink", route.sink, accepted=1, waiting=1)


def move_cursors(db: sqlite3.Connection, batch: Batch) -> None:
    """Forward only; *starts* only where there is none."""
    db.executemany(
        "INSERT INTO cursors (source, identifier, time_ns) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        [(*key, at) for key, at in batch.starts.items()],
    )
    db.executemany(
        "INSERT INTO cursors VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET time_ns = max(time_ns, excluded.time_ns), recent = excluded.recent",
        [
            (*key, at, json.dumps((recent_ids(db, key) + list(batch.recent.get(key, ())))[-RECENT_IDS:]))
            for key, at in batch.cursors.items()
        ],
    )


def recent_ids(db: sqlite3.Connection, key: tuple[str, str]) -> list[str]:
    found = db.execute("SELECT recent FROM cursors WHERE source = ? AND identifier = ?", key).fetchone()
    return list(json.loads(found[0])) if found else []


def settle(tx: Transaction, settlement: Settlement) -> None:
    """Record one attempt and what follows; a delivery that no longer waits is passed over."""
    delivery, verdict = settlement.delivery, settlement.verdict
    match verdict:
        case Done():
            settled = finish(tx, settlement)
        case Later(due, attempt, tried_since):
            settled = tx.db.execute(
                "UPDATE deliveries SET due = ?, attempt = ?, tried_since = ? WHERE id = ?",
                (due, attempt, tried_since, delivery.row),
            ).rowcount
            tx.move("sink", delivery.sink, retried=settled)
        case Dead():
            settled = bury(tx, settlement, verdict)
        case _:
            assert_never(verdict)
    if settled and (tried_before(delivery) or not isinstance(settlement.outcome, Delivered)):
        record_attempt(tx.db, settlement)


def finish(tx: Transaction, settlement: Settlement) -> int:
    delivery = settlement.delivery
    gone = tx.db.execute("DELETE FROM deliveries WHERE id = ? RETURNING event", (delivery.row,)).fetchone()
    if gone is None:
        return 0
    release(tx.db, gone[0])
    at = settlement.started + settlement.duration
    tx.db.execute(
        "INSERT INTO settled VALUES (?, ?, ?, 'delivered', ?, ?)",
        (delivery.event.unique_id, delivery.rule, delivery.sink, at, tried_before(delivery)),
    )
    tx.move("sink", delivery.sink, delivered=1, waiting=-1)
    return 1


def tried_before(delivery: Delivery) -> str | None:
    """The id under which attempts are kept; None for the many that arrive at once."""
    return delivery.id if delivery.tried_since is not None else None


def release(db: sqlite3.Connection, event: int) -> None:
    """One delivery less needs the body of *event*; with the last one it goes."""
    if not db.execute("DELETE FROM events WHERE id = ? AND open <= 1", (event,)).rowcount:
        db.execute("UPDATE events SET open = open - 1 WHERE id = ?", (event,))


def bury(tx: Transaction, settlement: Settlement, verdict: Dead) -> int:
    delivery = settlement.delivery
    gone = tx.db.execute(
        "DELETE FROM deliveries WHERE id = ? RETURNING event, order_key", (delivery.row,)
    ).fetchone()
    if gone is None:
        return 0
    event, order_key = gone
    began = "SELECT min(at) FROM attempts WHERE delivery = ?"
    first = tx.db.execute(began, (delivery.id,)).fetchone()[0] or settlement.started
    failure = failure_of(settlement.outcome)
    tx.db.execute(
        "INSERT INTO dead_letters VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(delivery.row, delivery.id, event, delivery.rule, delivery.sink, order_key),
            *(delivery.event.name, delivery.event.unique_id, verdict.reason, delivery.attempt),
            *(first, settlement.started, failure[1], failure[2], failure[3]),
        ),
    )
    tx.move("sink", delivery.sink, dead=1, died=1, waiting=-1)
    return 1


def record_attempt(db: sqlite3.Connection, settlement: Settlement) -> None:
    delivery = settlement.delivery
    db.execute(
        "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(delivery.id, delivery.attempt, settlement.started, settlement.duration),
            outcome_word(settlement.outcome),
            *failure_of(settlement.outcome),
        ),
    )
    db.execute(
        "DELETE FROM attempts WHERE delivery = ?1 AND rowid <="
        " (SELECT rowid FROM attempts WHERE delivery = ?1 ORDER BY rowid DESC LIMIT 1 OFFSET ?2)",
        (delivery.id, ATTEMPTS_KEPT),
    )


def outcome_word(outcome: Outcome) -> str:
    match outcome:
        case Delivered():
            return "delivered"
        case RetryLater():
            return "retried"
        case Rejected():
            return "rejected"
        case Pause():
            return "paused"
    assert_never(outcome)


def failure_of(outcome: Outcome) -> tuple[str, int | None, str, str]:
    """Reason, status, error, response."""
    if isinstance(outcome, Delivered):
        return "", outcome.status, "", ""
    failure = outcome.failure
    return failure.reason, failure.status, failure.error, failure.response


def chosen(wanted: DeadLetterFilter) -> tuple[str, list[object]]:
    """A WHERE clause for *wanted*, and its parameters."""
    clauses, values = ["1"], list[object]()
    if wanted.ids is not None:
        clauses.append("delivery IN (SELECT value FROM json_each(?))")
        values.append(json.dumps(list(wanted.ids)))
    for column in ("sink", "rule", "reason"):
        value = getattr(wanted, column)
        if value is not None:
            clauses.append(f"{column} = ?")
            values.append(value)
    if wanted.since is not None:
        clauses.append("last >= ?")
        values.append(wanted.since)
    return " AND ".join(clauses), values


def retry_dead_letters(tx: Transaction, wanted: DeadLetterFilter, now: float) -> int:
    where, values = chosen(wanted)
    tx.db.execute(
        "INSERT INTO deliveries (id, event, rule, sink, order_key, due)"
        f" SELECT id, event, rule, sink, order_key, ? FROM dead_letters WHERE {where}",
        [now, *values],
    )
    return _remove(tx, where, values, waiting=1)


def drop_dead_letters(tx: Transaction, wanted: DeadLetterFilter, now: float) -> int:
    where, values = chosen(wanted)
    tx.db.execute(
        "INSERT INTO settled SELECT unique_id, rule, sink, 'dropped', ?, delivery"
        f" FROM dead_letters WHERE {where}",
        [now, *values],
    )
    events = tx.db.execute(f"SELECT event FROM dead_letters WHERE {where}", values).fetchall()
    for (event,) in events:
        release(tx.db, event)
    return _remove(tx, where, values, dropped=1)


def _remove(tx: Transaction, where: str, values: Sequence[object], **moved: int) -> int:
    """Delete the dead letters chosen and count each as *moved*; returns how many."""
    gone = tx.db.execute(f"DELETE FROM dead_letters WHERE {where} RETURNING sink", values).fetchall()
    for (sink,) in gone:
        tx.move("sink", sink, dead=-1, **moved)
    return len(gone)


def set_pause(tx: Transaction, sink: str, pause: PauseState | None, now: float) -> None:
    if pause is None:
        tx.db.execute(
            "UPDATE sinks SET paused = paused + max(0, ? - since), reason = NULL"
            " WHERE name = ? AND reason IS NOT NULL",
            (now, sink),
        )
        return
    tx.db.execute(
        "INSERT INTO sinks (name, reason, error, since, until, probes) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET reason = excluded.reason, error = excluded.error,"
        " since = excluded.since, until = excluded.until, probes = excluded.probes",
        (sink, pause.reason, pause.error, pause.since, pause.until, pause.probes),
    )


STEP = 2000  # rows a transaction of `tidy` may delete, so that nobody waits for it


def forget_ids(tx: Transaction, before: float) -> int:
    """Ids received before *before* whose event waits no more; at most STEP."""
    return tx.db.execute(
        "DELETE FROM seen WHERE unique_id IN (SELECT unique_id FROM seen WHERE received < ?"
        " AND NOT EXISTS (SELECT 1 FROM events WHERE id = seen.event) LIMIT ?)",
        (before, STEP),
    ).rowcount


def forget_traces(tx: Transaction, before: float) -> int:
    """What was settled before *before*, and the attempts it took; at most STEP deliveries."""
    old = "SELECT rowid FROM settled WHERE at < ? ORDER BY at LIMIT ?"
    tx.db.execute(
        f"DELETE FROM attempts WHERE delivery IN (SELECT delivery FROM settled WHERE rowid IN ({old}))",
        (before, STEP),
    )
    return tx.db.execute(f"DELETE FROM settled WHERE rowid IN ({old})", (before, STEP)).rowcount


def expire_dead_letters(tx: Transaction, before: float, now: float) -> int:
    """Dead letters whose last attempt was before *before*, counted as dropped; at most STEP."""
    old = tx.db.execute(
        "SELECT delivery FROM dead_letters WHERE last < ? ORDER BY id LIMIT ?", (before, STEP)
    ).fetchall()
    if not old:
        return 0
    return drop_dead_letters(tx, DeadLetterFilter(ids=[each for (each,) in old]), now)


def sink_rows(db: sqlite3.Connection, table: str) -> dict[str, int]:
    """How many rows each sink has in *table*, counted."""
    return dict(db.execute(f"SELECT sink, count(*) FROM {table} GROUP BY sink").fetchall())
