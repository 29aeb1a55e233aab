"""A connection to a broker that is kept up in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import anyio
import structlog

from bridge.delivery import Delivered, Failure, Outcome, Pause, RetryLater
from bridge.sinks.mqtt.answers import Trouble
from bridge.sinks.mqtt.client import Settings
from bridge.sinks.mqtt.link import Answer, Link, connect
from bridge.sinks.mqtt.message import Message

log = structlog.get_logger()

RECONNECT_FIRST = 0.5  # seconds
RECONNECT_MAX = 60.0  # seconds
STABLE = 30.0  # seconds a connection has to hold for the waits to start small again: two bridges with one
# client_id throw each other out without end, and each time the broker had taken them
FAREWELL = 1.0  # seconds for the last status and DISCONNECT


class Connection:
    """The link to one broker, or the reason why there is none; *chance* is uniform in [0, 1)."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        *,
        online: Message | None,
        offline: Message | None,
        chance: Callable[[], float],
    ) -> None:
        self._name = name
        self._settings = settings
        self._online = online
        self._offline = offline
        self._chance = chance
        self._link: Link | None = None
        self._trouble: Trouble | None = None
        self._tries = 0
        self._changed = anyio.Event()
        self._wanted = anyio.Event()
        self._told: str | None = None
        self._is_closing = False

    async def run(self) -> None:
        """Connect, and again whenever the connection is lost, until `close` or cancelled."""
        failures = 0
        while True:
            found = await self._attempt()
            self._tries += 1
            if isinstance(found, Link):
                since = anyio.current_time()
                found = await self._hold(found)
                failures = 0 if anyio.current_time() - since > STABLE else failures
            if self._is_closing:
                return
            failures += 1
            self._wanted = anyio.Event()
            self._set(None, found)
            self._tell(found)
            with anyio.move_on_after(reconnect_wait(failures, self._chance())):
                await self._wanted.wait()

    async def _attempt(self) -> Link | Trouble:
        try:
            return await connect(self._settings)
        except Exception as bug:
            log.exception("bug in connecting to a broker", sink=self._name)
            return RetryLater(Failure("other", f"bug: {type(bug).__name__}"))

    async def _hold(self, link: Link) -> Trouble:
        """Let *link* be used until it ends; why it did."""
        if self._online:
            link.publish(self._online).add_done_callback(partial(self._announced, link))
        self._set(link, None)
        self._told = None
        log.info("broker connected", sink=self._name)
        try:
            await link.ended.wait()
        except asyncio.CancelledError:
            link.drop()
            raise
        return link.trouble or RetryLater(Failure("connect", "connection lost"))

    def _announced(self, link: Link, answer: Answer) -> None:
        outcome = None if answer.cancelled() else answer.result()
        if not isinstance(outcome, Delivered | None) and not link.ended.is_set():
            log.warning("status not published", sink=self._name, error=outcome.failure.error)

    def _set(self, link: Link | None, trouble: Trouble | None) -> None:
        self._link, self._trouble = link, trouble
        self._changed.set()
        self._changed = anyio.Event()

    def _tell(self, trouble: Trouble) -> None:
        """Log why there is no connection, once for each reason in a row."""
        failure = trouble.failure
        if failure.reason != self._told:
            self._told = failure.reason
            log.warning("broker not connected", sink=self._name, reason=failure.reason, error=failure.error)

    @property
    def open_link(self) -> Link | None:
        """If there is one now."""
        return self._link if self._link and not self._link.ended.is_set() else None

    async def link(self) -> Link | Pause:
        """The link, as soon as there is one; or what has to be seen to first, found out anew for each call.

        Waits without end while the broker is only away.
        """
        tries = self._tries
        while True:
            if self.open_link:
                return self.open_link
            if isinstance(self._trouble, Pause):
                if self._tries > tries:
                    return self._trouble
                self._wanted.set()
            await self._changed.wait()

    def late(self, since: float) -> Outcome:
        """An attempt that began at *since* (the loop's clock) is not through: what follows from that."""
        if self._link and not self._link.ended.is_set():
            self._link.end_if_silent(since)
            return RetryLater(Failure("timeout", "no acknowledgement in time"))
        if self._trouble:
            failure = self._trouble.failure
            return RetryLater(Failure(failure.reason, f"not connected: {failure.error}", failure.status))
        return RetryLater(Failure("timeout", "no connection in time"))

    async def close(self) -> None:
        """Say `offline` and take leave of the broker, if it is there."""
        self._is_closing = True
        link = self._link
        if link is None or link.ended.is_set():
            return
        if self._offline:
            with anyio.move_on_after(FAREWELL):
                await link.publish(self._offline)
        await link.close(FAREWELL)


def reconnect_wait(failures: int, chance: float) -> float:
    """Seconds before the next try after *failures* in a row: half of it fixed, half by *chance* in [0, 1)."""
    ceiling = min(RECONNECT_MAX, RECONNECT_FIRST * 2.0 ** min(failures - 1, 20))
    return ceiling * (1 + chance) / 2
