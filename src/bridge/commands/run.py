"""`bridge run`."""

from __future__ import annotations

import signal

import anyio
import structlog

from bridge import logs
from bridge.app import Running, serve
from bridge.commands.terminal import ConfigOption, loaded, run_async
from bridge.config import Config

log = structlog.get_logger()


def run(config: ConfigOption = None) -> None:
    """Run until SIGTERM or Ctrl-C; what is in flight may finish for shutdown_timeout."""
    found = loaded(config)
    logs.configure(found.log.level, found.log.format)
    run_async(until_signal, found)


async def until_signal(config: Config) -> None:
    """Run *config* until SIGTERM or SIGINT; a second one does not wait for what is in flight."""
    stop = anyio.Event()

    async with anyio.create_task_group() as tasks:

        async def signals() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
                async for signum in received:
                    if signum == signal.SIGHUP:
                        log.warning("reload is not available in this version; restart instead")
                    elif stop.is_set():
                        tasks.cancel_scope.cancel()
                    else:
                        log.info("stopping", signal=signal.Signals(signum).name)
                        stop.set()

        tasks.start_soon(signals)
        await serve(config, stop, announce)
        tasks.cancel_scope.cancel()


def announce(running: Running) -> None:
    log.info(
        "bridge runs",
        version=running.parts.version,
        sources=len(running.parts.sources),
        sinks=len(running.parts.dispatchers),
        admin=running.url,
    )
