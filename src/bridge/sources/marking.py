"""Marking notifications as seen or archived, once every delivery of them is confirmed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

import anyio
import structlog

from bridge.errors import SourceError
from bridge.outbox import Trace
from bridge.sources.api import PAGE, Api
from bridge.sources.notification import Notification, NotificationsSourceConfig, unique_id

log = structlog.get_logger()

CHECK = 5.0  # seconds between two looks whether deliveries are confirmed
UNKNOWN_CHECKS = 24  # looks after which a notification that nothing stored is taken as unwanted


class Marking:
    """Asks the outbox about notifications taken in and still unseen, and marks those that were delivered.

    Nothing is remembered: the list of the server and *trace* of the outbox say it all after a restart.
    """

    def __init__(
        self,
        name: str,
        config: NotificationsSourceConfig,
        api: Api,
        trace: Callable[[str], Awaitable[Trace | None]],
    ) -> None:
        self._name = name
        self._config = config
        self._api = api
        self._trace = trace
        self._waiting: dict[str, int] = {}
        """Id to how often the outbox did not know it."""
        self._unwanted: set[str] = set()
        self._error = ""

    def consider(self, items: Iterable[Notification]) -> None:
        """*items* are unseen and were taken in: they are to be marked, unless nothing ever stored them."""
        for each in items:
            if each.id not in self._unwanted:
                self._waiting.setdefault(each.id, 0)

    async def run(self) -> None:
        while True:
            await anyio.sleep(min(CHECK, self._config.interval))
            delivered = [id for id in list(self._waiting) if await self._is_confirmed(id)]
            for at in range(0, len(delivered), PAGE):
                await self._set_status(delivered[at : at + PAGE])

    async def _is_confirmed(self, id: str) -> bool:
        """Every delivery of it is delivered; one that died or was dropped leaves it unseen."""
        found = await self._trace(unique_id(self._config.user, id))
        if found is not None and found.deliveries:
            self._waiting[id] = 0
            return all(each.state == "delivered" for each in found.deliveries)
        self._waiting[id] += 1
        if self._waiting[id] >= UNKNOWN_CHECKS:
            del self._waiting[id]
            self._unwanted.add(id)
        return False

    async def _set_status(self, ids: Sequence[str]) -> None:
        status = f"NOTIFICATION_STATUS_{self._config.mark.upper()}"
        try:
            await self._api.mark_notifications(self._config.user, ids, status)
        except SourceError as error:
            if not self._error:
                log.warning(
                    "notifications cannot be marked, tried again", source=self._name, error=str(error)
                )
            self._error = str(error)
            return
        if self._error:
            log.info("notifications are marked again", source=self._name)
        self._error = ""
        for id in ids:
            self._waiting.pop(id, None)
