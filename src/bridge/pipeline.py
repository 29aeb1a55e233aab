"""The flow, and a shutdown one can see: sources → ingest → dispatchers (DESIGN.md §3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from bridge.ingest import Ingest
from bridge.sources import Reading

BUFFER = 16_384  # readings between sockets and disk: 25 MB of usual events, half a minute of a busy tenant


class Reads(Protocol):
    """A source, or several."""

    async def run(self, into: MemoryObjectSendStream[Reading]) -> None: ...


class Delivers(Protocol):
    """A dispatcher, or several."""

    async def run(self) -> None: ...

    def stop(self) -> None:
        """Begin nothing new; `run` ends when what is in flight has ended."""
        ...


async def flow(
    sources: Sequence[Reads],
    ingest: Ingest,
    dispatchers: Sequence[Delivers],
    stop: anyio.Event,
    *,
    drain: float,
) -> None:
    """Run until *stop* is set, and then for at most *drain* seconds.

    The nesting is the order of shutdown: the sources stop, ingest stores what they had read, the
    dispatchers end what is in flight. What is then still undelivered is on disk.
    """
    send, receive = anyio.create_memory_object_stream[Reading](BUFFER)
    async with anyio.create_task_group() as dispatching:
        for dispatcher in dispatchers:
            dispatching.start_soon(dispatcher.run)
        async with receive, anyio.create_task_group() as ingesting:
            ingesting.start_soon(ingest.run, receive)
            async with send, anyio.create_task_group() as reading:
                for source in sources:
                    reading.start_soon(source.run, send)
                await stop.wait()
                reading.cancel_scope.cancel()
            for dispatcher in dispatchers:
                dispatcher.stop()
            deadline = anyio.current_time() + drain
            ingesting.cancel_scope.deadline = dispatching.cancel_scope.deadline = deadline
