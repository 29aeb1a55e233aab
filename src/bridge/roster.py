"""What runs now: sources and dispatchers that come and go while the pipeline goes on (reload).

To `pipeline.flow` a roster is one source, or one dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import MappingProxyType

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus
from anyio.streams.memory import MemoryObjectSendStream

from bridge.delivery import Delivery
from bridge.dispatch import Dispatcher
from bridge.sources import Reading, Source

log = structlog.get_logger()

NONE: Mapping[str, Sequence[Delivery]] = MappingProxyType({})

Opening = Callable[[], AbstractAsyncContextManager[Source]]
Dispatching = Callable[[], AbstractAsyncContextManager[Dispatcher]]


@dataclass(slots=True)
class _Member:
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    ended: anyio.Event = field(default_factory=anyio.Event)


class Sources:
    """The sources that read. `start` and `stop` work once `ready` is set."""

    def __init__(self) -> None:
        self.ready = anyio.Event()
        self.running: dict[str, Source] = {}
        self._members: dict[str, _Member] = {}
        self._tasks: TaskGroup
        self._into: MemoryObjectSendStream[Reading]

    async def run(self, into: MemoryObjectSendStream[Reading]) -> None:
        """Hold the sources until cancelled."""
        async with anyio.create_task_group() as self._tasks:
            self._into = into
            self.ready.set()
            await anyio.sleep_forever()

    async def start(self, name: str, opening: Opening) -> None:
        """A source under *name*; one that has it already is stopped by `replace` or `stop` only."""
        source, member = await self._tasks.start(self._follow, opening)
        self.running[name], self._members[name] = source, member

    async def replace(self, name: str, opening: Opening, patience: float) -> None:
        """Make before break: the new one gets *patience* seconds to connect before the old one ends."""
        old = self._members.get(name)
        await self.start(name, opening)
        if old is None:
            return
        with anyio.move_on_after(patience):
            while not self.running[name].status().connected:
                await anyio.sleep(0.05)
        await _end(old)

    async def stop(self, name: str) -> None:
        self.running.pop(name, None)
        member = self._members.pop(name, None)
        if member is not None:
            await _end(member)

    async def _follow(self, opening: Opening, *, task_status: TaskStatus[tuple[Source, _Member]]) -> None:
        member = _Member()
        try:
            with member.scope:
                async with opening() as source:
                    task_status.started((source, member))
                    await source.run(self._into)
                    await anyio.sleep_forever()
        finally:
            member.ended.set()


async def _end(member: _Member) -> None:
    member.scope.cancel()
    await member.ended.wait()


class Dispatchers:
    """The dispatchers that deliver, one a sink. `start` and `stop` work once `ready` is set."""

    def __init__(self) -> None:
        self.ready = anyio.Event()
        self.running: dict[str, Dispatcher] = {}
        self._members: dict[str, _Member] = {}
        self._stopping = anyio.Event()
        self._tasks: TaskGroup

    async def run(self) -> None:
        """Hold the dispatchers until `stop_all`, and then until what is in flight has ended."""
        async with anyio.create_task_group() as self._tasks:
            self.ready.set()
            await self._stopping.wait()
            for dispatcher in self.running.values():
                dispatcher.stop()

    def stop(self) -> None:
        """Begin nothing new, with any sink."""
        self._stopping.set()

    def wake(self, sinks: frozenset[str], ready: Mapping[str, Sequence[Delivery]] = NONE) -> None:
        """There is something new for *sinks*, *ready* some of it; one that was removed keeps it on disk."""
        for name in sinks:
            dispatcher = self.running.get(name)
            if dispatcher is not None:
                dispatcher.hand(ready.get(name, ()))

    def eager(self) -> frozenset[str]:
        """Sinks that would take what is stored now as it is."""
        return frozenset(name for name, each in self.running.items() if each.is_caught_up)

    async def start(self, name: str, dispatching: Dispatching) -> None:
        """A dispatcher for the sink *name*; raises StartError if the sink cannot be opened."""
        dispatcher, member = await self._tasks.start(self._deliver, dispatching)
        self.running[name], self._members[name] = dispatcher, member

    async def retire(self, name: str, patience: float) -> None:
        """End the dispatcher of *name*; what is in flight gets *patience* seconds. The rows stay."""
        dispatcher, member = self.running.pop(name), self._members.pop(name)
        dispatcher.stop()
        with anyio.move_on_after(patience):
            await member.ended.wait()
        await _end(member)

    async def _deliver(
        self, dispatching: Dispatching, *, task_status: TaskStatus[tuple[Dispatcher, _Member]]
    ) -> None:
        member = _Member()
        try:
            with member.scope:
                async with dispatching() as dispatcher:
                    task_status.started((dispatcher, member))
                    await dispatcher.run()
        finally:
            member.ended.set()
