"""What one stream sends, given its faults.  No I/O, no clock; the random source is an argument.

`Shaper` turns events and faults into what has to happen on the wire; stream.py does it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bridge.standin.faults import (
    Cut,
    CutAt,
    Drip,
    Drop,
    Duplicate,
    End,
    ErrorFrame,
    Fault,
    Garbage,
    Reorder,
    Silence,
    Stall,
)
from bridge.standin.problems import Problem

CHUNK_BUFFER = 2048  # bytes: Go's net/http writes smaller pieces together


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes for the wire, chunk framing included."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait *seconds*; None: until `resume`."""

    seconds: float | None


@dataclass(frozen=True, slots=True)
class Close:
    """End the connection as it is."""


@dataclass(frozen=True, slots=True)
class Finish:
    """End the response in good order, after *problem* as its last message."""

    problem: Problem | None = None


Action: TypeAlias = Write | Hold | Close | Finish


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def chunks(message: bytes, delimiter: bytes) -> bytes:
    """*message* and *delimiter* as Go writes and flushes them: a long message is a chunk of its own."""
    if len(message) > CHUNK_BUFFER:
        return chunk(message) + chunk(delimiter)
    whole = message + delimiter
    pieces = [whole[at : at + CHUNK_BUFFER] for at in range(0, len(whole), CHUNK_BUFFER)]
    return b"".join(map(chunk, pieces))


class Shaper:
    """What one stream sends, fault by fault. After a Close or a Finish nothing more comes out of it."""

    def __init__(self, faults: Sequence[Fault], rng: random.Random, delimiter: bytes) -> None:
        self._faults = faults
        self._rng = rng
        self._delimiter = delimiter
        self._drip = next((each for each in faults if isinstance(each, Drip)), None)
        self._reorder = next((each for each in faults if isinstance(each, Reorder)), None)
        self._held: list[bytes] = []
        self._bytes = 0
        self.sent = 0
        """Events sent, repeats included; those of a Silence count as well."""
        self.dropped = 0
        """Events lost by Drop and Silence."""

    @property
    def hold(self) -> float | None:
        """Seconds after which `flush` is due if nothing comes; None when nothing is held back."""
        return self._reorder.hold if self._reorder and self._held else None

    def start(self, body: bytes) -> list[Action]:
        """The start event and whatever happens before the first one."""
        return _until_end(self._message(body) + self._between())

    def events(self, bodies: Iterable[bytes]) -> list[Action]:
        actions: list[Action] = []
        for body in bodies:
            for each in self._in_disorder(self._times(body)):
                actions += self._event(each)
        return _until_end(actions)

    def flush(self) -> list[Action]:
        """What was held back, shuffled."""
        held, self._held = self._held, []
        self._rng.shuffle(held)
        return _until_end([action for body in held for action in self._event(body)])

    def _times(self, body: bytes) -> list[bytes]:
        """*body* once, twice or not at all."""
        if any(isinstance(each, Drop) and self._rng.random() < each.chance for each in self._faults):
            self.dropped += 1
            return []
        again = any(isinstance(each, Duplicate) and self._rng.random() < each.chance for each in self._faults)
        return [body, body] if again else [body]

    def _in_disorder(self, bodies: list[bytes]) -> list[bytes]:
        if self._reorder is None:
            return bodies
        self._held += bodies
        ready = max(0, len(self._held) - self._reorder.size)
        return [self._held.pop(self._rng.randrange(len(self._held))) for _ in range(ready)]

    def _event(self, body: bytes) -> list[Action]:
        cut = next((each for each in self._faults if isinstance(each, Cut) and each.after <= self.sent), None)
        if cut is not None:
            message = _result(body)
            return _torn(message, int(len(message) * cut.share))
        if any(isinstance(each, Silence) and each.after <= self.sent for each in self._faults):
            self.dropped += 1
            return []
        actions = self._message(body)
        self.sent += 1
        return actions + self._between()

    def _between(self) -> list[Action]:
        """What happens once `sent` events are out."""
        return [
            _consequence(each, self._delimiter)
            for each in self._faults
            if isinstance(each, Stall | Garbage | ErrorFrame | End) and each.after == self.sent
        ]

    def _message(self, body: bytes) -> list[Action]:
        message = _result(body)
        limit = min((each.size for each in self._faults if isinstance(each, CutAt)), default=None)
        if limit is not None and self._bytes + len(message) + len(self._delimiter) > limit:
            return _torn(message + self._delimiter, limit - self._bytes)
        self._bytes += len(message) + len(self._delimiter)
        if self._drip is None:
            return [Write(chunks(message, self._delimiter))]
        return _dripping(message + self._delimiter, self._drip)


def _consequence(fault: Stall | Garbage | ErrorFrame | End, delimiter: bytes) -> Action:
    match fault:
        case Stall():
            return Hold(fault.seconds)
        case Garbage():
            return Write(chunks(fault.line, delimiter))
        case ErrorFrame():
            return Finish(fault.problem)
        case End():
            return Finish()


def _result(body: bytes) -> bytes:
    return b'{"result":%s}' % body


def _torn(whole: bytes, size: int) -> list[Action]:
    """The first *size* bytes of a chunk that is never completed."""
    return [Write(b"%x\r\n%s" % (len(whole), whole[:size])), Close()] if size else [Close()]


def _dripping(whole: bytes, drip: Drip) -> list[Action]:
    actions: list[Action] = []
    for at in range(0, len(whole), drip.size):
        actions += [Write(chunk(whole[at : at + drip.size])), Hold(drip.pause)]
    return actions


def _until_end(actions: list[Action]) -> list[Action]:
    """*actions* up to the first that ends the response."""
    for at, action in enumerate(actions):
        if isinstance(action, Close | Finish):
            return actions[: at + 1]
    return actions
