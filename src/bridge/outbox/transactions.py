"""What each change of the store does, inside a transaction that somebody else begins and commits."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import TypeAlias, assert_never

import msgspec

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
    Route,
    Settlement,
    delivery_id,
)
from bridge.outbox import Accepted, Batch, Intake, PauseState

Total: TypeAlias = tuple[str, str, str]
"""Kind (source, sink or store), name, and what is counted of it."""

EVENTS: Total = "store", "", "events"  # how many events have been numbered
ROUTE_BITS = 20  # a row is its event's number shifted left by this, plus which of its deliveries it is

ATTEMPTS_KEPT = 20
ATTEMPT_RESPONSE = 256  # characters of an answer kept with an attempt; a dead letter keeps the whole 4 kB
RECENT_IDS = 8  # ids kept beside a cursor: one is proof, the others are for those the server has trimmed

KNOWN = "SELECT unique_id, received, event FROM seen WHERE unique_id IN (SELECT value FROM json_each(?))"
STILL_WAITING = """
SELECT id, order_key FROM deliveries WHERE sink = ? AND id IN (SELECT value FROM json_each(?))
"""
HELD = "SELECT id, open FROM events WHERE id IN (SELECT value FROM json_each(?))"
LEAVE = "DELETE FROM deliveries WHERE sink = ? AND id IN (SELECT value FROM json_each(?))"
LET_GO = "DELETE FROM events WHERE id IN (SELECT value FROM json_each(?))"

WAIT = "INSERT INTO deliveries (sink, id, rule, order_key, due, supersedes)"
WAIT_IN_ORDER = f"""
{WAIT} VALUES (?1, ?2, ?3, ?4,
    CASE WHEN EXISTS (SELECT 1 FROM deliveries WHERE sink = ?1 AND order_key = ?4) THEN NULL ELSE ?5 END, ?6)
"""
"""A delivery waits behind the others of its order key."""

AT_ONCE = (256, 64, 16, 4, 1)
"""Rows a statement writes: for each one the thread lets go of the interpreter and has to get it back."""

FURTHER = "ON CONFLICT DO UPDATE SET time_ns = max(time_ns, excluded.time_ns), recent = excluded.recent"
"""A cursor never moves back."""

PROMOTE = """
UPDATE deliveries SET due = ifnull(
    (SELECT min(received, ?3) FROM events WHERE events.id = deliveries.id >> 20), ?3)
WHERE sink = ?1 AND due IS NULL
    AND id = (SELECT min(id) FROM deliveries WHERE sink = ?1 AND order_key = ?2)
"""
"""The next one of an order key has its turn."""


@dataclass(slots=True)
class Transaction:
    """One transaction under way: the connection, and by how much it moves the totals.

    *numbered*: how many events had a number before.
    """

    db: sqlite3.Connection
    numbered: int
    moves: Counter[Total] = field(default_factory=Counter)
    settlements: list[Settlement] = field(default_factory=list)
    """Of all who wait for this commit: a statement for many costs little more than one for one."""

    def move(self, kind: str, name: str, **by: int) -> None:
        for what, value in by.items():
            self.moves[kind, name, what] += value

    def next_event(self) -> int:
        return self.numbered + self.moves[EVENTS] + 1

    def finish(self) -> None:
        """What is still to be written before the commit."""
        settle(self, self.settlements)
        moved = [(*total, value) for total, value in self.moves.items() if value]
        insert(
            self.db, "INSERT INTO totals", moved, "ON CONFLICT DO UPDATE SET value = value + excluded.value"
        )


def ids(of: Iterable[object]) -> str:
    """A parameter of json_each."""
    return msgspec.json.encode(list(of)).decode()


def insert(db: sqlite3.Connection, into: str, rows: Sequence[tuple[object, ...]], conflict: str = "") -> None:
    """*rows* all of one length, *into* as in `INSERT INTO t`, *conflict* as in `ON CONFLICT DO NOTHING`."""
    first = 0
    for count in AT_ONCE:
        while len(rows) - first >= count:
            values = tuple(chain.from_iterable(rows[first : first + count]))
            db.execute(inserting(into, len(rows[0]), count, conflict), values)
            first += count


@cache
def inserting(into: str, columns: int, rows: int, conflict: str) -> str:
    row = f"({', '.join('?' * columns)})"
    return f"{into} VALUES {', '.join([row] * rows)} {conflict}"


def event_of(row: int) -> int:
    """The number of the event whose delivery *row* is or was."""
    return row >> ROUTE_BITS


def accept(tx: Transaction, batch: Batch, window: float) -> Accepted:
    """Store *batch*; *window* in seconds."""
    fresh = new_ones(tx.db, batch.intakes, window)
    kept = list[Intake]()
    for intake, new in zip(batch.intakes, fresh, strict=True):
        counted = "duplicate" if not new else "accepted" if intake.matched else "unmatched"
        tx.moves["source", intake.source, "received"] += 1
        tx.moves["source", intake.source, counted] += 1
        if counted == "accepted":
            kept.append(intake)
    ready = ready_of(tx, kept, batch.eager)
    sinks = store(tx, kept) if kept else frozenset[str]()
    move_cursors(tx.db, batch)
    return Accepted(fresh, sinks, ready=ready)


def ready_of(
    tx: Transaction, intakes: Sequence[Intake], eager: Collection[str] | None
) -> dict[str, list[Delivery]]:
    """What `store` is about to store, but for sinks that get something which may have to wait."""
    found: dict[str, list[Delivery]] = {}
    waits = set[str]()
    for number, intake in enumerate(intakes, tx.next_event()):
        event, source, received = intake.event, intake.source, intake.received
        for row, route in enumerate(distinct(intake.routes), number << ROUTE_BITS):
            if eager is not None and route.sink not in eager:
                continue
            if route.order_key is not None or route.supersedes is not None:
                waits.add(route.sink)
            name = delivery_id(event.unique_id, route.rule, route.sink)
            delivery = Delivery(row, name, event, source, route.rule, route.sink, 1, received)
            found.setdefault(route.sink, []).append(delivery)
    return {sink: deliveries for sink, deliveries in found.items() if sink not in waits}


def new_ones(db: sqlite3.Connection, intakes: Sequence[Intake], window: float) -> tuple[bool, ...]:
    """Which of *intakes* are no duplicates; their ids, where known from before the window, are forgotten."""
    rows = db.execute(KNOWN, (ids(intake.event.unique_id for intake in intakes),)).fetchall()
    known = {unique_id: (received, event) for unique_id, received, event in rows}
    fresh = []
    for intake in intakes:
        unique_id, oldest = intake.event.unique_id, intake.received - window
        received, event = known.get(unique_id, (-1.0, None))
        new = event is None or (received < oldest and not has_body(db, event))
        fresh.append(new)
        if new and intake.matched:
            if event is not None:
                db.execute("DELETE FROM seen WHERE event = ?", (event,))
            known[unique_id] = intake.received, -1
    return tuple(fresh)


def has_body(db: sqlite3.Connection, event: int) -> bool:
    """Does *event* (-1: one of this batch) still wait somewhere?"""
    return event == -1 or db.execute("SELECT 1 FROM events WHERE id = ?", (event,)).fetchone() is not None


def store(tx: Transaction, intakes: Sequence[Intake]) -> frozenset[str]:
    """The id of each for the window, the body once, and a small row a delivery; returns the sinks."""
    seen, bodies = list[tuple[object, ...]](), list[tuple[object, ...]]()
    waiting, ordered = list[tuple[object, ...]](), list[tuple[object, ...]]()
    counts = Counter[str]()
    for number, intake in enumerate(intakes, tx.next_event()):
        event, received = intake.event, intake.received
        seen.append((number, event.unique_id, received, event.name, intake.source))
        routes = distinct(intake.routes)
        if not routes:
            continue
        bodies.append((number, event.unique_id, intake.source, received, len(routes), event.body))
        for row, (rule, sink, order_key, supersedes) in enumerate(routes, number << ROUTE_BITS):
            wait = waiting if order_key is None else ordered
            wait.append((sink, row, rule, order_key, received, supersedes))
            counts[sink] += 1
    insert(tx.db, "INSERT INTO seen", seen)
    insert(tx.db, "INSERT INTO events", bodies)
    insert(tx.db, WAIT, waiting)
    tx.db.executemany(WAIT_IN_ORDER, ordered)
    tx.moves[EVENTS] += len(intakes)
    for sink, count in counts.items():
        tx.move("sink", sink, accepted=count, waiting=count)
    return frozenset(counts)


def distinct(routes: Sequence[Route]) -> Sequence[Route]:
    """One delivery a rule and sink: they make its id."""
    return routes if len(routes) < 2 else list({(each.rule, each.sink): each for each in routes}.values())


def move_cursors(db: sqlite3.Connection, batch: Batch) -> None:
    """Forward only; *starts* only where there is none."""
    starts = [(*key, storable(at)) for key, at in batch.starts.items()]
    insert(db, "INSERT INTO cursors (source, identifier, time_ns)", starts, "ON CONFLICT DO NOTHING")
    moved = [(*key, storable(at), ids(last_ids(db, key, batch))) for key, at in batch.cursors.items()]
    insert(db, "INSERT INTO cursors", moved, FURTHER)


def storable(ns: int) -> int:
    """*ns*, or the nearest an SQLite integer holds: a server may claim any year."""
    return max(-(1 << 63), min(ns, (1 << 63) - 1))


def last_ids(db: sqlite3.Connection, key: tuple[str, str], batch: Batch) -> list[str]:
    """The ids to be kept beside the cursor *key* once *batch* is in."""
    came = list(batch.recent.get(key, ()))
    before = recent_ids(db, key) if len(came) < RECENT_IDS else []
    return (before + came)[-RECENT_IDS:]


def recent_ids(db: sqlite3.Connection, key: tuple[str, str]) -> list[str]:
    found = db.execute("SELECT recent FROM cursors WHERE source = ? AND identifier = ?", key).fetchone()
    return msgspec.json.decode(found[0], type=list[str]) if found else []


@dataclass(frozen=True, slots=True)
class Row:
    """A delivery that leaves the queue."""

    sink: str
    id: int
    order_key: str | None


def settle(tx: Transaction, settlements: Sequence[Settlement]) -> None:
    """Record attempts and what follows from each; a delivery that no longer waits is passed over."""
    waiting = still_waiting(tx.db, settlements)
    leaving, delivered, made = list[Row](), list[Settlement](), list[Settlement]()
    for settlement in settlements:
        delivery, verdict = settlement.delivery, settlement.verdict
        found = waiting.get((delivery.sink, delivery.row))
        if found is None:
            continue
        if delivery.tried_since is not None or not isinstance(settlement.outcome, Delivered):
            made.append(settlement)
        match verdict:
            case Later():
                postpone(tx, settlement, verdict)
                continue
            case Dead():
                bury(tx, settlement, verdict, found.order_key)
            case Done():
                delivered.append(settlement)
            case _:
                assert_never(verdict)
        del waiting[delivery.sink, delivery.row]
        leaving.append(found)
    record_attempts(tx.db, made)
    if leaving:
        finish(tx, delivered)
        remove(tx.db, leaving, settlements[-1].started + settlements[-1].duration)


def still_waiting(db: sqlite3.Connection, settlements: Iterable[Settlement]) -> dict[tuple[str, int], Row]:
    rows: dict[str, list[int]] = {}
    for settlement in settlements:
        rows.setdefault(settlement.delivery.sink, []).append(settlement.delivery.row)
    found: dict[tuple[str, int], Row] = {}
    for sink, asked in rows.items():
        for row, order_key in db.execute(STILL_WAITING, (sink, ids(asked))).fetchall():
            found[sink, row] = Row(sink, row, order_key)
    return found


def postpone(tx: Transaction, settlement: Settlement, verdict: Later) -> None:
    delivery = settlement.delivery
    tx.db.execute(
        "UPDATE deliveries SET due = ?, attempt = ?, tried_since = ?, first = ifnull(first, ?), error = ?"
        " WHERE sink = ? AND id = ?",
        (
            *(verdict.due, verdict.attempt, verdict.tried_since, settlement.started),
            *(failure_of(settlement.outcome)[2], delivery.sink, delivery.row),
        ),
    )
    tx.move("sink", delivery.sink, retried=1)


def finish(tx: Transaction, delivered: Sequence[Settlement]) -> None:
    """One row each for as long as traces are kept."""
    rows = [
        (each.delivery.row, each.delivery.rule, each.delivery.sink, "delivered", each.started + each.duration)
        for each in delivered
    ]
    insert(tx.db, "INSERT OR REPLACE INTO settled", rows)
    for sink, count in Counter(each.delivery.sink for each in delivered).items():
        tx.move("sink", sink, delivered=count, waiting=-count)
    release(tx.db, [each.delivery.row for each in delivered])


def bury(tx: Transaction, settlement: Settlement, verdict: Dead, order_key: str | None) -> None:
    """The body stays: a dead letter may be tried again."""
    delivery, failure = settlement.delivery, failure_of(settlement.outcome)
    began = "SELECT first FROM deliveries WHERE sink = ? AND id = ?"
    first = tx.db.execute(began, (delivery.sink, delivery.row)).fetchone()[0]
    tx.db.execute(
        "INSERT INTO dead_letters VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(delivery.row, delivery.id, delivery.rule, delivery.sink, order_key),
            *(delivery.event.name, delivery.event.unique_id, verdict.reason, delivery.attempt),
            *(settlement.started if first is None else first, settlement.started),
            *(failure[1], failure[2], failure[3]),
        ),
    )
    tx.move("sink", delivery.sink, dead=1, died=1, waiting=-1)


def remove(db: sqlite3.Connection, rows: Sequence[Row], at: float) -> None:
    """*rows* wait no more; each lets the next one of its order key have its turn, at the latest *at*."""
    for sink in {each.sink for each in rows}:
        db.execute(LEAVE, (sink, ids(each.id for each in rows if each.sink == sink)))
    turns = {(each.sink, each.order_key) for each in rows if each.order_key is not None}
    db.executemany(PROMOTE, [(*turn, at) for turn in turns])


def release(db: sqlite3.Connection, rows: Iterable[int]) -> None:
    """Deliveries less that need the body of their event; with its last one it goes."""
    fewer = Counter(event_of(row) for row in rows)
    held = db.execute(HELD, (ids(fewer),)).fetchall()
    gone = [event for event, count in held if count <= fewer[event]]
    kept = [(fewer[event], event) for event, count in held if count > fewer[event]]
    db.execute(LET_GO, (ids(gone),))
    db.executemany("UPDATE events SET open = open - ? WHERE id = ?", kept)


def record_attempts(db: sqlite3.Connection, made: Sequence[Settlement]) -> None:
    db.executemany(
        "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [attempt_row(settlement) for settlement in made],
    )
    db.executemany(
        "DELETE FROM attempts WHERE delivery = ?1 AND rowid <="
        " (SELECT rowid FROM attempts WHERE delivery = ?1 ORDER BY rowid DESC LIMIT 1 OFFSET ?2)",
        [(settlement.delivery.row, ATTEMPTS_KEPT) for settlement in made],
    )


def attempt_row(settlement: Settlement) -> tuple[object, ...]:
    reason, status, error, response = failure_of(settlement.outcome)
    delivery, outcome = settlement.delivery, outcome_word(settlement.outcome)
    when = delivery.row, delivery.attempt, settlement.started, settlement.duration
    return (*when, outcome, reason, status, error, response[:ATTEMPT_RESPONSE])


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


def keep(db: sqlite3.Connection, sink: str, rows: Mapping[str, bytes | None]) -> None:
    """What *sink* has to know after a restart; None for what it need not know any more."""
    db.executemany(
        "INSERT OR REPLACE INTO sink_memory VALUES (?, ?, ?)",
        [(sink, key, value.decode()) for key, value in rows.items() if value is not None],
    )
    db.executemany(
        "DELETE FROM sink_memory WHERE sink = ? AND key = ?",
        [(sink, key) for key, value in rows.items() if value is None],
    )


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
