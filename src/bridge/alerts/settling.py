"""Who cannot be judged yet, because what was sent about it may still come.  No I/O, no clock in this file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from bridge.event import KINDS, Entity


@dataclass(frozen=True, slots=True)
class Behind:
    """Of one source that several replicas read: *entities*, and all that belong to *parts* nobody reads."""

    entities: frozenset[Entity] = frozenset()
    parts: frozenset[int] = frozenset()
    part_of: Callable[[Entity], int] = field(default=lambda _: 0, compare=False)


Unsettled: TypeAlias = Mapping[str, Behind | frozenset[Entity] | None]
"""Sources that have not finished their replay, and for whom; None for everybody."""


def is_behind(by: str, key: str, found: Behind | frozenset[Entity] | None) -> bool:
    """Does *found*, of some source, concern the one that is *key* of an alert that goes *by* this?"""
    if found is None:
        return True
    if isinstance(found, Behind):
        if found.parts and (by not in KINDS or found.part_of(Entity(by, key)) in found.parts):
            return True
        found = found.entities
    return bool(found) and _concerns(by, key, found)


def _concerns(by: str, key: str, entities: frozenset[Entity]) -> bool:
    if by == "device":
        return Entity("device", key) in entities or Entity("application", key.partition("/")[0]) in entities
    if by == "application":
        start = f"{key}/"
        return Entity("application", key) in entities or any(
            each.kind == "device" and each.id.startswith(start) for each in entities
        )
    if by in KINDS:
        return Entity(by, key) in entities
    return True
