"""What a client asks for: the body of `POST /api/v3/events`, checked.  No I/O, no clock in this file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any

import msgspec
import re2

from bridge.event import Entity, Identifiers, entity_of, nanoseconds
from bridge.standin.problems import (
    INVALID_REGEXP,
    NO_IDENTIFIERS,
    UNEXPECTED_EOF,
    Malformed,
    Problem,
    RefusedError,
    invalid,
    no_matching_events,
    unknown_event,
)

TIME_LAYOUT = "2006-01-02T15:04:05.999999999Z"
ID_LIMIT = 36  # characters
EMBEDDED = "embedded message failed validation"

_QUIET = re2.Options()
_QUIET.log_errors = False


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """*tail* in events, *after* in ns since 1970; *names* expanded and sorted, None for all events."""

    identifiers: tuple[Identifiers, ...]
    tail: int
    after: int | None
    names: tuple[str, ...] | None

    @property
    def entities(self) -> tuple[Entity, ...]:
        """What the stream is about, without repeats."""
        found = (entity_of(each) for each in self.identifiers)
        return tuple(dict.fromkeys(entity for entity in found if entity is not None))

    def wants(self, name: str) -> bool:
        """No names means all but `gcs.managed.*` (`matchingStreams`, pkg/events/mux/mux.go in v3.32)."""
        return not name.startswith("gcs.managed.") if self.names is None else name in self.names


class Asked(msgspec.Struct):
    """The body as it came, decoded and not yet checked; *after* in RFC 3339."""

    identifiers: tuple[Identifiers, ...] = ()
    tail: int = 0
    after: str | None = None
    names: tuple[str, ...] = ()


class Defined(msgspec.Struct, frozen=True):
    """What this server knows of an event name: the rights to see it, and whether applications carry it."""

    name: str
    rights: tuple[str, ...] = ()
    propagates_to_application: bool = False


def definitions() -> Mapping[str, Defined]:
    """The event names of this server."""
    text = files("bridge").joinpath("share", "tts_event_names.json").read_bytes()
    return {each.name: each for each in msgspec.json.decode(text, type=list[Defined])}


def event_names() -> Mapping[str, bool]:
    """The names this server defines, each with whether an application stream carries it."""
    return {name: each.propagates_to_application for name, each in definitions().items()}


def read(body: bytes) -> Asked:
    """What the JSON *body* asks; raises RefusedError as grpc-gateway does, before any call is made.

    Unknown fields are ignored; snake_case and camelCase are both accepted, `tail` also as a string.
    """
    if not body:
        return Asked()
    try:
        asked = msgspec.convert(_snake_case(msgspec.json.decode(body)), Asked, strict=False)
    except msgspec.ValidationError as error:
        raise RefusedError(Malformed(3, f"unmarshal error: {error}")) from None
    except msgspec.DecodeError as error:
        truncated = "truncated" in str(error)
        raise RefusedError(UNEXPECTED_EOF if truncated else Malformed(3, "invalid JSON")) from None
    if asked.tail < 0:
        raise RefusedError(Malformed(3, "unmarshal error: invalid uint32"))
    if asked.after is not None:
        _time(asked.after)
    return asked


def resolve(asked: Asked, known: Mapping[str, bool]) -> StreamRequest:
    """The request *asked* for, or RefusedError with what the call answers: identifiers first, then names."""
    for position, each in enumerate(asked.identifiers):
        problem = invalid_identifiers(each)
        if problem is not None:
            raise RefusedError(invalid(f"identifiers[{position}]", "StreamEventsRequest", EMBEDDED, problem))
    if not asked.identifiers:
        raise RefusedError(NO_IDENTIFIERS)
    after = None if asked.after is None else _time(asked.after)
    return StreamRequest(asked.identifiers, asked.tail, after, expand(asked.names, known))


def _snake_case(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            re.sub(r"(?<=[a-z0-9])[A-Z]", lambda upper: f"_{upper[0].lower()}", key): _snake_case(each)
            for key, each in value.items()
            if each is not None
        }
    return [_snake_case(each) for each in value] if isinstance(value, list) else value


def _time(text: str) -> int:
    """*text* in ns since 1970. Go's layout ends in a literal Z: no other offset is taken."""
    try:
        if not text.endswith("Z"):
            raise ValueError
        datetime.fromisoformat(text.partition(".")[0].rstrip("Z"))
        return nanoseconds(text)
    except ValueError:
        reason = f'parsing time "{text}" as "{TIME_LAYOUT}": cannot parse "{text}" as "2006"'
        raise RefusedError(Malformed(3, f"unmarshal error: invalid time: {reason}")) from None


def expand(names: Sequence[str], known: Mapping[str, bool]) -> tuple[str, ...] | None:
    """*names* as the sorted list of defined names (`processNames`, pkg/events/grpc/grpc.go in v3.32).

    A value between slashes is an unanchored RE2 expression; all slashes at its ends go.
    """
    found: set[str] = set()
    for name in names:
        if name.startswith("/") and name.endswith("/"):
            found |= _matching(name.strip("/"), known)
        elif name in known:
            found.add(name)
        else:
            raise RefusedError(unknown_event(name))
    return tuple(sorted(found)) or None


def _matching(regexp: str, known: Mapping[str, bool]) -> set[str]:
    try:
        compiled = re2.compile(regexp, _QUIET)
    except re2.error:
        raise RefusedError(INVALID_REGEXP) from None
    found = {name for name in known if compiled.search(name)}
    if not found:
        raise RefusedError(no_matching_events(regexp))
    return found


def invalid_identifiers(ids: Identifiers) -> Problem | None:
    """What protoc-gen-validate says of one entry of `identifiers`, or None (identifiers.proto, v3.32)."""
    if ids.device_ids is not None:
        device = ids.device_ids
        problem = invalid_id("application_id", "Application", device.application_ids.application_id)
        if problem is not None:
            problem = invalid("application_ids", "EndDeviceIdentifiers", EMBEDDED, problem)
        problem = problem or invalid_id("device_id", "EndDevice", device.device_id)
        return invalid("device_ids", "EntityIdentifiers", EMBEDDED, problem) if problem else None
    entity = entity_of(ids)
    if entity is None:
        return invalid("ids", "EntityIdentifiers", "value is required")
    problem = invalid_id(f"{entity.kind}_id", entity.kind.capitalize(), entity.id)
    return invalid(f"{entity.kind}_ids", "EntityIdentifiers", EMBEDDED, problem) if problem else None


def invalid_id(field: str, message: str, value: str) -> Problem | None:
    """What is wrong with *value* as the id in *field* of the identifiers of *message*, or None."""
    least = 1 if field == "user_id" else 2
    pattern = f"^[a-z0-9](?:[-]?[a-z0-9]){{{least},}}$"
    if len(value) > ID_LIMIT:
        reason = f"value length must be at most {ID_LIMIT} runes"
    elif not re.fullmatch(pattern[1:-1], value):
        reason = f'value does not match regex pattern "{pattern}"'
    else:
        return None
    return invalid(field, f"{message}Identifiers", reason)
