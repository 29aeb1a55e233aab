"""The store's file: opening, refusing, locking, and the bytes kept back for a full disk."""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Literal, TypeAlias

from bridge.errors import StartError

Durability: TypeAlias = Literal["power", "process"]

APPLICATION_ID = 0x62726467  # "brdg": tells our file from another program's
MIGRATIONS: tuple[str, ...] = ((files("bridge.outbox") / "sqlite.sql").read_text(),)
"""Script number n (from 1) brings schema n-1 to n, inside one transaction."""

RESERVE = 64 << 20  # bytes kept back so that settling goes on when the disk is full (DESIGN.md §3)
MARGIN = 4 << 20  # bytes that have to be free beside the reserve, or it would fill the disk itself
BUSY = 10_000  # ms a connection waits for another's lock: reading commands hold theirs for microseconds
LOG_PAGES = 2000  # pages of write-ahead log after which it is brought into the file: 16 MB
PAGE = 8192  # bytes
CACHE = 8 << 10  # KiB of pages a connection keeps in memory

NETWORK = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs2", "glusterfs", "gpfs", "lustre"),
        *("ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs"),
        *("fuse.ceph", "fuse.davfs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys", "fuse.juicefs"),
        *("fuse.rclone", "fuse.s3fs", "fuse.sshfs"),
    }
)

MAGIC = b"SQLite format 3\0"  # fileformat2.html, "The Database Header": also the two offsets below
APPLICATION_ID_AT = 68
HEADER = 100  # bytes


def connect(
    path: Path,
    durability: Durability,
    migrations: Sequence[str] = MIGRATIONS,
    log_pages: int = LOG_PAGES,
) -> sqlite3.Connection:
    """A connection that may write, schema up to date; raises StartError.

    The application id is in the file before anything else is, so that `refuse_foreign` need not open it.
    """
    refuse_foreign(path)
    db: sqlite3.Connection | None = None
    try:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        db.execute(f"PRAGMA busy_timeout={BUSY}")
        if not path.exists() or path.stat().st_size == 0:
            db.execute(f"PRAGMA page_size={PAGE}")
            db.execute("PRAGMA auto_vacuum=INCREMENTAL")
            db.execute(f"PRAGMA application_id={APPLICATION_ID}")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={'FULL' if durability == 'power' else 'NORMAL'}")
        db.execute(f"PRAGMA wal_autocheckpoint={log_pages}")
        db.execute(f"PRAGMA journal_size_limit={2 * log_pages * PAGE}").fetchone()
        db.execute(f"PRAGMA cache_size=-{CACHE}")
        db.execute("PRAGMA temp_store=MEMORY")
        refuse_newer(db, path, migrations)
        migrate(db, migrations)
    except (sqlite3.Error, StartError) as error:
        if db is not None:
            db.close()
        raise cannot(path, "used as the store", error) from None
    return db


def connect_readonly(path: Path, migrations: Sequence[str] = MIGRATIONS) -> sqlite3.Connection:
    """A connection that cannot write; raises StartError."""
    if not path.is_file():
        raise StartError(f"{path}: there is no store yet; `bridge run` makes it")
    refuse_foreign(path)
    db: sqlite3.Connection | None = None
    try:
        db = sqlite3.connect(
            f"{path.resolve().as_uri()}?{reading_mode(path)}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
        )
        db.execute(f"PRAGMA busy_timeout={BUSY}")
        refuse_newer(db, path, migrations)
        if version(db) < len(migrations):
            raise StartError(f"{path}: was made by an older bridge; `bridge run` brings it up to date")
    except (sqlite3.Error, StartError) as error:
        if db is not None:
            db.close()
        raise cannot(path, "read", error) from None
    return db


def reading_mode(path: Path) -> str:
    """How SQLite is asked to read.

    Where it may not make its index of the write-ahead log (`-shm`) it cannot read beside a writer; without a
    log there is none, and the file is all there is (wal.html, "Read-Only Databases").
    """
    alone = not Path(f"{path}-wal").exists() and not os.access(path.parent, os.W_OK)
    return "mode=ro&immutable=1" if alone else "mode=ro"


def cannot(path: Path, what: str, error: sqlite3.Error | StartError) -> StartError:
    return error if isinstance(error, StartError) else StartError(f"{path}: cannot be {what}: {error}")


def version(db: sqlite3.Connection) -> int:
    found: int = db.execute("PRAGMA user_version").fetchone()[0]
    return found


def refuse_newer(db: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    if version(db) > len(migrations):
        raise StartError(f"{path}: was made by a newer bridge; install that version or newer")


def refuse_foreign(path: Path) -> None:
    """Raise StartError unless the file is ours, or empty; SQLite itself would already change it.

    A file of ours whose first bytes are damaged still counts as ours.
    """
    try:
        with path.open("rb") as file:
            header = file.read(HEADER)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartError(f"{path}: cannot be read: {error.strerror}") from None
    ours = header[APPLICATION_ID_AT : APPLICATION_ID_AT + 4] == APPLICATION_ID.to_bytes(4, "big")
    if header and not ours:
        what = "is the database of another program" if header.startswith(MAGIC) else "is no store of bridge"
        raise StartError(f"{path}: {what}; set outbox to another file")


def migrate(db: sqlite3.Connection, migrations: Sequence[str] = MIGRATIONS) -> None:
    """Bring the schema up to date, one transaction a step."""
    while (at := version(db)) < len(migrations):
        db.executescript(f"BEGIN IMMEDIATE; {migrations[at]}; PRAGMA user_version={at + 1}; COMMIT;")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock beside *path*; raises StartError if another bridge has it."""
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise StartError(f"{path}: cannot write beside it: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StartError(f"{path}: another bridge is running on it; stop that one or set outbox") from None
    finally:
        os.close(lock)


def refuse_network(path: Path, mounts: str) -> None:
    """Raise StartError if *path* lies on a network file system by *mounts* (`/proc/self/mounts`).

    Their locks and syncs do not hold what the write-ahead log needs (sqlite.org/wal.html, "all processes
    must be on the same host").
    """
    kind = file_system(path.resolve(), mounts)
    if kind in NETWORK:
        raise StartError(
            f"{path}: lies on a network file system ({kind}), whose locks and syncs do not hold;"
            " put the store on a local disk"
        )


def file_system(path: Path, mounts: str) -> str:
    """The type of the file system *path* is on; '' if *mounts* does not say.

    Of two mounts on one point the later one is seen (proc(5), fstab(5): blanks are octal escapes).
    """
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[1]))
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind


def free_bytes(path: Path) -> int:
    """What is left for us on the disk of *path*."""
    disk = os.statvfs(path.parent)
    return disk.f_bavail * disk.f_frsize


class Reserve:
    """Bytes on the disk that nobody uses, until it is full."""

    def __init__(self, path: Path, size: int = RESERVE) -> None:
        self._path = path
        self.size = size

    def shrink_to_disk(self) -> None:
        """Never more than a quarter of what is free: a small disk is for deliveries first."""
        if not self._path.exists():
            self.size = min(self.size, free_bytes(self._path) // 4)

    def take(self) -> bool:
        """Allocate the reserve if it is not there; say whether it is, with room beside it."""
        if self._path.exists() and self._path.stat().st_size == self.size:
            return True
        try:
            if free_bytes(self._path) < self.size + min(MARGIN, self.size):
                return False
            reserve = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
            try:
                if self.size:
                    os.posix_fallocate(reserve, 0, self.size)
            finally:
                os.close(reserve)
        except OSError:
            self.release()
            return False
        return True

    def release(self) -> None:
        """Give the bytes back to the disk."""
        with suppress(OSError):
            self._path.unlink()
