"""Keeping up with who there is: lists read again and again, and the events of creation and deletion."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable

import anyio
import structlog
from anyio.abc import TaskGroup

from bridge.event import Entity, Event
from bridge.sources.api import Api
from bridge.sources.discovery import Scope, change, described, discover

log = structlog.get_logger()

SETTLE = 2.0  # seconds in which creations are gathered before a stream is opened for them
YOUNG = 60_000_000_000  # ns before its creation was noticed at which nobody can have sent events


class Listing:
    """Tells *add* and *forget* who comes and goes in *scope*; *followed* is who is there now.

    *add* takes entities and, in ns of server time, where those begin that cannot have existed before; *clock*
    is the server's; *listed* is called after each round in which every list came or was refused. *every* is
    in seconds, *wait* gives those before the nth try in a row.
    """

    def __init__(
        self,
        source: str,
        api: Api,
        scope: Scope,
        *,
        every: float,
        wait: Callable[[int], float],
        clock: Callable[[], Awaitable[int | None]],
        followed: Collection[Entity],
        add: Callable[[Iterable[Entity], int | None], Awaitable[None]],
        forget: Callable[[Entity], None],
        listed: Callable[[], Awaitable[None]],
    ) -> None:
        self.failed: tuple[str, ...] = ()
        """A line for each list that could not be read."""
        self.is_whole = not scope.is_open
        """Has everything there is been listed once?"""
        self._source = source
        self._api = api
        self._scope = scope
        self._every = every
        self._wait = wait
        self._clock = clock
        self._followed = followed
        self._add = add
        self._forget = forget
        self._listed = listed
        self._created: set[Entity] = set()
        self._relist = anyio.Event()
        self._tasks: TaskGroup | None = None

    async def run(self) -> None:
        """Until cancelled."""
        async with anyio.create_task_group() as self._tasks:
            failures, listed_ns = 0, None
            while True:
                self._relist = anyio.Event()
                began_ns = await self._clock()
                if await self._round(listed_ns and listed_ns - YOUNG):
                    failures, listed_ns = 0, began_ns
                    self.is_whole = True
                    await self._listed()
                else:
                    failures += 1
                pause = self._wait(failures) if failures else self._every
                with anyio.move_on_after(min(pause, self._every)):
                    await self._relist.wait()
                    await anyio.sleep(SETTLE)

    async def _round(self, young_ns: int | None) -> bool:
        """Read all lists once; was every list read, or refused for good?"""
        found = await discover(self._api, self._scope)
        told = tuple(described(found.failed))
        if told and told != self.failed:
            log.warning("lists not complete, what was known of them stays", source=self._source, lists=told)
        self.failed = told
        for each in [each for each in self._followed if each not in found.entities]:
            if not found.keeps(each):
                self._forget(each)
        await self._add(found.entities, young_ns)
        return all(error.kind == "refused" for error in found.failed.values())

    def heard(self, event: Event) -> None:
        """Follow what *event* says of who exists."""
        if self._tasks is None:
            return
        found = change(event, self._scope)
        for each in found.deleted:
            self._forget(each)
        if found.lists_changed:
            self._relist.set()
        new = [each for each in found.created if each not in self._followed]
        if new and not self._created:
            self._tasks.start_soon(self._gather)
        self._created.update(new)

    async def _gather(self) -> None:
        """Entities created within a moment share a stream; what they sent before it opens is in history."""
        await anyio.sleep(SETTLE)
        created, self._created = self._created, set()
        clock = await self._clock()
        await self._add(created, None if clock is None else clock - YOUNG)
