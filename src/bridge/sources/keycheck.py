"""Is the key still good? An open stream does not tell: it flows on after its key has been deleted (§2.6)."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import structlog

from bridge.errors import SourceError
from bridge.event import Entity
from bridge.sources.api import Api
from bridge.sources.feed import Feed
from bridge.sources.plan import owner

log = structlog.get_logger()

PER_CHECK = 20  # entities whose rights are asked for in one check; the others have their turn later
EXPIRED = frozenset({"api_key_expired", "token_expired"})
NAMED = 20  # rights or entities a message names


@dataclass(slots=True)
class Rights:
    """The rights there were when each was first seen, and which of them are missed.

    *needed* holds, for each event that rules want, the rights any of which shows it; None for whatever there
    was. Losing the right to write costs no event.
    """

    needed: Collection[frozenset[str]] | None = None
    first: dict[Entity | None, frozenset[str]] = field(default_factory=dict)
    lost: dict[Entity | None, frozenset[str]] = field(default_factory=dict)

    def note(self, whose: Entity | None, rights: frozenset[str]) -> None:
        """*rights* of the key itself (None) or on one entity."""
        before = self.first.setdefault(whose, rights)
        self.first[whose] = before | rights
        gone = missed(before, rights, self.needed)
        if gone:
            self.lost[whose] = gone
        else:
            self.lost.pop(whose, None)

    def told(self) -> str:
        """What is lost, as one line; '' if nothing is."""
        if not self.lost:
            return ""
        rights = sorted({right for gone in self.lost.values() for right in gone})
        on = [str(whose) for whose in self.lost if whose is not None]
        where = f" on {', '.join(sorted(on)[:NAMED])}" if on else ""
        return f"the key has lost rights{where}: {', '.join(rights[:NAMED])}"


def missed(
    before: frozenset[str], now: frozenset[str], needed: Collection[frozenset[str]] | None
) -> frozenset[str]:
    """The rights that are gone and without which an event that was seen is seen no more."""
    if needed is None:
        return before - now
    blind = [each for each in needed if shows(before, each) and not shows(now, each)]
    return frozenset(right for each in blind for right in each if shows(before, {right}))


def shows(rights: Collection[str], any_of: Iterable[str]) -> bool:
    """Is one of *any_of* among *rights*, by itself or in `RIGHT_ALL` or `RIGHT_<KIND>_ALL`?"""
    return any(
        each in rights or "RIGHT_ALL" in rights or f"RIGHT_{each.split('_')[1]}_ALL" in rights
        for each in any_of
    )


class KeyCheck:
    """Asks about the key and tells when it goes bad or good again."""

    def __init__(self, api: Api, feed: Feed, needed: Collection[frozenset[str]] | None = None) -> None:
        self.problem = ""
        """Why the source is not ready; '' while the key is good, or nobody can say."""
        self._api = api
        self._feed = feed
        self._rights = Rights(needed)
        self._turns: deque[Entity] = deque()

    async def ask(self) -> int | None:
        """Ask `auth_info`; the server's clock in ns, None if it did not tell. Never raises."""
        try:
            info = await self._api.auth_info()
        except SourceError as error:
            if error.kind == "refused":
                await self._judge("expired" if error.name in EXPIRED else "refused", str(error))
            return None
        self._rights.note(None, info.rights)
        told = self._rights.told()
        await self._judge("narrowed" if told else "", told)
        return info.server_ns

    async def check(self, followed: Iterable[Entity]) -> None:
        """The key, and its rights on some of those whom the *followed* belong to."""
        await self.ask()
        present = {owner(each) for each in followed}
        self._rights.first = {k: v for k, v in self._rights.first.items() if k is None or k in present}
        self._rights.lost = {k: v for k, v in self._rights.lost.items() if k is None or k in present}
        self._turns = deque(each for each in self._turns if each in present)
        self._turns.extend(sorted(present.difference(self._turns)))
        for _ in range(min(PER_CHECK, len(self._turns))):
            each = self._turns[0]
            self._turns.rotate(-1)
            try:
                self._rights.note(each, await self._api.rights(each))
            except SourceError as error:
                if error.kind != "refused" or error.namespace != "pkg/auth/rights":
                    break
                self._rights.note(each, frozenset())
        if not self.problem or self._rights.lost:
            told = self._rights.told()
            await self._judge("narrowed" if told else "", told)

    async def _judge(self, reason: str, error: str) -> None:
        """The state now; a change is told once, in the log, the metric and an event."""
        if bool(reason) == bool(self.problem):
            self.problem = error if reason else ""
            return
        self.problem = error
        self._feed.metrics.source_refused.labels(self._feed.name).set(bool(reason))
        if reason:
            log.error("key is no longer good, whatever its streams do", source=self._feed.name, error=error)
            await self._feed.tell("bridge.source.unready", {"reason": reason, "error": error})
        else:
            log.info("key is good again", source=self._feed.name)
            await self._feed.tell("bridge.source.ready", {})
