"""The Things Stack without sockets: the stand-in's world behind bridge's own seam, for virtual time.

History, channels, drops, rights and refusals are those of `bridge.standin.World`; only HTTP is left out.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.abc import TaskGroup

from bridge.decode import ErrorFrame, Frame, StreamStart, frame
from bridge.errors import SourceError
from bridge.event import Entity, Kind, rfc3339
from bridge.own import identifier
from bridge.sources.api import PAGE, AuthInfo, Notifications, Page
from bridge.sources.http import answer_error
from bridge.sources.plan import owner
from bridge.sources.upstream import TAIL, RateBudget, Stream, stream_error
from bridge.standin import World
from bridge.standin.problems import HTTP_STATUS, RefusedError, rate_limited, unknown_key, wrapped
from bridge.standin.request import read, resolve
from bridge.standin.wire import spend
from bridge.standin.world import Subscription
from tests.recordings import json_bytes

TOKEN = "NNSXS.VIRTUAL.SECRET"
NO_STORE = "Events storage is not enabled"
EPOCH = 1_795_468_146.0  # unix seconds at virtual time 0


@dataclass(frozen=True, slots=True)
class Opening:
    """One stream that was asked for, at *at* seconds of virtual time."""

    at: float
    entities: tuple[Entity, ...]
    after: int | None
    names: tuple[str, ...]


@dataclass(eq=False)
class WorldStream:
    """An open stream; `lost` ends it as a cut connection does, `refused` with an error frame."""

    upstream: WorldUpstream
    number: int
    subscription: Subscription
    entities: tuple[Entity, ...]
    warnings: tuple[str, ...] = ()
    budget: RateBudget | None = None
    silent: bool = False
    """Connected, and nothing comes any more."""
    lossy: float = 0.0
    """The chance that the server drops an event of it."""
    error: SourceError | None = None
    _waiting: anyio.CancelScope | None = None

    def end(self, error: SourceError) -> None:
        self.error = error
        if self._waiting is not None:
            self._waiting.cancel()

    async def frames(self) -> AsyncIterator[Frame]:
        yield StreamStart(self.upstream.world.now)
        while True:
            body = b""
            with anyio.CancelScope() as self._waiting:
                body = await self.subscription.receive.receive()
            if self.error is not None:
                raise self.error
            if not (self.silent or self.upstream.rng.random() < self.lossy):
                yield frame(b'{"result":%s}' % body)


class WorldUpstream:
    """Streams of *world* with the key *token*; *tasks* is where the server works, set before use."""

    tasks: TaskGroup

    def __init__(self, world: World, token: str = TOKEN) -> None:
        self.world = world
        self.token = token
        self.openings: list[Opening] = []
        self.streams: set[WorldStream] = set()
        self.most = 0
        """The largest number of streams that were open at once."""
        self.down = False
        self.latency = 0.01  # seconds until a request is answered
        self.rng = random.Random(0)
        self.on_open: Callable[[WorldStream], None] = lambda stream: None
        self.on_close: Callable[[WorldStream], None] = lambda stream: None
        self.refusing: Callable[[tuple[Entity, ...]], SourceError | None] = lambda entities: None
        """What a test refuses on top of what the world does."""
        self._paid = 0.0

    @asynccontextmanager
    async def open(
        self, entities: Sequence[Entity], after: int | None, names: Sequence[str]
    ) -> AsyncIterator[Stream]:
        asked = Opening(anyio.current_time(), tuple(entities), after, tuple(names))
        self.openings.append(asked)
        await anyio.sleep(self.latency)
        budget, subscription = self._admitted(asked)
        warnings = () if self.world.storage else (NO_STORE,)
        stream = WorldStream(self, len(self.openings), subscription, asked.entities, warnings, budget)
        self.streams.add(stream)
        self.most = max(self.most, len(self.streams))
        self.on_open(stream)
        self.tasks.start_soon(self._replay, subscription)
        try:
            yield stream
        finally:
            self.on_close(stream)
            self.streams.discard(stream)
            self.world.unsubscribe(subscription)

    async def _replay(self, subscription: Subscription) -> None:
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            await self.world.replay(subscription)

    def _admitted(self, asked: Opening) -> tuple[RateBudget | None, Subscription]:
        if self.down:
            raise SourceError("cannot reach the server: ConnectError")
        refusal = self.refusing(asked.entities)
        if refusal is not None:
            raise refusal
        budget = self._spend()
        body: dict[str, Any] = {"identifiers": [identifier(each) for each in asked.entities], "tail": TAIL}
        body["names"] = list(asked.names)
        if asked.after is not None:
            body["after"] = rfc3339(asked.after)
        try:
            request = resolve(read(json_bytes(body)), self.world.names)
            self.world.require_any(self.world.authenticate(f"Bearer {self.token}"), request.entities)
        except RefusedError as refused:
            raise _error(refused) from None
        return budget, self.world.subscribe(request)

    def _spend(self) -> RateBudget | None:
        limit = self.world.rate_limit
        if limit is None:
            return None
        self._paid, budget = spend(limit, self._paid, self.world.clock())
        if not budget.allowed:
            body = wrapped(rate_limited(limit, "VIRTUAL"), random.Random(0))
            raise answer_error(429, body, budget.headers())
        return RateBudget(budget.limit, budget.available, budget.reset)

    @property
    def ordered(self) -> list[WorldStream]:
        """The open streams, oldest first: a seed is to give the same run again."""
        return sorted(self.streams, key=lambda each: each.number)

    # What happens to the server

    def cut(self) -> None:
        """Every connection breaks."""
        for stream in self.ordered:
            stream.end(SourceError("connection lost: ReadError"))

    def stop(self) -> None:
        """Every stream gets the error frame of a stopping server, and nobody can connect."""
        self.down = True
        for stream in self.ordered:
            stream.end(stream_error(ErrorFrame(1, "grpc: the client connection is closing")))

    def start(self) -> None:
        self.down = False

    def silence(self) -> None:
        """Streams stay open and carry nothing any more."""
        for stream in self.ordered:
            stream.silent = True

    def carrying(self) -> set[Entity]:
        """Who is followed by an open stream now."""
        return {each for stream in self.streams for each in stream.entities}


def _error(refused: RefusedError) -> SourceError:
    why = refused.why
    return answer_error(HTTP_STATUS[why.code], wrapped(why, random.Random(0)), {})  # type: ignore[arg-type]


class WorldApi:
    """The single questions, answered from *listed* entities and the world's keys."""

    def __init__(self, upstream: WorldUpstream) -> None:
        self.upstream = upstream
        self.listed_entities: set[Entity] = set()
        self.granted: dict[Entity, frozenset[str]] = {}
        self.key_rights = frozenset({"RIGHT_APPLICATION_TRAFFIC_READ"})
        self.key_owner: Entity | None = Entity("user", "admin")
        self.asked: list[str] = []
        self.failing: SourceError | None = None

    async def _answers(self, question: str) -> None:
        self.asked.append(question)
        await anyio.sleep(self.upstream.latency)
        if self.failing is not None:
            raise self.failing
        if self.upstream.down:
            raise SourceError("cannot reach the server: ConnectError")
        if self.upstream.token not in self.upstream.world.keys:
            raise _error(RefusedError(unknown_key("VIRTUAL")))

    async def auth_info(self) -> AuthInfo:
        await self._answers("auth_info")
        second = 1_000_000_000
        return AuthInfo(self.upstream.world.now // second * second, self.key_owner, self.key_rights)

    async def rights(self, entity: Entity) -> frozenset[str]:
        await self._answers(f"rights {entity}")
        return self.granted.get(owner(entity), frozenset({"RIGHT_ALL"}))

    async def listed(self, kind: Kind, application: str = "", *, page: int = 1, limit: int = PAGE) -> Page:
        await self._answers(f"{kind} {application} {page}")
        every = sorted(
            each
            for each in self.listed_entities
            if each.kind == kind and (kind != "device" or each.id.startswith(f"{application}/"))
        )
        return Page(tuple(every[(page - 1) * limit : page * limit]), len(every))

    async def connection_stats(self, gateways: Sequence[str]) -> dict[str, bytes]:
        raise NotImplementedError

    async def related(self, correlation_id: str) -> tuple[bytes, ...]:
        raise NotImplementedError

    async def notifications(
        self, user: str, *, status: Sequence[str] = (), page: int = 1, limit: int = PAGE
    ) -> Notifications:
        raise NotImplementedError

    async def mark_notifications(self, user: str, ids: Sequence[str], status: str) -> None:
        raise NotImplementedError


def virtual_clock() -> float:
    """Unix seconds, on virtual time."""
    return EPOCH + anyio.current_time()


def happened(world: World, name: str, entity: Entity, at: float | None = None, **data: object) -> str:
    """Publish one event about *entity*, made at *at* (unix seconds); its unique_id."""
    ns = world.now if at is None else int(at * 1e9)
    unique_id = world.new_id()
    event = {
        "name": name,
        "time": rfc3339(ns),
        "identifiers": [identifier(entity)],
        "data": data,
        "origin": "vm",
        "unique_id": unique_id,
    }
    world.publish(json_bytes(event))
    return unique_id
