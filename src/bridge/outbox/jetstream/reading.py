"""Messages of a stream read in order, without acknowledging any."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING

from bridge.errors import OutboxError
from bridge.outbox.jetstream.link import Link, Pull

if TYPE_CHECKING:
    from nats.aio.msg import Msg

IDLE = 30  # seconds after which the server forgets a reading that nobody continues
NANO = 1_000_000_000


class Reading:
    """A consumer that wants no acknowledgements: what is lost on the way is noticed by its number."""

    def __init__(self, link: Link, stream: str, name: str) -> None:
        self._link = link
        self._stream = stream
        self._name = name
        self._pull = Pull(link, stream, name)
        self._last = 0

    @classmethod
    async def begin(cls, link: Link, stream: str, subject: str, policy: Mapping[str, object]) -> Reading:
        config = {
            "ack_policy": "none",
            "filter_subject": subject,
            "inactive_threshold": IDLE * NANO,
            "max_waiting": 8,
            "num_replicas": 1,
            "mem_storage": True,
            **policy,
        }
        made = await link.api(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config})
        return cls(link, stream, made["name"])

    async def page(self, size: int) -> list[Msg]:
        found = await self._pull.fetch(size)
        for each in found:
            if each.metadata.sequence.consumer != self._last + 1:
                raise OutboxError(
                    f"{self._link.address.shown}: {self._stream}: messages were lost on the way"
                )
            self._last += 1
        return found

    async def end(self) -> None:
        await self._pull.close()
        await self._link.api(f"CONSUMER.DELETE.{self._stream}.{self._name}")


async def newest(link: Link, stream: str, subject: str, page: int = 256) -> AsyncIterator[Msg]:
    """The last message on each of the subjects that *subject* stands for, as one copy of *stream* has it."""
    reading = await Reading.begin(link, stream, subject, {"deliver_policy": "last_per_subject"})
    try:
        while found := await reading.page(page):
            for each in found:
                yield each
            if len(found) < page:
                return
    finally:
        await reading.end()
