"""The owner of one partition of the alerts: judges its log, and stores what follows, exactly once.

Everything goes through one entry a partition, the commit. It holds what has changed, what is to be told, and
up to which message that is; it is written by compare-and-set under the revision this owner saw last, so of
two that both believe to own the partition (one was stopped beyond its lease) only one ever goes on. What a
commit says is then done: notifications are stored, whose ids absorb repeats, and rows, each by
compare-and-set. Whoever takes the partition over writes the commit once more in its own name, which shuts out
the one before, and does again what it says. So nothing is lost between two writes, and nothing is told that
another owner does not know of. The lease only says who tries.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import anyio
import msgspec
import structlog

from bridge import decode
from bridge.alerts.engine import Row
from bridge.alerts.judging import REPEATS, Follows, Judge
from bridge.alerts.partition import packed
from bridge.errors import OutboxError
from bridge.ingest import Notification, notification
from bridge.outbox.jetstream.judged import Commit, Passed, Told
from bridge.outbox.jetstream.sights import Logged

log = structlog.get_logger()

LOOK_EVERY = 0.2  # seconds between looks into a log that has nothing new
STORE_EVERY = 1.0  # seconds at most until a change is stored of which nobody has to be told
STORE_AT = 1000  # changed rows that are stored at once
TIDY_EVERY = 30.0  # seconds between two rounds of letting go of what the log need not keep
AGAIN_AFTER = 0.5  # seconds after a failure


class Store(Protocol):
    """What is stored of one partition. Everything raises OutboxError, also when another owner has it."""

    async def take(self) -> tuple[Commit, Mapping[Row, bytes]]:
        """Shut out whoever had it; the last commit, not all of it may have been done, and all rows."""
        ...

    async def commit(self, commit: Commit) -> None:
        """All of it or nothing; nothing if another has taken the partition."""
        ...

    async def write(self, rows: Sequence[tuple[str, str, str, str | None]]) -> None:
        """Rows of the last commit, each unless another owner has changed it."""
        ...

    async def show(self, now: bytes) -> None:
        """Who is pending or firing, unless another owner has shown it since."""
        ...

    async def tidy(self) -> None: ...


class Log(Protocol):
    """The messages of one partition, in order, from the first that is kept."""

    async def open(self) -> None: ...

    async def read(self) -> Sequence[Logged]:
        """What is there now and was not read before, some of it if it is much; raises OutboxError."""
        ...

    async def forget(self, before: int) -> None:
        """Messages with lower numbers."""
        ...

    async def close(self) -> None: ...


class Owner:
    """*announce* stores notifications, *pass_on* sends what is other partitions'.

    *owns* asks whether the partition is this replica's at this moment, by all that replicas share. *failing*
    is told why it cannot be judged, and '' when it can be again. *now* is monotonic, in seconds.
    """

    def __init__(
        self,
        number: int,
        store: Store,
        messages: Log,
        *,
        judge: Callable[[Mapping[Row, bytes]], Judge],
        owns: Callable[[], Awaitable[bool]],
        announce: Callable[[Sequence[Notification]], Awaitable[None]],
        pass_on: Callable[[Sequence[tuple[int, bytes, str]]], Awaitable[None]],
        failing: Callable[[int, str], None] = lambda _number, _why: None,
        now: Callable[[], float] = anyio.current_time,
    ) -> None:
        self.number = number
        self.judge: Judge | None = None
        """While it judges."""
        self._store = store
        self._log = messages
        self._new_judge = judge
        self._owns = owns
        self._announce = announce
        self._pass_on = pass_on
        self._failing = failing
        self._failure = ""
        self._now = now
        self._stored = self._tidied = 0.0
        self._moves = 0
        self._kept: deque[tuple[int, int]] = deque()

    async def run(self) -> None:
        """Until cancelled: that is what ends an owner whose lease is gone. A failure begins a new life."""
        while True:
            try:
                judge = await self.begin()
                while True:
                    found = await self.step(judge)
                    self._tell("")
                    if not found:
                        await anyio.sleep(LOOK_EVERY)
            except OutboxError as error:
                self._tell(str(error))
            except Exception as bug:  # noqa: BLE001  # `_tell` logs it; the other partitions go on
                self._tell(repr(bug), bug)
            finally:
                self.judge = None
            await self._log.close()
            await anyio.sleep(AGAIN_AFTER)

    def _tell(self, failure: str, bug: Exception | None = None) -> None:
        """When it begins and when it ends; of a bug each other one."""
        if bug is not None and failure != self._failure:
            log.error("bug in alerts", partition=self.number, exc_info=bug)
        if bool(failure) != bool(self._failure):
            self._failing(self.number, failure)
        self._failure = failure

    async def begin(self) -> Judge:
        """Do again what was committed last, and load what is remembered."""
        if not await self._owns():
            raise OutboxError("another replica has the lease")
        commit, rows = await self._store.take()
        await self._do(commit)
        done = dict(rows)
        for part, alert, key, value in commit.rows:
            done[part, alert, key] = (value or "").encode()
        self.judge = judge = self._new_judge({row: state for row, state in done.items() if state})
        judge.through = commit.through
        self._moves, self._kept = -1, deque()
        await self._log.open()
        return judge

    async def step(self, judge: Judge) -> bool:
        """Judge what is there, and store it when it is time; was there anything?"""
        now = self._now()
        found = await self._log.read()
        for each in found:
            if each.number <= judge.through:
                judge.recall(each.at, each.body)
                continue
            judge.hear(*each)
            if len(judge.rows) >= STORE_AT:
                await self._keep(judge, now)
        while judge.go_on():
            await self._keep(judge, now)
        if judge.notices or judge.alerting.moves != self._moves or now >= self._stored + STORE_EVERY:
            await self._keep(judge, now)
        self._kept += [(each.number, each.at) for each in found]
        if now >= self._tidied + TIDY_EVERY:
            await self._tidy(judge, now)
        return bool(found)

    async def _keep(self, judge: Judge, now: float) -> None:
        """Commit what follows from what was read, and do it; who fires is shown before anybody is told."""
        self._stored = now
        if judge.alerting.moves != self._moves:
            self._moves = judge.alerting.moves
            await self._store.show(msgspec.json.encode(judge.alerting.current()))
        through, follows = judge.through, judge.taken()
        if any(follows):
            await self._commit(committed(self.number, through, follows))

    async def _commit(self, commit: Commit) -> None:
        await self._store.commit(commit)
        await self._do(commit)

    async def _do(self, commit: Commit) -> None:
        if commit.told:
            await self._announce([notified(each) for each in commit.told])
        if commit.passed:
            await self._pass_on([(each.number, each.body.encode(), each.id) for each in commit.passed])
        await self._store.write(commit.rows)

    async def _tidy(self, judge: Judge, now: float) -> None:
        """What is older than any repeat is not asked for any more, once it is committed."""
        self._tidied = now
        await self._commit(Commit(judge.through))
        newest, before = (self._kept[-1][1] if self._kept else 0), 0
        while self._kept and self._kept[0][1] < newest - REPEATS:
            before = self._kept.popleft()[0] + 1
        if before:
            await self._log.forget(before)
        await self._store.tidy()


def committed(number: int, through: int, follows: Follows) -> Commit:
    """What is stored of it."""
    told = [notification(each) for each in follows.notices]
    bodies = [(to, packed(f"partition {number}", [item], None)[0].decode()) for to, item in follows.passed]
    return Commit(
        through,
        tuple((*row, None if state is None else state.decode()) for row, state in follows.rows.items()),
        tuple(Told(each.alert, each.key, each.sinks, each.event.body.decode()) for each in told),
        tuple(Passed(to, body, f"{number}/{through}/{zlib.crc32(body.encode())}") for to, body in bodies),
    )


def notified(told: Told) -> Notification:
    return Notification(told.alert, told.key, told.sinks, decode.event(told.event.encode()))
