"""The store's file: opening, refusing, locking, and the bytes kept back for a full disk."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Literal, TypeAlias

from bridge.errors import StartError

Durability: TypeAlias = Literal["power", "process"]

APPLICATION_ID = 0x62726467  # "brdg": tells our file from another program's
MIGRATIONS: tuple[str, ...] = ("sqlite.sql",)
"""Scripts beside this file; number n (from 1) brings schema n-1 to n, inside one transaction."""

RESERVE = 64 << 20  # bytes kept back so that settling goes on when the disk is full (DESIGN.md §3)
BUSY = 10_000  # ms a connection waits for another's lock: reading commands hold theirs for microseconds

NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "ncpfs"})


def connect(path: Path, durability: Durability) -> sqlite3.Connection:
    """A connection that may write, schema up to date; raises StartError."""
    try:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        db.execute(f"PRAGMA busy_timeout={BUSY}")
        refuse_foreign(db, path)
        if version(db) == 0:
            db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={'FULL' if durability == 'power' else 'NORMAL'}")
        db.execute("PRAGMA wal_autocheckpoint=4000")
        db.execute("PRAGMA temp_store=MEMORY")
        migrate(db)
    except sqlite3.Error as error:
        raise StartError(f"{path}: cannot be used as the store: {error}") from None
    return db


def connect_readonly(path: Path) -> sqlite3.Connection:
    """A connection that cannot write; raises StartError."""
    if not path.is_file():
        raise StartError(f"{path}: there is no store yet; `bridge run` makes it")
    try:
        db = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        db.execute(f"PRAGMA busy_timeout={BUSY}")
        refuse_foreign(db, path)
        if version(db) != len(MIGRATIONS):
            raise StartError(f"{path}: made by another version of bridge; run that one's commands")
    except sqlite3.Error as error:
        raise StartError(f"{path}: cannot be read: {error}") from None
    return db


def version(db: sqlite3.Connection) -> int:
    found: int = db.execute("PRAGMA user_version").fetchone()[0]
    return found


def refuse_foreign(db: sqlite3.Connection, path: Path) -> None:
    """Raise StartError unless the file is ours, or empty."""
    tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    ours = db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    if tables and not ours:
        raise StartError(f"{path}: is the database of another program; set outbox to another file")
    if version(db) > len(MIGRATIONS):
        raise StartError(f"{path}: was made by a newer bridge; install that version or newer")


def migrate(db: sqlite3.Connection) -> None:
    """Bring the schema up to date, one transaction a step."""
    while (at := version(db)) < len(MIGRATIONS):
        script = (files("bridge.outbox") / MIGRATIONS[at]).read_text()
        db.executescript(
            f"BEGIN IMMEDIATE; {script}; PRAGMA application_id={APPLICATION_ID};"
            f" PRAGMA user_version={at + 1}; COMMIT;"
        )


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
    if kind in NETWORK or kind.startswith("fuse.sshfs"):
        raise StartError(f"{path}: lies on a network file system ({kind}); put the store on a local disk")


def file_system(path: Path, mounts: str) -> str:
    """The type of the file system *path* is on; '' if *mounts* does not say."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " "))
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind


class Reserve:
    """Bytes on the disk that nobody uses, until it is full."""

    def __init__(self, path: Path, size: int = RESERVE) -> None:
        self._path = path
        self._size = size

    def take(self) -> None:
        """Allocate the reserve if it is not there; without room, there is none."""
        if self._path.exists() and self._path.stat().st_size == self._size:
            return
        with suppress(OSError):
            reserve = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                os.posix_fallocate(reserve, 0, self._size)
            except OSError:
                self.release()
                raise
            finally:
                os.close(reserve)

    def release(self) -> bool:
        """Give the bytes back to the disk; say whether there were any."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
