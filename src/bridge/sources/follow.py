"""One source on the event streams of The Things Stack: who is followed, by which streams, and what becomes of
those the server refuses (DESIGN.md §3).

The parts: `live` keeps streams open, `heal` reads history beside them, `discovery` lists who there is,
`keycheck` asks about the key. Here they are put together, and entities come and go.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import anyio
import structlog
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from bridge.errors import SourceError
from bridge.event import Entity, Event
from bridge.fields import seconds
from bridge.metrics import Metrics
from bridge.sources import Reading, SourceStatus, Standing
from bridge.sources.api import Api
from bridge.sources.exclusion import Exclusion
from bridge.sources.feed import Feed
from bridge.sources.followed import UNREAD, Followed
from bridge.sources.heal import Heal
from bridge.sources.keycheck import KeyCheck
from bridge.sources.listing import Listing
from bridge.sources.live import Group, Living
from bridge.sources.models import TtsSourceConfig
from bridge.sources.names import Asked, asked, is_changed
from bridge.sources.plan import LIVE, culprits, group_size, grouped, is_about_entities, key, owner
from bridge.sources.reconcile import Reconcile
from bridge.sources.stream import Opened, Streams
from bridge.sources.upstream import Upstream

log = structlog.get_logger()

SPARE_GROUPS = 8  # streams more than needed, before entities are put together anew
NAMED = 100  # excluded entities `/api/status` names


class TtsSource:
    """Follows the identifiers of *config*.

    *cursors* and *recent_ids* read what is stored; *wait* gives the seconds before reconnecting for the nth
    time in a row, from 1; *now* is unix seconds; *names* what rules need, empty for everything. *propagates*
    says of each name of the catalogue whether applications carry it, *needed* which rights the rules need;
    *live* is how many identifiers a live stream carries at least. *reconcile*: ask for the state of gateways
    after a break, for alerts. *owns*: is it this replica that follows an entity? Asked anew by `rebalance`.
    """

    def __init__(
        self,
        name: str,
        config: TtsSourceConfig,
        upstream: Upstream,
        api: Api,
        metrics: Metrics,
        *,
        cursors: Callable[[], Awaitable[dict[str, int]]],
        recent_ids: Callable[[str], Awaitable[tuple[str, ...]]],
        wait: Callable[[int], float],
        now: Callable[[], float],
        rng: random.Random,
        names: Sequence[str] = (),
        propagates: Mapping[str, bool] | None = None,
        needed: Iterable[frozenset[str]] | None = None,
        live: int = LIVE,
        reconcile: bool = False,
        owns: Callable[[Entity], bool] = lambda _: True,
    ) -> None:
        self.name = name
        self._config = config
        self._scope = config.scope
        self._api = api
        self._metrics = metrics
        self._stored_cursors = cursors
        self._known_names = propagates or {}
        self._feed = Feed(name, metrics, now, rng)
        self._streams = Streams(
            upstream,
            self._feed,
            asked=self._asked(names),
            overlap=config.overlap,
            keep=config.recycle + 2 * config.overlap,
            propagates=self._known_names,
            busy=lambda each: self._heal.stir(each),  # noqa: PLW0108  # made below
            heard=self._heard,
        )
        self._heal = Heal(
            self._streams,
            self._feed,
            recycle=config.recycle,
            overlap=config.overlap,
            recent_ids=recent_ids,
            wait=wait,
            exclude=self._exclude_known,
        )
        self._live = live
        self._reconciles = reconcile
        self._key = KeyCheck(api, self._feed, None if needed is None else tuple(needed))
        self._living = Living(
            self._streams,
            self._heal,
            self._feed,
            recycle=config.recycle,
            overlap=config.overlap,
            back=back(config.start),
            redundancy=config.redundancy,
            wait=wait,
            chance=rng.random,
            server_clock=self._server_clock,
            exclude=self._exclude,
            opened=self._opened,
        )
        self._cursors: dict[str, int] = {}
        self._is_renamed = False
        self._followed: dict[Entity, Followed] = {}
        self._owns = owns
        self._there: dict[Entity, None] = {}
        """All that are to be followed, by this replica or another."""
        self._groups: dict[Group, None] = {}
        self._apart: Group | None = None
        self._exclusion = Exclusion(name, metrics)
        self._listing = Listing(
            name,
            api,
            self._scope,
            every=config.recycle,
            wait=wait,
            clock=self._clock,
            followed=self._followed.keys(),
            add=self._add,
            forget=self._forget,
            listed=self._even_out,
        )
        self._warnings: tuple[str, ...] = ()
        self._tasks: TaskGroup | None = None

    def _asked(self, names: Sequence[str]) -> Asked:
        return asked(names, frozenset(self._known_names), self._scope.names())

    async def related(self, correlation_id: str) -> tuple[bytes, ...]:
        """What the server still keeps of *correlation_id*, as JSON, newest first; raises SourceError."""
        return await self._api.related(correlation_id)

    # What it looks like from outside

    def status(self) -> SourceStatus:
        open_streams = len(self._streams.open_streams)
        connected = bool(open_streams)
        errors = [group.error for group in self._groups if group.error is not None]
        refusals = [str(group.error) for group in self._groups if group.is_refused]
        if not self._groups:
            refusals += [str(each.error) for each in self._exclusion.now.values()]
        refused = self._key.problem or next(iter(refusals), "")
        unlisted, excluded = self._listing.failed, self._exclusion.now
        error = str(errors[0]) if errors else "; ".join(unlisted) if not connected else ""
        waits = [group.retry_at for group in self._groups if group.retry_at is not None]
        waits += [each.retry_at for each in excluded.values()]
        idle = self._listing.is_whole and not self._groups and not excluded
        return SourceStatus(
            connected=connected,
            ready=not refused and (connected or idle or bool(errors) or bool(unlisted)),
            error=refused or error,
            streams=open_streams,
            retry_in=max(0.0, min(waits) - anyio.current_time()) if waits and not connected else None,
            warnings=(*self._warnings, *unlisted),
            entities=len(self._followed),
            excluded=tuple((str(e), str(x.error)) for e, x in list(excluded.items())[:NAMED]),
            names_refused=self._streams.asked.refused,
        )

    def standing(self) -> Standing:
        """Unsettled is who no live stream carries, or whose history has not been read since it did."""
        clock, now = self._streams.clock_ns(), anyio.current_time()
        if clock is None or not self._listing.is_whole or not self._followed or self._feed.is_blocked:
            return Standing(clock, None)
        behind = (
            entity
            for entity, each in self._followed.items()
            if (each.streams == 0 or each.hold > now) and entity not in self._exclusion.now
        )
        return Standing(clock, frozenset(behind))

    # Running

    async def run(self, into: MemoryObjectSendStream[Reading]) -> None:
        self._feed.into = into
        self._cursors = await self._stored_cursors()
        self._is_renamed = is_changed(self._cursors, self._streams.mark)
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._heal.run)
            tasks.start_soon(self._readmit)
            tasks.start_soon(self._check_key)
            if self._reconciles:
                tasks.start_soon(self._reconcile().run)
            await self._add(self._scope.named)
            if self._scope.is_open:
                tasks.start_soon(self._listing.run)

    def _reconcile(self) -> Reconcile:
        def standing() -> tuple[int | None, frozenset[Entity] | None]:
            found = self.standing()
            return found.clock_ns, found.unsettled

        return Reconcile(
            self.name,
            self._api.connection_stats,
            lambda: [each for each in self._followed if each.kind == "gateway"],
            standing,
            self._feed.reconciled,
        )

    async def _server_clock(self) -> int | None:
        clock = await self._key.ask()
        if clock is not None:
            self._streams.set_clock(clock)
        return clock

    async def _clock(self) -> int | None:
        return self._streams.clock_ns() or await self._server_clock()

    async def _check_key(self) -> None:
        """Within one `recycle`, whatever the streams do."""
        await self._key.check(self._followed)
        while True:
            await anyio.sleep(self._config.recycle * 0.9)
            await self._key.check(list(self._followed))

    # Who is followed

    async def _add(self, entities: Iterable[Entity], since: int | None = None) -> None:
        """Follow those of *entities* that are not followed yet, by streams of their own.

        *since* (ns of server time) is where those begin that cannot have existed before.
        """
        asked = dict.fromkeys(entities)
        self._there |= asked
        new = [
            Followed.of(each, self._cursors.get(key(each)), has_ids=not self._is_renamed)
            for each in asked
            if each not in self._followed and self._owns(each)
        ]
        if since is not None:
            young = [each for each in new if each.cursor_ns is None]
            for each in young:
                each.cursor_ns = each.known_ns = since
                each.hold = UNREAD
            await self._feed.started({each.key: since for each in young})
        for each in new:
            self._followed[each.entity] = each
            self._heal.follow(each)
            if self._apart is not None and each.entity.kind == "gateway":
                self._apart.entities[each.entity] = each
        await self._open_groups(new)

    async def _open_groups(self, found: Sequence[Followed]) -> list[Group]:
        """Streams for *found*: the first alone, since it tells the rate budget that cuts the others."""
        made: list[Group] = []
        rest = [each.entity for each in found]
        if len(rest) > self._live and self._streams.pace.limit is None:
            first, *others = grouped(rest, self._live)
            made.append(self._start(first))
            await made[0].tried.wait()
            rest = [each for group in others for each in group]
        size = group_size(len(rest), self._streams.pace.limit, self._config.recycle, self._live)
        made += [self._start(each) for each in grouped(rest, size)]
        return made

    def _start(self, entities: Iterable[Entity]) -> Group:
        group = Group(self._living, [self._followed[each] for each in entities if each in self._followed])
        self._groups[group] = None
        self._spawn(group)
        return group

    def _spawn(self, group: Group) -> None:
        async def run() -> None:
            await group.run()
            group.tried.set()
            self._groups.pop(group, None)

        if self._tasks is not None:
            self._tasks.start_soon(run)

    async def rebalance(self) -> None:
        """Follow what is this replica's by now, from where another has come, and leave the rest."""
        self._cursors = await self._stored_cursors()
        for each in [entity for entity in self._followed if not self._owns(entity)]:
            self._forget(each)
            self._there[each] = None
        if self._tasks is not None:
            await self._add(list(self._there))

    def _forget(self, entity: Entity) -> None:
        """*entity* is no longer followed; its streams leave it out when they are renewed."""
        self._there.pop(entity, None)
        found = self._followed.pop(entity, None)
        self._exclusion.forget(entity)
        if found is not None:
            self._heal.forget(found)
        self._take_out([entity])

    def _take_out(self, entities: Iterable[Entity]) -> None:
        gone = set(entities)
        for group in [*self._groups, *([self._apart] if self._apart else [])]:
            for each in gone.intersection(group.entities):
                del group.entities[each]
            if not group.entities:
                group.end()
                self._groups.pop(group, None)

    async def _even_out(self) -> None:
        """Streams for what came one by one become few again; the old ones end when the new ones are there."""
        if len(self._groups) <= len(self._followed) // self._live + SPARE_GROUPS:
            return
        old = list(self._groups)
        present = [each for each in self._followed.values() if each.entity not in self._exclusion.now]
        for group in await self._open_groups(present):
            await group.tried.wait()
        for group in old:
            group.end()
            self._groups.pop(group, None)

    # What the server refuses

    def _exclude(self, requested: Sequence[Entity], error: SourceError) -> bool:
        """Does *error* concern some of *requested*? Then they are left out for a while, or, if it does not
        say whom it means, their stream is cut in two."""
        if self._exclude_known(requested, error):
            return True
        if not is_about_entities(error):
            return False
        if len(requested) > 1:
            half = len(requested) // 2
            ordered = sorted(requested)
            self._take_out(requested)
            self._start(ordered[:half])
            self._start(ordered[half:])
        else:
            self._leave_out(requested, error)
        return True

    def _exclude_known(self, requested: Sequence[Entity], error: SourceError) -> bool:
        """The same where the error names whom it means: everything of that owner is left out at once."""
        if not is_about_entities(error):
            return False
        guilty = culprits(error, requested)
        owners = {owner(each) for each in guilty}
        if error.name != "validation":
            guilty = tuple(each for each in self._followed if owner(each) in owners)
        self._leave_out(guilty, error)
        return bool(guilty)

    def _leave_out(self, entities: Iterable[Entity], error: SourceError) -> None:
        found = [self._followed[each] for each in entities if each in self._followed]
        for each in found:
            self._heal.lost([each])
            self._heal.forget(each)
        self._take_out(each.entity for each in found)
        self._exclusion.leave_out(found, error)

    async def _readmit(self) -> None:
        """Try those again that were left out, on streams of their own."""
        while True:
            due = self._exclusion.due()
            for each in due:
                self._heal.follow(each)
            await self._open_groups(due)
            await anyio.sleep(min(10.0, max(0.5, self._exclusion.next_try() - anyio.current_time())))

    def _opened(self, opened: Opened) -> None:
        for each in opened.wanted.entities:
            self._exclusion.streams_again(each)
        if opened.warnings and opened.warnings != self._warnings:
            log.warning("the server warns", source=self.name, warnings=list(opened.warnings))
        self._warnings = opened.warnings
        if self._streams.asked.apart and self._apart is None:
            self._follow_apart()

    def _follow_apart(self) -> None:
        """Managed gateways, where the server does not take the expression that means everything."""
        gateways = [each for each in self._followed.values() if each.entity.kind == "gateway"]
        if gateways:
            self._apart = Group(self._living, gateways, apart=True)
            self._spawn(self._apart)

    def _heard(self, event: Event) -> None:
        if self._scope.is_open:
            self._listing.heard(event)


def back(start: str) -> float | None:
    """Seconds before now at which a new identifier starts (`from`); None for the oldest there is."""
    if start == "oldest":
        return None
    return 0.0 if start == "now" else seconds(start)
