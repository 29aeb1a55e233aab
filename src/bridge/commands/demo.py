"""`bridge demo`: recorded traffic, the shipped rules and an embedded receiver; no server, no account."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path

import anyio

from bridge import logs
from bridge.app import serve
from bridge.commands.terminal import NoConfigOption, run_async
from bridge.config import Config, load
from bridge.receiver import Receiver, receive, sentence
from bridge.standin import ALL, World, entities_in, play
from bridge.standin import serve as serve_standin

TOKEN = "NNSXS.BRIDGEDEMO.RECORDEDTRAFFIC"  # the stand-in's key; it opens nothing else
RECORDINGS = {"apps.sse": 1.0, "gateway_flap.sse": 8.0}
"""What is played, and how many times as fast: 22 s of two applications, 3 min of three gateways."""
IN_A_PIPE = 120.0  # seconds after which the demo ends by itself where nobody can press Ctrl-C

INTRO = """\
bridge demo: recorded traffic of The Things Stack -> shipped rules -> an embedded receiver
  metrics  {url}/metrics
  status   {url}/api/status
Press Ctrl-C to end.

time      sink        about               what happened"""


def demo(_config: NoConfigOption = None) -> None:
    """Show bridge at work; needs no server and no account.

    Recorded traffic passes through the shipped rules into an embedded receiver.
    """
    logs.configure("warning", "console")
    run_async(played)


async def played() -> None:
    """Play the recordings once, and stay up until SIGINT or SIGTERM."""
    stop = anyio.Event()

    def say(text: str) -> None:
        try:
            print(text, flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            stop.set()

    share = files("bridge") / "share"
    with as_file(share) as folder, tempfile.TemporaryDirectory(prefix="bridge-demo-") as store:
        recordings = [folder / "recorded" / name for name in RECORDINGS]
        world = World({TOKEN: ALL}, entities=entities_in(path.read_bytes() for path in recordings))
        async with (
            serve_standin(world) as upstream,
            receive(on_delivery=lambda got: say(sentence(got.body, got.rule))) as receiver,
            anyio.create_task_group() as tasks,
        ):
            config = configured(folder / "demo.yaml", Path(store), upstream.url, receiver)
            tasks.start_soon(until_interrupted, stop)
            tasks.start_soon(traffic, world, folder / "recorded", stop, receiver, say)
            await serve(config, stop, lambda running: say(INTRO.format(url=running.url)))
            say(f"\n{len(receiver.deliveries)} deliveries arrived. Next: bridge --help")
            tasks.cancel_scope.cancel()


def configured(path: Path, store: Path, upstream: str, receiver: Receiver) -> Config:
    """The demo's own config; the admin address is 8080 if that is free."""
    environ = {
        "DEMO_TTS": upstream,
        "DEMO_KEY": TOKEN,
        "DEMO_WEBHOOK": f"{receiver.url}/webhook",
        "DEMO_OPS": f"{receiver.url}/ops",
        "DEMO_SECRET": "whsec_" + secrets.token_hex(16),
        "BRIDGE_OUTBOX": f"sqlite:{store / 'bridge.db'}",
    }
    if not is_free(8080):
        environ["BRIDGE_ADMIN__LISTEN"] = "127.0.0.1:0"
    return load(path, environ)


def is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


async def until_interrupted(stop: anyio.Event) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            stop.set()


async def traffic(
    world: World, folder: Path, stop: anyio.Event, receiver: Receiver, say: Callable[[str], None]
) -> None:
    """Each recording at its own speed; then, on a terminal, quiet until Ctrl-C."""
    with anyio.move_on_after(None if sys.stdout.isatty() else IN_A_PIPE):
        await until(lambda: bool(world.subscriptions))
        async with anyio.create_task_group() as players:
            for name, speed in RECORDINGS.items():
                players.start_soon(play_fresh, world, folder / name, speed)
        say(f"\nThe recordings have ended; {len(receiver.deliveries)} deliveries so far.")
        await anyio.sleep_forever()
    stop.set()


async def play_fresh(world: World, path: Path, speed: float) -> None:
    await play(world, path, speed, fresh_ids=True)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await anyio.sleep(0.05)
