"""Bytes of a message to its JSON value.  No I/O in this file.

Reading follows a plan for each message, made once from the table: a tag, as it stands on the wire, leads to
the field's name and to what makes its value. Unknown fields are skipped, as protobuf asks; of a field of one
value that comes twice the last counts.
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from bridge.errors import FrameError
from bridge.proto.kinds import WELL_KNOWN, ZEROS, Make, fields, packed, scalar
from bridge.proto.table import LEN, VARINT, Field, Message, Table, tag
from bridge.proto.table import table as known_table

Json: TypeAlias = Any

ANY = "google.protobuf.Any"
TYPE_URL, VALUE = 1 << 3 | LEN, 2 << 3 | LEN  # tags of Any
SINGLE, KEPT, REPEATED, MAP, PACKED = range(5)
"""What becomes of a value: SINGLE is left out when zero; KEPT (a message, a oneof's member) is shown."""


@dataclass(slots=True)
class Plan:
    """How one message is read: tag to name, mode, maker; *order* is that of the JSON, if not by number."""

    fields: dict[int, tuple[str, int, Make]] = field(default_factory=dict)
    order: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rendering:
    """A JSON value, and the types in it that the table does not cover: their bytes are passed as base64."""

    value: dict[str, Json]
    opaque: tuple[str, ...] = ()


class Reader:
    """Renders messages; one at a time."""

    def __init__(self, table: Table | None = None) -> None:
        self._table = table or known_table()
        self._plans: dict[str, Plan] = {}
        self._opaque: list[str] = []

    def render(self, message: str, data: bytes) -> Rendering:
        """The JSON of *data*, a *message* by its full name; raises FrameError and nothing else."""
        self._opaque = []
        try:
            value = self._message(self._plan(message), data, 0, len(data))
        except (IndexError, UnicodeDecodeError, RecursionError, struct.error):
            raise FrameError(f"not a {message}") from None
        return Rendering(value, tuple(self._opaque))

    def _message(self, plan: Plan, data: bytes, at: int, end: int) -> dict[str, Json]:
        found: dict[str, Json] = {}
        known = plan.fields
        for key, wire_type, begin, stop in fields(data, at, end):
            if key not in known:
                continue
            name, mode, make = known[key]
            if mode == SINGLE and _is_zero(wire_type, data, begin, stop):
                found.pop(name, None)
                continue
            value = make(data, begin, stop)
            if mode <= KEPT:
                found[name] = value
            elif mode == REPEATED:
                found.setdefault(name, []).append(value)
            elif mode == MAP:
                found.setdefault(name, {})[value[0]] = value[1]
            else:
                found.setdefault(name, []).extend(value)
        if plan.order and len(found) > 1:
            return {name: found[name] for name in plan.order if name in found}
        return found

    def _any(self, data: bytes, at: int, end: int) -> dict[str, Json]:
        """`Any`, `@type` first. What is not covered, or not as this version knows it, keeps its bytes."""
        url, value = "", b""
        for key, _, begin, stop in fields(data, at, end):
            if key == TYPE_URL:
                url = data[begin:stop].decode()
            elif key == VALUE:
                value = data[begin:stop]
        name = url.rpartition("/")[2]
        before = len(self._opaque)
        try:
            if name in self._table.messages:
                return {"@type": url} | self._message(self._plan(name), value, 0, len(value))
            if name == ANY or name in WELL_KNOWN:
                return {"@type": url, "value": self._nested(name)(value, 0, len(value))}
        except (FrameError, IndexError, UnicodeDecodeError, struct.error):
            del self._opaque[before:]
        self._opaque.append(name)
        return {"@type": url, "value": base64.b64encode(value).decode()}

    def _plan(self, name: str) -> Plan:
        plan = self._plans.get(name)
        if plan is None:
            plan = self._plans[name] = Plan()  # before its fields: ErrorDetails has itself as its cause
            message = self._table.messages[name]
            for each in message.fields:
                self._add(plan, each)
            numbers = [each.number for each in message.fields]
            if numbers != sorted(numbers):
                plan.order = tuple(each.name for each in message.fields)
        return plan

    def _add(self, plan: Plan, each: Field) -> None:
        nested = self._table.messages.get(each.of)
        if nested and nested.map_entry:
            plan.fields[tag(each)] = (each.name, MAP, self._entry(each.of, nested))
            return
        make = self._nested(each.of) if each.type == "message" else scalar(each, self._table.enums)
        single = KEPT if each.type == "message" or each.oneof else SINGLE
        plan.fields[tag(each)] = (each.name, REPEATED if each.repeated else single, make)
        if each.repeated and each.wire_type != LEN:
            plan.fields[each.number << 3 | LEN] = (each.name, PACKED, packed(each.wire_type, make))

    def _nested(self, name: str) -> Make:
        if name == ANY:
            return self._any
        if name in WELL_KNOWN:
            return WELL_KNOWN[name]
        plan, read = self._plan(name), self._message
        return lambda data, at, end: read(plan, data, at, end)

    def _entry(self, name: str, message: Message) -> Make:
        """A map's entry as key and value; zeros are not on the wire and still shown."""
        plan, read = self._plan(name), self._message
        value = message.fields[1]
        zero = None if value.type == "message" else ZEROS.get(value.type, 0)

        def entry(data: bytes, at: int, end: int) -> tuple[str, Json]:
            found = read(plan, data, at, end)
            return found.get("key", ""), found.get("value", {} if zero is None else zero)

        return entry


def _is_zero(wire_type: int, data: bytes, begin: int, stop: int) -> bool:
    """Zero, false or empty: what is at its default is not shown. So is -0.0, which `!= 0` hides in Go."""
    if wire_type == LEN:
        return begin == stop
    if wire_type == VARINT:
        return data[begin] == 0
    return data[stop - 1] in (0, 0x80) and not any(data[begin : stop - 1])
