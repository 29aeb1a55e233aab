"""Where deliveries go: one file a kind of sink, each with its config model.

Every sink file has

- `<Kind>Config(Section)`: its part of `bridge.yaml`, with `type: Literal["<kind>"]`;
- `open_<kind>(name, config, ...) -> AbstractAsyncContextManager[Sink]`: connects in the background,
  never fails because the receiver is away, and takes everything down on leaving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bridge.delivery import Delivery, Outcome


class Sink(Protocol):
    """One configured receiver."""

    @property
    def name(self) -> str: ...

    @property
    def max_in_flight(self) -> int:
        """How many attempts may run at once, from 1."""
        ...

    async def send(self, delivery: Delivery) -> Outcome:
        """Make one attempt, within the sink's own timeout.

        Runs in up to *max_in_flight* tasks at once. After a crash the same delivery may come again,
        so pass `delivery.id` on to the receiver. An expected failure is an `Outcome`; an exception is
        a bug in the sink: it is logged with its traceback, counted, and tried again later. Cancelling
        may leave the receiver with the message: the attempt then counts as in flight at a crash.
        """
        ...


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one call of `send_batch` may be given.

    Gathering ends at *max_events* deliveries, at *max_bytes* of their event bodies (one larger delivery
    goes alone), or *max_wait* seconds after the first of them was there; never waits for a full batch longer.
    """

    max_events: int = 1
    max_wait: float = 0.0
    max_bytes: int = 1 << 20


@runtime_checkable
class BatchSink(Sink, Protocol):
    """A sink that may carry several deliveries in one request; most are not one.

    `send` keeps working beside it: a probe of a paused sink is a single delivery. A call of `send_batch`
    takes one of the *max_in_flight* places, however many deliveries it carries.
    """

    @property
    def batch_limits(self) -> BatchLimits:
        """With *max_events* 1 the caller may use `send` alone."""
        ...

    async def send_batch(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        """Make one attempt at each of *deliveries*: their outcomes, in their order.

        The sink itself splits what is too large for one request and finds out, by halves, which
        delivery of a refused request is the guilty one; so it may make several requests. Otherwise
        as `send`.
        """
        ...
