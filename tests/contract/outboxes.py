"""The outboxes the contract is tested on: each can be filled, and can crash and come back.

On virtual time and in place (no threads), so that hypothesis can run hundreds of stories.
"""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import anyio.to_thread

from bridge.delivery import Dead, Delivered, Delivery, Done, Failure, Later, RetryLater, Route, Settlement
from bridge.event import Event
from bridge.outbox import Batch, Intake, Outbox
from bridge.outbox.file import connect_readonly
from bridge.outbox.jetstream.address import parse
from bridge.outbox.jetstream.outbox import JetStreamOutbox, open_jetstream
from bridge.outbox.sqlite import Overflow, SqliteOutbox, SqliteReader, open_outbox
from bridge.outbox.verify import verify
from tests.nats import Elsewhere, shared_server

T = TypeVar("T")

NOW = 1_795_468_146.0  # unix seconds: when the recordings were made
DEDUP, LETTERS, TRACES = 1000.0, 5000.0, 500.0
HORIZON = 3600.0
WINDOW = "100ms"  # the shortest that nats-server has for duplicates


class Crash(BaseException):
    """The power goes: no Exception, so that nothing can catch it."""


class Power:
    """Calls in place; when it is told to, the power goes before or after one of them."""

    def __init__(self) -> None:
        self.fails: Literal["before", "after"] | None = None

    async def __call__(self, call: Callable[[], T], /) -> T:
        fails, self.fails = self.fails, None
        if fails == "before":
            raise Crash
        result = call()
        if fails == "after":
            raise Crash
        return result


class Opened(Protocol):
    """An outbox that is open, can crash and come back."""

    outbox: Outbox
    power: Power
    """Of what writes."""

    async def crash(self) -> Outbox:
        """What is there after a kill at this moment; the one before is of no use any more."""
        ...

    def crash_during(self, step: int) -> None:
        """The kill comes when the *step*th step (from 0) of the next call begins, if it has that many."""
        ...

    def has_crashed(self) -> bool:
        """Did it? Then `crash` opens what was there at that moment."""
        ...

    async def close(self) -> None: ...

    async def sums(self) -> list[str]:
        """What of the conservation sums does not hold, asked as a command asks."""
        ...


class OpenedSqlite:
    """A kill leaves the files as they are: the next one is opened on a copy of them.

    Steps are SQL statements; SQLite tells each before it runs it.
    """

    def __init__(self, folder: Path, max_size: int | None = None, overflow: Overflow = "drop_oldest") -> None:
        self._folder = folder
        self._max_size = max_size
        self._overflow: Overflow = overflow
        self._lives = 0
        self._stack = AsyncExitStack()

    @property
    def path(self) -> Path:
        return self._folder / str(self._lives) / "bridge.db"

    async def open(self) -> Outbox:
        self.path.parent.mkdir(exist_ok=True)
        self.power = Power()
        opening = open_outbox(
            self.path,
            durability="process",
            dedup_window=DEDUP,
            dead_letter_retention=LETTERS,
            trace_retention=TRACES,
            reserve=0,
            offload_write=self.power,
            offload_read=Power(),
            max_size=self._max_size,
            overflow=self._overflow,
        )
        self.outbox: Outbox = await self._stack.enter_async_context(opening)
        return self.outbox

    async def crash(self) -> Outbox:
        if not self.has_crashed():
            self._copy()
        await self.close()
        self._lives += 1
        return await self.open()

    def _next_path(self) -> Path:
        return self._folder / str(self._lives + 1) / "bridge.db"

    def _copy(self) -> None:
        self._next_path().parent.mkdir()
        for suffix in ("", "-wal"):
            if Path(f"{self.path}{suffix}").exists():
                shutil.copy(f"{self.path}{suffix}", f"{self._next_path()}{suffix}")

    def crash_during(self, step: int) -> None:
        left = step

        def statement(_sql: str) -> None:
            nonlocal left
            if left == 0:
                self._copy()
            left -= 1

        assert isinstance(self.outbox, SqliteOutbox)
        self.outbox._writer._file.writer.set_trace_callback(statement)

    def has_crashed(self) -> bool:
        assert isinstance(self.outbox, SqliteOutbox)
        self.outbox._writer._file.writer.set_trace_callback(None)
        return self._next_path().exists()

    async def close(self) -> None:
        await self._stack.aclose()

    async def sums(self) -> list[str]:
        with closing(connect_readonly(self.path)) as db:
            return await verify(SqliteReader(self.path, lambda: db, Power()))


async def sqlite(folder: Path) -> Opened:
    opened = OpenedSqlite(folder)
    await opened.open()
    return opened


class OpenedNats:
    """A replica on a real server. A kill leaves everything as the server has it, and writes nothing down.

    The promise is weaker than SQLite's (bridge/outbox/jetstream/__init__.py): a batch is not one transaction.
    So a kill in the middle of a call is not a story of the contract; tests/integration/test_nats.py tells it.
    """

    def __init__(self) -> None:
        self.power = Power()
        self._stream = f"t{uuid.uuid4().hex[:12]}"
        self._elsewhere = Elsewhere()
        self._lives = 0

    async def open(self) -> Outbox:
        self._over, opened = asyncio.Event(), self._elsewhere.loop.create_future()
        self._life = self._elsewhere.begin(self._live(self._over, opened))
        self.real = await self._elsewhere.call(_awaited(opened))
        self.outbox = self._elsewhere.outbox(self.real, {"accept": self._powered, "tidy": self._waited})
        return self.outbox

    async def _live(self, over: asyncio.Event, opened: asyncio.Future[JetStreamOutbox]) -> None:
        address = parse(shared_server().url(self._stream, replica="a", duplicate_window=WINDOW))
        try:
            async with open_jetstream(
                address, dedup_window=DEDUP, dead_letter_retention=LETTERS, trace_retention=TRACES
            ) as outbox:
                opened.set_result(outbox)
                await over.wait()
        except BaseException as error:
            if not opened.done():
                opened.set_exception(error)
            raise

    async def _powered(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        fails, self.power.fails = self.power.fails, None
        if fails == "before":
            raise Crash
        result = await call()
        if fails == "after":
            raise Crash
        return result

    async def _waited(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The tests' clock jumps, the server's does not: its window ends as well where theirs does."""
        result = await call()
        await self._elsewhere.call(asyncio.sleep(0.1))
        return result

    async def crash(self) -> Outbox:
        await self._end(in_order=False)
        return await self.open()

    def crash_during(self, step: int) -> None:
        """Never: see above."""

    def has_crashed(self) -> bool:
        return False

    async def close(self) -> None:
        await self._end(in_order=True)
        self._elsewhere.close()

    async def _end(self, *, in_order: bool) -> None:
        self.real.is_killed = not in_order
        self._elsewhere.loop.call_soon_threadsafe(self._over.set)
        await anyio.to_thread.run_sync(self._life.result)

    async def sums(self) -> list[str]:
        return await self._elsewhere.call(verify(self.real))


async def _awaited(future: asyncio.Future[T]) -> T:
    return await future


async def nats(folder: Path) -> Opened:
    opened = OpenedNats()
    await opened.open()
    return opened


KINDS: dict[str, Callable[[Path], Coroutine[Any, Any, Opened]]] = {"nats": nats, "sqlite": sqlite}
"""Each opens an empty outbox on a folder."""


def event(unique_id: str, name: str = "as.up.data.forward") -> Event:
    body = b'{"name":"%s","unique_id":"%s","time":"2026-11-23T21:49:06Z"}' % (
        name.encode(),
        unique_id.encode(),
    )
    return Event(name, "2026-11-23T21:49:06Z", 1_795_470_546_000_000_000, unique_id, (), body)


def intake(
    unique_id: str,
    *routes: Route,
    at: float = NOW,
    source: str = "eu1",
    matched: bool | None = None,
) -> Intake:
    wanted = bool(routes) if matched is None else matched
    return Intake(source, event(unique_id), at, wanted, routes)


def batch(*intakes: Intake) -> Batch:
    return Batch(intakes)


CRM, OPS = Route("r", "crm"), Route("r", "ops")
BROKEN = RetryLater(Failure("server_error", "HTTP 500", 500, "sorry" * 500))


def done(delivery: Delivery, at: float = NOW) -> Settlement:
    return Settlement(delivery, at, 0.25, Delivered(200), Done())


def later(delivery: Delivery, due: float, at: float = NOW) -> Settlement:
    since = at if delivery.tried_since is None else delivery.tried_since
    return Settlement(delivery, at, 0.25, BROKEN, Later(due, delivery.attempt + 1, since))


def dead(delivery: Delivery, at: float = NOW) -> Settlement:
    return Settlement(delivery, at, 0.25, BROKEN, Dead("expired"))


async def due(
    outbox: Outbox, sink: str = "crm", now: float = NOW, limit: int = 1000, taken: Sequence[int] = ()
) -> tuple[Delivery, ...]:
    found = await outbox.due(sink, now=now, horizon=HORIZON, limit=limit, taken=taken)
    return found.deliveries


async def ids_due(outbox: Outbox, sink: str = "crm", now: float = NOW) -> list[str]:
    return [delivery.event.unique_id for delivery in await due(outbox, sink, now)]
