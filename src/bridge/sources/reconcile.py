"""Gateway state after a break: what the server says of connections, as events that only alerts see.

A crash of the gateway server emits nothing, and history ends after some hundred events: so at the start, and
whenever what a gateway sent may have been missed, its connection statistics are asked for (UPSTREAM.md §2.8).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

import anyio
import msgspec
import structlog

from bridge import decode
from bridge.errors import SourceError
from bridge.event import Entity, rfc3339
from bridge.own import identifier
from bridge.sources import Reconciled

log = structlog.get_logger()

AT_ONCE = 100  # gateways of one question; the server's own limit
EVERY = 1.0  # seconds between looks at who is settled again
RETRY = 60.0  # seconds before asking again after a failure
TYPE = "type.googleapis.com/ttn.lorawan.v3.GatewayConnectionStats"

Ask = Callable[[Sequence[str]], Awaitable[Mapping[str, bytes]]]


class Reconcile:
    """Asks *ask* about the *gateways* that are followed, each once it is settled after it was not.

    *standing* gives the server's clock in ns and who is unsettled, None for everybody.
    """

    def __init__(
        self,
        source: str,
        ask: Ask,
        gateways: Callable[[], Sequence[Entity]],
        standing: Callable[[], tuple[int | None, frozenset[Entity] | None]],
        send: Callable[[Reconciled], Awaitable[None]],
    ) -> None:
        self._source = source
        self._ask = ask
        self._gateways = gateways
        self._standing = standing
        self._send = send
        self._known: set[Entity] = set()

    async def run(self) -> None:
        while True:
            await anyio.sleep(EVERY)
            clock, unsettled = self._standing()
            if clock is None or unsettled is None:
                self._known.clear()
                continue
            followed = self._gateways()
            self._known &= set(followed) - unsettled
            due = [each for each in followed if each not in self._known and each not in unsettled]
            for start in range(0, len(due), AT_ONCE):
                await self._reconcile(due[start : start + AT_ONCE])

    async def _reconcile(self, gateways: Sequence[Entity]) -> None:
        """One that the key may not ask about refuses them all: then each half by itself."""
        try:
            stats = await self._ask([each.id for each in gateways])
        except SourceError as error:
            if error.kind in ("refused", "rejected") and len(gateways) > 1:
                half = len(gateways) // 2
                await self._reconcile(gateways[:half])
                await self._reconcile(gateways[half:])
            elif error.kind in ("refused", "rejected"):
                self._known.update(gateways)
            else:
                log.warning("gateway state not known", source=self._source, error=str(error))
                await anyio.sleep(RETRY)
            return
        clock = self._standing()[0]
        if clock is None:
            return
        self._known.update(gateways)
        for reading in told(self._source, gateways, stats, clock):
            await self._send(reading)


def told(
    source: str, gateways: Sequence[Entity], stats: Mapping[str, bytes], clock: int
) -> Iterator[Reconciled]:
    """What *stats* say of each of *gateways* at *clock*, ns of the server's time.

    Of one that is not in them it is known only that it is not connected: it may never have been, so only who
    has seen it up takes it for down.
    """
    for gateway in gateways:
        raw = stats.get(gateway.id)
        found = msgspec.json.decode(raw) if raw else None
        is_up = isinstance(found, dict) and "disconnected_at" not in found
        time = rfc3339(clock)
        data: dict[str, object] = {}
        if isinstance(found, dict):
            data = {"@type": TYPE, **found}
            time = str(found.get("disconnected_at", time))
        event = {
            "name": "gs.gateway.connection.stats" if is_up else "gs.gateway.disconnect",
            "time": time,
            "identifiers": [identifier(gateway)],
            **({"data": data} if data else {}),
            "origin": "bridge",
            "unique_id": f"reconciled/{gateway.id}/{clock}",
        }
        yield Reconciled(source, decode.event(msgspec.json.encode(event)), only_known=found is None)
