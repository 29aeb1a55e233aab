"""`bridge doctor`: asks the real servers, and says of everything that matters whether it will work.

It takes no lock and stores nothing, so it may run beside the bridge.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile

import anyio
import anyio.to_thread
import typer

from bridge import logs
from bridge.commands import doctor_sinks, doctor_sources
from bridge.commands.terminal import NOT_SO, ConfigOption, JsonOption, loaded, print_json, run_async
from bridge.config import Config
from bridge.control import opened_reader
from bridge.doctor import Finding, disk, sync_speed
from bridge.errors import BridgeError, StartError
from bridge.outbox.file import RESERVE, refuse_foreign, refuse_network
from bridge.sources.models import ReplaySourceConfig
from bridge.sources.notification import NotificationsSourceConfig

MOUNTS = Path("/proc/self/mounts")
PATIENCE = 60.0  # seconds for one source or sink
SYNCS = 8  # commits the disk is timed with
COMMIT = 4096  # bytes


def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Ask the real servers whether this config will work.

    Keys, rights, history, clocks, brokers, Slack, addresses, disk.
    """
    logs.configure("error")
    found: list[Finding] = run_async(examined, loaded(config), shown(as_json))
    wrong = sum(each.verdict == "wrong" for each in found)
    notes = sum(each.verdict in ("note", "unknown") for each in found)
    if not as_json:
        print(f"{len(found)} checks, {wrong} wrong, {notes} to look at", file=sys.stderr)
    if wrong:
        raise typer.Exit(NOT_SO)


def shown(as_json: bool) -> Callable[[Finding], None]:
    def show(each: Finding) -> None:
        if as_json:
            print_json(as_object(each))
        else:
            print(each, flush=True)

    return show


def as_object(each: Finding) -> dict[str, str]:
    return {
        "about": each.about,
        "check": each.check,
        "verdict": each.verdict,
        "says": each.says,
        "do": each.do,
    }


async def examined(
    config: Config,
    show: Callable[[Finding], None] = lambda _found: None,
    now: Callable[[], float] = time.time,
) -> list[Finding]:
    """All findings on *config*, sources and sinks at the same time; each is shown as soon as it is there."""
    found: list[Finding] = []

    async def collect(about: str, findings: AsyncIterator[Finding]) -> None:
        with anyio.move_on_after(PATIENCE) as patience:
            async for each in findings:
                found.append(each)
                show(each)
        if patience.cancelled_caught:
            late = Finding(about, "time", "unknown", f"not done in {PATIENCE:g} s", "run it again")
            found.append(late)
            show(late)

    async with anyio.create_task_group() as tasks:
        for about, findings in parts(config, now):
            tasks.start_soon(collect, about, findings)
    return found


def parts(config: Config, now: Callable[[], float]) -> Iterator[tuple[str, AsyncIterator[Finding]]]:
    """What there is to examine, and how."""
    for name, source in config.sources.items():
        about = f"source {name}"
        if isinstance(source, ReplaySourceConfig):
            yield about, replay(about, source)
        elif isinstance(source, NotificationsSourceConfig):
            yield about, doctor_sources.notifications(name, source, now)
        else:
            wants = doctor_sources.wants_of(config.rule_set.rules, config.alert_set.alerts)
            names: Sequence[str] = config.names() if source.names == "auto" else source.names
            yield about, doctor_sources.tts(name, source, wants, names, now)
    for name, each in config.sinks.items():
        yield f"sink {name}", doctor_sinks.sink(name, each, now)
    yield "outbox", store(config)


async def replay(about: str, source: ReplaySourceConfig) -> AsyncIterator[Finding]:
    if await anyio.Path(source.path).is_file():
        yield Finding(about, "file", "ok", "the recording is there")
    else:
        yield Finding(about, "file", "wrong", "there is no such recording", "correct path")


async def store(config: Config) -> AsyncIterator[Finding]:
    """Space and speed of the disk the store is on, without touching the store."""
    if config.nats is not None:
        yield await streams(config)
        return
    for each in await anyio.to_thread.run_sync(lambda: list(stored_on(config.outbox_path, config))):
        yield each


async def streams(config: Config) -> Finding:
    """Is JetStream there, with bridge's streams?"""
    try:
        async with opened_reader(config) as outbox:
            used = await outbox.bytes_used()
    except BridgeError as error:
        return Finding("outbox", "streams", "wrong", str(error), "start the server, or correct outbox")
    return Finding("outbox", "streams", "ok", f"JetStream holds {used:,} bytes of bridge's")


def stored_on(path: Path, config: Config) -> Iterator[Finding]:
    folder = path.absolute().parent
    if not folder.is_dir():
        yield Finding(
            "outbox", "disk", "wrong", "its folder does not exist", "make the folder, or correct outbox"
        )
        return
    try:
        refuse_foreign(path)
        if MOUNTS.exists():
            refuse_network(path, MOUNTS.read_text())
    except StartError as error:
        yield Finding("outbox", "disk", "wrong", str(error), "correct outbox")
        return
    used = sum(each.stat().st_size for suffix in ("", "-wal") if (each := Path(f"{path}{suffix}")).exists())
    reserve = 0 if used else RESERVE
    yield disk("outbox", shutil.disk_usage(folder).free, used, config.max_size, reserve)
    try:
        yield sync_speed("outbox", sync_seconds(folder))
    except OSError as error:
        advice = "let the user bridge runs as write there (chown)"
        yield Finding("outbox", "disk", "wrong", f"its folder cannot be written: {error.strerror}", advice)


def sync_seconds(folder: Path) -> float:
    """How long one commit waits for the disk, the middle of a few; raises OSError."""
    taken: list[float] = []
    with TemporaryFile(dir=folder) as file:
        for _ in range(SYNCS):
            began = time.perf_counter()
            file.write(b"\0" * COMMIT)
            file.flush()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - began)
    return sorted(taken)[SYNCS // 2]
