"""Where deliveries go: one file a kind of sink, each with its config model.

Every sink file has

- `<Kind>Config(Section)`: its part of `bridge.yaml`, with `type: Literal["<kind>"]`;
- `open_<kind>(name, config, ...) -> AbstractAsyncContextManager[Sink]`: connects in the background,
  never fails because the receiver is away, and takes everything down on leaving.
"""

from __future__ import annotations

from typing import Protocol

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
