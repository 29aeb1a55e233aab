"""Single questions to The Things Stack: the key, rights, lists, connection statistics, notifications.

Every call raises SourceError (*refused* for 401 and 403, *rejected* for other 4xx, *rate_limited*,
*transient*) and nothing else. Whoever can do without the answer catches it: a side call that fails never
keeps a stream from opening (DESIGN.md §2.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from bridge.errors import SourceError
from bridge.event import Entity, Identifiers, Kind, entity_of, nanoseconds
from bridge.sources.http import CONNECT, answer_error, plain

PAGE = 1000  # entries of a list asked for at once; the server's own limit
SECOND = 1_000_000_000  # ns

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AuthInfo:
    """What the server knows of the key."""

    server_ns: int | None
    """The server's clock in ns since 1970, to the second; None where the transport does not tell."""
    owner: Entity | None
    """Whose key it is: an application key is good for that application only."""
    rights: frozenset[str]
    """The key's own and the universal ones."""
    is_admin: bool = False
    expires_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list; *total* entries on all pages, 0 where the server did not say."""

    entities: tuple[Entity, ...]
    total: int


@dataclass(frozen=True, slots=True)
class Notifications:
    """One page, newest first, each notification as the JSON bytes it came in; *total* on all pages."""

    items: tuple[bytes, ...]
    total: int


class Api(Protocol):
    """What is asked beside the streams."""

    async def auth_info(self) -> AuthInfo: ...

    async def rights(self, entity: Entity) -> frozenset[str]:
        """The key's rights on *entity* (a device: on its application)."""
        ...

    async def listed(self, kind: Kind, application: str = "", *, page: int = 1, limit: int = PAGE) -> Page:
        """What of *kind* the key can see, *page* from 1; devices are those of *application*.

        Only in the lists of user and organization keys: with others they are empty (lists.json).
        """
        ...

    async def connection_stats(self, gateways: Sequence[str]) -> dict[str, bytes]:
        """Gateway to `GatewayConnectionStats` as JSON; one that is not connected is left out."""
        ...

    async def related(self, correlation_id: str) -> tuple[bytes, ...]:
        """The stored events of *correlation_id* as JSON, newest first; *rejected* without a store."""
        ...

    async def notifications(
        self, user: str, *, status: Sequence[str] = (), page: int = 1, limit: int = PAGE
    ) -> Notifications:
        """*status* such as `NOTIFICATION_STATUS_UNSEEN`, empty for all; *page* from 1."""
        ...

    async def mark_notifications(self, user: str, ids: Sequence[str], status: str) -> None:
        """Set the status of up to 1,000 notifications, for this user only."""
        ...


class HttpApi:
    """`Api` over the client of `http_client`."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def auth_info(self) -> AuthInfo:
        response = await self._ask("GET", "auth_info")
        return auth_info(response.content, date_ns(response.headers.get("Date")))

    async def rights(self, entity: Entity) -> frozenset[str]:
        kind, id = ("application", entity.id.partition("/")[0]) if entity.kind == "device" else entity
        response = await self._ask("GET", f"{kind}s/{quote(id)}/rights")
        return frozenset(_decoded(response.content, _Rights).rights)

    async def listed(self, kind: Kind, application: str = "", *, page: int = 1, limit: int = PAGE) -> Page:
        path = f"applications/{quote(application)}/devices" if kind == "device" else f"{kind}s"
        response = await self._ask("GET", path, params={"limit": limit, "page": page})
        return Page(listed(response.content, kind), _total(response.headers))

    async def connection_stats(self, gateways: Sequence[str]) -> dict[str, bytes]:
        body = {"gateway_ids": [{"gateway_id": each} for each in gateways]}
        response = await self._ask("POST", "gs/gateways/connection/stats", json=body)
        return {id: bytes(raw) for id, raw in _decoded(response.content, _Stats).entries.items()}

    async def related(self, correlation_id: str) -> tuple[bytes, ...]:
        response = await self._ask("GET", "events/related", params={"correlation_id": correlation_id})
        return tuple(bytes(raw) for raw in _decoded(response.content, _Related).events)

    async def notifications(
        self, user: str, *, status: Sequence[str] = (), page: int = 1, limit: int = PAGE
    ) -> Notifications:
        params = {"status": list(status), "limit": limit, "page": page}
        response = await self._ask("GET", f"users/{quote(user)}/notifications", params=params)
        items = _decoded(response.content, _Notifications).notifications
        return Notifications(tuple(bytes(raw) for raw in items), _total(response.headers))

    async def mark_notifications(self, user: str, ids: Sequence[str], status: str) -> None:
        body = {"ids": list(ids), "status": status}
        await self._ask("PATCH", f"users/{quote(user)}/notifications", json=body)

    async def _ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            response = await self._client.request(method, path, timeout=CONNECT, **request)
        except httpx.HTTPError as error:
            raise SourceError(f"cannot reach the server: {plain(error)}") from None
        if response.status_code != 200:
            raise answer_error(response.status_code, response.content, response.headers)
        return response


class _Rights(msgspec.Struct, frozen=True):
    rights: tuple[str, ...] = ()


class _Key(msgspec.Struct, frozen=True):
    rights: tuple[str, ...] = ()
    expires_at: str = ""


class _ApiKey(msgspec.Struct, frozen=True):
    api_key: _Key = _Key()
    entity_ids: Identifiers = Identifiers()


class _Token(msgspec.Struct):
    user_ids: msgspec.Raw = msgspec.Raw(b"{}")
    rights: tuple[str, ...] = ()
    expires_at: str = ""


class _AuthInfo(msgspec.Struct):
    api_key: _ApiKey | None = None
    oauth_access_token: _Token | None = None
    universal_rights: _Rights = _Rights()
    is_admin: bool = False


class _Stats(msgspec.Struct):
    entries: dict[str, msgspec.Raw] = {}


class _Related(msgspec.Struct):
    events: tuple[msgspec.Raw, ...] = ()


class _Notifications(msgspec.Struct):
    notifications: tuple[msgspec.Raw, ...] = ()


class _Listed(msgspec.Struct):
    ids: msgspec.Raw = msgspec.Raw(b"{}")


def _decoded(body: bytes, shape: type[T]) -> T:
    """*body* as *shape*; an answer of another shape is no Things Stack's."""
    try:
        return msgspec.json.decode(body or b"{}", type=shape)
    except msgspec.DecodeError:
        raise SourceError("the server's answer is not of The Things Stack") from None


def auth_info(body: bytes, server_ns: int | None) -> AuthInfo:
    """The body of `GET /auth_info`; raises SourceError."""
    read = _decoded(body, _AuthInfo)
    universal = frozenset(read.universal_rights.rights)
    if read.api_key is not None:
        key = read.api_key.api_key
        owner = entity_of(read.api_key.entity_ids)
        return AuthInfo(
            server_ns, owner, universal | set(key.rights), read.is_admin, _instant(key.expires_at)
        )
    if read.oauth_access_token is not None:
        token = read.oauth_access_token
        owner = entity_of(_decoded(b'{"user_ids":%s}' % bytes(token.user_ids), Identifiers))
        rights = universal | set(token.rights)
        return AuthInfo(server_ns, owner, rights, read.is_admin, _instant(token.expires_at))
    return AuthInfo(server_ns, None, universal, read.is_admin)


def listed(body: bytes, kind: Kind) -> tuple[Entity, ...]:
    """The entities of one page of a list of *kind*: `{"gateways":[{"ids":{…}}]}`, `{}` when empty."""
    field = "end_devices" if kind == "device" else f"{kind}s"
    entries = _decoded(body, dict[str, msgspec.Raw]).get(field, msgspec.Raw(b"[]"))
    found = (
        entity_of(_decoded(b'{"%s_ids":%s}' % (kind.encode(), bytes(each.ids)), Identifiers))
        for each in _decoded(bytes(entries), tuple[_Listed, ...])
    )
    return tuple(entity for entity in found if entity is not None)


def _total(headers: Mapping[str, str]) -> int:
    text = headers.get("X-Total-Count", "")
    return int(text) if text.isascii() and text.isdigit() else 0


def _instant(text: str) -> int | None:
    try:
        return nanoseconds(text) if text else None
    except (ValueError, OverflowError):
        return None


def date_ns(header: str | None) -> int | None:
    """A `Date` header in ns since 1970; None if there is none that can be read."""
    try:
        return int(parsedate_to_datetime(header or "").timestamp()) * SECOND
    except ValueError:
        return None
