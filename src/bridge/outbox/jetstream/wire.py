"""Subjects, and what the messages on them say.  No I/O, no clock in this file.

    <stream>.events.<hash of unique_id>                 one event, its body, and what the rules want of it
    <stream>.deliveries.<sink>.<order>.<notification>.<event>.<n>   one delivery that waits
    <stream>.settled.<sink>.<event>.<n>                 what was decided about it, newest last
    <stream>.attempts.<sink>.<event>.<n>                attempts that were made, newest last
    <stream>.dead.<sink>.<event>.<n>                    a dead letter
    <stream>.sights.<partition>                         what alerts see of events, and how far readers are

<event> is the sequence number of the event's message, <n> which of its deliveries it is: together the row
`event << 20 | n`, as in the SQLite store. A message's own JSON is in the header `Bridge`, in ASCII, so that
it can be read without the body; the body is the event's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias, TypeVar

import msgspec

from bridge.ids import digest
from bridge.outbox.transactions import ROUTE_BITS

HEADER = "Bridge"
NONE = "-"  # the token of no order key, or no notification

Decided: TypeAlias = Literal["delivered", "dead", "dropped", "waiting"]


class Wanted(msgspec.Struct, frozen=True, array_like=True):
    """One route of an event."""

    rule: str
    sink: str
    order_key: str | None = None
    supersedes: str | None = None


class Taken(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event that was taken in; *by* names the replica that counts it, *received* in unix seconds."""

    unique_id: str
    source: str
    name: str
    received: float
    by: str
    routes: tuple[Wanted, ...] = ()
    too_large: int = 0
    """Bytes of an event that is more than a message may be: it is kept without its data, and not sent."""


class Waits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A delivery that waits, as of its last attempt; *due* None: when it was received.

    *decision*: sequence number of the last thing decided about it, 0 for none.
    """

    unique_id: str
    source: str
    received: float
    rule: str
    sink: str
    order_key: str | None = None
    supersedes: str | None = None
    attempt: int = 1
    due: float | None = None
    tried_since: float | None = None
    first: float | None = None
    error: str = ""
    decision: int = 0

    @property
    def due_at(self) -> float:
        return self.received if self.due is None else self.due


class Decision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a delivery, *at* unix seconds, counted by the replica *by*; *was* it a dead letter?"""

    state: Decided
    by: str
    at: float
    rule: str
    sink: str
    was_dead: bool = False
    tried: bool = False
    """Attempts of it are kept."""
    reason: str = ""
    attempts: int = 0
    first: float = 0.0
    last: float = 0.0
    status: int | None = None
    error: str = ""
    response: str = ""

    def moves(self) -> dict[str, int]:
        """By how much it moves the sink's totals."""
        match self.state:
            case "delivered":
                return {"delivered": 1, "waiting": -1}
            case "dead":
                return {"dead": 1, "died": 1, "waiting": -1}
            case "waiting":
                return {"dead": -1, "waiting": 1}
            case "dropped":
                return {"dropped": 1, ("dead" if self.was_dead else "waiting"): -1}


class Letter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A dead letter: the delivery as it waited, why it is one, and which decision made it one."""

    waits: Waits
    name: str
    decision: int
    reason: str
    attempts: int
    first: float
    last: float
    status: int | None = None
    error: str = ""
    response: str = ""


T = TypeVar("T")


def header(what: object) -> dict[str, str]:
    """Raises UnicodeEncodeError for text that is none."""
    text = msgspec.json.encode(what).decode()
    return {HEADER: text if text.isascii() else json.dumps(json.loads(text), separators=(",", ":"))}


def read(headers: Mapping[str, str] | None, kind: type[T]) -> T:
    """Raises msgspec.DecodeError for a message that is none of ours."""
    return msgspec.json.decode((headers or {}).get(HEADER, "").encode(), type=kind)


def token(text: str) -> str:
    """A subject's token for any text."""
    return digest(text)


def sink_token(sink: str) -> str:
    """A sink's name may have dots, which part tokens; no name has a slash."""
    return sink.replace(".", "/")


def sink_of(text: str) -> str:
    return text.replace("/", ".")


class Place(NamedTuple):
    """Where a delivery is kept: its sink, and its event's number and its own."""

    sink: str
    event: int
    n: int

    @property
    def row(self) -> int:
        return self.event << ROUTE_BITS | self.n

    @property
    def tail(self) -> str:
        return f"{sink_token(self.sink)}.{self.event}.{self.n}"

    @classmethod
    def at(cls, sink: str, row: int) -> Place:
        return cls(sink, row >> ROUTE_BITS, row & ((1 << ROUTE_BITS) - 1))


class Subjects:
    """The subjects under one *prefix*."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def stream(self, kind: str) -> str:
        return f"{self.prefix}-{kind}"

    def event(self, unique_id: str) -> str:
        return f"{self.prefix}.events.{token(unique_id)}"

    def delivery(self, place: Place, order_key: str | None, supersedes: str | None) -> str:
        keys = (NONE if each is None else token(each) for each in (order_key, supersedes))
        return f"{self.prefix}.deliveries.{sink_token(place.sink)}.{'.'.join(keys)}.{place.event}.{place.n}"

    def deliveries(
        self,
        sink: str | None = None,
        order_key: str | None = None,
        supersedes: str | None = None,
        event: int | None = None,
    ) -> str:
        """A filter: those of all that is given."""
        tokens = (
            "*" if sink is None else sink_token(sink),
            "*" if order_key is None else token(order_key),
            "*" if supersedes is None else token(supersedes),
            "*" if event is None else str(event),
        )
        return f"{self.prefix}.deliveries.{'.'.join(tokens)}.*"

    def settled(self, place: Place) -> str:
        return f"{self.prefix}.settled.{place.tail}"

    def attempts(self, place: Place) -> str:
        return f"{self.prefix}.attempts.{place.tail}"

    def dead(self, place: Place) -> str:
        return f"{self.prefix}.dead.{place.tail}"

    def tails(self, kind: str, sink: str | None = None, event: int | None = None) -> str:
        """A filter over settled, attempts or dead."""
        sink_part = "*" if sink is None else sink_token(sink)
        return f"{self.prefix}.{kind}.{sink_part}.{'*' if event is None else event}.*"

    def sights(self, number: int) -> str:
        return f"{self.prefix}.sights.{number}"

    def wake(self, sink: str) -> str:
        """Not stored: something new waits for *sink*."""
        return f"{self.prefix}.wake.{sink_token(sink)}"

    def told(self) -> str:
        """Not stored: what replicas tell each other."""
        return f"{self.prefix}.told"


def place_of(subject: str) -> Place:
    """Of any subject that ends in a place."""
    parts = subject.split(".")
    return Place(sink_of(parts[2]), int(parts[-2]), int(parts[-1]))
