"""The stand-in as a process of its own: `python -m bridge.standin --file recorded.sse --loop`."""

from __future__ import annotations

import argparse
import random
import signal
import sys
from pathlib import Path

import anyio

from bridge.event import Entity
from bridge.standin import ALL, Cut, Duplicate, Fault, Reorder, World, entities_in, play, serve

KEY = "NNSXS.STANDIN.SECRET"
WAIT_FOR_STREAM = 0.02  # seconds between two looks whether somebody listens


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bridge.standin", description="A stand-in for The Things Stack.")
    parser.add_argument("--file", type=Path, action="append", default=[], help="a recorded stream")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--key", default=KEY, help="the API key it takes")
    parser.add_argument("--application", action="append", default=[], help="exists beside those in the files")
    parser.add_argument("--speed", type=float, default=1.0, help="times as fast; inf: at once")
    parser.add_argument("--loop", action="store_true", help="again and again, with new ids")
    parser.add_argument("--verbatim", action="store_true", help="times and ids as they were recorded")
    parser.add_argument("--streams", type=int, default=0, help="play once so many streams are open")
    parser.add_argument("--cut", type=int, help="end every stream in the middle of an event after so many")
    parser.add_argument("--duplicate", type=float, default=0.0, help="chance that an event comes twice")
    parser.add_argument("--reorder", type=int, default=0, help="events held back to overtake each other")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def faults(chosen: argparse.Namespace) -> tuple[Fault, ...]:
    found: list[Fault] = []
    if chosen.cut is not None:
        found.append(Cut(after=chosen.cut))
    if chosen.duplicate:
        found.append(Duplicate(chosen.duplicate))
    if chosen.reorder:
        found.append(Reorder(chosen.reorder))
    return tuple(found)


async def main(chosen: argparse.Namespace) -> None:
    existing = [Entity("application", each) for each in chosen.application]
    existing += entities_in(path.read_bytes() for path in chosen.file)
    rng = random.Random(chosen.seed)  # noqa: S311  # ids and faults, no secrets
    world = World({chosen.key: ALL}, entities=existing, rng=rng)
    world.faults.always = faults(chosen)
    async with serve(world, chosen.host, chosen.port) as server, anyio.create_task_group() as tasks:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()

        async def playing() -> None:
            while server.streams < chosen.streams:
                await anyio.sleep(WAIT_FOR_STREAM)
            again = True
            while again:
                fresh = chosen.loop and not chosen.verbatim
                await play(world, chosen.file, chosen.speed, shift=not chosen.verbatim, fresh_ids=fresh)
                again = chosen.loop

        tasks.start_soon(playing)
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                break
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, arguments())
