"""The unary calls: lists, rights, keys, connections, notifications, related events.  No I/O in this file.

Proved against tests/data/recorded/lists.json and errors.json. Every function takes the world and a `Call`,
and returns the body, or raises RefusedError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import unquote

import msgspec

from bridge.event import Entity, Kind
from bridge.standin.inbox import PREFIX, STATUSES, Status
from bridge.standin.problems import (
    METHOD_NOT_ALLOWED,
    NO_ADMIN,
    NOT_FOUND,
    STORAGE_DISABLED,
    UNEXPECTED_EOF,
    Malformed,
    RefusedError,
    bad_choice,
    bad_number,
    insufficient_rights,
    invalid,
    no_rights,
    not_connected,
)
from bridge.standin.registry import Kept, ordered
from bridge.standin.request import invalid_id
from bridge.standin.rights import as_key, implied, parent
from bridge.standin.world import World

DEFAULT_LIMIT, MOST = 100, 1000  # entries a page (is.pagination.default-limit; validate rules of v3.32)


@dataclass(frozen=True, slots=True)
class Call:
    """Who asks (a known token, or nobody), the ids in the path, the query, the body."""

    token: str | None
    ids: tuple[str, ...] = ()
    query: Mapping[str, Sequence[str]] = field(default_factory=dict)
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class Reply:
    """*total* becomes `X-Total-Count`."""

    body: bytes
    total: int | None = None


Handler: TypeAlias = Callable[[World, Call], Reply]


def reply(message: Mapping[str, Any], total: int | None = None) -> Reply:
    return Reply(msgspec.json.encode(message), total)


def auth_info(world: World, call: Call) -> Reply:
    return reply({} if call.token is None else world.auth_info(call.token))


def related(world: World, call: Call) -> Reply:
    if not world.storage:
        raise RefusedError(STORAGE_DISABLED)
    correlation_id = _one(call, "correlation_id")
    if not 1 <= len(correlation_id) <= 100:
        reason = "value length must be between 1 and 100 runes, inclusive"
        raise RefusedError(invalid("correlation_id", "FindRelatedEventsRequest", reason))
    found = world.related(correlation_id, call.token)
    return Reply(b'{"events":[%s]}' % b",".join(found) if found else b"{}")


def lister(kind: Kind) -> Handler:
    """`GET /applications` and the like: what the owner of the key is a collaborator of; an admin sees all.

    A key that belongs to neither user nor organization gets `{}` without a count
    (pkg/identityserver/application_registry.go in v3.32).
    """

    def listed(world: World, call: Call) -> Reply:
        key = as_key(world.keys[call.token]) if call.token is not None else None
        if kind == "user" and not (key and key.admin):
            raise RefusedError(NO_ADMIN)
        if key is None or key.owner.kind not in ("user", "organization"):
            return reply({})
        if key.owner.kind == kind == "organization":
            return reply({})
        if kind != "user":
            _require(world, call, key.owner, f"RIGHT_{key.owner.kind}_{kind}S_LIST".upper())
        found = world.registry.of_kind(kind)
        if not key.admin:
            found = [each for each in found if each.entity in key.on]
        return _page(call, f"{kind}s", found, f"List{kind.capitalize()}sRequest")

    return listed


def devices(world: World, call: Call) -> Reply:
    application = _entity("application", call)
    _require(world, call, application, "RIGHT_APPLICATION_DEVICES_READ")
    found = world.registry.of_application(application.id)
    return _page(call, "end_devices", found, "ListEndDevicesRequest")


def rights_lister(kind: Kind) -> Handler:
    """`GET /applications/{id}/rights` and the like; `{}` where there are none."""

    def rights(world: World, call: Call) -> Reply:
        found = sorted(world.rights_on(call.token, _entity(kind, call)))
        return reply({"rights": found} if found else {})

    return rights


def connection_stats(world: World, call: Call) -> Reply:
    gateway = _entity("gateway", call)
    _require(world, call, gateway, "RIGHT_GATEWAY_STATUS_READ")
    if gateway.id not in world.stats:
        raise RefusedError(not_connected(gateway.id))
    return reply(world.stats[gateway.id])


def batch_connection_stats(world: World, call: Call) -> Reply:
    """One gateway without the right refuses them all; those not connected are left out."""
    asked = _read(call.content, _BatchStats)
    if not 1 <= len(asked.gateway_ids) <= 100:
        reason = "value must contain between 1 and 100 items, inclusive"
        raise RefusedError(invalid("gateway_ids", "BatchGetGatewayConnectionStatsRequest", reason))
    gateways = [Entity("gateway", each.gateway_id) for each in asked.gateway_ids]
    for gateway in gateways:
        _require(world, call, gateway, "RIGHT_GATEWAY_STATUS_READ")
    entries = {each.id: _numbered(world.stats[each.id]) for each in gateways if each.id in world.stats}
    return reply({"entries": entries} if entries else {})


def notifications(world: World, call: Call) -> Reply:
    """Newest first, by offset: what comes in between two pages shifts the second."""
    statuses = [_status(value) for value in call.query.get("status", ())]
    limit, page = _paging(call, "ListNotificationsRequest")
    user = _entity("user", call)
    _require(world, call, user, "RIGHT_USER_NOTIFICATIONS_READ")
    found = world.inbox.listed(user.id, statuses)
    shown = [each.written() for each in found[(page - 1) * limit : page * limit]]
    return reply({"notifications": shown} if shown else {}, len(found))


def update_notifications(world: World, call: Call) -> Reply:
    asked = _read(call.content, _UpdateStatus)
    status = _body_status(asked.status)
    message = "UpdateNotificationStatusRequest"
    if not 1 <= len(asked.ids) <= MOST:
        reason = f"value must contain between 1 and {MOST} items, inclusive"
        raise RefusedError(invalid("ids", message, reason))
    seen: set[str] = set()
    for position, each in enumerate(asked.ids):
        if each in seen:
            reason = "repeated value must contain unique items"
            raise RefusedError(invalid(f"ids[{position}]", message, reason))
        if len(each) != 36:
            raise RefusedError(invalid(f"ids[{position}]", message, "value length must be 36 runes"))
        seen.add(each)
    user = _entity("user", call)
    _require(world, call, user, "RIGHT_USER_NOTIFICATIONS_READ")
    world.mark(user.id, asked.ids, status)
    return reply({})


KINDS: tuple[Kind, ...] = ("application", "gateway", "organization", "user", "client")

ROUTES: tuple[tuple[str, re.Pattern[str], Handler], ...] = tuple(
    (method, re.compile(path.replace("{}", "([^/]+)")), handler)
    for method, path, handler in (
        ("GET", "/auth_info", auth_info),
        ("GET", "/events/related", related),
        *(("GET", f"/{kind}s", lister(kind)) for kind in KINDS),
        *(("GET", f"/{kind}s/{{}}/rights", rights_lister(kind)) for kind in KINDS),
        ("GET", "/applications/{}/devices", devices),
        ("GET", "/gs/gateways/{}/connection/stats", connection_stats),
        ("POST", "/gs/gateways/connection/stats", batch_connection_stats),
        ("GET", "/users/{}/notifications", notifications),
        ("PATCH", "/users/{}/notifications", update_notifications),
    )
)


def find(method: str, path: str) -> tuple[Handler, tuple[str, ...]]:
    """What answers *path*, and the ids in it; raises RefusedError with 404, or 501 for another method."""
    known = [(allowed, match, handler) for allowed, at, handler in ROUTES if (match := at.fullmatch(path))]
    for allowed, match, handler in known:
        if allowed == method:
            return handler, tuple(map(unquote, match.groups()))
    raise RefusedError(METHOD_NOT_ALLOWED if known or path == "/events" else NOT_FOUND)


class _GatewayId(msgspec.Struct):
    gateway_id: str = ""


class _BatchStats(msgspec.Struct):
    gateway_ids: tuple[_GatewayId, ...] = ()


class _UpdateStatus(msgspec.Struct):
    ids: tuple[str, ...] = ()
    status: str | int = 0


def _read(content: bytes, into: type[Any]) -> Any:
    try:
        return msgspec.json.decode(content or b"{}", type=into)
    except msgspec.ValidationError as error:
        raise RefusedError(Malformed(3, f"unmarshal error: {error}")) from None
    except msgspec.DecodeError as error:
        truncated = "truncated" in str(error)
        raise RefusedError(UNEXPECTED_EOF if truncated else Malformed(3, "invalid JSON")) from None


def _require(world: World, call: Call, entity: Entity, right: str) -> None:
    """Raise RefusedError as `RequireApplication` and its like do (pkg/auth/rights/require.go in v3.32)."""
    granted = world.rights_on(call.token, entity)
    if not granted:
        raise RefusedError(no_rights(parent(entity)))
    if right not in implied(granted):
        raise RefusedError(insufficient_rights(parent(entity), [right]))


def _entity(kind: Kind, call: Call) -> Entity:
    problem = invalid_id(f"{kind}_id", kind.capitalize(), call.ids[0])
    if problem is not None:
        raise RefusedError(problem)
    return Entity(kind, call.ids[0])


def _page(call: Call, name: str, found: Sequence[Kept], message: str) -> Reply:
    limit, page = _paging(call, message)
    paths = [
        path
        for parameter in ("field_mask", "field_mask.paths", "fieldMask")
        for value in call.query.get(parameter, ())
        for path in value.split(",")
    ]
    shown = ordered(found, _one(call, "order"))[(page - 1) * limit : page * limit]
    return reply({name: [each.written(paths) for each in shown]} if shown else {}, len(found))


def _paging(call: Call, message: str) -> tuple[int, int]:
    """The limit and the page, from 1."""
    limit, page = _number(call, "limit"), _number(call, "page")
    if limit > MOST:
        raise RefusedError(invalid("limit", message, f"value must be less than or equal to {MOST}"))
    return limit or DEFAULT_LIMIT, page or 1


def _number(call: Call, name: str) -> int:
    text = _one(call, name)
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 32):
        raise RefusedError(bad_number(name, text))
    return int(text)


def _one(call: Call, name: str) -> str:
    return next(iter(call.query.get(name, ())), "")


def _status(value: str) -> Status:
    """Only the full name or the number, in a query (grpc-gateway v2.22.0, runtime/query.go)."""
    names = {PREFIX + each: each for each in STATUSES} | {str(i): each for i, each in enumerate(STATUSES)}
    if value not in names:
        raise RefusedError(bad_choice("status", value))
    return names[value]


def _body_status(value: str | int) -> Status:
    """In a body the name without its prefix is taken as well."""
    text = str(value)
    try:
        return _status(text if text.isdigit() or text.startswith(PREFIX) else PREFIX + text)
    except RefusedError:
        reason = f"unmarshal error: unknown value {msgspec.json.encode(value).decode()} for enum"
        raise RefusedError(Malformed(3, reason)) from None


LOCATION_SOURCES = (
    "UNKNOWN",
    "GPS",
    "REGISTRY",
    "IP_GEOLOCATION",
    "WIFI_RSSI_GEOLOCATION",
    "BT_RSSI_GEOLOCATION",
)


def _numbered(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Inside a map the generated marshaler is not used, and enums come out as numbers (lists.json)."""
    numbers = {f"SOURCE_{name}": number for number, name in enumerate(LOCATION_SOURCES)}

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                name: numbers.get(each, each) if name == "source" else plain(each)
                for name, each in value.items()
            }
        return [plain(each) for each in value] if isinstance(value, list) else value

    found: dict[str, Any] = plain(stats)
    return found
