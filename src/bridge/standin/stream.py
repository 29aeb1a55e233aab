"""One open stream: from the channel of its subscription through its faults to the client."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum

import anyio

from bridge.standin.faults import Fault
from bridge.standin.peer import GONE, Peer
from bridge.standin.problems import STOPPING, Problem, wrapped
from bridge.standin.shaper import Action, Close, Finish, Hold, Shaper, Write, chunks
from bridge.standin.wire import LAST_CHUNK
from bridge.standin.world import Subscription, World


class Ending(Enum):
    """How a response ended: the connection is good for another request, or useless."""

    FINISHED = "finished"
    CLOSED = "closed"


class Gate:
    """Where streams wait while the server stalls."""

    def __init__(self) -> None:
        self._open = anyio.Event()
        self._open.set()
        self._resumed = anyio.Event()

    def shut(self) -> None:
        if self._open.is_set():
            self._open = anyio.Event()

    def open(self) -> None:
        """Let everybody go on, those of a `Stall` without end too."""
        self._open.set()
        self._resumed.set()
        self._resumed = anyio.Event()

    async def passed(self) -> None:
        await self._open.wait()

    async def resumed(self) -> None:
        await self._resumed.wait()


class Stream:
    """The writing side of one `POST /events` that was answered with 200."""

    def __init__(
        self,
        world: World,
        peer: Peer,
        subscription: Subscription,
        *,
        faults: Sequence[Fault],
        delimiter: bytes,
        gate: Gate,
    ) -> None:
        self._world = world
        self._peer = peer
        self._subscription = subscription
        self._delimiter = delimiter
        self._gate = gate
        self._shaper = Shaper(faults, world.rng, delimiter)
        self._batches = not faults
        self._scope = anyio.CancelScope()
        self._farewell: Problem | None = None
        self._cut = False

    def stop(self) -> None:
        """The server goes down: an error frame, then a clean end (server_stop.http)."""
        self._farewell = STOPPING
        self._scope.cancel()

    def cut(self) -> None:
        """Drop the connection where it is."""
        self._cut = True
        self._scope.cancel()

    async def run(self, head: bytes, start: bytes) -> Ending:
        """Send *head* and the event *start* in one piece, then whatever comes, until one side ends it."""
        ending = Ending.CLOSED
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            with self._scope:
                ending = await self._write(head, start)
            if self._farewell is not None:
                await self._finish(self._farewell)
                ending = Ending.FINISHED
            tasks.cancel_scope.cancel()
        return Ending.CLOSED if self._cut else ending

    async def _watch(self) -> None:
        await self._peer.gone()
        self.cut()

    async def _write(self, head: bytes, start: bytes) -> Ending:
        ending = await self._perform([Write(head), *self._shaper.start(start)])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._world.replay, self._subscription)
            try:
                while ending is None:
                    ending = await self._perform(self._shaped(await self._next()))
            except anyio.EndOfStream:
                await self._finish(self._subscription.problem)
                ending = Ending.FINISHED
            tasks.cancel_scope.cancel()
        return ending or Ending.CLOSED

    def _shaped(self, bodies: list[bytes]) -> list[Action]:
        dropped = self._shaper.dropped
        actions = self._shaper.events(bodies) if bodies else self._shaper.flush()
        self._world.dropped += self._shaper.dropped - dropped
        return actions

    async def _next(self) -> list[bytes]:
        """The next events; none when what is held back has waited long enough.

        With faults one at a time, so that a stall leaves the rest in the channel, as on the real server.
        """
        await self._gate.passed()
        hold = self._shaper.hold
        bodies: list[bytes] = []
        with anyio.move_on_after(math.inf if hold is None else hold):
            bodies.append(await self._subscription.receive.receive())
        while bodies and self._batches:
            try:
                bodies.append(self._subscription.receive.receive_nowait())
            except (anyio.WouldBlock, anyio.EndOfStream):
                break
        return bodies

    async def _perform(self, actions: Sequence[Action]) -> Ending | None:
        """Do *actions*; consecutive writes leave in one piece."""
        waiting: list[bytes] = []
        for action in actions:
            if isinstance(action, Write):
                waiting.append(action.data)
                continue
            await self._send(waiting)
            match action:
                case Hold(seconds=None):
                    await self._gate.resumed()
                case Hold(seconds=seconds):
                    await anyio.sleep(seconds or 0.0)
                case Finish(problem=problem):
                    await self._finish(problem)
                    return Ending.FINISHED
                case Close():
                    return Ending.CLOSED
        await self._send(waiting)
        return None

    async def _send(self, waiting: list[bytes]) -> None:
        data = b"".join(waiting)
        waiting.clear()
        if data:
            await self._gate.passed()
            await self._put(data)

    async def _finish(self, problem: Problem | None) -> None:
        last = b"" if problem is None else chunks(wrapped(problem, self._world.rng), self._delimiter)
        await self._put(last + LAST_CHUNK)

    async def _put(self, data: bytes) -> None:
        """Send *data*, or end the stream here: a client that resets must not take the server down."""
        try:
            await self._peer.send(data)
        except GONE:
            self.cut()
            await anyio.sleep(0)
