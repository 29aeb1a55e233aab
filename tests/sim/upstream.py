"""The Things Stack as the world has it: the stand-in's history behind an `Upstream` that fails.

What an open stream gets is decided by `standin.history`, which was proved against the recordings; the bytes
go through the real decoder in chunks of any size.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import msgspec

from bridge.decode import Decoder, ErrorFrame, Frame
from bridge.errors import SourceError
from bridge.event import Entity, Kind, rfc3339
from bridge.ids import ulid
from bridge.sources.api import AuthInfo, Notifications, Page
from bridge.sources.registry import propagates
from bridge.sources.upstream import RateBudget, Stream
from bridge.standin.history import History, Record, record, shown, window
from tests.recordings import documents
from tests.sim.world import Published, World

SECOND = 1_000_000_000  # ns
SKEW = 37.0  # seconds the server's clock is ahead of bridge's
LONGEST_STALL = 300.0  # seconds
FOLLOWED = (
    Entity("application", "plant-a"),
    Entity("application", "plant-b"),
    Entity("gateway", "gw-field"),
)


def bodies(world: World, server: Server) -> Iterator[bytes]:
    """Recorded events that reach somebody who follows FOLLOWED, without end; each fresh, some late."""
    recorded = [*documents("apps.sse"), *documents("gateways.sse")]
    world.random.shuffle(recorded)
    for event in itertools.cycle(recorded):
        late = world.random.uniform(0.0, world.faults.late_by) if world.hits(world.faults.late) else 0.0
        at = server.now - int(late * 1e9)
        body = msgspec.json.encode(event | {"unique_id": ulid(at, world.random), "time": rfc3339(at)})
        if not set(FOLLOWED).isdisjoint(server.record_of(body).entities):
            yield body


@dataclass(eq=False)
class Channel:
    """What the server has yet to write to one stream."""

    entities: Sequence[Entity]
    waiting: deque[bytes] = field(default_factory=deque)
    filled: anyio.Event = field(default_factory=anyio.Event)

    def put(self, body: bytes) -> None:
        self.waiting.append(b'{"result":' + body + b"}\n\n")
        self.filled.set()


class Server:
    """One server: its clock, its history, the streams that are open. An `Upstream` and an `Api`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._history = History()
        self._propagates = propagates()
        self._channels: list[Channel] = []
        self._bodies = bodies(world, self)

    @property
    def now(self) -> int:
        """ns since 1970."""
        return int((self._world.now() + SKEW) * 1e9)

    def record_of(self, body: bytes) -> Record:
        return record(body, self.now, self._propagates)

    async def live(self, per_second: float) -> None:
        """Publish until cancelled."""
        while True:
            await anyio.sleep(self._world.random.expovariate(per_second))
            self.publish(next(self._bodies))

    def publish(self, body: bytes) -> None:
        each = self.record_of(body)
        self._history.add(each)
        is_plant_a = any(entity.id.partition("/")[0] == "plant-a" for entity in each.entities)
        self._world.ledger.published[each.unique_id] = Published(each.name, is_plant_a)
        for channel in self._channels:
            for entity in each.entities:
                if entity not in channel.entities:
                    continue
                if self._world.hits(self._world.faults.lost_live):
                    self._world.ledger.lost_live.add(each.unique_id)
                    continue
                channel.put(body)
                if self._world.hits(self._world.faults.repeat):
                    channel.put(body)

    @asynccontextmanager
    async def open(
        self, entities: Sequence[Entity], after: int | None, names: Sequence[str]
    ) -> AsyncIterator[Stream]:
        world = self._world
        await world.power("opening a stream")
        await anyio.sleep(world.random.uniform(0.005, 0.3))
        if world.hits(world.faults.refuse):
            raise world.random.choice(REFUSALS)
        channel = Channel(entities)
        channel.put(self._start())
        for entity in entities:
            kept = self._history.of(entity, self.now)
            for entry in window(kept, tail=1024, after=after).entries:
                channel.put(shown(entry, entity, self.now))
        self._channels.append(channel)
        world.note("stream opened", len(channel.waiting))
        try:
            yield SimStream(channel, world)
        finally:
            self._channels.remove(channel)

    def _start(self) -> bytes:
        event = {"name": "events.stream.start", "time": rfc3339(self.now), "unique_id": "start"}
        return msgspec.json.encode(event)

    async def _asked(self) -> None:
        """A single question, which may go unanswered."""
        world = self._world
        await world.power("asking the server")
        await anyio.sleep(world.random.uniform(0.005, 0.3))
        if world.hits(world.faults.refuse):
            raise world.random.choice(REFUSALS)

    async def auth_info(self) -> AuthInfo:
        await self._asked()
        return AuthInfo(self.now // SECOND * SECOND, Entity("user", "admin"), frozenset({"RIGHT_ALL"}), True)

    async def rights(self, entity: Entity) -> frozenset[str]:
        await self._asked()
        return frozenset({"RIGHT_ALL"})

    async def listed(self, kind: Kind, application: str = "", *, page: int = 1, limit: int = 1000) -> Page:
        await self._asked()
        return Page((), 0)

    async def connection_stats(self, gateways: Sequence[str]) -> dict[str, bytes]:
        await self._asked()
        return {}

    async def related(self, correlation_id: str) -> tuple[bytes, ...]:
        await self._asked()
        return ()

    async def notifications(
        self, user: str, *, status: Sequence[str] = (), page: int = 1, limit: int = 1000
    ) -> Notifications:
        await self._asked()
        return Notifications((), 0)

    async def mark_notifications(self, user: str, ids: Sequence[str], status: str) -> None:
        await self._asked()


REFUSALS = (
    SourceError("cannot reach the server: ConnectError"),
    SourceError("HTTP 503"),
    SourceError("HTTP 429", kind="rate_limited", retry_after=7.0),
)


class SimStream:
    """One open stream: it stalls, is torn in the middle of a frame, or ends with an error frame."""

    warnings: tuple[str, ...] = ()
    budget: RateBudget | None = None

    def __init__(self, channel: Channel, world: World) -> None:
        self._channel = channel
        self._world = world
        self._decoder = Decoder()
        self._frames: deque[Frame] = deque()
        self._rest = b""

    def frames(self) -> SimStream:
        return self

    def __aiter__(self) -> SimStream:
        return self

    async def __anext__(self) -> Frame:
        while not self._frames:
            self._frames.extend(self._decoder.feed(await self._chunk()))
        frame = self._frames.popleft()
        if isinstance(frame, ErrorFrame):
            raise SourceError(f"stream ended: {frame.message}")
        return frame

    async def _chunk(self) -> bytes:
        """The next bytes: a part of a frame, or all that are there."""
        world, channel = self._world, self._channel
        await world.power("reading a stream")
        if not self._rest:
            while not channel.waiting:
                channel.filled = anyio.Event()
                await channel.filled.wait()
            self._rest = b"".join(channel.waiting)
            channel.waiting.clear()
        await self._trouble()
        cut = world.random.randrange(1, len(self._rest) + 1) if world.hits(0.3) else len(self._rest)
        chunk, self._rest = self._rest[:cut], self._rest[cut:]
        return chunk

    async def _trouble(self) -> None:
        world = self._world
        await anyio.sleep(world.random.uniform(0.0, 0.05))
        if world.hits(world.faults.stall):
            world.note("stream stalls")
            await anyio.sleep(world.random.uniform(1.0, LONGEST_STALL))
        if world.hits(world.faults.reset):
            world.note("stream torn")
            raise SourceError("connection lost: ReadError")
