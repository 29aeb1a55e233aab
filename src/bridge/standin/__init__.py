"""A server that behaves like The Things Stack v3.32.1 on its event stream, for tests and the demo.

Proved byte for byte against the recordings in tests/data/recorded. It leaves out visibility by single rights,
gRPC, compression, the Console's websocket, lists and notifications.

    world = World({"NNSXS.KEY.SECRET": ALL}, entities=[Entity("application", "plant-a")])
    async with serve(world) as server:
        world.faults.on_open(Cut(after=3))
        ...  # a client opens POST {server.url}/api/v3/events
        world.publish(event_json)
"""

from bridge.standin.faults import (
    Answer,
    Cut,
    CutAt,
    Drip,
    Drop,
    Duplicate,
    End,
    ErrorFrame,
    Fault,
    Garbage,
    Refuse,
    Reorder,
    Silence,
    Stall,
)
from bridge.standin.player import entities_in, play
from bridge.standin.server import Server, serve
from bridge.standin.world import ALL, Rights, World

__all__ = [
    "ALL",
    "Answer",
    "Cut",
    "CutAt",
    "Drip",
    "Drop",
    "Duplicate",
    "End",
    "ErrorFrame",
    "Fault",
    "Garbage",
    "Refuse",
    "Reorder",
    "Rights",
    "Server",
    "Silence",
    "Stall",
    "World",
    "entities_in",
    "play",
    "serve",
]
