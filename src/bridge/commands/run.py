"""`bridge run`."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated

import anyio
import structlog
import typer

from bridge import logs
from bridge.advice import warnings
from bridge.app import Running, serve
from bridge.commands.terminal import ConfigOption, loaded, run_async
from bridge.config import Config
from bridge.errors import BridgeError
from bridge.watch import watch

log = structlog.get_logger()


def run(
    config: ConfigOption = None,
    watching: Annotated[
        bool, typer.Option("--watch", help="Load the config again whenever its files change.")
    ] = False,
) -> None:
    """Run until SIGTERM or Ctrl-C.

    What is in flight then may finish for shutdown_timeout. SIGHUP reloads.
    """
    run_async(until_signal, lambda: warned(loaded(config)), watching)


def warned(config: Config) -> Config:
    """*config*, after its warnings are logged as it says: at start and with every reload."""
    logs.configure(config.log.level, config.log.format)
    for each in warnings(config):
        log.warning(str(each))
    config.let_go_of_files()
    return config


async def until_signal(load: Callable[[], Config], watching: bool = False) -> None:
    """Run until SIGTERM or SIGINT; a second one does not wait for what is in flight."""
    gc.disable()  # until everything is loaded: looking at all of it again and again takes longer than loading
    config = load()
    stop = anyio.Event()
    running: list[Running] = []

    def announce(found: Running) -> None:
        running.append(found)
        leave_alone()
        tell(found)
        if watching:
            tasks.start_soon(watch, lambda: found.app.config.files, lambda: reloaded(found))

    async with anyio.create_task_group() as tasks:

        async def signals() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
                async for signum in received:
                    if signum == signal.SIGHUP:
                        for each in running:
                            tasks.start_soon(reloaded, each)
                    elif stop.is_set():
                        tasks.cancel_scope.cancel()
                    else:
                        log.info("stopping", signal=signal.Signals(signum).name)
                        stop.set()

        tasks.start_soon(signals)
        await serve(config, stop, announce, load=load)
        tasks.cancel_scope.cancel()


async def reloaded(running: Running) -> None:
    """What came of it is logged, and stands in the metrics."""
    with suppress(BridgeError):
        await running.app.reload()


def leave_alone() -> None:
    """Let the garbage collector pass over what the start has made, and look less often.

    It stays as long as bridge runs, thousands of rules included. 10,000 webhook deliveries in batches of 50
    cost 0.66 CPU s so, 0.75 without, 0.68 without any collector (medians, interleaved).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    gc.enable()


def tell(running: Running) -> None:
    log.info(
        "bridge runs",
        version=running.app.parts.version,
        sources=len(running.app.sources.running),
        sinks=len(running.app.dispatchers.running),
        admin=running.url,
    )
