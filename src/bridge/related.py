"""`attach: related`: an event is delivered with the others of its correlation ids, as `event.related`.

What gateway, network and application server said about one uplink or downlink is fetched when the delivery
is sent, for then most of it has happened; the server keeps it for ten minutes (UPSTREAM.md §6). It is an
extra: when the server does not answer in time, or has no store, the event goes out with an empty list.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import anyio
import msgspec
import structlog

from bridge.decode import event as decoded
from bridge.delivery import Delivery, Outcome
from bridge.errors import FrameError, SourceError
from bridge.event import Event
from bridge.sinks import BatchLimits, BatchSink, Sink

log = structlog.get_logger()

EVENTS = 100  # attached to one event; the server keeps about as many
BYTES = 1 << 18  # of all of them together
IDS = 2  # correlation ids asked for
PATIENCE = 2.0  # seconds a delivery waits for the server
FRESH = 10.0  # seconds an answer is used again: the other sinks of the event, and its neighbours
CACHED = 128  # answers that are kept
AT_ONCE = 8  # questions
PAUSES = {"rejected": 600.0, "refused": 120.0, "rate_limited": 60.0}
PAUSE = 30.0  # seconds without questions after a failure, if the server did not say or mean longer

WIDEST = ("gs:uplink:", "gs:up:", "as:downlink:", "ns:downlink:", "gs:tx_ack:")
"""Beginnings of correlation ids, those with the longest chains first (recorded streams, v3.32.1)."""
WHOLE_LIFE = "gs:conn:"  # ties everything of one gateway's connection together: nothing but noise here

Find: TypeAlias = Callable[[str, str], Awaitable[Sequence[bytes]]]
"""Of a source and a correlation id the events as JSON, newest first; raises SourceError."""


@runtime_checkable
class Finder(Protocol):
    """A source that can be asked."""

    async def related(self, correlation_id: str) -> Sequence[bytes]: ...


class _Correlated(msgspec.Struct):
    correlation_ids: tuple[str, ...] = ()


def chain_ids(event: Event) -> tuple[str, ...]:
    """The correlation ids worth asking for, at most IDS, the widest chain first."""
    try:
        ids = msgspec.json.decode(event.body, type=_Correlated).correlation_ids
    except msgspec.DecodeError:
        return ()
    known = [id for beginning in WIDEST for id in ids if id.startswith(beginning)]
    rest = [id for id in ids if id not in known and not id.startswith((WHOLE_LIFE, "rpc:"))]
    calls = [id for id in ids if id.startswith("rpc:")]
    return tuple((known + rest or calls)[:IDS])


def bounded(found: Iterable[bytes]) -> tuple[Event, ...]:
    """The first of *found* that are events, at most EVENTS and BYTES."""
    kept: list[Event] = []
    left = BYTES
    for body in found:
        try:
            event = decoded(body)
        except FrameError:
            continue
        left -= len(body)
        if left < 0 or len(kept) == EVENTS:
            break
        kept.append(event)
    return tuple(kept)


def attached(event: Event, others: Iterable[Event]) -> Event:
    """*event* with *others* as its field `related`: oldest first, each once, itself not among them."""
    once = {each.unique_id: each for each in others if each.unique_id != event.unique_id}
    chain = sorted(once.values(), key=lambda each: (each.time_ns, each.unique_id))[-EVENTS:]
    body = event.body.rstrip()[:-1] + b',"related":[%s]}' % b",".join(each.body for each in chain)
    return msgspec.structs.replace(event, body=body)


@dataclass(slots=True)
class _Question:
    """One correlation id of one source: asked once, however many deliveries wait for it."""

    answered: anyio.Event = field(default_factory=anyio.Event)
    until: float = 0.0
    events: tuple[Event, ...] = ()


class Related:
    """Finds and attaches.

    *attaches* says of a rule's name whether it asks for it; *redact* hides what ingest would have hidden.
    """

    def __init__(
        self, find: Find, *, attaches: Callable[[str], bool], redact: Callable[[Event], Event]
    ) -> None:
        self._find = find
        self._attaches = attaches
        self._redact = redact
        self._questions: OrderedDict[tuple[str, str], _Question] = OrderedDict()
        self._paused: dict[str, float] = {}
        self._places = anyio.Semaphore(AT_ONCE)

    async def prepare(self, delivery: Delivery) -> Delivery:
        """*delivery* as it is to be sent; never raises."""
        if not self._attaches(delivery.rule):
            return delivery
        others: list[Event] = []
        for id in chain_ids(delivery.event):
            others += await self._events(delivery.source, id)
        return msgspec.structs.replace(delivery, event=attached(delivery.event, map(self._redact, others)))

    async def prepare_all(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        prepared = list(deliveries)

        async def at(place: int) -> None:
            prepared[place] = await self.prepare(deliveries[place])

        async with anyio.create_task_group() as tasks:
            for place, each in enumerate(deliveries):
                if self._attaches(each.rule):
                    tasks.start_soon(at, place)
        return prepared

    async def _events(self, source: str, id: str) -> tuple[Event, ...]:
        key, now = (source, id), anyio.current_time()
        question = self._questions.get(key)
        if question is None or (question.answered.is_set() and question.until < now):
            question = self._questions[key] = _Question()
            self._questions.move_to_end(key)
            while len(self._questions) > CACHED:
                self._questions.popitem(last=False)
            await self._ask(question, source, id)
        await question.answered.wait()
        return question.events

    async def _ask(self, question: _Question, source: str, id: str) -> None:
        try:
            async with self._places:
                if self._paused.get(source, 0.0) > anyio.current_time():
                    return
                with anyio.fail_after(PATIENCE):
                    question.events = bounded(await self._find(source, id))
            question.until = anyio.current_time() + FRESH
            if self._paused.pop(source, None) is not None:
                log.info("related events are found again", source=source)
        except SourceError as error:
            self._pause(source, error)
        except TimeoutError:
            self._pause(source, SourceError(f"no answer in {PATIENCE:g} s"))
        finally:
            question.answered.set()

    def _pause(self, source: str, error: SourceError) -> None:
        if source not in self._paused:
            log.warning("related events not found, sent without", source=source, error=str(error))
        wait = error.retry_after or PAUSES.get(error.kind, PAUSE)
        self._paused[source] = anyio.current_time() + wait


@dataclass(frozen=True, slots=True)
class RelatedSink:
    """A sink whose deliveries get what they asked for on their way."""

    sink: Sink
    related: Related

    @property
    def name(self) -> str:
        return self.sink.name

    @property
    def max_in_flight(self) -> int:
        return self.sink.max_in_flight

    async def send(self, delivery: Delivery) -> Outcome:
        return await self.sink.send(await self.related.prepare(delivery))


@dataclass(frozen=True, slots=True)
class RelatedBatchSink:
    """The same for a sink that takes several at once."""

    sink: BatchSink
    related: Related

    @property
    def name(self) -> str:
        return self.sink.name

    @property
    def max_in_flight(self) -> int:
        return self.sink.max_in_flight

    @property
    def batch_limits(self) -> BatchLimits:
        return self.sink.batch_limits

    async def send(self, delivery: Delivery) -> Outcome:
        return await self.sink.send(await self.related.prepare(delivery))

    async def send_batch(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        return await self.sink.send_batch(await self.related.prepare_all(deliveries))


def attaching(sink: Sink, related: Related) -> Sink:
    """*sink* behind *related*."""
    return RelatedBatchSink(sink, related) if isinstance(sink, BatchSink) else RelatedSink(sink, related)
