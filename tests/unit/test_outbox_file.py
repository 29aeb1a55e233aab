"""The store's file: what is refused and why, what is left alone, and what a full disk costs."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest

from bridge.errors import OutboxError, StartError
from bridge.event import Event
from bridge.outbox import Batch, Intake, Outbox
from bridge.outbox.file import (
    APPLICATION_ID,
    MIGRATIONS,
    PAGE,
    Reserve,
    connect,
    connect_readonly,
    file_system,
    locked,
    migrate,
    refuse_network,
    version,
)
from bridge.outbox.queries import DUE_BYTES
from bridge.outbox.sqlite import Overflow, SqliteOutbox, open_outbox, open_readonly
from bridge.outbox.verify import verify
from tests.contract.outboxes import CRM, NOW, Power, batch, dead, done, due, ids_due, intake

pytestmark = pytest.mark.anyio

HERE = Path(__file__).parent
SCHEMAS = HERE.parent / "data" / "outbox"
"""A dump of a small store of each schema that was ever released."""


@asynccontextmanager
async def store(
    path: Path, *, reserve: int = 0, max_size: int | None = None, overflow: Overflow = "drop_oldest"
) -> AsyncIterator[SqliteOutbox]:
    async with open_outbox(
        path,
        durability="process",
        dedup_window=1000.0,
        dead_letter_retention=1e9,
        trace_retention=1e9,
        offload_write=Power(),
        offload_read=Power(),
        max_size=max_size,
        overflow=overflow,
        reserve=reserve,
    ) as outbox:
        yield outbox


async def fill(outbox: Outbox, count: int, *, start: int = 0) -> None:
    await outbox.accept(batch(*(intake(f"u{n}", CRM) for n in range(start, start + count))))


def pragma(db: sqlite3.Connection, name: str) -> object:
    return db.execute(f"PRAGMA {name}").fetchone()[0]


@pytest.mark.parametrize(("durability", "synchronous"), [("power", 2), ("process", 1)])
def test_durability_is_how_a_commit_is_synced(tmp_path: Path, durability: str, synchronous: int) -> None:
    """FULL syncs the log at every commit, NORMAL only before it is brought into the file (wal.html)."""
    with closing(connect(tmp_path / "bridge.db", durability)) as db:  # type: ignore[arg-type]
        assert pragma(db, "synchronous") == synchronous
        assert pragma(db, "journal_mode") == "wal"


def test_a_new_file_is_ours_and_can_shrink(tmp_path: Path) -> None:
    """From its first page on, and after being opened again."""
    path = tmp_path / "bridge.db"
    for _ in range(2):
        with closing(connect(path, "power")) as db:
            assert pragma(db, "application_id") == APPLICATION_ID
            assert pragma(db, "auto_vacuum") == 2  # INCREMENTAL
            assert version(db) == len(MIGRATIONS)
        assert path.read_bytes()[68:72] == b"brdg"


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        *(("nfs", True), ("nfs4", True), ("cifs", True), ("9p", True), ("fuse.sshfs", True)),
        *(("ext4", False), ("xfs", False), ("tmpfs", False), ("overlay", False), ("fuse.bindfs", False)),
    ],
)
def test_network_file_systems_are_refused_with_the_reason(kind: str, refused: bool) -> None:
    """The mount nearest to the file decides."""
    mounts = f"/dev/sda / ext4 rw 0 0\nserver:/x /data {kind} rw 0 0\n/dev/sdb /data/db-not ext4 rw 0 0\n"
    if refused:
        with pytest.raises(
            StartError, match=rf"network file system \({kind}\).*put the store on a local disk"
        ):
            refuse_network(Path("/data/db/bridge.db"), mounts)
    else:
        refuse_network(Path("/data/db/bridge.db"), mounts)


def test_mounts_are_read_as_the_kernel_writes_them() -> None:
    """Blanks as octal escapes; of two mounts on one point the later one counts; a name that only begins alike
    does not."""
    mounts = (
        "garbage\n/dev/sda / ext4 rw 0 0\na /my\\040data nfs rw 0 0\nb /my\\040data xfs rw 0 0\n"
        "c /my nfs rw 0 0\n"
    )
    assert file_system(Path("/my data/bridge.db"), mounts) == "xfs"
    assert file_system(Path("/my/bridge.db"), mounts) == "nfs"
    assert file_system(Path("/mydata/bridge.db"), mounts) == "ext4"
    assert file_system(Path("/x"), "") == ""


@pytest.mark.parametrize("log", [False, True])
async def test_a_database_of_another_program_is_left_alone(tmp_path: Path, log: bool) -> None:
    """Not a byte changes, whether it has a log that is open or not; nothing is put beside it."""
    path = tmp_path / "bridge.db"
    with closing(sqlite3.connect(path)) as db:
        if log:
            db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE theirs (x)")
        db.execute("INSERT INTO theirs VALUES (1)")
        db.commit()
        before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
        with pytest.raises(StartError, match="is the database of another program; set outbox"):
            async with store(path):
                pass
        with pytest.raises(StartError, match="is the database of another program; set outbox"):
            async with open_readonly(path):
                pass
        assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


async def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    """Somebody's notes, longer or shorter than a header."""
    for text in (b"notes", b"notes " * 1000):
        path = tmp_path / "bridge.db"
        path.write_bytes(text)
        with pytest.raises(StartError, match="is no store of bridge; set outbox to another file"):
            async with store(path):
                pass
        assert path.read_bytes() == text


async def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    """A volume may bring one."""
    path = tmp_path / "bridge.db"
    path.touch()
    async with store(path) as outbox:
        await fill(outbox, 1)


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """By running and by reading; nothing changes."""
    path = tmp_path / "bridge.db"
    with closing(connect(path, "power")) as db:
        db.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    for opening in (store(path), open_readonly(path)):
        with pytest.raises(StartError, match="was made by a newer bridge; install that version or newer"):
            async with opening:
                pass


@pytest.mark.parametrize("dump", sorted(SCHEMAS.glob("schema-*.sql")), ids=lambda path: path.stem)
async def test_a_store_of_every_released_schema_is_brought_up_to_date(tmp_path: Path, dump: Path) -> None:
    """With everything that waits, is dead, known and counted; reading commands say to run bridge first."""
    path = tmp_path / "bridge.db"
    number = int(dump.stem.removeprefix("schema-"))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.execute(f"PRAGMA application_id={APPLICATION_ID}")
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(dump.read_text())
        assert version(db) == number
    if number < len(MIGRATIONS):
        with pytest.raises(
            StartError, match="was made by an older bridge; `bridge run` brings it up to date"
        ):
            connect_readonly(path)
    async with store(path) as outbox:
        assert await ids_due(outbox) == ["waits", "later"]
        assert await ids_due(outbox, "ops") == ["waits"]
        assert (await outbox.accept(batch(intake("delivered", CRM), intake("new", CRM)))).fresh == (
            False,
            True,
        )
        await outbox.settle([dead((await due(outbox))[-1])])
        assert await outbox.cursors("eu1") == {"application plant-a": 1_795_468_146_000_000_000}
        assert outbox.sink_totals()["crm"].accepted == 5
        assert await verify(outbox) == []
        trace = await outbox.trace("dead")
        assert trace is not None
        assert [len(each.attempts) for each in trace.deliveries] == [1]


def schema(db: sqlite3.Connection) -> set[str]:
    """What every table and index is made of, comments and line ends aside."""
    found = db.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    return {" ".join(re.sub(r"--.*", "", sql).split()) for (sql,) in found}


def test_there_is_a_dump_of_todays_schema(tmp_path: Path) -> None:
    """If not: `python -m tests.contract.outbox_dump`, or a migration if the schema was released."""
    dump = SCHEMAS / f"schema-{len(MIGRATIONS)}.sql"
    with closing(connect(tmp_path / "new.db", "process")) as new, closing(sqlite3.connect(":memory:")) as old:
        old.executescript(dump.read_text())
        assert schema(old) == schema(new)


def test_a_migration_is_a_step_of_its_own(tmp_path: Path) -> None:
    """One that fails leaves the store at the one before, for the next try."""
    path = tmp_path / "bridge.db"
    add = "ALTER TABLE seen ADD COLUMN colour TEXT"
    with pytest.raises(StartError, match="cannot be used as the store"):
        connect(path, "power", (*MIGRATIONS, add, f"{add}2; nonsense"))
    with closing(sqlite3.connect(path)) as db:
        assert version(db) == len(MIGRATIONS) + 1
        columns = [row[1] for row in db.execute("PRAGMA table_info(seen)")]
        assert "colour" in columns
        assert "colour2" not in columns
        migrate(db, (*MIGRATIONS, add, add.replace("colour", "taste")))
        assert version(db) == len(MIGRATIONS) + 2


HOLDER = "import sys; from pathlib import Path; from bridge.outbox.file import locked\n{}"


@pytest.fixture
def other_bridge(tmp_path: Path) -> Iterator[Path]:
    """The path of a store on which another process runs."""
    path = tmp_path / "bridge.db"
    with closing(connect(path, "power")):
        pass
    code = HOLDER.format(f"with locked(Path({str(path)!r})): print('held', flush=True); sys.stdin.read()")
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield path
        process.kill()


async def test_a_second_bridge_is_refused_and_reading_is_not(other_bridge: Path) -> None:
    """One process writes; its end, even by kill, lets go of the lock."""
    with pytest.raises(StartError, match="another bridge is running on it; stop that one or set outbox"):
        async with store(other_bridge):
            pass
    async with open_readonly(other_bridge) as reader:
        assert await verify(reader) == []


async def test_a_command_reads_while_bridge_writes(tmp_path: Path) -> None:
    """It sees what is committed."""
    path = tmp_path / "bridge.db"
    async with store(path) as outbox, open_readonly(path) as reader:
        await fill(outbox, 3)
        assert len(await due(reader)) == 3  # type: ignore[arg-type]  # a reader has that question too
        assert await verify(reader) == []


async def test_there_is_nothing_to_read_before_the_first_run(tmp_path: Path) -> None:
    """And no file is made by asking."""
    with pytest.raises(StartError, match="there is no store yet; `bridge run` makes it"):
        async with open_readonly(tmp_path / "bridge.db"):
            pass
    assert list(tmp_path.iterdir()) == []


AS_OTHERS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
"""Takes from root what makes file permissions mean nothing to it."""

READ = """
import anyio, sys
from pathlib import Path
from bridge.errors import StartError
from bridge.outbox.sqlite import open_readonly, open_outbox, threads
from bridge.outbox.verify import verify

async def main(what, path):
    if what == "read":
        async with open_readonly(path) as store:
            found = await store.due("crm", now=2e9, horizon=1, limit=9, taken=())
            print(await verify(store), len(found.deliveries))
    else:
        async with threads() as offload, open_outbox(path, durability="power", dedup_window=1,
            dead_letter_retention=1, trace_retention=1, offload_write=offload, offload_read=offload):
            print("opened")
try:
    anyio.run(main, sys.argv[1], Path(sys.argv[2]))
except StartError as error:
    print(error)
"""


def as_others(what: str, path: Path) -> str:
    command = [*AS_OTHERS, sys.executable, "-c", READ, what, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


async def test_a_read_only_directory(tmp_path: Path) -> None:
    """Running says that it cannot write there; reading goes on."""
    folder = tmp_path / "store"
    folder.mkdir()
    async with store(folder / "bridge.db") as outbox:
        await fill(outbox, 2)
    (folder / "bridge.db.lock").unlink()
    folder.chmod(0o555)
    try:
        assert as_others("read", folder / "bridge.db") == "[] 2"
        assert "cannot write beside it: Permission denied" in as_others("run", folder / "bridge.db")
    finally:
        folder.chmod(0o755)


async def test_a_file_one_may_not_read(tmp_path: Path) -> None:
    """One clear line, by running and by reading."""
    path = tmp_path / "bridge.db"
    async with store(path) as outbox:
        await fill(outbox, 1)
    path.chmod(0)
    for what in ("read", "run"):
        assert as_others(what, path) == f"{path}: cannot be read: Permission denied"


async def full(outbox: SqliteOutbox) -> None:
    """No page more than there is."""
    await outbox._writer.aside(
        lambda db: db.execute(f"PRAGMA max_page_count={pragma(db, 'page_count')}").fetchall()
    )


async def room(outbox: SqliteOutbox) -> None:
    await outbox._writer.aside(lambda db: db.execute("PRAGMA max_page_count=1000000").fetchall())


async def test_a_full_store_refuses_and_settles(tmp_path: Path) -> None:
    """Nothing of what it refused happened; settling goes on; when there is room, so does accepting."""
    async with store(tmp_path / "bridge.db", reserve=1 << 20) as outbox:
        assert (tmp_path / "bridge.db.reserve").stat().st_size == 1 << 20
        await fill(outbox, 100)
        await full(outbox)
        with pytest.raises(OutboxError) as told:
            await fill(outbox, 1000, start=100)
        assert told.value.full
        assert not (tmp_path / "bridge.db.reserve").exists()
        assert outbox.sink_totals()["crm"].waiting == 100
        await outbox.settle([done(each) for each in await due(outbox)])
        assert await verify(outbox) == []
        await room(outbox)
        await fill(outbox, 1000, start=100)
        assert (tmp_path / "bridge.db.reserve").stat().st_size == 1 << 20
        assert outbox.sink_totals()["crm"].waiting == 1000


LOST = """
import anyio, os, sys
from pathlib import Path
from bridge.outbox.verify import verify
from tests.contract.outboxes import done, due
from tests.unit.test_outbox_file import fill, store

async def main(path):
    async with store(path) as outbox:
        await fill(outbox, 10)
        path.chmod(0)
        path.parent.chmod(0)
        try:
            await outbox.settle([done(each) for each in (await due(outbox))[:5]])
            await fill(outbox, 10, start=10)
            print(len(await due(outbox)), await verify(outbox))
        finally:
            path.parent.chmod(0o755)
anyio.run(main, Path(sys.argv[1]))
"""


def test_permissions_lost_while_running(tmp_path: Path) -> None:
    """What is open stays open: events are taken and settled on."""
    folder = tmp_path / "store"
    folder.mkdir()
    command = [*AS_OTHERS, sys.executable, "-c", LOST, str(folder / "bridge.db")]
    found = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=20, cwd=HERE.parent.parent
    )
    assert found.stdout == "15 []\n", found.stderr


async def filled_up(outbox: SqliteOutbox) -> OutboxError:
    """The error that ends filling it."""
    while True:
        try:
            await fill(outbox, 100, start=outbox.sink_totals()["crm"].accepted if outbox.sink_totals() else 0)
        except OutboxError as error:
            return error


def can_mount(folder: Path, size: str) -> bool:
    return (
        os.geteuid() == 0
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not can_mount(folder, "8m"):
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_full_disk(small_disk: Path) -> None:
    """The reserve is given back and settling goes on; nothing new is taken until it fits again."""
    async with store(small_disk / "bridge.db", reserve=2 << 20) as outbox:
        reserve = small_disk / "bridge.db.reserve"
        accepted = 0
        error = await filled_up(outbox)
        assert error.full
        accepted = outbox.sink_totals()["crm"].waiting
        assert accepted
        assert not reserve.exists()
        with pytest.raises(OutboxError, match="the disk is full"):
            await fill(outbox, 1, start=accepted)
        assert outbox.sink_totals()["crm"].waiting == accepted
        while found := await due(outbox, limit=500):
            await outbox.settle([done(each) for each in found])
        assert await verify(outbox) == []
        for _ in range(5):
            await outbox.tidy(NOW + 1e10)
        assert reserve.stat().st_size == 2 << 20
        await fill(outbox, 1, start=accepted)
    async with store(small_disk / "bridge.db", reserve=2 << 20) as outbox:
        assert outbox.sink_totals()["crm"].delivered == accepted


async def test_the_disk_fills_up_by_another_program(small_disk: Path) -> None:
    """The reserve is what lets deliveries be settled then."""
    async with store(small_disk / "bridge.db", reserve=2 << 20) as outbox:
        await fill(outbox, 1000)
        hog = small_disk / "hog"
        with suppress(OSError), hog.open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        assert (await filled_up(outbox)).full
        waiting = outbox.sink_totals()["crm"].waiting
        while found := await due(outbox, limit=100):
            await outbox.settle([done(each) for each in found])
        assert outbox.sink_totals()["crm"].delivered == waiting
        hog.unlink()
        await fill(outbox, 1, start=waiting)
        assert (small_disk / "bridge.db.reserve").exists()


QUOTA = """
import anyio, resource, signal, sys
from pathlib import Path
from bridge.errors import OutboxError
from tests.contract.outboxes import done, due
from tests.unit.test_outbox_file import fill, store

async def main(path):
    async with store(path) as outbox:
        await fill(outbox, 100)
        size = 64 << 10
        for name in ("", "-wal"):
            size = max(size, Path(f"{path}{name}").stat().st_size)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            for number in range(1, 100):
                await fill(outbox, 100, start=100 * number)
        except OutboxError as error:
            print("full", error.full, outbox.sink_totals()["crm"].waiting == 100 * number)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await fill(outbox, 100, start=100 * number)
        print("again", outbox.sink_totals()["crm"].waiting == 100 * (number + 1))
anyio.run(main, Path(sys.argv[1]))
"""


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """A quota is a full disk too, though SQLite calls it a write that failed."""
    found = subprocess.run(
        [sys.executable, "-c", QUOTA, str(tmp_path / "bridge.db")],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
        cwd=HERE.parent.parent,
    )
    assert found.stdout.splitlines() == ["full True True", "again True"], found.stderr


def test_a_reserve_leaves_room_for_deliveries(tmp_path: Path) -> None:
    """Never more than a quarter of what is free; what it could not take it does not half take."""
    reserve = Reserve(tmp_path / "reserve", 1 << 62)
    assert not reserve.take()
    assert not (tmp_path / "reserve").exists()
    reserve = Reserve(tmp_path / "reserve", 8192)
    reserve.shrink_to_disk()
    assert reserve.take()
    assert reserve.take()
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= 8192
    reserve.release()
    reserve.release()
    assert not (tmp_path / "reserve").exists()


async def test_a_drained_store_gives_its_pages_back(tmp_path: Path) -> None:
    """In short steps, while it runs."""
    path = tmp_path / "bridge.db"
    async with store(path) as outbox:
        for start in range(0, 100_000, 2000):
            await fill(outbox, 2000, start=start)
        while found := await due(outbox, limit=5000):
            await outbox.settle([done(each) for each in found])
        with closing(connect_readonly(path)) as db:
            before = pragma(db, "page_count")
        await outbox.tidy(NOW + 1e10)
        with closing(connect_readonly(path)) as db:
            after, free = pragma(db, "page_count"), pragma(db, "freelist_count")
        assert isinstance(before, int)
        assert isinstance(after, int)
        assert before > 2500
        assert after < before / 2
        assert isinstance(free, int)
        assert free <= 1000
    assert path.stat().st_size <= (after + 100) * PAGE


def test_the_lock_is_held_while_inside(tmp_path: Path) -> None:
    """And free afterwards, whatever happened."""
    path = tmp_path / "bridge.db"
    with locked(path), pytest.raises(StartError, match="another bridge"), locked(path):
        pass
    with suppress(ZeroDivisionError), locked(path):
        _ = 1 / 0
    with locked(path):
        pass


async def test_what_is_read_at_once_is_bounded_in_bytes(tmp_path: Path) -> None:
    """A backlog of large events comes in its order, some at a time, and the rest is due."""
    size, count = 1 << 20, 40
    body = b'{"name":"a.b","data":"%s"}' % (b"x" * size)
    async with store(tmp_path / "bridge.db") as outbox:
        for n in range(count):
            event = Event("a.b", "", 0, f"u{n:02d}", (), body)
            await outbox.accept(Batch([Intake("eu1", event, NOW + n, True, (CRM,))]))
        taken: dict[int, str] = {}
        rounds = 0
        while len(taken) < count:
            found = await outbox.due("crm", now=NOW + count, horizon=3600.0, limit=256, taken=taken)
            assert sum(len(each.event.body) for each in found.deliveries) <= DUE_BYTES + size + 100
            taken |= {each.row: each.event.unique_id for each in found.deliveries}
            rounds += 1
            assert (found.next_due is None) == (len(taken) == count)
        assert list(taken.values()) == [f"u{n:02d}" for n in range(count)]
        assert rounds == 3
