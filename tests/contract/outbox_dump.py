"""`python -m tests.contract.outbox_dump`: a small store of today's schema, for tests of the bridges to come.

Once a schema is released its dump stays as it is, and a change of the schema is a migration.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import anyio

from bridge.outbox import Batch, PauseState
from bridge.outbox.file import MIGRATIONS
from tests.contract.outboxes import CRM, NOW, OPS, OpenedSqlite, dead, done, due, intake, later

FOLDER = Path(__file__).parent.parent / "data" / "outbox"
KEY = ("eu1", "application plant-a")
HEADER = "-- A small store: one delivery that waits at two sinks, one put off, one dead, one delivered."


async def make(folder: Path) -> Path:
    """The store itself, in *folder*."""
    opened = OpenedSqlite(folder)
    outbox = await opened.open()
    intakes = [intake("waits", CRM, OPS), *(intake(each, CRM) for each in ("later", "dead", "delivered"))]
    at = int(NOW) * 10**9
    await outbox.accept(Batch(intakes, cursors={KEY: at}, recent={KEY: ["waits", "later"]}))
    found = {delivery.event.unique_id: delivery for delivery in await due(outbox)}
    await outbox.settle([later(found["later"], NOW), dead(found["dead"]), done(found["delivered"])])
    await outbox.set_pause("ops", PauseState("auth", "HTTP 401", NOW, NOW + 60, 1), NOW)
    await opened.close()
    return opened.path


def lines(db: sqlite3.Connection) -> Iterator[str]:
    yield HEADER
    for line in db.iterdump():
        if line == "COMMIT;":
            yield f"PRAGMA user_version={len(MIGRATIONS)};"
        if "sqlite_" not in line:
            yield line


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(sqlite3.connect(anyio.run(make, Path(folder)))) as db,
    ):
        (FOLDER / f"schema-{len(MIGRATIONS)}.sql").write_text("\n".join(lines(db)) + "\n")


if __name__ == "__main__":
    main()
