"""A server that behaves like The Things Stack v3.32.1 on its event stream, for tests and the demo.

Proved against the recordings in tests/data/recorded: streams byte for byte, the unary calls as JSON values.
It leaves out compression, the Console's websocket, and everything that writes to the registries.

    world = World({"NNSXS.KEY.SECRET": ALL}, entities=[Entity("application", "plant-a")])
    async with serve(world) as server:
        world.faults.on_open(Cut(after=3))
        ...  # a client opens POST {server.url}/api/v3/events
        world.publish(event_json)
        world.create(Entity("device", "plant-a/meter-09"), dev_eui="70B3D57ED0000099")
        world.notify("admin", "api_key_created", about=Entity("application", "plant-a"))
        world.narrow("NNSXS.KEY.SECRET", rights=["RIGHT_APPLICATION_INFO"])
        world.revoke("NNSXS.KEY.SECRET")
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
from bridge.standin.rights import ALL, Key, Rights
from bridge.standin.server import Server, serve
from bridge.standin.world import World

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
    "Key",
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
