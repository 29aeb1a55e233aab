"""The network behind the stand-in: its keys, its clock, its history, and the streams now open."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import anyio
import msgspec

from bridge.event import Entity, nanoseconds, rfc3339
from bridge.ids import ulid
from bridge.standin.faults import Faults
from bridge.standin.history import (
    History,
    Record,
    identifiers_json,
    record,
    redacted,
    renamed,
    shown,
    window,
)
from bridge.standin.inbox import PREFIX, SILENT_TYPES, Inbox, Notice, Status
from bridge.standin.problems import (
    EXPIRED_KEY,
    INVALID_TOKEN,
    RefusedError,
    no_rights,
    not_found,
    unknown_key,
)
from bridge.standin.registry import Registry, ids_json
from bridge.standin.request import StreamRequest, definitions
from bridge.standin.rights import ALL, OF_KIND, UNIVERSAL, Key, Rights, as_key, parent
from bridge.standin.subscription import Subscription

__all__ = ["ALL", "Key", "Rights", "Subscription", "World", "key_id"]

TOKEN_TYPES = ("NNSXS", "MFRWG", "OJSWM", "MF2XI", "ONZW4")  # base32 of key, acc, ref, aut, ssn
NEVER = 1 << 63  # ms
RIGHTS_TTL = 120_000_000_000  # ns: how long a split deployment trusts a lookup (pkg/component/rights.go:35)
MANAGED = "gcs.managed."


class World:
    """What one server knows. Tests and the player feed it through `publish`, `create` and `notify`.

    *keys* are the bearer tokens it takes; a token that is not among them is answered as an unknown or a
    malformed one. Only *entities* exist, and those that *keys* and events name; without *entities* whatever
    is asked for exists. *clock* is the server's, in unix seconds; *rate_limit* in openings a minute and key.
    *split*: the Identity Server is another process, so that open streams notice within two minutes what
    happened to their key; in an all-in-one server they never do.
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
        split: bool = False,
    ) -> None:
        self.keys: dict[str, Rights] = dict(keys)
        self.clock = clock
        self.rng = rng or random.Random(0)  # noqa: S311  # ids and faults, no secrets
        self.storage = storage
        self.rate_limit = rate_limit
        self.origin = origin
        self.split = split
        self.faults = Faults()
        self.history = History()
        self.registry = Registry()
        self.inbox = Inbox()
        self.stats: dict[str, dict[str, Any]] = {}
        """Connection statistics of the gateways that are connected, by id."""
        self.definitions = definitions()
        self.names = {name: each.propagates_to_application for name, each in self.definitions.items()}
        self.subscriptions: set[Subscription] = set()
        self.dropped = 0
        """Events that streams lost here: full channels and faults."""
        self._listening: dict[Entity, dict[Subscription, None]] = {}
        self._everything_exists = entities is None
        self._began = self.now
        for each in entities or ():
            self.registry.add(each, self._began, {}, {})
        for key in map(as_key, self.keys.values()):
            for each in (key.owner, *map(parent, key.on)):
                if each not in self.registry:
                    self.registry.add(each, self._began, {}, {})

    @property
    def now(self) -> int:
        """The server's clock in ns since 1970."""
        return int(self.clock() * 1e9)

    def new_id(self) -> str:
        return ulid(self.now, self.rng)

    # Events

    def publish(self, body: bytes) -> None:
        """Let one event happen; *body* is its JSON and reaches the streams byte for byte."""
        now = self.now
        each = record(body, now, self.names)
        for identifiers in each.identifiers:
            self.registry.see(identifiers, now)
        if each.name.startswith("gs.gateway."):
            self._follow(each)
        if self.storage and not each.name.startswith(MANAGED):
            self.history.add(each)
        found: dict[Subscription, None] = {}
        for entity in each.entities:
            found |= self._listening.get(entity, {})
        for subscription in found:
            self._offer(subscription, each)

    def emit(self, name: str, *identifiers: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> None:
        """Publish an event of the server's own, with the visibility its definition has."""
        defined = self.definitions.get(name)
        event: dict[str, Any] = {"name": name, "time": rfc3339(self.now), "identifiers": list(identifiers)}
        if data is not None:
            event["data"] = data
        event |= {"correlation_ids": [f"rpc:/standin:{self.new_id()}"], "origin": self.origin}
        if defined and defined.rights:
            event["visibility"] = {"rights": list(defined.rights)}
        self.publish(msgspec.json.encode(event | {"unique_id": self.new_id()}))

    def _offer(self, subscription: Subscription, each: Record) -> None:
        """With the store every entity has a stream of its own, so an event of two of them comes twice."""
        if not subscription.request.wants(each.name):
            return
        if self.split and not self._still_trusted(subscription):
            return
        if each.name.startswith(MANAGED):
            each = replace(each, body=renamed(each.body, each.unique_id, self.new_id()))
        inserted = each.inserted // 1_000_000
        carriers = [
            entity for entity in each.entities if inserted >= subscription.silent_until.get(entity, NEVER)
        ]
        for entity in carriers if self.storage else carriers[:1]:
            if entity in subscription.backlog:
                subscription.backlog[entity].append((each, each.body))
            else:
                self._notify(subscription, each, each.body)

    def _notify(self, subscription: Subscription, each: Record, body: bytes) -> None:
        before = subscription.dropped
        subscription.notify(body if subscription.sees(each) else b"")
        self.dropped += subscription.dropped - before

    def _still_trusted(self, subscription: Subscription) -> bool:
        """In a split deployment: the rights are looked up anew, and a key that is gone ends the stream."""
        token = subscription.token
        if token is None or self.now - subscription.checked < RIGHTS_TTL:
            return True
        if token not in self.keys:
            subscription.end(unknown_key(key_id(token)))
            return False
        subscription.look_up(as_key(self.keys[token]), self.now)
        return True

    def subscribe(self, request: StreamRequest, token: str | None = None) -> Subscription:
        """A stream for *request*: from here on nothing is missed, and `replay` starts it.

        It shows what *token* may see; everything without one.
        """
        subscription = Subscription.of(request, token=token)
        if token is not None:
            subscription.look_up(as_key(self.keys[token]), self.now)
        after = self.now if request.after is None and not request.tail else request.after
        for entity in request.entities:
            kept = self.history.of(entity, self.now)
            part = window(kept, tail=request.tail, after=after if self.storage else None, wants=request.wants)
            subscription.silent_until[entity] = part.silent_until
            subscription.backlog[entity] = [(each, shown(each, entity, self.now)) for each in part.entries]
            self._listening.setdefault(entity, {})[subscription] = None
        self.subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self.subscriptions.discard(subscription)
        for entity in subscription.request.entities:
            listening = self._listening.get(entity, {})
            listening.pop(subscription, None)
            if not listening:
                self._listening.pop(entity, None)
        subscription.close()

    async def replay(self, subscription: Subscription) -> None:
        """Feed the history, entity by entity in the order of the request.

        Each goes over into its live part without gap or repeat; what does not fit the channel is dropped.
        """
        for entity in subscription.request.entities:
            backlog = subscription.backlog.pop(entity)
            for each, body in backlog:
                self._notify(subscription, each, body)
            if backlog:
                await anyio.sleep(0)  # a round trip to Redis, in which the writer gets its turn

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

    def related(self, correlation_id: str, token: str | None) -> list[bytes]:
        """The events of *correlation_id*, newest first; redacted where *token* may not see them."""
        key = self._key(token) or NOBODY
        return [
            each.body if key.sees(each.entities, each.rights) else redacted(each.body)
            for each in self.history.related(correlation_id, self.now)
        ]

    # Keys

    def authenticate(self, authorization: str | None) -> str | None:
        """The known token of an Authorization header, None without one; raises RefusedError."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        if token in self.keys:
            self._refuse_expired(as_key(self.keys[token]))
            return token
        parts = token.split(".", 2)
        if len(parts) != 3 or parts[0] not in TOKEN_TYPES:
            raise RefusedError(INVALID_TOKEN)
        raise RefusedError(unknown_key(parts[1]))

    def _refuse_expired(self, key: Key) -> None:
        if key.expires and nanoseconds(key.expires) <= self.now:
            raise RefusedError(EXPIRED_KEY)

    def require_any(self, token: str | None, entities: Iterable[Entity]) -> None:
        """Raise RefusedError for the first of *entities* on which *token* has no right at all."""
        for each in entities:
            if not self.rights_on(token, each):
                raise RefusedError(no_rights(parent(each)))

    def rights_on(self, token: str | None, entity: Entity) -> frozenset[str]:
        """What *token* may do with *entity*; raises RefusedError if that does not exist and an admin asks."""
        key = self._key(token)
        if key is None:
            return frozenset()
        asked = parent(entity)
        if key.admin and not self.exists(asked):
            raise RefusedError(not_found(asked))
        return frozenset() if asked in self.registry.gone else key.rights_on(entity)

    def exists(self, entity: Entity) -> bool:
        return entity in self.registry or (self._everything_exists and entity not in self.registry.gone)

    def _key(self, token: str | None) -> Key | None:
        return None if token is None else as_key(self.keys[token])

    def revoke(self, token: str) -> None:
        """Delete the key: new calls get 401; what is open goes on, unless the deployment is `split`."""
        del self.keys[token]

    def narrow(
        self, token: str, *, rights: Iterable[str] | None = None, without: Iterable[Entity] = ()
    ) -> None:
        """Leave the key only *rights*, and take its owner out of the collaborators of *without*."""
        self.keys[token] = as_key(self.keys[token]).narrowed(rights, without)

    def grant(self, token: str, entity: Entity, *rights: str) -> None:
        """Make the owner of *token* a collaborator of *entity*, with all rights if none are named."""
        key = as_key(self.keys[token])
        self.keys[token] = replace(
            key, on={**key.on, entity: frozenset(rights) or OF_KIND[parent(entity).kind]}
        )
        if entity not in self.registry:
            self.registry.add(entity, self.now, {}, {})

    def auth_info(self, token: str) -> dict[str, object]:
        """The body of `GET /auth_info` for a known *token*."""
        key = as_key(self.keys[token])
        began = rfc3339(self._began // 1000 * 1000)
        shown_key: dict[str, object] = {"id": key_id(token), "name": key.name, "rights": sorted(key.rights)}
        shown_key |= {"created_at": began, "updated_at": began}
        shown_key |= {"expires_at": key.expires} if key.expires else {}
        info: dict[str, object] = {
            "api_key": {"api_key": shown_key, "entity_ids": identifiers_json(key.owner)}
        }
        if not key.admin:
            return info
        return info | {"universal_rights": {"rights": sorted(key.rights & UNIVERSAL)}, "is_admin": True}

    # What exists

    def create(self, entity: Entity, *, event: bool = True, **fields: Any) -> None:
        """*entity* comes into being; of *fields* `dev_eui`, `join_eui` and `eui` are identifiers."""
        euis: tuple[str, ...] = ("dev_eui", "join_eui", "eui")
        extra = {name: str(fields.pop(name)) for name in euis if name in fields}
        self.registry.add(entity, self.now, extra, fields)
        if event:
            self.emit(f"{EVENT_KIND[entity.kind]}.create", self._identified(entity))

    def delete(self, entity: Entity) -> None:
        """*entity* is gone before its event is published, which open streams of an all-in-one server get."""
        identifiers = self._identified(entity)
        self.registry.remove(entity)
        self.stats.pop(entity.id, None) if entity.kind == "gateway" else None
        self.emit(f"{EVENT_KIND[entity.kind]}.delete", identifiers)

    def _identified(self, entity: Entity) -> dict[str, object]:
        kept = self.registry.kept.get(entity)
        return {f"{entity.kind}_ids": ids_json(entity) | (kept.extra if kept else {})}

    def _follow(self, each: Record) -> None:
        """What an event says about the connection of its gateway."""
        gateway = next((entity.id for entity in each.entities if entity.kind == "gateway"), "")
        read = msgspec.json.decode(each.body)
        data = {name: value for name, value in read.get("data", {}).items() if name != "@type"}
        if each.name == "gs.gateway.connect":
            self.stats[gateway] = {"connected_at": read["time"]}
        elif each.name == "gs.gateway.disconnect" or "disconnected_at" in data:
            self.stats.pop(gateway, None)
        elif each.name == "gs.gateway.connection.stats":
            self.stats[gateway] = data

    # Notifications

    def notify(
        self,
        user: str,
        kind: str,
        *,
        about: Entity | None = None,
        data: Mapping[str, Any] | None = None,
        sender: str = "",
        receivers: Sequence[str] = ("ADMINISTRATIVE_CONTACT",),
        event: bool | None = None,
    ) -> str:
        """A notification for *user*, and by default the event that tells of it; returns its id.

        Requests to admins are told by no event.
        """
        now = self.now
        message = {
            "entity_ids": identifiers_json(about or Entity("user", user)),
            "data": data,
            "sender_ids": {"user_id": sender} if sender else None,
            "receivers": [f"NOTIFICATION_RECEIVER_{each}" for each in receivers],
        }
        notice = Notice(self._uuid(), kind, now, now, message=message)
        self.inbox.add(user, notice)
        if event if event is not None else kind not in SILENT_TYPES:
            written = {"@type": "type.googleapis.com/ttn.lorawan.v3.Notification"} | notice.written()
            self.emit("user.notification.create", {"user_ids": {"user_id": user}}, data=written)
        return notice.id

    def mark(self, user: str, ids: Sequence[str], status: Status) -> None:
        """Set the status of notifications, and tell it by an event."""
        self.inbox.mark(user, frozenset(ids), status, self.now)
        data: dict[str, Any] = {
            "@type": "type.googleapis.com/ttn.lorawan.v3.UpdateNotificationStatusRequest",
            "receiver_ids": {"user_id": user},
            "ids": list(ids),
        }
        if status != "UNSEEN":
            data["status"] = PREFIX + status
        self.emit("user.notification.update_status", {"user_ids": {"user_id": user}}, data=data)

    def _uuid(self) -> str:
        digits = f"{self.rng.getrandbits(128):032x}"
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


NOBODY = Key(Entity("user", ""), frozenset())

EVENT_KIND = {kind: kind for kind in ("application", "gateway", "organization", "user", "client")} | {
    "device": "end_device"
}


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
