"""What the key can see: listed page by page, and followed through creation and deletion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import anyio
import structlog

from bridge.errors import SourceError
from bridge.event import KINDS, Entity, Event, Kind, entities
from bridge.sources.api import PAGE, Api

log = structlog.get_logger()

AT_ONCE = 4  # lists asked for at the same time
PAGES = 1000  # pages of one list, at most

CREATED = frozenset({"create", "restore"})
DELETED = frozenset({"delete", "purge"})
BATCH = "end_device.batch.delete"
"""Names the application; which devices are gone stands in its data, and the next list says it too."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What to follow: *named* ones, all of some *kinds*, and the devices of applications.

    *devices_of* holds application ids; `*` stands for all applications that are followed.
    """

    named: tuple[Entity, ...] = ()
    kinds: frozenset[Kind] = frozenset()
    devices_of: frozenset[str] = frozenset()

    @property
    def is_open(self) -> bool:
        """Does it take lists to know?"""
        return bool(self.kinds or self.devices_of)

    def takes(self, entity: Entity) -> bool:
        """Is *entity*, now created, to be followed?"""
        if entity.kind != "device":
            return entity.kind in self.kinds
        application = entity.id.partition("/")[0]
        return application in self.devices_of or (
            "*" in self.devices_of
            and ("application" in self.kinds or Entity("application", application) in self.named)
        )

    def names(self) -> tuple[str, ...]:
        """The events that tell of creation and deletion."""
        found: list[str] = []
        for kind in sorted(self.kinds):
            found += [f"{kind}.{verb}" for verb in sorted(CREATED | DELETED)]
        if self.devices_of:
            found += ["end_device.create", "end_device.delete", BATCH]
        return tuple(found)


@dataclass(slots=True)
class Found:
    """*entities* that were listed; *failed* lists by name, with the error: what was known of them stays."""

    entities: set[Entity] = field(default_factory=set)
    failed: dict[str, SourceError] = field(default_factory=dict)
    unlisted: set[tuple[Kind, str]] = field(default_factory=set)
    """The kind, and the application of devices, whose list failed."""

    def keeps(self, entity: Entity) -> bool:
        """Is *entity*, which is in no list, to stay because its list failed?"""
        of = entity.id.partition("/")[0] if entity.kind == "device" else ""
        return (entity.kind, of) in self.unlisted or (
            entity.kind == "device" and ("application", "") in self.unlisted
        )


async def discover(api: Api, scope: Scope) -> Found:
    """List everything *scope* wants. Never raises."""
    found = Found(set(scope.named))
    limit = anyio.CapacityLimiter(AT_ONCE)

    async def collect(kind: Kind, application: str = "") -> None:
        async with limit:
            try:
                found.entities.update(await everything(api, kind, application))
            except SourceError as error:
                found.failed[f"devices of {application}" if application else f"{kind}s"] = error
                found.unlisted.add((kind, application))

    async with anyio.create_task_group() as lists:
        for kind in KINDS:
            if kind in scope.kinds:
                lists.start_soon(collect, kind)
    async with anyio.create_task_group() as lists:
        for application in applications(scope, found.entities):
            lists.start_soon(collect, "device", application)
    return found


def applications(scope: Scope, found: Iterable[Entity]) -> list[str]:
    """Whose devices are to be listed."""
    present = {each.id for each in found if each.kind == "application"}
    return sorted((scope.devices_of - {"*"}) | (present if "*" in scope.devices_of else set()))


async def everything(api: Api, kind: Kind, application: str = "") -> set[Entity]:
    """All of one list; raises SourceError.

    Pages shift when something is deleted while they are read: if fewer came than there are, the list is
    read once more. An empty list may be that of a key of one entity, which stands in `auth_info` alone.
    """
    found, total = await _pages(api, kind, application)
    if len(found) < total:
        again, _ = await _pages(api, kind, application)
        found |= again
    if not found and kind != "device":
        owner = (await api.auth_info()).owner
        return {owner} if owner is not None and owner.kind == kind else set()
    return found


async def _pages(api: Api, kind: Kind, application: str) -> tuple[set[Entity], int]:
    found: set[Entity] = set()
    seen = total = 0
    for number in range(1, PAGES + 1):
        page = await api.listed(kind, application, page=number, limit=PAGE)
        found.update(page.entities)
        seen += len(page.entities)
        total = max(total, page.total)
        ended = seen >= page.total if page.total else len(page.entities) < PAGE
        if ended or not page.entities:
            break
    return found, total


@dataclass(frozen=True, slots=True)
class Change:
    """What an event says about who exists."""

    created: tuple[Entity, ...] = ()
    deleted: tuple[Entity, ...] = ()
    lists_changed: bool = False


NOTHING = Change()


def change(event: Event, scope: Scope) -> Change:
    """What *event* changes in *scope*: it names the entity, or only says that lists have changed."""
    subject, _, verb = event.name.rpartition(".")
    if event.name == BATCH:
        return Change(lists_changed=bool(scope.devices_of))
    kind = "device" if subject == "end_device" else subject
    if kind not in KINDS or verb not in CREATED | DELETED:
        return NOTHING
    about = tuple(each for each in entities(event) if each.kind == kind and scope.takes(each))
    if not about:
        return NOTHING
    if verb in CREATED:
        return Change(created=about)
    return Change(deleted=tuple(each for each in about if each not in scope.named))


def described(failed: dict[str, SourceError]) -> Sequence[str]:
    """One line for each list that failed."""
    return [f"cannot list {name}: {error}" for name, error in sorted(failed.items())]
