"""Decoding of recorded events: protobuf through the table, beside the JSON of HTTP; events a second.

python -m tests.bench.bench_grpc
"""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
import msgspec

from bridge.decode import Decoder, result
from bridge.event import Entity, Event
from bridge.proto import Reader, encode
from bridge.proto.table import PACKAGE
from bridge.sources.grpc import GrpcUpstream, connect
from bridge.sources.http import HttpUpstream, http_client
from bridge.sources.upstream import Upstream
from bridge.standin import ALL, World, serve
from bridge.standin.grpc import serve_grpc
from bridge.tls import TlsConfig
from tests.recordings import documents, json_bytes

EVENT = f"{PACKAGE}Event"
SECONDS = 2.0  # of each measurement
KEY = "NNSXS.BENCH.SECRET"
WIRE_EVENTS = 10_000


def rate(step: Callable[[], int]) -> float:
    """Events a second of *step*, which returns how many it did; best of three."""
    best = 0.0
    for _ in range(3):
        began, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < SECONDS / 3:
            done += step()
        best = max(best, done / spent)
    return best


def decoding() -> None:
    events = list(documents("devices.sse"))
    bodies = [b'{"result":%s}\n\n' % json_bytes(each) for each in events]
    messages = [encode(EVENT, each) for each in events]
    reader = Reader()

    def over_http() -> int:
        decoder = Decoder()
        return sum(len(decoder.feed(body)) for body in bodies)

    def over_grpc() -> int:
        return len([result(msgspec.json.encode(reader.render(EVENT, each).value)) for each in messages])

    http, grpc = rate(over_http), rate(over_grpc)
    bytes_http, bytes_grpc = sum(map(len, bodies)), sum(map(len, messages))
    print(f"decode http {http:8.0f} events/s  {bytes_http / len(events):6.0f} bytes an event")
    print(f"decode grpc {grpc:8.0f} events/s  {bytes_grpc / len(events):6.0f} bytes an event")


async def streamed(upstream: Upstream, world: World) -> float:
    """Events a second through a real connection, the stand-in in the same process included."""
    plant = Entity("application", "plant-a")
    body = json_bytes(next(each for each in documents("apps.sse") if each["name"] == "as.up.data.forward"))
    came = 0
    async with upstream.open([plant], world.now, []) as stream:
        frames = stream.frames()
        await anext(frames)
        began = time.perf_counter()
        while came < WIRE_EVENTS:
            for _ in range(500):
                world.publish(body)
            for _ in range(500):
                assert isinstance(await anext(frames), Event)
            came += 500
        return came / (time.perf_counter() - began)


async def wire() -> None:
    world = World({KEY: ALL}, storage=False)
    async with serve(world) as server, http_client(server.url, KEY, TlsConfig()) as client:
        http = await streamed(HttpUpstream(client), world)
    async with serve_grpc(world) as plain:
        connection = connect(plain.address, KEY, None)
        try:
            grpc = await streamed(GrpcUpstream(connection), world)
        finally:
            await connection.aclose()
    print(f"stream http {http:8.0f} events/s  stand-in included")
    print(f"stream grpc {grpc:8.0f} events/s  stand-in included")


def main() -> None:
    decoding()
    anyio.run(wire)


if __name__ == "__main__":
    main()
