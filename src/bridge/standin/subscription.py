"""One stream behind the wire: what was asked, what is visible, and the channel in which events wait."""

from __future__ import annotations

from dataclasses import dataclass, field

import anyio
from anyio.streams.memory import (
    MemoryObjectReceiveStream,
    MemoryObjectSendStream,
    MemoryObjectStreamStatistics,
)

from bridge.event import Entity
from bridge.standin.history import Record
from bridge.standin.problems import Problem
from bridge.standin.request import StreamRequest
from bridge.standin.rights import Key

LEAST_SLOTS, MOST_SLOTS = 8, 1024  # events in the channel of one stream (pkg/events/grpc/grpc.go in v3.32)


class Channel:
    """Between publishing and the wire.

    Visibility is looked at when an event is read: one the key may not see has taken a slot
    (pkg/events/grpc/grpc.go:144-170 in v3.32).
    """

    def __init__(self, slots: int) -> None:
        self._send: MemoryObjectSendStream[bytes]
        self._receive: MemoryObjectReceiveStream[bytes]
        self._send, self._receive = anyio.create_memory_object_stream[bytes](slots)

    def put(self, body: bytes) -> None:
        """*body* is empty for what is not to be seen. Raises anyio.WouldBlock when it is full."""
        self._send.send_nowait(body)

    async def receive(self) -> bytes:
        """Raises anyio.EndOfStream once the server has ended the stream."""
        while not (body := await self._receive.receive()):
            pass
        return body

    def receive_nowait(self) -> bytes:
        """Raises anyio.WouldBlock, or anyio.EndOfStream."""
        while not (body := self._receive.receive_nowait()):
            pass
        return body

    def statistics(self) -> MemoryObjectStreamStatistics:
        return self._receive.statistics()

    def end(self) -> None:
        """Let the reader come to an end after what is in it."""
        self._send.close()

    def close(self) -> None:
        self._send.close()
        self._receive.close()


@dataclass(slots=True, eq=False)
class Subscription:
    """One stream: the channel between publishing and the wire, and what goes into it."""

    request: StreamRequest
    receive: Channel
    key: Key | None = None
    """As it was when its rights were looked up; None: everything is visible."""
    token: str | None = None
    silent_until: dict[Entity, int] = field(default_factory=dict)
    """In ms of the server's clock, for each entity; see `Window`."""
    backlog: dict[Entity, list[tuple[Record, bytes]]] = field(default_factory=dict)
    """What `replay` has yet to give: history, and behind it what happened meanwhile."""
    dropped: int = 0
    problem: Problem | None = None
    """Why the server has ended it."""
    checked: int = 0
    """When the key's rights were looked up, in ns."""
    _rights: dict[Entity, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, request: StreamRequest, key: Key | None = None, token: str | None = None) -> Subscription:
        slots = min(max(request.tail, LEAST_SLOTS), MOST_SLOTS)
        return cls(request, Channel(slots), key, token)

    def sees(self, each: Record) -> bool:
        """Whether the key has one of its rights on one of its entities (pkg/auth/rights/rightsutil).

        What was looked up once holds for the life of the stream, or until `look_up`.
        """
        if self.key is None or not each.rights:
            return True
        return any(not self._rights_on(self.key, entity).isdisjoint(each.rights) for entity in each.entities)

    def _rights_on(self, key: Key, entity: Entity) -> frozenset[str]:
        found = self._rights.get(entity)
        if found is None:
            found = self._rights[entity] = key.rights_on(entity)
        return found

    def look_up(self, key: Key, now: int) -> None:
        """The rights of *key* count from *now* (ns) on."""
        self.key, self.checked = key, now
        self._rights.clear()

    def notify(self, body: bytes) -> None:
        """Put *body* in the channel, or drop it: nobody is told (`Channel.Notify`, pkg/events/handler.go)."""
        try:
            self.receive.put(body)
        except anyio.WouldBlock:
            self.dropped += 1
        except anyio.ClosedResourceError:
            pass

    def end(self, problem: Problem) -> None:
        self.problem = problem
        self.receive.end()

    def close(self) -> None:
        self.receive.close()
