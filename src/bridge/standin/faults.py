"""What can go wrong with a stream, on demand.  No I/O, no clock in this file.

A fault is a frozen value; shaper.py says what follows from it. Counts are in events after
`events.stream.start`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TypeAlias

from bridge.standin.problems import STORE, Problem


@dataclass(frozen=True, slots=True)
class Refuse:
    """The stream is not opened: HTTP *status*; *retry* is X-Rate-Limit-Retry, in seconds."""

    status: int
    retry: int = 6


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole response is *raw*, then the connection ends: a proxy, or a recording."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection ends after *after* events and *share* (0 to 1) of the next one."""

    after: int
    share: float = 0.5


@dataclass(frozen=True, slots=True)
class CutAt:
    """The connection ends after *size* bytes of body, chunk framing not counted."""

    size: int


@dataclass(frozen=True, slots=True)
class End:
    """The server ends the stream in good order, as a deadline or a proxy does."""

    after: int


@dataclass(frozen=True, slots=True)
class ErrorFrame:
    """An error as the last message of a stream that was answered with 200."""

    after: int
    problem: Problem = STORE


@dataclass(frozen=True, slots=True)
class Stall:
    """Bytes stop and the connection stays, for *seconds* or until `resume`; the channel fills up."""

    after: int
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Silence:
    """Connected, and nothing comes any more; the events are lost."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class Garbage:
    """A line that is no JSON between two events."""

    after: int
    line: bytes = b'{"result":{"name":"as.up.'


@dataclass(frozen=True, slots=True)
class Drip:
    """Every message in chunks of *size* bytes, *pause* seconds apart."""

    size: int
    pause: float = 0.0


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An event comes twice with this chance."""

    chance: float


@dataclass(frozen=True, slots=True)
class Drop:
    """The server drops an event with this chance, silently."""

    chance: float


@dataclass(frozen=True, slots=True)
class Reorder:
    """Events overtake each other: up to *size* are held back, at most *hold* seconds."""

    size: int
    hold: float = 0.05


Fault: TypeAlias = (
    Refuse
    | Answer
    | Cut
    | CutAt
    | End
    | ErrorFrame
    | Stall
    | Silence
    | Garbage
    | Drip
    | Duplicate
    | Drop
    | Reorder
)


@dataclass(slots=True)
class Faults:
    """Which faults a stream meets: its turn of *opens*, or *always* once that is used up."""

    always: tuple[Fault, ...] = ()
    opens: deque[tuple[Fault, ...]] = field(default_factory=deque)
    calls: dict[str, deque[Refuse | Answer | Stall]] = field(default_factory=dict)
    """What happens to unary calls, by path (`/auth_info`)."""

    def on_open(self, *faults: Fault) -> None:
        """The next opening without a turn yet gets *faults*; called without any, it goes well."""
        self.opens.append(faults)

    def take(self) -> tuple[Fault, ...]:
        return self.opens.popleft() if self.opens else self.always

    def on_call(self, path: str, fault: Refuse | Answer | Stall) -> None:
        """The next call of *path* meets *fault*; a Stall delays the answer."""
        self.calls.setdefault(path, deque()).append(fault)

    def take_call(self, path: str) -> Refuse | Answer | Stall | None:
        waiting = self.calls.get(path)
        return waiting.popleft() if waiting else None
