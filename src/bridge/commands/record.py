"""`bridge record -o FILE`: the live stream as a file that `type: replay`, `explain` and tests can play."""

from __future__ import annotations

import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, BinaryIO

import anyio
import typer
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream

from bridge import logs
from bridge.commands.terminal import ConfigOption, loaded, run_async
from bridge.config import Config
from bridge.errors import ConfigError, Mistake, StartError
from bridge.event import Event
from bridge.fields import seconds
from bridge.masking import DELIMITERS, Mask, line
from bridge.metrics import Metrics
from bridge.outbox.sqlite import open_outbox, threads
from bridge.own import OWN
from bridge.sources import Arrival, Reading, Source
from bridge.sources.models import ReplaySourceConfig
from bridge.sources.registry import SourceConfig, open_source

BUFFER = 16_384  # readings between the streams and the file
REMEMBERED = 500_000  # ids: what is read again to heal a stream is not written again
PROGRESS = 1.0  # seconds between two looks on a terminal
FIRST_OPEN = 10.0  # seconds in which some source has to open


def record(
    output: Annotated[Path, typer.Option("-o", "--output", help="A new .sse or .ndjson file.")],
    config: ConfigOption = None,
    mask: Annotated[
        bool, typer.Option("--mask", help="Hide EUIs, addresses, keys, payloads, places.")
    ] = False,
    source: Annotated[
        list[str] | None, typer.Option("--source", help="Only this source; may be repeated.")
    ] = None,
    duration: Annotated[str | None, typer.Option("--for", help="How long, such as 10m.")] = None,
    events: Annotated[int | None, typer.Option("--events", min=1, help="Stop after so many events.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Save the live stream as a file that can be replayed."""
    logs.configure("warning")
    found = loaded(config)
    wanted = chosen(found, source or ())
    limit = duration_of(duration)
    stop = Until(limit, events)
    secret = secrets.token_bytes(32) if mask else None
    count = run_async(into_file, wanted, output, secret, stop, force)
    print(f"{count} events in {output}", file=sys.stderr)


@dataclass(frozen=True, slots=True)
class Until:
    """When to stop: after *seconds*, or *events*; None for never."""

    seconds: float | None = None
    events: int | None = None


def chosen(config: Config, names: Sequence[str]) -> dict[str, SourceConfig]:
    """The sources to record; raises ConfigError if one does not exist, or there is none that streams."""
    live = {name: each for name, each in config.sources.items() if not isinstance(each, ReplaySourceConfig)}
    unknown = [name for name in names if name not in live]
    if unknown:
        known = ", ".join(sorted(live)) or "none"
        raise ConfigError(
            [Mistake("--source", 0, name, f"no such source; there is {known}") for name in unknown]
        )
    if not live:
        raise ConfigError([Mistake("bridge.yaml", 0, "sources", "has no source of type tts to record")])
    return {name: each for name, each in live.items() if not names or name in names}


def duration_of(text: str | None) -> float | None:
    try:
        return None if text is None else seconds(text)
    except ValueError as error:
        raise ConfigError([Mistake("--for", 0, "", str(error))]) from None


async def into_file(
    sources: dict[str, SourceConfig], output: Path, secret: bytes | None, until: Until, force: bool = False
) -> int:
    """Record *sources* into *output* until a signal or *until*; how many events there are in it.

    With *secret* they are masked. Raises ConfigError for an impossible file, StartError if no source opens
    or the disk does not take it.
    """
    with opened(output, force=force) as file:
        recording = Recording(file, DELIMITERS[output.suffix], Mask(secret).event if secret else None)
        async with reading(sources) as (opened_sources, readings), anyio.create_task_group() as tasks:
            await tasks.start(stopped_by_signal, tasks.cancel_scope)
            tasks.start_soon(complaining, opened_sources)
            if sys.stderr.isatty():
                tasks.start_soon(progress, recording)
            with anyio.move_on_after(until.seconds if until.seconds is not None else float("inf")):
                await keep(readings, recording, until.events)
            tasks.cancel_scope.cancel()
        return recording.count


def opened(output: Path, *, force: bool) -> BinaryIO:
    """The file, new; raises ConfigError."""
    if output.suffix not in DELIMITERS:
        raise ConfigError([Mistake("-o", 0, "", f"name a file that ends in {' or '.join(DELIMITERS)}")])
    try:
        return output.open("wb" if force else "xb")
    except FileExistsError:
        raise ConfigError(
            [Mistake("-o", 0, "", "the file exists; name another one, or add --force")]
        ) from None
    except OSError as error:
        raise ConfigError([Mistake("-o", 0, "", f"cannot be written: {error.strerror}")]) from None


@dataclass(slots=True)
class Recording:
    """The file being written. *transform* masks the JSON of an event."""

    file: BinaryIO
    delimiter: bytes
    transform: Callable[[bytes], bytes] | None = None
    count: int = 0
    size: int = 0
    _seen: dict[str, None] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Write *event*, if it is not one of bridge's own and did not come before."""
        if event.name.startswith(OWN) or event.unique_id in self._seen:
            return
        if len(self._seen) >= REMEMBERED:
            del self._seen[next(iter(self._seen))]
        self._seen[event.unique_id] = None
        body = self.transform(event.body) if self.transform else event.body
        try:
            self.size += self.file.write(line(body, self.delimiter))
        except OSError as error:
            raise StartError(f"the recording cannot be written: {error.strerror}") from None
        self.count += 1


async def keep(readings: MemoryObjectReceiveStream[Reading], recording: Recording, limit: int | None) -> None:
    """Write what comes, flushed when it is quiet; until there are *limit* events."""
    async for each in readings:
        if isinstance(each, Arrival):
            recording.add(each.event)
        if limit is not None and recording.count >= limit:
            return
        if not readings.statistics().current_buffer_used:
            recording.file.flush()


@asynccontextmanager
async def reading(
    sources: dict[str, SourceConfig],
) -> AsyncIterator[tuple[list[Source], MemoryObjectReceiveStream[Reading]]]:
    """All *sources* running, each event name asked for; with a store that is thrown away, in no one's way."""
    metrics = Metrics()
    metrics.prepare(sources=sources, sinks=(), rules=())
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="bridge-record-")))
        outbox = await stack.enter_async_context(
            open_outbox(
                folder / "record.db",
                durability="process",
                dedup_window=1.0,
                dead_letter_retention=1.0,
                trace_retention=0.0,
                offload_write=await stack.enter_async_context(threads()),
                offload_read=await stack.enter_async_context(threads()),
                reserve=0,
            )
        )
        found = [
            await stack.enter_async_context(
                open_source(name, each, metrics=metrics, outbox=outbox, names=(), now=time.time)
            )
            for name, each in sources.items()
        ]
        send, receive = anyio.create_memory_object_stream[Reading](BUFFER)
        async with send, receive, anyio.create_task_group() as running:
            for each in found:
                running.start_soon(each.run, send)
            yield found, receive
            running.cancel_scope.cancel()


async def complaining(sources: Sequence[Source]) -> None:
    """Raise StartError if no source opens: at once where all are refused, else after a while."""
    began = anyio.current_time()
    while True:
        states = {each.name: each.status() for each in sources}
        if any(state.connected for state in states.values()):
            return
        refused = all(state.error and not state.ready for state in states.values())
        if refused or anyio.current_time() - began > FIRST_OPEN:
            reasons = (f"source {name}: {state.error or 'not open'}" for name, state in states.items())
            raise StartError(f"nothing to record: {'; '.join(reasons)}")
        await anyio.sleep(0.1)


async def progress(recording: Recording) -> None:
    while True:
        sys.stderr.write(f"\r{recording.count} events, {recording.size // 1024} KiB  ")
        sys.stderr.flush()
        await anyio.sleep(PROGRESS)


async def stopped_by_signal(
    scope: anyio.CancelScope, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()
            return
