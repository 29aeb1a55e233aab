"""Dead letters tried again or dropped, and what the store lets go of: by retention, or to make room.

Every function is one short step of at most STEP rows inside somebody else's transaction; it says how much it
did, so that the caller knows whether there is more.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bridge.outbox import DeadLetterFilter
from bridge.outbox.transactions import WAIT_IN_ORDER, Row, Total, Transaction, ids, release, remove

STEP = 1000  # rows a step may touch: some milliseconds, so that nobody waits for it
ROOM_STEP = 200  # rows dropped at a time until there is room


class Step(NamedTuple):
    """*done*: rows changed; *last*: where the next step goes on after, None when there is nothing more."""

    done: int
    last: int | None


def chosen(wanted: DeadLetterFilter) -> tuple[str, list[object]]:
    """A WHERE clause for *wanted*, and its parameters."""
    clauses, values = ["1"], list[object]()
    if wanted.ids is not None:
        clauses.append("delivery IN (SELECT value FROM json_each(?))")
        values.append(ids(wanted.ids))
    for column in ("sink", "rule", "reason"):
        value = getattr(wanted, column)
        if value is not None:
            clauses.append(f"{column} = ?")
            values.append(value)
    if wanted.since is not None:
        clauses.append("last >= ?")
        values.append(wanted.since)
    return " AND ".join(clauses), values


@dataclass(frozen=True, slots=True)
class Letter:
    id: int
    sink: str
    rule: str
    order_key: str | None


def some_letters(
    db: sqlite3.Connection, wanted: DeadLetterFilter, after: int, limit: int = STEP
) -> list[Letter]:
    """Those of *wanted* with rows beyond *after*, in their order."""
    where, values = chosen(wanted)
    rows = db.execute(
        f"SELECT id, sink, rule, order_key FROM dead_letters WHERE {where} AND id > ? ORDER BY id LIMIT ?",
        (*values, after, limit),
    )
    return [Letter(*row) for row in rows.fetchall()]


def retry_dead_letters(tx: Transaction, wanted: DeadLetterFilter, now: float, after: int) -> Step:
    letters = some_letters(tx.db, wanted, after)
    tx.db.executemany(
        WAIT_IN_ORDER, [(each.sink, each.id, each.rule, each.order_key, now, None) for each in letters]
    )
    _uncount(tx, letters, waiting=1)
    return _step(letters)


def drop_dead_letters(tx: Transaction, wanted: DeadLetterFilter, now: float, after: int) -> Step:
    letters = some_letters(tx.db, wanted, after)
    drop_letters(tx, letters, now)
    return _step(letters)


def _step(letters: Sequence[Letter]) -> Step:
    return Step(len(letters), letters[-1].id if len(letters) == STEP else None)


def drop_letters(tx: Transaction, letters: Sequence[Letter], now: float) -> None:
    _mark_dropped(tx.db, letters, now)
    release(tx.db, [each.id for each in letters])
    _uncount(tx, letters, dropped=1)


def _mark_dropped(db: sqlite3.Connection, gone: Sequence[Letter], now: float) -> None:
    db.executemany(
        "INSERT OR REPLACE INTO settled VALUES (?, ?, ?, 'dropped', ?)",
        [(each.id, each.rule, each.sink, now) for each in gone],
    )


def _uncount(tx: Transaction, letters: Sequence[Letter], **moved: int) -> None:
    """They are dead letters no more, each counted as *moved*."""
    tx.db.executemany("DELETE FROM dead_letters WHERE id = ?", [(each.id,) for each in letters])
    for sink, count in Counter(each.sink for each in letters).items():
        tx.move("sink", sink, dead=-count, **{what: count * by for what, by in moved.items()})


def expire_dead_letters(tx: Transaction, before: float, now: float) -> Step:
    """Dead letters whose last attempt was before *before*, counted as dropped."""
    old = tx.db.execute(
        "SELECT id, sink, rule, order_key FROM dead_letters WHERE last < ? ORDER BY last LIMIT ?",
        (before, STEP),
    ).fetchall()
    drop_letters(tx, [Letter(*row) for row in old], now)
    return Step(len(old), 0 if len(old) == STEP else None)


def forget_ids(tx: Transaction, before: float, after: int) -> Step:
    """Ids received before *before* whose event waits no more, from event *after* on."""
    rows = tx.db.execute(
        "SELECT event, received, EXISTS (SELECT 1 FROM events WHERE id = event) FROM seen"
        " WHERE event > ? ORDER BY event LIMIT ?",
        (after, STEP),
    ).fetchall()
    old = [(event,) for event, received, waits in rows if received < before and not waits]
    tx.db.executemany("DELETE FROM seen WHERE event = ?", old)
    reached = len(rows) < STEP or all(received >= before for _, received, _ in rows)
    return Step(len(old), None if reached else rows[-1][0])


def forget_traces(tx: Transaction, before: float, latest: float, after: int) -> Step:
    """What was settled before *before*, and the attempts it took; by row, from *after* on.

    What was settled after *latest* was so by a clock that was wrong; it goes too, or it would stay for ever.
    """
    rows = tx.db.execute(
        "SELECT id, at FROM settled WHERE id > ? ORDER BY id LIMIT ?", (after, STEP)
    ).fetchall()
    old = [(row,) for row, at in rows if at < before or at > latest]
    _forget(tx.db, old)
    return Step(len(old), rows[-1][0] if len(rows) == STEP and old else None)


def _forget(db: sqlite3.Connection, rows: Sequence[tuple[int]]) -> None:
    db.executemany("DELETE FROM settled WHERE id = ?", rows)
    db.executemany("DELETE FROM attempts WHERE delivery = ?", rows)


def make_room(
    tx: Transaction, totals: dict[Total, int], now: float, too_much: Callable[[], bool]
) -> Counter[str]:
    """Let go until it is not *too_much*: traces, then dead letters, then the oldest of the fullest sink.

    *totals* are those before this transaction. Returns how many deliveries of each sink went.
    """
    dropped: Counter[str] = Counter()
    while too_much() and (oldest := _oldest_traces(tx.db)):
        _forget(tx.db, oldest)
    while too_much() and (letters := some_letters(tx.db, DeadLetterFilter(), 0, ROOM_STEP)):
        drop_letters(tx, letters, now)
        dropped.update(each.sink for each in letters)
    while too_much() and (sink := _fullest(tx, totals)) and (count := drop_oldest(tx, sink, now)):
        dropped[sink] += count
    return dropped


def _oldest_traces(db: sqlite3.Connection) -> list[tuple[int]]:
    return db.execute("SELECT id FROM settled ORDER BY id LIMIT ?", (STEP,)).fetchall()


def _fullest(tx: Transaction, totals: dict[Total, int]) -> str | None:
    """The sink with most deliveries waiting; None if there is none."""
    waiting = Counter(
        {
            name: totals.get((kind, name, what), 0) + tx.moves[kind, name, what]
            for kind, name, what in {**totals, **tx.moves}
            if (kind, what) == ("sink", "waiting")
        }
    )
    most = waiting.most_common(1)
    return most[0][0] if most and most[0][1] > 0 else None


def drop_oldest(tx: Transaction, sink: str, now: float) -> int:
    """Up to ROOM_STEP deliveries of *sink* that came first."""
    rows = tx.db.execute(
        "SELECT id, sink, rule, order_key FROM deliveries WHERE sink = ? ORDER BY id LIMIT ?",
        (sink, ROOM_STEP),
    ).fetchall()
    oldest = [Letter(*row) for row in rows]
    _mark_dropped(tx.db, oldest, now)
    release(tx.db, [each.id for each in oldest])
    remove(tx.db, [Row(each.sink, each.id, each.order_key) for each in oldest], now)
    tx.move("sink", sink, dropped=len(oldest), waiting=-len(oldest))
    return len(oldest)
