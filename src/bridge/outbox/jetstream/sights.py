"""The log of what alerts see: one subject a partition, written by all that read, read by its owner.

A message is kept until the owner of its partition has committed what follows from it, and a while beyond
that, so that the next one knows which events have come.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from bridge.errors import OutboxError
from bridge.outbox.jetstream.desk import Desk, together
from bridge.outbox.jetstream.reading import NANO, Reading
from bridge.outbox.jetstream.streams import SIGHTS

if TYPE_CHECKING:
    from nats.aio.msg import Msg

PAGE = 64  # messages asked for at a time


class Logged(NamedTuple):
    """One message of a log; *at* ns by the server that stored it."""

    number: int
    at: int
    body: bytes


async def publish(desk: Desk, messages: Iterable[tuple[int, bytes, str]]) -> None:
    """Store messages, each a partition, a body and an id; those of one partition in their order.

    Raises OutboxError; the same messages again are absorbed by their ids.
    """

    async def in_order(number: int, those: Sequence[tuple[int, bytes, str]]) -> None:
        for _, body, id in those:
            await desk.link.publish(desk.subjects.sights(number), body, message_id=id)

    by_number = groupby(sorted(messages, key=lambda each: each[0]), key=lambda each: each[0])
    await together([in_order(number, list(those)) for number, those in by_number])


class SightLog:
    """The messages of the partition *number*, in order, from the first that is kept."""

    def __init__(self, desk: Desk, number: int) -> None:
        self._desk = desk
        self._subject = desk.subjects.sights(number)
        self._reading: Reading | None = None

    async def open(self) -> None:
        await self.close()
        stream = self._desk.stream(SIGHTS)
        self._reading = await Reading.begin(self._desk.link, stream, self._subject, {"deliver_policy": "all"})

    async def read(self) -> list[Logged]:
        """What is there now and was not read before, up to PAGE; raises OutboxError: then open it again."""
        if self._reading is None:
            raise OutboxError("the log of a partition is not open")
        return [_logged(each) for each in await self._reading.page(PAGE)]

    async def forget(self, before: int) -> None:
        """Messages with lower numbers."""
        await self._desk.link.purge(self._desk.stream(SIGHTS), subject=self._subject, before=before)

    async def close(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            with suppress(OutboxError):
                await reading.end()


def _logged(message: Msg) -> Logged:
    at = message.metadata.timestamp
    return Logged(message.metadata.sequence.stream, int(at.timestamp() * NANO), message.data)
