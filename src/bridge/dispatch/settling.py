"""Attempts on their way to disk: what is settled while one commit runs goes into the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio
import structlog

from bridge.delivery import Settlement
from bridge.errors import OutboxError
from bridge.outbox import Outbox

log = structlog.get_logger()

LINGER = 0.05  # seconds that settlements may wait for others: new events wait for each commit
CALM = 1.0  # seconds without a commit after which the next one waits for nobody
EVERYBODY = 1 << 30  # more than there are slots
STORE_RETRY = 1.0  # seconds between tries while the disk does not take a settlement


@dataclass(slots=True)
class _Commit:
    settlements: list[Settlement] = field(default_factory=list)
    calls: int = 0
    hurried: anyio.Event = field(default_factory=anyio.Event)
    done: anyio.Event = field(default_factory=anyio.Event)


class Settling:
    """The settlements of one sink; `store` is called from all of its slots."""

    def __init__(self, sink: str, outbox: Outbox) -> None:
        self.failing = False
        """True while the disk does not take them: then nothing new may be sent."""
        self._sink = sink
        self._outbox = outbox
        self._next = _Commit()
        self._asked = anyio.Event()
        self._closing = False
        self._ended = -math.inf
        """When the last commit ended (`anyio.current_time()`)."""
        self._scope = anyio.CancelScope(shield=True)

    def store(self, settlements: Sequence[Settlement], *, enough: int) -> anyio.Event:
        """What is set when they are on disk, however long that takes.

        The commit begins at once if with this call as many as *enough* wait for it, or if there was none for
        CALM; else LINGER later.
        """
        commit = self._next
        commit.settlements.extend(settlements)
        commit.calls += 1
        self._asked.set()
        if commit.calls >= enough:
            commit.hurried.set()
        return commit.done

    async def run(self) -> None:
        """Commit what comes, until `close`. Being cancelled is no reason to forget what was confirmed."""
        with self._scope:
            while not (self._closing and not self._next.settlements):
                await self._asked.wait()
                is_calm = anyio.current_time() - self._ended >= CALM
                if not (self._next.hurried.is_set() or is_calm):
                    with anyio.move_on_after(LINGER):
                        await self._next.hurried.wait()
                self._asked = anyio.Event()
                await self._commit()

    def close(self, seconds: float) -> None:
        """Nothing more will come; what has come gets *seconds* to reach the disk."""
        self._closing = True
        self._scope.deadline = anyio.current_time() + seconds
        self._next.hurried.set()
        self._asked.set()

    async def _commit(self) -> None:
        """One commit, tried again until the disk takes it."""
        commit, self._next = self._next, _Commit()
        while commit.settlements:
            try:
                await self._outbox.settle(commit.settlements)
            except OutboxError as error:
                if not self.failing:
                    log.error("deliveries cannot be settled", sink=self._sink, error=str(error))
                self.failing = True
                await anyio.sleep(STORE_RETRY)
            else:
                break
        if self.failing:
            log.info("deliveries can be settled again", sink=self._sink)
        self.failing = False
        self._ended = anyio.current_time()
        commit.done.set()
