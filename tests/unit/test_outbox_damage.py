"""A store the disk has damaged, or somebody deleted: what can be read is kept, what is lost is counted."""

from __future__ import annotations

import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.delivery import Route
from bridge.errors import OutboxError, StartError
from bridge.outbox import Batch, DeadLetterFilter, queue
from bridge.outbox.file import PAGE, connect, connect_readonly
from bridge.outbox.salvage import KEYED, SMALL, damage, ranges
from bridge.outbox.sqlite import SqliteOutbox
from bridge.outbox.verify import verify
from tests.contract.outboxes import CRM, NOW, OPS, batch, dead, done, due, intake, later
from tests.unit.test_outbox_file import store
from tests.unit.test_outbox_room import fill

pytestmark = pytest.mark.anyio

KEY = ("eu1", "application plant-a")


async def a_store_with_everything(path: Path, count: int = 2000) -> None:
    """*count* events for two sinks: some delivered, some dead, some put off; a cursor."""
    async with store(path) as outbox:
        await fill(outbox, range(count), CRM, OPS)
        await outbox.accept(Batch(cursors={KEY: 5}, recent={KEY: ["u1"]}))
        found = await due(outbox, now=NOW + count, limit=count)
        await outbox.settle([done(each) for each in found[: count // 4]])
        await outbox.settle([dead(each) for each in found[count // 4 : count // 2]])
        await outbox.settle([later(each, NOW) for each in found[-10:]])


def pages_of(path: Path, table: str) -> list[int]:
    """The pages, from 1, on which *table* or index lies, its root last; by what the file itself says."""
    with closing(sqlite3.connect(path)) as db:
        root = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()[0]
    data = path.read_bytes()
    found: list[int] = []

    def walk(page: int) -> None:
        start = (page - 1) * PAGE
        kind, cells = data[start], int.from_bytes(data[start + 3 : start + 5], "big")
        if kind in (2, 5):  # an interior page: fileformat2.html, "B-tree Pages"
            for cell in range(cells):
                at = int.from_bytes(data[start + 12 + 2 * cell : start + 14 + 2 * cell], "big")
                walk(int.from_bytes(data[start + at : start + at + 4], "big"))
            walk(int.from_bytes(data[start + 8 : start + 12], "big"))
        found.append(page)

    walk(root)
    return found


def destroy(path: Path, pages: Iterable[int], rng: random.Random) -> None:
    """Random bytes where *pages* were."""
    with path.open("r+b") as file:
        for page in pages:
            file.seek((page - 1) * PAGE)
            file.write(rng.randbytes(PAGE))


async def survivors(outbox: SqliteOutbox) -> Counter[str]:
    found: Counter[str] = Counter()
    for sink in ("crm", "ops"):
        for each in await due(outbox, sink, now=NOW + 1e6, limit=9999):
            found[sink] += 1
            assert each.event.name == "a.b"
    found["dead"] = len(await outbox.dead_letters(DeadLetterFilter(), limit=9999))
    return found


async def test_a_healthy_store_is_left_as_it_is(tmp_path: Path) -> None:
    """No file beside it, nothing said."""
    await a_store_with_everything(tmp_path / "bridge.db", 50)
    async with store(tmp_path / "bridge.db") as outbox:
        assert outbox.salvaged is None
    assert not list(tmp_path.glob("*.corrupt-*"))


async def test_a_corrupted_page_costs_what_was_on_it(tmp_path: Path) -> None:
    """The damaged file is set aside, named in the log, and every other row is there."""
    path = tmp_path / "bridge.db"
    await a_store_with_everything(path)
    leaf = pages_of(path, "events")[50]
    destroy(path, [leaf], random.Random(1))
    before = path.read_bytes()
    with structlog.testing.capture_logs() as logged:
        async with store(path) as outbox:
            found = await survivors(outbox)
            assert outbox.salvaged is not None
            aside, lost = outbox.salvaged.aside, outbox.salvaged.lost
            assert await verify(outbox) == []
            assert await outbox.cursors("eu1") == {KEY[1]: 5}
            totals = outbox.sink_totals()
    assert aside.read_bytes() == before
    assert aside.name.startswith("bridge.db.corrupt-")
    assert [each["set_aside"] for each in logged if each["event"] == "store replaced"] == [str(aside)]
    assert 0 < sum(lost.values()) <= 8
    assert found["crm"] + found["dead"] + found["ops"] == 1500 + 2000 - sum(lost.values())
    assert (totals["crm"].dropped, totals["ops"].dropped) == (lost.get("crm", 0), lost.get("ops", 0))
    async with store(path) as outbox:
        assert outbox.salvaged is None
        assert (await outbox.accept(batch(intake("u000000", CRM)))).fresh == (False,)
        assert (await outbox.accept(batch(intake("new", CRM, at=NOW + 1e5)))).fresh == (True,)
        assert await verify(outbox) == []


@pytest.mark.parametrize("table", ["deliveries", "dead_letters", "seen", "settled", "deliveries_due"])
async def test_any_table_may_be_hit(tmp_path: Path, table: str) -> None:
    """A leaf of it: at most what a page holds is lost, and new events are taken."""
    path = tmp_path / "bridge.db"
    await a_store_with_everything(path)
    pages = pages_of(path, table)
    destroy(path, [pages[len(pages) // 2 - (len(pages) > 1)]], random.Random(2))
    async with store(path) as outbox:
        assert outbox.salvaged is not None
        found = await survivors(outbox)
        assert await verify(outbox) == []
        assert found["crm"] + found["ops"] + found["dead"] >= 3500 - 300
        if table in ("seen", "settled", "deliveries_due"):
            assert found["crm"] + found["ops"] + found["dead"] == 3500
        assert (await outbox.accept(batch(intake("u001999", CRM)))).fresh == (False,)
        assert (await outbox.accept(batch(intake("new", CRM, OPS)))).fresh == (True,)


def test_no_table_is_forgotten(tmp_path: Path) -> None:
    """When the schema gets one, salvage has to know how it is read."""
    with closing(connect(tmp_path / "bridge.db", "process")) as db:
        names = db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
    assert {name for (name,) in names} == {*KEYED, *SMALL, "deliveries"}


async def test_the_first_page_may_be_hit(tmp_path: Path) -> None:
    """Then nothing can be read: the file is set aside and an empty one begins."""
    path = tmp_path / "bridge.db"
    await a_store_with_everything(path, 100)
    data = bytearray(path.read_bytes())
    data[:60] = bytes(60)
    path.write_bytes(data)
    async with store(path) as outbox:
        assert outbox.salvaged is not None
        assert await verify(outbox) == []
        assert (await outbox.accept(batch(intake("new", CRM)))).fresh == (True,)


async def test_a_damaged_store_without_room_to_mend_it(tmp_path: Path) -> None:
    """One clear line, and the file is as it was."""
    path = tmp_path / "bridge.db"
    await a_store_with_everything(path, 100)
    destroy(path, [pages_of(path, "events")[5]], random.Random(1))
    (tmp_path / "bridge.db.salvage-wal").mkdir()
    before = path.read_bytes()
    with pytest.raises(StartError, match="is damaged and cannot be replaced"):
        async with store(path):
            pass
    assert path.read_bytes() == before


async def test_order_goes_on_after_a_salvage(tmp_path: Path) -> None:
    """The first of an entity that is still there has its turn, the others wait."""
    path = tmp_path / "bridge.db"
    a = Route("r", "crm", "device:a")
    async with store(path) as outbox:
        await fill(outbox, range(2000), a)
    destroy(path, [pages_of(path, "events")[0]], random.Random(3))
    async with store(path) as outbox:
        assert outbox.salvaged is not None
        (head,) = await due(outbox, now=NOW + 9999)
        assert head.event.unique_id == f"u{outbox.salvaged.lost['crm']:06d}"
        await outbox.settle([done(head)])
        assert len(await due(outbox, now=NOW + 9999)) == 1


def into_the_file(path: Path) -> None:
    """Nothing is in the write-ahead log any more."""
    with closing(connect(path, "process")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


@pytest.mark.parametrize("met_by", ["due", "settle"])
async def test_damage_met_while_running_is_dealt_with_then(tmp_path: Path, met_by: str) -> None:
    """Without a restart: what was taken before is settled after, and the next start finds nothing wrong."""
    path = tmp_path / "bridge.db"
    await a_store_with_everything(path)
    async with store(path) as outbox:
        await fill(outbox, range(5000, 5001), CRM)
        taken = await due(outbox, "ops", now=NOW + 9999, limit=2000)
        into_the_file(path)
        destroy(path, pages_of(path, "events")[300:700], random.Random(4))
        if met_by == "due":
            assert len(await due(outbox, "ops", now=NOW + 9999, limit=9999)) < 1990
        await outbox.settle([done(each) for each in taken])
        assert outbox.salvaged is not None
        totals = outbox.sink_totals()["ops"]
        assert totals.delivered + totals.dropped == 2000
        assert totals.dropped == outbox.salvaged.lost["ops"] > 100
        await fill(outbox, range(6000, 6001), OPS)
        assert await verify(outbox) == []
        assert await outbox.read(queue.check) == []
    assert damage(path, 10.0) is None
    async with store(path) as outbox:
        assert outbox.salvaged is None


ROWS, PER_LEAF = 600, 3


@settings(max_examples=10)
@given(
    bad=st.sets(st.integers(0, ROWS // PER_LEAF - 1), max_size=6),
    spread=st.sampled_from([1, 1 << 20, 12_345]),
)
def test_every_readable_row_is_found(bad: set[int], spread: int) -> None:
    """Whatever leaves are damaged, and however far apart the rows are numbered."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.db"
        with closing(sqlite3.connect(path)) as db:
            db.execute(f"PRAGMA page_size={PAGE}")
            db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body)")
            db.executemany("INSERT INTO t VALUES (?, ?)", [(n * spread, b"x" * 2600) for n in range(ROWS)])
            db.commit()
        destroy(path, [pages_of(path, "t")[each] for each in bad], random.Random(5))
        with closing(sqlite3.connect(path)) as db:
            found = {row[0] for row in ranges(db, "t", "id")}
    assert found == {n * spread for n in range(ROWS) if n // PER_LEAF not in bad}


async def test_a_store_that_is_deleted_is_written_again(tmp_path: Path) -> None:
    """From what the process still has open: nothing is lost, and commands find it."""
    path = tmp_path / "bridge.db"
    async with store(path) as outbox:
        await fill(outbox, range(200), CRM)
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink()
        await outbox.settle([done(each) for each in (await due(outbox, now=NOW + 999))[:50]])
        await fill(outbox, range(200, 300), CRM)
        assert len(await due(outbox, now=NOW + 999)) == 250
        with closing(connect_readonly(path)) as db:
            assert db.execute("SELECT count(*) FROM deliveries").fetchone() == (250,)
            assert db.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    async with store(path) as outbox:
        assert outbox.sink_totals()["crm"].delivered == 50
        assert len(await due(outbox, now=NOW + 999)) == 250
        assert await verify(outbox) == []


async def test_another_file_in_its_place_is_not_written_to(tmp_path: Path) -> None:
    """Nor is the store that is still open given up."""
    path = tmp_path / "bridge.db"
    async with store(path) as outbox:
        await fill(outbox, range(10), CRM)
        kept = path.rename(tmp_path / "kept")
        path.write_bytes(b"another")
        with pytest.raises(OutboxError, match="another file has taken its place"):
            await fill(outbox, range(10, 20), CRM)
        kept.rename(path)
        await fill(outbox, range(10, 20), CRM)
        assert path.read_bytes()[:6] == b"SQLite"
