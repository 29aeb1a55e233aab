"""What waits and what is dead as JSON lines, one event a line.  No I/O, no clock in this file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import msgspec

from bridge.delivery import Reason


class ExportedDelivery(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One delivery, or with state `dead` one dead letter; times in unix seconds."""

    rule: str
    sink: str
    state: Literal["waiting", "dead"] = "waiting"
    order_key: str | None = None
    attempt: int = 1
    due: float | None = None
    error: str = ""
    reason: str = ""
    first: float | None = None
    last: float | None = None
    status: int | None = None
    response: str = ""


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """One event; *event* is the JSON as it is stored."""

    unique_id: str
    source: str
    received: float
    deliveries: tuple[ExportedDelivery, ...]
    event: msgspec.Raw

    @classmethod
    def of(
        cls,
        unique_id: str,
        source: str,
        received: float,
        body: bytes,
        deliveries: Iterable[ExportedDelivery],
    ) -> Exported:
        return cls(
            unique_id=unique_id,
            source=source,
            received=received,
            deliveries=tuple(deliveries),
            event=msgspec.Raw(one_line(body)),
        )

    def distinct(self) -> tuple[ExportedDelivery, ...]:
        """One a rule and sink, as they are stored."""
        return tuple({(each.rule, each.sink): each for each in self.deliveries}.values())


def one_line(body: bytes) -> bytes:
    """*body* without line ends: inside JSON they are only ever white space."""
    return body if b"\n" not in body and b"\r" not in body else msgspec.json.format(body, indent=-1)


def to_line(exported: Exported) -> bytes:
    return msgspec.json.encode(exported) + b"\n"


def from_line(line: bytes) -> Exported:
    """Raises ValueError that says what is wrong, without repeating what is in the line."""
    try:
        found = msgspec.json.decode(line, type=Exported)
        msgspec.json.decode(found.event, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError as error:
        raise ValueError(f"is no line of `bridge queue export`: {error}") from None
    for each in found.deliveries:
        if each.state == "dead" and each.reason not in get_args(Reason):
            raise ValueError("is no line of `bridge queue export`: a dead letter without a known reason")
    return found
