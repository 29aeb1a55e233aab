"""A damaged store is set aside and replaced by one with every row that can still be read.

What cannot be read is counted as dropped, so that the conservation sums of DESIGN.md §1 hold afterwards.
"""

from __future__ import annotations

import heapq
import os
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from bridge.event import Event
from bridge.outbox.file import APPLICATION_ID, connect
from bridge.outbox.queries import stored_event
from bridge.outbox.transactions import EVENTS, ROUTE_BITS

log = structlog.get_logger()

CHECK_BUDGET = 0.1  # seconds for the check at start: a big store is not read through before it delivers
LAST_ROW = (1 << 63) - 1
TRIES = 20_000  # reads of a damaged table: enough for a hundred pages; one that fails takes some 20 µs

KEYED = {"events": "id", "seen": "event", "dead_letters": "id", "settled": "id", "attempts": "rowid"}
"""Tables that are read by ranges of an integer, and which."""
SMALL = {
    "cursors": ("source", "identifier"),
    "totals": ("kind", "name", "what"),
    "sinks": ("name",),
    "alert_states": ("part", "alert", "key"),
    "sink_memory": ("sink", "key"),
}

DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


@dataclass(frozen=True, slots=True)
class Salvaged:
    """Where the damaged file is now; *kept* rows by table; *lost* deliveries and dead letters by sink."""

    aside: Path
    kept: dict[str, int]
    lost: dict[str, int]


def is_damage(error: BaseException) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.DatabaseError) and code is not None and code & 0xFF in DAMAGE


def damage(path: Path, budget: float = CHECK_BUDGET) -> str | None:
    """What is wrong with the store at *path*, or None.

    A check reads every page; it ends after *budget* seconds, for a start must not take longer the more
    waits. What it does not reach is met while running, and dealt with then (`Writer.heal`).
    """
    if not path.exists() or path.stat().st_size == 0:
        return None
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as db:
        # A progress handler would not do: the check is one operation, after which it is asked.
        timer = threading.Timer(budget, db.interrupt)
        timer.start()
        try:
            found: str = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.Error as error:
            return str(error) if is_damage(error) else None
        finally:
            timer.cancel()
            timer.join()
    return None if found == "ok" else found.replace("\n", " ")


def replace(path: Path, why: str) -> Salvaged:
    """Put a store with all that is readable in the place of the damaged one at *path*, and say so.

    At every moment one of the two is at *path*. The write-ahead log goes first, or SQLite would play the old
    one into the new file.
    """
    log.error("store is damaged, keeping what is readable", store=str(path), error=why)
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    fresh = Path(f"{path}.salvage")
    for leftover in (fresh, Path(f"{fresh}-wal"), Path(f"{fresh}-shm")):
        leftover.unlink(missing_ok=True)
    kept, lost = copy(path, fresh)
    aside = unused(path)
    keep(path, aside)
    for suffix in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    fresh.replace(path)
    log.error("store replaced", set_aside=str(aside), kept=kept, lost_deliveries=lost)
    return Salvaged(aside, kept, lost)


def keep(path: Path, aside: Path) -> None:
    """The damaged file under its other name; a file system without links has to hold it twice."""
    try:
        os.link(path, aside)
    except OSError:
        shutil.copy2(path, aside)


def unused(path: Path) -> Path:
    """A name beside *path* for what is set aside, with the time in it."""
    stem = f"{path}.corrupt-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    names = (Path(stem if not n else f"{stem}-{n}") for n in range(1000))
    return next(name for name in names if not name.exists())


def copy(damaged: Path, fresh: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Every readable row of *damaged* into the new store *fresh*; returns rows kept and deliveries lost."""
    with (
        closing(sqlite3.connect(damaged, isolation_level=None)) as old,
        closing(connect(fresh, "power")) as new,
    ):
        old.execute("PRAGMA cell_size_check=ON")
        new.execute("BEGIN IMMEDIATE")
        kept = {table: _copy_small(old, new, table, keys) for table, keys in SMALL.items()}
        for table, column in KEYED.items():
            kept[table] = _insert(new, table, ranges(old, table, column))
        kept["deliveries"] = sum(
            _insert(new, "deliveries", ranges(old, "deliveries", "id", sink)) for sink in _sinks(old)
        )
        lost = mend(new)
        new.execute("COMMIT")
        new.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return kept, lost


def _insert(db: sqlite3.Connection, table: str, rows: Iterator[Sequence[object]]) -> int:
    count = 0
    for row in rows:
        marks = ", ".join("?" * len(row))
        with suppress(sqlite3.IntegrityError):
            count += db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row).rowcount
    return count


def _copy_small(old: sqlite3.Connection, new: sqlite3.Connection, table: str, keys: Sequence[str]) -> int:
    """From both ends, as far as each can be read."""
    count = 0
    for direction in ("ASC", "DESC"):
        order = ", ".join(f"{key} {direction}" for key in keys)
        count += _insert(new, table, _until_damage(old, f"SELECT * FROM {table} ORDER BY {order}"))
    return count


def _until_damage(db: sqlite3.Connection, question: str) -> Iterator[Sequence[object]]:
    """The rows up to the first that cannot be read."""
    with suppress(sqlite3.Error):
        yield from db.execute(question)


def ranges(
    db: sqlite3.Connection, table: str, column: str, sink: str | None = None
) -> Iterator[Sequence[object]]:
    """The rows of *table*, read in ranges of *column* that are halved around what cannot be read.

    The widest first: after TRIES, what was not looked at is narrower than rows are apart. No such table, or
    no database at all, is no use halving.
    """
    whose, named = ("", ()) if sink is None else ("sink = ? AND ", (sink,))
    asked = f"SELECT *, {column} FROM {table} WHERE {whose}{column} BETWEEN ? AND ? ORDER BY {column}"
    unread = [(-LAST_ROW, 0, LAST_ROW)]
    for _ in range(TRIES):
        if not unread:
            return
        _, low, high = heapq.heappop(unread)
        try:
            # sqlite3 steps on before it gives a row: the one before damage is only given if it is the last.
            for limit in (" LIMIT 1", ""):
                for *row, at in db.execute(asked + limit, (*named, low, high)):
                    yield row
                    low = at + 1
        except sqlite3.Error as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
                return
            middle = (low + high) // 2
            if low < high:
                heapq.heappush(unread, (low - middle, low, middle))
                heapq.heappush(unread, (middle + 1 - high, middle + 1, high))


def _sinks(db: sqlite3.Connection) -> list[str]:
    """Every name a delivery may be filed under, from wherever one can be read."""
    found = set[str]()
    for question in (
        "SELECT name FROM totals WHERE kind = 'sink'",
        "SELECT name FROM sinks",
        "SELECT sink FROM deliveries",
        "SELECT sink FROM deliveries WHERE due IS NOT NULL",
        "SELECT sink FROM settled",
    ):
        found.update(str(row[0]) for row in _until_damage(db, question))
    return sorted(found)


def mend(db: sqlite3.Connection) -> dict[str, int]:
    """Make what was kept fit together; returns how many deliveries each sink lost.

    A delivery without its body can never be sent, a body nobody waits for never goes.
    """
    db.execute("DELETE FROM deliveries WHERE id >> 20 NOT IN (SELECT id FROM events)")
    db.execute("DELETE FROM dead_letters WHERE id >> 20 NOT IN (SELECT id FROM events)")
    open_rows = Counter[int]()
    for table in ("deliveries", "dead_letters"):
        open_rows.update(row >> ROUTE_BITS for (row,) in db.execute(f"SELECT id FROM {table}"))
    events = db.execute("SELECT id, open FROM events").fetchall()
    db.executemany("DELETE FROM events WHERE id = ?", [(each,) for each, _ in events if not open_rows[each]])
    db.executemany(
        "UPDATE events SET open = ? WHERE id = ?",
        [(open_rows[each], each) for each, said in events if said != open_rows[each] > 0],
    )
    _mend_ids(db)
    _mend_turns(db)
    _number(db)
    return _mend_totals(db)


def _mend_ids(db: sqlite3.Connection) -> None:
    """What waits is known by its id, or it could be accepted again."""
    unknown = db.execute(
        "SELECT id, unique_id, received, source, body FROM events WHERE id NOT IN (SELECT event FROM seen)"
    ).fetchall()
    for event, unique_id, received, source, body in unknown:
        read: Event = stored_event(unique_id, body)
        db.execute(
            "INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?)",
            (event, unique_id, received, read.name, source),
        )


def _mend_turns(db: sqlite3.Connection) -> None:
    """Of each order key exactly the first delivery is due."""
    first = "SELECT min(id) FROM deliveries AS d WHERE d.sink = deliveries.sink AND d.order_key"
    db.execute(
        "UPDATE deliveries SET due = ifnull(due, 0) WHERE order_key IS NULL"
        f" OR id = ({first} = deliveries.order_key)"
    )
    db.execute(
        "UPDATE deliveries SET due = NULL WHERE order_key IS NOT NULL"
        f" AND id <> ({first} = deliveries.order_key)"
    )


def _number(db: sqlite3.Connection) -> None:
    """No number is used again, whatever the totals have lost."""
    highest = [
        db.execute(f"SELECT ifnull(max({column}), 0) FROM {table}").fetchone()[0] >> bits
        for table, column, bits in (
            ("events", "id", 0),
            ("seen", "event", 0),
            ("dead_letters", "id", ROUTE_BITS),
            ("settled", "id", ROUTE_BITS),
        )
    ]
    db.execute(
        "INSERT INTO totals VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = max(value, excluded.value)",
        (*EVENTS, max(highest) + 1000),
    )


def _mend_totals(db: sqlite3.Connection) -> dict[str, int]:
    """waiting and dead as counted; the difference was dropped."""
    stored = {
        (kind, name, what): value
        for kind, name, what, value in db.execute("SELECT kind, name, what, value FROM totals")
    }
    held = {
        what: dict(db.execute(f"SELECT sink, count(*) FROM {table} GROUP BY sink").fetchall())
        for what, table in (("waiting", "deliveries"), ("dead", "dead_letters"))
    }
    names = {name for kind, name, _ in stored if kind == "sink"} | {*held["waiting"], *held["dead"]}
    lost: dict[str, int] = {}
    for name in sorted(names):
        sums = {what: stored.get(("sink", name, what), 0) for what in ("accepted", "delivered", "dropped")}
        waiting, dead = held["waiting"].get(name, 0), held["dead"].get(name, 0)
        accepted = max(sums["accepted"], sums["delivered"] + sums["dropped"] + waiting + dead)
        gone = accepted - sums["delivered"] - sums["dropped"] - waiting - dead
        dropped = sums["dropped"] + gone
        now = {"accepted": accepted, "waiting": waiting, "dead": dead, "dropped": dropped}
        db.executemany(
            "INSERT OR REPLACE INTO totals VALUES ('sink', ?, ?, ?)",
            [(name, what, value) for what, value in now.items()],
        )
        if gone:
            lost[name] = gone
    _mend_sources(db)
    return lost


def _mend_sources(db: sqlite3.Connection) -> None:
    """received is the sum of the others, which may have lost a row."""
    db.execute(
        "INSERT OR REPLACE INTO totals SELECT 'source', name, 'received', sum(value) FROM totals"
        " WHERE kind = 'source' AND what <> 'received' GROUP BY name"
    )


def restore(path: Path, db: sqlite3.Connection) -> None:
    """Write the store that *db* still has open to *path*, from which it was deleted.

    The application id is a page of the copy like any other.
    """
    fresh = Path(f"{path}.restore")
    fresh.unlink(missing_ok=True)
    with closing(sqlite3.connect(fresh, isolation_level=None)) as copied:
        db.backup(copied)
        if copied.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise sqlite3.DatabaseError("the copy is not whole")
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
        Path(f"{fresh}{suffix}").unlink(missing_ok=True)
    fresh.replace(path)
