"""What sources missed for good, and whom that concerns.  No I/O, no clock, no logging in this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from bridge.alerts.parts import Blind
from bridge.event import KINDS, Event, nanoseconds

GAP = "bridge.source.gap"
BLIND_KEPT = 64  # stretches of each source


class BlindSpot(msgspec.Struct, frozen=True):
    """What a source missed for good; *entities* as `kind:id`, empty for everybody."""

    began: int
    ended: int
    entities: frozenset[str] = frozenset()


class _Gap(msgspec.Struct, frozen=True):
    entities: tuple[str, ...] = ()
    count: int = 0
    since: str = msgspec.field(name="from", default="")
    until: str = msgspec.field(name="to", default="")


class _GapEvent(msgspec.Struct, frozen=True):
    data: _Gap = _Gap()


def blind_spot(event: Event) -> BlindSpot | None:
    """What the gap *event* tells; None if it is none that can be read."""
    try:
        told = msgspec.json.decode(event.body, type=_GapEvent).data
        return BlindSpot(
            nanoseconds(told.since),
            nanoseconds(told.until),
            frozenset(told.entities) if told.count <= len(told.entities) else frozenset(),
        )
    except (msgspec.DecodeError, ValueError):
        return None


def kept(known: Sequence[BlindSpot], spot: BlindSpot) -> list[BlindSpot]:
    return sorted([*known, spot], key=lambda each: each.began)[-BLIND_KEPT:]


def blind_of(by: str, key: str, sources: Sequence[str], spots: Mapping[str, Sequence[BlindSpot]]) -> Blind:
    """In which time what *sources* bring of *key* may have been missed, oldest first by source."""
    names = _names(by, key)
    return [
        (spot.began, spot.ended)
        for source in sources
        for spot in spots.get(source, ())
        if not spot.entities or not names or not names.isdisjoint(spot.entities)
    ]


def _names(by: str, key: str) -> frozenset[str]:
    """The identifiers of gap events that concern *key*; empty if it is no entity."""
    if by not in KINDS:
        return frozenset()
    names = {f"{by}:{key}"}
    if by == "device":
        names.add(f"application:{key.partition('/')[0]}")
    return frozenset(names)
