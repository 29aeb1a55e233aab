"""The network behind the stand-in: its keys, its clock, its history, and the streams now open."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import anyio
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from bridge.event import Entity, rfc3339
from bridge.standin.faults import Faults
from bridge.standin.history import History, Record, identifiers_json, record, shown, window
from bridge.ids import ulid
from bridge.standin.problems import INVALID_TOKEN, RefusedError, no_rights, not_found, unknown_key
from bridge.standin.request import StreamRequest, event_names

ALL: Final[Literal["all"]] = "all"
Rights: TypeAlias = frozenset[Entity] | Literal["all"]
"""What a key may see. `all` is an admin's key; a key with an application sees its devices as well."""

TOKEN_TYPES = ("NNSXS", "MFRWG", "OJSWM", "MF2XI", "ONZW4")  # base32 of key, acc, ref, aut, ssn
NEVER = 1 << 63  # ms
LEAST_SLOTS, MOST_SLOTS = 8, 1024  # events in the channel of one stream (pkg/events/grpc/grpc.go in v3.32)


@dataclass(slots=True, eq=False)
class Subscription:
    """One stream: the channel between publishing and the wire, and what goes into it."""

    request: StreamRequest
    receive: MemoryObjectReceiveStream[bytes]
    _send: MemoryObjectSendStream[bytes]
    silent_until: dict[Entity, int] = field(default_factory=dict)
    """In ms of the server's clock, for each entity; see `Window`."""
    backlog: dict[Entity, list[bytes]] = field(default_factory=dict)
    """What `replay` has yet to give: history, and behind it what happened meanwhile."""
    dropped: int = 0

    @classmethod
    def of(cls, request: StreamRequest) -> Subscription:
        slots = min(max(request.tail, LEAST_SLOTS), MOST_SLOTS)
        send, receive = anyio.create_memory_object_stream[bytes](slots)
        return cls(request, receive, send)

    def notify(self, body: bytes) -> None:
        """Put *body* in the channel, or drop it: nobody is told (`Channel.Notify`, pkg/events/handler.go)."""
        try:
            self._send.send_nowait(body)
        except anyio.WouldBlock:
            self.dropped += 1

    def close(self) -> None:
        self._send.close()
        self.receive.close()


class World:
    """What one server knows. Tests and the player feed it through `publish`.

    *keys* are the bearer tokens it takes; a token that is not among them is answered as an unknown or a
    malformed one. Only *entities* exist, and those that *keys* and events name; without *entities* whatever
    is asked for exists. *clock* is the server's, in unix seconds; *rate_limit* in openings a minute and key.
    """

    def __init__(
        self,
        keys: Mapping[str, Rights],
        *,
        entities: Iterable[Entity] | None = None,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        storage: bool = True,
        rate_limit: int | None = None,
        origin: str = "vm",
    ) -> None:
        self.keys: dict[str, Rights] = dict(keys)
        self.clock = clock
        self.rng = rng or random.Random(0)  # noqa: S311  # ids and faults, no secrets
        self.storage = storage
        self.rate_limit = rate_limit
        self.origin = origin
        self.faults = Faults()
        self.history = History()
        self.names = event_names()
        self.subscriptions: set[Subscription] = set()
        self.dropped = 0
        """Events that streams lost here: full channels and faults."""
        self._everything_exists = entities is None
        self._known = set(map(owner, entities or ()))
        for rights in self.keys.values():
            if rights != ALL:
                self._known.update(map(owner, rights))

    @property
    def now(self) -> int:
        """The server's clock in ns since 1970."""
        return int(self.clock() * 1e9)

    def new_id(self) -> str:
        return ulid(self.now, self.rng)

    def publish(self, body: bytes) -> None:
        """Let one event happen; *body* is its JSON and reaches the streams byte for byte."""
        each = record(body, self.now, self.names)
        self._known.update(map(owner, each.entities))
        if self.storage:
            self.history.add(each)
        for subscription in self.subscriptions:
            self._offer(subscription, each)

    def _offer(self, subscription: Subscription, each: Record) -> None:
        """With the store every entity has a stream of its own, so an event of two of them comes twice."""
        if not subscription.request.wants(each.name):
            return
        inserted = each.inserted // 1_000_000
        carriers = [
            entity for entity in each.entities if inserted >= subscription.silent_until.get(entity, NEVER)
        ]
        for entity in carriers if self.storage else carriers[:1]:
            if entity in subscription.backlog:
                subscription.backlog[entity].append(each.body)
            else:
                self._notify(subscription, each.body)

    def _notify(self, subscription: Subscription, body: bytes) -> None:
        before = subscription.dropped
        subscription.notify(body)
        self.dropped += subscription.dropped - before

    def subscribe(self, request: StreamRequest) -> Subscription:
        """A stream for *request*: from here on nothing is missed, and `replay` starts it."""
        subscription = Subscription.of(request)
        after = self.now if request.after is None and not request.tail else request.after
        for entity in request.entities:
            kept = self.history.of(entity, self.now)
            part = window(kept, tail=request.tail, after=after if self.storage else None, wants=request.wants)
            subscription.silent_until[entity] = part.silent_until
            subscription.backlog[entity] = [shown(each, entity, self.now) for each in part.entries]
        self.subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self.subscriptions.discard(subscription)
        subscription.close()

    async def replay(self, subscription: Subscription) -> None:
        """Feed the history, entity by entity in the order of the request.

        Each goes over into its live part without gap or repeat; what does not fit the channel is dropped.
        """
        for entity in subscription.request.entities:
            for body in subscription.backlog.pop(entity):
                self._notify(subscription, body)
            await anyio.sleep(0)  # a round trip to Redis, in which the writer gets its turn

    def authenticate(self, authorization: str | None) -> str | None:
        """The known token of an Authorization header, None without one; raises RefusedError."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        if token in self.keys:
            return token
        parts = token.split(".", 2)
        if len(parts) != 3 or parts[0] not in TOKEN_TYPES:
            raise RefusedError(INVALID_TOKEN)
        raise RefusedError(unknown_key(parts[1]))

    def require_any(self, token: str | None, entities: Iterable[Entity]) -> None:
        """Raise RefusedError for the first of *entities* on which *token* has no right at all."""
        rights: Rights = frozenset() if token is None else self.keys[token]
        for each in entities:
            asked = owner(each)
            if rights != ALL and rights.isdisjoint((each, asked)):
                raise RefusedError(no_rights(asked))
            if rights == ALL and not (self._everything_exists or asked in self._known):
                raise RefusedError(not_found(asked))

    def start_event(self, request: StreamRequest, request_id: str) -> bytes:
        """`events.stream.start`: the server's clock, and the names the stream filters on."""
        event: dict[str, object] = {
            "name": "events.stream.start",
            "time": rfc3339(self.now),
            "identifiers": [without_empty(msgspec.to_builtins(each)) for each in request.identifiers],
            "data": {"@type": "type.googleapis.com/google.protobuf.Value", "value": request.names},
            "correlation_ids": [f"rpc:/ttn.lorawan.v3.Events/Stream:{request_id}"],
            "origin": self.origin,
            "unique_id": self.new_id(),
        }
        if request.names is None:
            del event["data"]
        return msgspec.json.encode(event)

    def auth_info(self, token: str) -> dict[str, object]:
        """The body of `GET /auth_info` for a known *token*."""
        rights = self.keys[token]
        if rights == ALL:
            owner, granted = ADMIN, ["RIGHT_ALL"]
        else:
            owner = next(iter(rights))
            granted = sorted({RIGHT_INFO[each.kind] for each in rights})
        key = {"id": key_id(token), "name": "standin", "rights": granted}
        info: dict[str, object] = {"api_key": {"api_key": key, "entity_ids": identifiers_json(owner)}}
        return info | ({"universal_rights": {"rights": granted}, "is_admin": True} if rights == ALL else {})


ADMIN = Entity("user", "admin")

RIGHT_INFO = {
    "device": "RIGHT_APPLICATION_DEVICES_READ",
    "gateway": "RIGHT_GATEWAY_INFO",
    "application": "RIGHT_APPLICATION_INFO",
    "organization": "RIGHT_ORGANIZATION_INFO",
    "user": "RIGHT_USER_INFO",
    "client": "RIGHT_CLIENT_INFO",
}


def owner(entity: Entity) -> Entity:
    """Where the rights on *entity* are looked up: a device has none of its own."""
    if entity.kind != "device":
        return entity
    return Entity("application", entity.id.partition("/")[0])


def key_id(token: str | None) -> str:
    """The middle of `NNSXS.<id>.<secret>`."""
    parts = (token or "").split(".")
    return parts[1] if len(parts) == 3 else ""


def without_empty(value: object) -> object:
    """*value* as the server writes messages: fields that are null or empty are left out."""
    if not isinstance(value, dict):
        return value
    kept = {key: without_empty(each) for key, each in value.items()}
    return {key: each for key, each in kept.items() if each not in ("", None, {})}
