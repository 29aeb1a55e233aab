"""The leases of one replica, in the bucket (`bridge.leases` decides)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec
import structlog

from bridge.leases import Entry, GiveBack, Held, Leases, Take, share, spread
from bridge.outbox.jetstream.desk import Desk, together
from bridge.outbox.jetstream.replicas import Replicas
from bridge.outbox.jetstream.shelf import monotonic
from bridge.outbox.jetstream.wire import token

log = structlog.get_logger()


class Lease(msgspec.Struct, frozen=True):
    """*holder* '' where it was given back."""

    name: str
    holder: str


class Leasing:
    """`round` is called at least every quarter of a lease."""

    def __init__(self, desk: Desk, replicas: Replicas) -> None:
        self._desk = desk
        self._replicas = replicas
        self._leases = Leases(desk.me, desk.link.address.lease)
        self._spread = frozenset[str]()

    def sure(self) -> frozenset[str]:
        """What this replica may act on right now, and what it follows beside others."""
        now = monotonic()
        is_seen = Held(0, self._replicas.seen).is_sure(now, self._leases.lease)
        return self._leases.sure(now) | (self._spread if is_seen else frozenset())

    async def round(self, *kinds: Sequence[str], beside: Mapping[str, int] = MappingProxyType({})) -> None:
        """Renew, take and give back, so that the names of each kind are shared evenly; raises OutboxError.

        *beside*: names that several follow at once, and how many.
        """
        names = sorted({*self._leases.held}.union(*kinds))
        entries = dict(zip(names, await together(map(self._look, names)), strict=True))
        holders = {name: entry.holder for name, entry in entries.items() if entry and entry.holder}
        alive, me = self._replicas.alive, self._desk.me
        wanted = frozenset[str]().union(*(share(kind, holders, alive, me) for kind in kinds))
        self._spread = frozenset(
            name for name, count in beside.items() if spread([name], count, alive, self._desk.me)
        )
        for name, entry in entries.items():
            asked = monotonic()
            match self._leases.step(name, entry, asked, wanted=name in wanted):
                case Take(expect):
                    had = name in self._leases.held
                    revision = await self._put(name, self._desk.me, expect)
                    self._leases.took(name, revision, asked)
                    if revision is not None and not had:
                        log.info("lease taken", lease=name)
                case GiveBack(expect):
                    self._leases.gave_back(name)
                    await self._put(name, "", expect)
                    log.info("lease given back", lease=name)

    async def _look(self, name: str) -> Entry | None:
        found = await self._desk.shared.get(self._key(name))
        entry = None
        if found is not None:
            entry = Entry(msgspec.json.decode(found.value, type=Lease).holder, found.revision)
        self._leases.see(name, entry, monotonic())
        return entry

    def _key(self, name: str) -> str:
        return f"leases.{token(name)}"

    async def _put(self, name: str, holder: str, expect: int) -> int | None:
        return await self._desk.shared.put(self._key(name), msgspec.json.encode(Lease(name, holder)), expect)

    async def fence(self, name: str) -> bool:
        """Is it ours at this moment, by the bucket and not by our clock? Renews it; raises OutboxError."""
        held = self._leases.held.get(name)
        if held is None or not held.is_sure(monotonic(), self._leases.lease):
            return False
        asked = monotonic()
        self._leases.took(name, await self._put(name, self._desk.me, held.revision), asked)
        return name in self._leases.held

    async def end(self) -> None:
        """Give everything back, so that nobody has to wait for it."""
        for name, held in list(self._leases.held.items()):
            self._leases.gave_back(name)
            await self._put(name, "", held.revision)
