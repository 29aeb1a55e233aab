"""What bridge has to say of itself, as events that rules and alerts can match (DESIGN.md §2.3).

Nothing loops back into itself: no report is made about the delivery of a report, and none is delivered to
the sink it is about (`spared`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import anyio
import msgspec
from anyio.streams.memory import MemoryObjectSendStream

from bridge.event import Entity, Event
from bridge.own import OWN, own_event
from bridge.sources import Arrival, Reading

SOURCE = "bridge"
"""The source own events are counted under."""

FOLD = 1.0  # seconds in which reports about the same thing become one
KINDS = 1000  # different things that may wait to be told


class Tell(Protocol):
    """Report that *name* (`bridge.…`) happened to *about*; never waits, never raises.

    *data* are JSON values, no secrets. What happens to the same within FOLD seconds is told once, with the
    last *data* and a `count`.
    """

    def __call__(
        self, name: str, about: str, data: Mapping[str, object], entities: Iterable[Entity] = ()
    ) -> None: ...


def silent(name: str, about: str, data: Mapping[str, object], entities: Iterable[Entity] = ()) -> None:
    """For parts that run without a pipeline."""


@dataclass(slots=True)
class _Told:
    data: Mapping[str, object]
    entities: Iterable[Entity]
    count: int = 1


class SelfReport:
    """The reports on their way into the store; a source to `pipeline.flow`. *now* is unix seconds."""

    def __init__(self, now: Callable[[], float], rng: random.Random) -> None:
        self._now = now
        self._rng = rng
        self._waiting: dict[tuple[str, str], _Told] = {}
        self._came = anyio.Event()

    def tell(
        self, name: str, about: str, data: Mapping[str, object], entities: Iterable[Entity] = ()
    ) -> None:
        before = self._waiting.get((name, about))
        if before is not None:
            before.data, before.entities, before.count = data, entities, before.count + 1
        elif len(self._waiting) < KINDS:
            self._waiting[name, about] = _Told(data, entities)
        self._came.set()

    async def run(self, into: MemoryObjectSendStream[Reading]) -> None:
        """Hand the reports over, until cancelled."""
        while True:
            await self._came.wait()
            self._came = anyio.Event()
            waiting, self._waiting = self._waiting, {}
            for (name, _), told in waiting.items():
                received = self._now()
                data = {**told.data, "count": told.count}
                entities = tuple(told.entities)
                event = own_event(name, ns=int(received * 1e9), rng=self._rng, entities=entities, data=data)
                await into.send(Arrival(SOURCE, event, received))
            await anyio.sleep(FOLD)


class _About(msgspec.Struct, frozen=True):
    sink: str = ""


class _Own(msgspec.Struct):
    data: _About = _About()


def is_own(event: Event) -> bool:
    return event.name.startswith(OWN)


def spared(event: Event) -> str:
    """The sink that *event* must not be delivered to, because it is about that sink; '' for most."""
    if not is_own(event):
        return ""
    try:
        return msgspec.json.decode(event.body, type=_Own).data.sink
    except msgspec.DecodeError:
        return ""
