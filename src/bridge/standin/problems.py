"""What the server refuses, and how it says so.  No I/O, no clock in this file.

The texts are those of tests/data/recorded/errors.json (v3.32.1). Two shapes leave the server: what
grpc-gateway refuses itself is flat, `{"code":3,"message":"…"}`; what a call refuses is flat with `details`
if the call is unary and wrapped, `{"error":{…}}`, if it is a stream.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from bridge.event import Entity
from bridge.ids import error_id

HTTP_STATUS = {
    1: 499,
    2: 500,
    3: 400,
    4: 504,
    5: 404,
    6: 409,
    7: 403,
    8: 429,
    9: 400,
    10: 409,
    11: 400,
    12: 501,
    13: 500,
    14: 503,
    15: 500,
    16: 401,
}
"""The HTTP status of a gRPC code (grpc-gateway v2.22.0, runtime/errors.go)."""

ERROR_DETAILS = "type.googleapis.com/ttn.lorawan.v3.ErrorDetails"


@dataclass(frozen=True, slots=True)
class Problem:
    """One `ErrorDetails`; *text* is its message format, *code* a gRPC code."""

    code: int
    namespace: str
    name: str
    text: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    cause: Problem | None = None

    @property
    def message(self) -> str:
        text = self.text
        for key, value in self.attributes.items():
            text = text.replace(f"{{{key}}}", str(value))
        return f"error:{self.namespace or 'unknown'}:{self.name or 'unknown'} ({text})"

    def details(self, rng: random.Random) -> dict[str, Any]:
        """The JSON object, in the order in which the server writes it; zero values are left out."""
        written = {
            "namespace": self.namespace,
            "name": self.name,
            "message_format": self.text,
            "attributes": dict(sorted(self.attributes.items())),
            "correlation_id": error_id(rng),
            "cause": self.cause.details(rng) if self.cause else None,
            "code": self.code,
        }
        return {key: value for key, value in written.items() if value}


@dataclass(frozen=True, slots=True)
class Malformed:
    """What grpc-gateway refuses before any call is made: no details, and never wrapped."""

    code: int
    message: str
    details: tuple[Any, ...] | None = None


class RefusedError(Exception):
    """The request is answered with *why* instead of what it asked for.

    *status* is the HTTP status, by default that of the code; *headers* come on top of the usual ones.
    """

    def __init__(
        self, why: Problem | Malformed, status: int = 0, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(why.message)
        self.why = why
        self.status = status or HTTP_STATUS[why.code]
        self.headers = headers or {}


def status_object(why: Problem | Malformed, rng: random.Random) -> dict[str, Any]:
    """The `google.rpc.Status` of *why* as JSON."""
    written: dict[str, Any] = {"code": why.code, "message": why.message}
    if isinstance(why, Problem):
        written["details"] = [{"@type": ERROR_DETAILS} | why.details(rng)]
    elif why.details is not None:
        written["details"] = list(why.details)
    return written


def flat(why: Problem | Malformed, rng: random.Random) -> bytes:
    return msgspec.json.encode(status_object(why, rng))


def wrapped(why: Problem, rng: random.Random) -> bytes:
    return msgspec.json.encode({"error": status_object(why, rng)})


NOT_FOUND = Malformed(5, "Not Found", ())
METHOD_NOT_ALLOWED = Malformed(12, "Method Not Allowed")
UNEXPECTED_EOF = Malformed(3, "unexpected EOF")

EXPIRED_KEY = Problem(16, "pkg/identityserver", "api_key_expired", "API key expired")
NO_ADMIN = Problem(7, "pkg/auth/rights", "no_admin", "no admin")
NO_IDENTIFIERS = Problem(3, "pkg/events/grpc", "no_identifiers", "no identifiers")
INVALID_REGEXP = Problem(3, "pkg/events", "invalid_regexp", "invalid regexp")
INVALID_TOKEN = Problem(3, "pkg/auth", "token", "invalid token")
STORAGE_DISABLED = Problem(
    9,
    "pkg/events/grpc",
    "storage_disabled",
    "events storage is not not enabled",  # sic
)
STOPPING = Problem(1, "", "", "grpc: the client connection is closing")
STORE = Problem(2, "pkg/redis", "store", "store error")
NO_IDENTITY_SERVER = Problem(
    14, "pkg/auth/rights", "no_identity_server_conn", "no connection to Identity Server"
)


def unknown_event(name: str) -> Problem:
    return Problem(3, "pkg/events", "unknown_event_name", "unknown event `{name}`", {"name": name})


def no_matching_events(regexp: str) -> Problem:
    text = "no matching events for regexp `{regexp}`"
    return Problem(3, "pkg/events", "no_matching_events", text, {"regexp": regexp})


def unknown_key(key_id: str) -> Problem:
    name = "api_key_not_found"
    cause = Problem(
        5,
        "pkg/identityserver/store",
        name,
        "api key with id `{api_key_id}` not found",
        {"api_key_id": key_id},
    )
    return Problem(16, "pkg/identityserver", name, "API key not found", cause=cause)


def no_rights(entity: Entity) -> Problem:
    """Also what a deleted or unknown entity looks like to anybody who is no admin."""
    text = f"no rights for {entity.kind} `{{uid}}`"
    return Problem(7, "pkg/auth/rights", f"no_{entity.kind}_rights", text, {"uid": entity.id})


def insufficient_rights(entity: Entity, missing: Iterable[str]) -> Problem:
    name = f"insufficient_{entity.kind}_rights"
    text = f"insufficient rights for {entity.kind} `{{uid}}`"
    attributes = {"missing": list(missing), "uid": entity.id}
    return Problem(7, "pkg/auth/rights", name, text, attributes)


def not_connected(gateway: str) -> Problem:
    attributes = {"gateway_uid": gateway}
    return Problem(
        5, "pkg/gatewayserver", "not_connected", "gateway `{gateway_uid}` not connected", attributes
    )


def bad_number(field_name: str, value: str) -> Malformed:
    """A query parameter that is no uint32 (grpc-gateway v2.22.0, runtime/query.go)."""
    reason = f'strconv.ParseUint: parsing "{value}": invalid syntax'
    return Malformed(3, f'parsing field "{field_name}": {reason}')


def bad_choice(field_name: str, value: str) -> Malformed:
    """A query parameter that is no value of its enum; only its full name or its number is."""
    return Malformed(3, f'parsing list "{field_name}": "{value}" is not a valid value')


def not_found(entity: Entity) -> Problem:
    """What an unknown entity looks like to an admin."""
    key = f"{entity.kind}_id"
    text = f"{entity.kind} with id `{{{key}}}` not found"
    return Problem(5, "pkg/identityserver/store", f"{entity.kind}_not_found", text, {key: entity.id})


def rate_limited(rate: int, key_id: str) -> Problem:
    key = f"grpc:stream:accept:/ttn.lorawan.v3.Events/Stream:token:{key_id}"
    text = "rate limit of `{rate}` accesses per minute exceeded for resource `{key}`"
    return Problem(8, "pkg/ratelimit", "rate_limit_exceeded", text, {"rate": rate, "key": key})


def invalid(field_name: str, message: str, reason: str, cause: Problem | None = None) -> Problem:
    """A field that protoc-gen-validate refuses; *message* is the protobuf message it stands in."""
    attributes = {"field": field_name, "name": f"{message}ValidationError", "reason": reason}
    return Problem(3, "pkg/errors", "validation", "invalid `{field}`: {reason}", attributes, cause)
