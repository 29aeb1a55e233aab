"""From disk to the receivers: one dispatcher a sink, so that none can hurt another (DESIGN.md §1.5).

A slot is held from taking a delivery, or a batch, until its settlement is on disk. So a crash repeats at
most `max_in_flight` deliveries (or batches) of a sink, and while settling fails nothing new is sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import anyio
import structlog

from bridge.clock import loop_clock
from bridge.delivery import (
    Delivery,
    Done,
    Failure,
    Later,
    Outcome,
    Pause,
    RetryLater,
    Settlement,
)
from bridge.dispatch.concurrency import Concurrency
from bridge.dispatch.gathering import READY, Gathering, limits_of, room
from bridge.dispatch.pausing import Pausing
from bridge.dispatch.settling import EVERYBODY, STORE_RETRY, Settling
from bridge.dispatch.telling import Telling
from bridge.errors import OutboxError
from bridge.metrics import Metrics
from bridge.outbox import Outbox, PauseState
from bridge.report import Tell, silent
from bridge.retry import PROBE_MAX, RetryPolicy, verdict
from bridge.sinks import BatchSink, Sink
from bridge.tracing import Trace, untraced

log = structlog.get_logger()

RECHECK = 30.0  # seconds after which the store is asked anyway: the wall clock may have jumped
PROBED_BY_OTHERS = 1.0  # seconds between two looks whether the replica that probes a sink is still there
FLUSH = 2.0  # seconds the disk gets, when time is up, for what receivers have confirmed


class Dispatcher:
    """Delivers what waits for one sink.

    *now* is unix seconds; *chance* is uniform in [0, 1); *tell* takes own events, *trace* every attempt.
    *adaptive* asks a sink that cannot keep up for less at once than its `max_in_flight`.
    """

    def __init__(
        self,
        sink: Sink,
        outbox: Outbox,
        policy: RetryPolicy,
        metrics: Metrics,
        *,
        now: Callable[[], float],
        chance: Callable[[], float],
        tell: Tell = silent,
        adaptive: bool = False,
        trace: Trace = untraced,
    ) -> None:
        self.sink = sink
        self._outbox = outbox
        self._policy = policy
        self._now = now
        self._chance = chance
        self._pausing = Pausing(sink.name, outbox, policy, metrics, chance=chance, tell=tell)
        self._settling = Settling(sink.name, outbox)
        self._concurrency = Concurrency(sink.max_in_flight)
        self._clock: Callable[[], float] = anyio.current_time
        self._held_back = 0
        self._adaptive = adaptive
        self._running = 0
        self._freed = anyio.Event()
        self._prefetch = room(sink, outbox.read_ahead)
        self._taken: set[int] = set()
        self._more = True
        """The store may hold something that is due and not taken."""
        self._reading = False
        self._gathering = Gathering(limits_of(sink))
        self._next_due = math.inf
        self._unreadable = False
        self._stopping = False
        self._wake = anyio.Event()
        self._telling = Telling(sink.name, metrics, tell, trace)

    @property
    def pause(self) -> PauseState | None:
        return self._pausing.state

    def wake(self) -> None:
        """There may be something new to do."""
        self._more = True
        self._wake.set()

    @property
    def is_caught_up(self) -> bool:
        """Has all that is due in the store been taken, and is there room for more?"""
        if self._more or self._reading or self.pause or self._settling.failing:
            return False
        return len(self._taken) < READY and self._gathering.is_light and self._next_due > self._now()

    def hand(self, deliveries: Sequence[Delivery]) -> None:
        """All that was stored just now: taken as it is if nothing older waits, else read in its turn."""
        if deliveries and self.is_caught_up and len(self._taken) + len(deliveries) <= READY:
            fresh = [each for each in deliveries if each.row not in self._taken]
            self._taken.update(each.row for each in fresh)
            self._gathering.put(fresh)
        else:
            self.wake()

    def learn(self, pause: PauseState | None) -> None:
        """Another replica has paused the sink, or ended its pause."""
        self._pausing.learn(pause, self._now())
        self.wake()

    def stop(self) -> None:
        """Begin nothing new; `run` ends when what is in flight has ended."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Deliver until `stop`."""
        self._clock = loop_clock()
        await self._restore_pause()
        async with anyio.create_task_group() as beside:
            beside.start_soon(self._settling.run)
            try:
                await self._deliver()
            finally:
                self._settling.close(FLUSH)

    async def _deliver(self) -> None:
        async with anyio.create_task_group() as slots:
            for _ in range(self.sink.max_in_flight):
                slots.start_soon(self._slot)
            await self._feed()
            self._gathering.close()

    async def _restore_pause(self) -> None:
        """Waits for the store if it has to."""
        while not self._stopping:
            try:
                await self._pausing.restore(self._now())
                return
            except OutboxError as error:
                self._unread(error)
                await self._sleep(STORE_RETRY)

    async def _feed(self) -> None:
        """Keep the slots supplied from the outbox; while the sink is paused, probe it instead."""
        while not self._stopping:
            self._wake = anyio.Event()
            if self.pause:
                await self._sit_out(self.pause)
            elif self._settling.failing:
                await self._sleep(STORE_RETRY)
            elif not self._is_due():
                await self._sleep_until_due()
            elif not self._has_room():
                await self._sleep(None)
            else:
                self._gathering.put(await self._fetch(self._prefetch - len(self._taken)))

    def _has_room(self) -> bool:
        return len(self._taken) <= self._prefetch // 2 and self._gathering.is_light

    def _is_due(self) -> bool:
        return self._more or self._next_due <= self._now()

    async def _fetch(self, limit: int) -> tuple[Delivery, ...]:
        """Deliveries due now, marked as taken."""
        now = self._now()
        self._more, self._next_due, self._reading = False, math.inf, True
        try:
            due = await self._outbox.due(
                self.sink.name, now=now, horizon=self._policy.max, limit=limit, taken=self._taken
            )
        except OutboxError as error:
            self._unread(error)
            self._next_due = now + STORE_RETRY
            return ()
        finally:
            self._reading = False
        if self._unreadable:
            self._unreadable = False
            log.info("deliveries can be read again", sink=self.sink.name)
        self._taken.update(delivery.row for delivery in due.deliveries)
        self._more |= len(due.deliveries) == limit
        if due.next_due is not None:
            self._next_due = min(self._next_due, due.next_due)
        return due.deliveries

    def _unread(self, error: OutboxError) -> None:
        if not self._unreadable:
            log.error("deliveries cannot be read", sink=self.sink.name, error=str(error))
        self._unreadable = True

    async def _sleep(self, seconds: float | None) -> bool:
        """Until `wake`, or for *seconds*; at least long enough not to spin on a clock that stands still.

        Says whether the time ran out.
        """
        with anyio.move_on_after(None if seconds is None else max(0.001, seconds)) as scope:
            await self._wake.wait()
        return scope.cancelled_caught

    async def _sleep_until_due(self) -> None:
        if await self._sleep(min(RECHECK, self._next_due - self._now())):
            self._more = True

    async def _slot(self) -> None:
        while deliveries := self._gathering.at_once() or await self._gathering.take():
            while self._running >= self._concurrency.limit:
                self._held_back += 1
                await self._freed.wait()
                self._held_back -= 1
            self._running += 1
            try:
                if mine := self._sendable(deliveries):
                    await self._attempt(mine)
            finally:
                self._running -= 1
                if self._held_back:
                    self._freed.set()
                    self._freed = anyio.Event()
            self._release(deliveries)

    def _sendable(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Those that may be sent now; the others are to be read again."""
        held = self._stopping or self.pause or self._settling.failing
        mine = () if held else [each for each in deliveries if self._outbox.holds(each)]
        self._more |= len(mine) < len(deliveries)
        return mine

    def _release(self, deliveries: Sequence[Delivery]) -> None:
        for each in deliveries:
            self._taken.discard(each.row)
        if self._is_due() and self._has_room():
            self._wake.set()

    async def _sit_out(self, pause: PauseState) -> None:
        """Wait for the end of *pause*, then try the sink with one delivery."""
        left = min(pause.until - self._now(), max(self._policy.max, PROBE_MAX))
        if left > 0:
            await self._sleep(min(left, RECHECK))
        elif not self._is_due():
            await self._sleep_until_due()
        else:
            probes = await self._fetch(1)
            if probes:
                if await self._may_probe(pause):
                    await self._attempt(probes, probe=True)
                self._release(probes)

    async def _may_probe(self, pause: PauseState) -> bool:
        """If not, another replica tries the sink and tells what came of it, unless it dies meanwhile."""
        try:
            if await self._outbox.may_probe(self.sink.name, pause):
                return True
        except OutboxError as error:
            self._unread(error)
        self._more = True
        if self.pause == pause:
            await self._sleep(PROBED_BY_OTHERS)
        return False

    async def _attempt(self, deliveries: Sequence[Delivery], *, probe: bool = False) -> None:
        """One attempt at each of *deliveries*, settled on disk before this returns."""
        started, clock = self._now(), self._clock()
        outcomes = await self._send(deliveries)
        ended, now = self._clock(), self._now()
        paused = self._pausing.seconds(now)
        settlements = [
            Settlement(
                delivery,
                started,
                ended - clock,
                outcome,
                verdict(outcome, delivery, self._policy, now=now, paused=paused, chance=self._chance()),
            )
            for delivery, outcome in zip(deliveries, outcomes, strict=True)
        ]
        pause = next((outcome for outcome in outcomes if isinstance(outcome, Pause)), None)
        if pause:
            await self._pausing.begin(pause, now, probe=probe)
        if self._adaptive:
            self._concurrency.ended(outcomes, started=clock, now=ended)
        await self._settling.store(settlements, enough=1 if probe else self._enough(settlements)).wait()
        for each in settlements:
            if isinstance(each.verdict, Later):
                self._next_due = min(self._next_due, each.verdict.due)
                self._wake.set()
            elif each.delivery.order_key is not None:
                self._more = True
            self._telling.observe(each, now)
        if probe and not pause:
            await self._pausing.end(now)
            self._wake.set()

    def _enough(self, settlements: Sequence[Settlement]) -> int:
        """How many slots make a commit worth its while: where slots are scarce, half of those that run.

        One, where the next of an entity or the next attempt waits for these.
        """
        for each in settlements:
            if each.delivery.order_key is not None or not isinstance(each.verdict, Done):
                return 1
        return max(1, self._running // 2) if 2 * self._running >= self._concurrency.limit else EVERYBODY

    async def _send(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        try:
            if len(deliveries) == 1 or not isinstance(self.sink, BatchSink):
                return [await self.sink.send(deliveries[0])]
            outcomes = await self.sink.send_batch(deliveries)
            if len(outcomes) != len(deliveries):
                raise ValueError("not one outcome for each delivery")
            return outcomes
        except Exception as bug:
            log.exception("bug in a sink", sink=self.sink.name, delivery=deliveries[0].id)
            return [RetryLater(Failure("other", f"bug: {type(bug).__name__}"))] * len(deliveries)
