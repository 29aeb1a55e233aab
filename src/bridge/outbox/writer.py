"""The one writer of the store: changes that wait together become one commit."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import anyio
import structlog

from bridge.errors import OutboxError, StartError
from bridge.outbox import Offload, queries
from bridge.outbox.file import BUSY, Durability, Reserve, connect, connect_readonly
from bridge.outbox.salvage import Salvaged, is_damage, replace, restore
from bridge.outbox.transactions import EVENTS, Transaction

log = structlog.get_logger()

T = TypeVar("T")

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
SHORT = 200  # ms to wait for readers when the log is to be shortened


@dataclass(slots=True)
class _Job(Generic[T]):
    """One change that waits for its commit."""

    change: Callable[[Transaction], T]
    done: bool = False
    result: T | None = None
    error: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        """Unless it is done: whoever waits for it is told."""
        if not self.done:
            self.done, self.error = True, error


class File:
    """The two connections to the file at *path*, which *stack* closes."""

    def __init__(self, path: Path, durability: Durability, pages: int, stack: ExitStack) -> None:
        self.path = path
        self.salvaged: Salvaged | None = None
        """What was last done about damage."""
        self._name, self._log_name = str(path), f"{path}-wal"
        self._durability: Durability = durability
        self._log_pages = pages
        self._stack = stack
        self._open()

    def _open(self) -> None:
        self.writer = self._stack.enter_context(
            closing(connect(self.path, self._durability, log_pages=self._log_pages))
        )
        self.reader = self._stack.enter_context(closing(connect_readonly(self.path)))
        self._inode = self.path.stat().st_ino

    def stay(self) -> int:
        """The size of the file. If it was deleted while running, write it again from what is still open.

        The old connections stay open until the end: a read may be using one.
        """
        try:
            there = os.stat(self._name)  # noqa: PTH116  # each commit: a string is faster than a path
        except FileNotFoundError:
            log.error("store was deleted, writing it again", store=str(self.path))
            try:
                restore(self.path, self.writer)
                self._open()
            except StartError as error:
                raise OutboxError(str(error)) from None
            return self.path.stat().st_size
        except OSError:
            return 0  # we may not look any more; what is open stays open
        if there.st_ino != self._inode:
            raise OutboxError(f"{self.path}: another file has taken its place; put it back or restart bridge")
        return there.st_size

    def heal(self, why: str) -> None:
        """Go on with what is readable of a damaged file; the old connections stay open until the end."""
        self.salvaged = replace(self.path, why)
        self._open()

    def log_size(self) -> int:
        """Bytes of the write-ahead log."""
        try:
            return os.stat(self._log_name).st_size  # noqa: PTH116
        except OSError:
            return 0


class Writer:
    """Whoever gets the lock commits everything that waits, the others find theirs done.

    With `durability: power` a commit is a disk sync of a millisecond or more.
    """

    def __init__(self, file: File, reserve: Reserve, offload: Offload, max_size: int | None) -> None:
        self.totals = queries.totals(file.writer)
        """As of the last commit; replaced, never changed: others read it meanwhile."""
        self._file = file
        self._reserve = reserve
        self._offload = offload
        self._max_size = max_size
        self._lock = anyio.Lock()
        self._waiting: list[_Job[Any]] = []
        self.disk_full = False
        """A write failed for it, and the reserve is given back."""
        self.bound = 0
        """Bytes the store was at most in use when this commit began, by the sizes of its files alone."""

    async def aside(self, call: Callable[[sqlite3.Connection], T]) -> T:
        """*call* on the writer's thread and connection, outside of any transaction."""
        return await self._offload(lambda: call(self._file.writer))

    async def heal(self, damaged: sqlite3.Connection, why: str) -> None:
        """Replace the file that *damaged* reads, unless that is done already; raises OutboxError."""

        def replaced() -> None:
            if damaged is self._file.reader:
                self._heal(why)

        async with self._lock:
            await self._offload(replaced)

    def _heal(self, why: str) -> None:
        try:
            self._file.heal(why)
            self.totals = queries.totals(self._file.writer)
        except (sqlite3.Error, OSError, StartError) as error:
            raise OutboxError(f"{self._file.path}: is damaged and cannot be replaced: {error}") from None

    def refuse_beyond_the_disk(self) -> None:
        """A disk that was full takes settlements first: nothing new until the reserve fits again."""
        if self.disk_full and not self._reserve.take():
            raise OutboxError(f"{self._file.path}: the disk is full", full=True)
        self.disk_full = False

    async def write(self, change: Callable[[Transaction], T]) -> T:
        """Do *change* in the next commit. Not cancelled half-way: the caller knows what happened."""
        job = _Job(change)
        self._waiting.append(job)
        with anyio.CancelScope(shield=True):
            async with self._lock:
                if not job.done:
                    jobs, self._waiting = self._waiting, []
                    try:
                        await self._offload(lambda: self._commit(jobs))
                    except BaseException as stopped:
                        for each in jobs:
                            each.fail(stopped)
                        raise
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]  # set by _commit unless there is an error

    def _commit(self, jobs: Sequence[_Job[Any]]) -> None:
        """All of *jobs* in one transaction; if that fails, each alone, so that an error is its own."""
        try:
            self._transact_healing(jobs)
        except Exception as error:  # noqa: BLE001  # handed to whoever waits for it
            if len(jobs) > 1:
                for job in jobs:
                    self._commit([job])
                return
            jobs[0].error = self._told(error)
        for job in jobs:
            job.done = True

    def _transact_healing(self, jobs: Sequence[_Job[Any]]) -> None:
        try:
            self._transact(jobs)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            self._heal(str(error))
            self._transact(jobs)

    def _transact(self, jobs: Sequence[_Job[Any]]) -> None:
        self._shorten_log(self._file.stay())
        db = self._file.writer
        tx = Transaction(db, self.totals.get(EVENTS, 0))
        try:
            db.execute("BEGIN IMMEDIATE")
            for job in jobs:
                job.result = job.change(tx)
            tx.finish()
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        moved = {total: self.totals.get(total, 0) + by for total, by in tx.moves.items()}
        self.totals = self.totals | moved

    def _shorten_log(self, size: int) -> None:
        """Bring the write-ahead log into the file where it would cost deliveries or settlements."""
        log_size = self._file.log_size()
        self.bound = size + 2 * log_size
        limit = self._max_size
        matters = limit is not None and self.bound > limit - limit // 8 and log_size > limit // 32
        if matters or (log_size and self.disk_full):
            with suppress(sqlite3.Error):
                self._file.writer.execute(f"PRAGMA busy_timeout={SHORT}")
                self._file.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._file.writer.execute(f"PRAGMA busy_timeout={BUSY}")

    def _told(self, error: Exception) -> Exception:
        """*error* as an OutboxError; a full disk gets the reserve back, so that settling goes on."""
        if not isinstance(error, sqlite3.Error | OSError):
            return error
        full = is_full(error)
        if full:
            self.disk_full = True
            self._reserve.release()
        return OutboxError(f"{self._file.path}: {error}", full=full)


def is_full(error: Exception) -> bool:
    """SQLite says "full" for ENOSPC only; a quota (EDQUOT, EFBIG) is a write that failed."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)
    return isinstance(error, OSError) and error.errno in FULL
