"""Alerts: what is watched, and how its state moves.  No I/O, no clock, no randomness in this file.

A state moves in the order of event time and only as far as the watermark: the time up to which everything
has come that the overlap allows for. So the order of arrival makes no difference. `rules/README.md` has the
tables.
"""

from __future__ import annotations

import dataclasses
from bisect import insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from bridge.alerts import absent, state, threshold, value
from bridge.alerts.mute import Mute
from bridge.alerts.parts import SECOND, Blind, Level, Observation
from bridge.event import KINDS
from bridge.pattern.leaves import Field
from bridge.render import Template
from bridge.rules.matcher import Matcher

Spec: TypeAlias = state.State | absent.Absent | threshold.Threshold | value.Value
Core: TypeAlias = state.Core | absent.Core | threshold.Core | value.Core
Phase: TypeAlias = Literal["inactive", "pending", "firing"]

CAUSES = 10  # events a notification names
RECONNECT = SECOND  # ns; a down that ends sooner is a gateway that reconnects: disconnect and connect at once
ALL = "all"
BY = (*KINDS, "join_eui", "dev_eui", "dev_addr", "eui", ALL)


@dataclass(frozen=True, slots=True)
class Inhibitor:
    """While *alert* fires (or is about to) the notifications of another are kept back.

    *last_heard_by*: for entities last heard only by gateways *alert* fires for; else where the labels *equal*
    are the same.
    """

    alert: str
    last_heard_by: bool = False
    equal: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Grouping:
    """How notifications are put together and repeated; ns, with Alertmanager's names and meaning.

    *by* None: each key by itself. *repeat* None: never.
    """

    by: tuple[str, ...] | None = None
    wait: int = 0
    interval: int = 0
    repeat: int | None = 4 * 3600 * SECOND
    escalate_after: int | None = None
    escalate_to: tuple[str, ...] = ()


class Expected(NamedTuple):
    """A notification a test expects, *at* ns after its start; of *key*, if that is not ''."""

    at: int
    status: str
    key: str = ""
    sends: tuple[str, ...] | None = None
    summary: str | None = None


@dataclass(frozen=True, slots=True)
class Story:
    """One entry of an alert's `tests:`: events with their times in ns after its start; *line* from 1."""

    line: int
    events: tuple[tuple[int, Mapping[str, Any]], ...]
    expected: tuple[Expected, ...]
    description: str = ""
    file: str | None = None
    """Instead of *events*: a recorded stream, relative to the rule file."""
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert of a rule file. *hold* is `for` in ns, which `absent` has in its spec instead."""

    name: str
    spec: Spec
    matchers: Mapping[str, Matcher]
    """By role: match, of, down, up."""
    by: str
    send: tuple[str, ...]
    unless: Matcher | None = None
    hold: int = 0
    field: Field | None = None
    """The number that is looked at."""
    pick: Literal["max", "min", "first"] = "first"
    """Which, where an event has several."""
    distinct: str = ""
    """An identifier or a path whose values count once; `fold:prefix` for a correlation id."""
    grouping: Grouping = Grouping()
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    summary: Template | None = None
    inhibitors: tuple[Inhibitor, ...] = ()
    mute: tuple[Mute, ...] = ()
    allow: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Lints that do not apply here, each with the reason."""
    tests: tuple[Story, ...] = ()
    file: str = ""
    line: int = 0
    number: int = 0
    """Which alert of *file*, from 0."""

    @property
    def kind(self) -> str:
        return type(self.spec).__name__.lower()

    @property
    def tells(self) -> tuple[str, ...]:
        """All the sinks it may send to."""
        return tuple(dict.fromkeys((*self.send, *self.grouping.escalate_to)))

    def patterns(self) -> Iterator[Matcher]:
        """All blocks, those inside `any` too."""
        for matcher in (*self.matchers.values(), *([self.unless] if self.unless else [])):
            yield from matcher.blocks()

    def label_names(self) -> frozenset[str]:
        found = {"alertname", *self.labels, self.by.rpartition(".")[2]}
        return frozenset(found | ({"application"} if self.by == "device" else set()))

    def labels_of(self, key: str) -> dict[str, str]:
        """The labels of the one that is *key*."""
        found = {"alertname": self.name}
        if self.by != ALL:
            found[self.by.rpartition(".")[2]] = key
        if self.by == "device":
            found["application"] = key.partition("/")[0]
        return found | dict(self.labels)

    def held(self, overlap: int) -> int:
        """ns a condition has to hold before it fires."""
        least = min(RECONNECT, overlap) if isinstance(self.spec, state.State) else 0
        return max(self.hold, least)


class Change(NamedTuple):
    """An alert of a key entered *phase* at *at*."""

    phase: Phase
    at: int
    was: Phase


class Track(msgspec.Struct, omit_defaults=True, gc=False):
    """All that is remembered of one key of one alert."""

    core: Core
    log: list[Observation] = []
    """Beyond the watermark when it came: ascending by time, then id."""
    phase: Phase = "inactive"
    since: int = 0
    active: int = 0
    """When its condition began to hold."""
    clock: int = 0
    """How far its state has moved."""
    seen: int = 0
    """The time of the last event that was taken."""
    causes: list[msgspec.Raw] = []
    data: msgspec.Raw = msgspec.Raw(b"null")
    heard: tuple[str, ...] = ()
    """The gateways that heard the last event."""
    sources: tuple[str, ...] = ()
    """Which brought its events."""
    changed: int = 0
    """When *phase* last became inactive, after it was not."""
    is_gone: bool = False
    """Its entity was deleted."""
    scheduled: int = 0
    """Where it stands in the engine's heap; meaningless on disk."""


def new_track(alert: Alert) -> Track:
    match alert.spec:
        case state.State():
            return Track(state.Core())
        case absent.Absent():
            return Track(absent.Core())
        case threshold.Threshold():
            return Track(threshold.Core())
        case _:
            return Track(value.Core())


def observe(track: Track, seen: Observation) -> bool:
    """Note *seen*; False if it is older than what has set the state, and changes nothing."""
    if seen.time < track.seen:
        return False
    if not track.log or (track.log[-1].time, track.log[-1].id) <= (seen.time, seen.id):
        track.log.append(seen)
    else:
        insort(track.log, seen, key=lambda each: (each.time, each.id))
    return True


def advance(alert: Alert, track: Track, upto: int, overlap: int, blind: Blind = ()) -> list[Change]:
    """Move *track* to the watermark *upto*; returns what it went through, in order."""
    kind, spec = _MODULES[type(alert.spec)], alert.spec
    changes: list[Change] = []
    while True:
        seen = track.log[0] if track.log and track.log[0].time <= upto else None
        due = deadline(alert, track, overlap, blind)
        if seen is not None and (due is None or seen.time <= due):
            del track.log[0]
            at = max(seen.time, track.clock)
            _take(alert, track, seen, at, kind, blind)
        elif due is not None and due <= upto:
            at = max(due, track.clock)
        else:
            return changes
        track.clock = at
        level = None if track.is_gone else kind.level(spec, track.core, at, blind)
        changes.extend(_move(track, level, at, alert.held(overlap)))


def _take(alert: Alert, track: Track, seen: Observation, at: int, kind: Any, blind: Blind) -> None:
    track.seen = max(track.seen, seen.time)
    if seen.role == "gone":
        track.is_gone = True
        return
    track.is_gone = False
    track.heard = seen.heard or track.heard
    if kind.take(alert.spec, track.core, seen, at, blind):
        track.causes = [*track.causes, seen.cause][-_causes(alert, track, at) :]
        track.data = seen.data


def _causes(alert: Alert, track: Track, at: int) -> int:
    """How many events are the cause: of a threshold those in the window, else the last."""
    if not (isinstance(alert.spec, threshold.Threshold) and isinstance(track.core, threshold.Core)):
        return 1
    return max(1, min(CAUSES, threshold.inside(alert.spec, track.core, at)))


def _move(track: Track, level: Level | None, at: int, hold: int) -> Iterator[Change]:
    """inactive → pending → firing → inactive; never two steps backwards, never over one."""
    was = track.phase
    if level is None:
        if was != "inactive":
            track.phase, track.changed = "inactive", at
            yield Change("inactive", at, was)
        return
    if was == "inactive":
        track.phase, track.since, track.active = "pending", level.since, at
        yield Change("pending", at, was)
    if track.phase == "pending" and (level.urgent or at >= track.active + hold):
        track.phase = "firing"
        yield Change("firing", at, "pending")


def deadline(alert: Alert, track: Track, overlap: int, blind: Blind = ()) -> int | None:
    """The next event time at which something may change without a further event."""
    if track.is_gone:
        return None
    own: int | None = _MODULES[type(alert.spec)].deadline(alert.spec, track.core, track.clock, blind)
    if track.phase == "pending":
        fires = track.active + alert.held(overlap)
        return fires if own is None else min(own, fires)
    return own


def next_due(alert: Alert, track: Track, overlap: int, blind: Blind = ()) -> int | None:
    """The watermark at which *track* has to be moved again; None if only an event can change it.

    An event that changes nothing by itself (a heartbeat, an uplink) waits until the next one.
    """
    due = deadline(alert, track, overlap, blind)
    if not track.log:
        return due
    first = _matters(alert, track)
    return due if first is None else first if due is None else min(due, first)


def _matters(alert: Alert, track: Track) -> int | None:
    """The time of the first event in the log after which the phase may be another."""
    if track.phase != "inactive":
        return track.log[0].time
    match alert.spec:
        case absent.Absent():
            core = track.core
            if not isinstance(core, absent.Core) or not core.last:
                return track.log[0].time
            return None if absent.span(alert.spec, core) is not None else track.log[0].time
        case state.State():
            if not track.clock:
                return track.log[0].time
            return next((each.time for each in track.log if each.role != "up"), None)
        case value.Value():
            return next((each.time for each in track.log if _may_move(alert.spec, track.core, each)), None)
        case _:
            return track.log[0].time


def _may_move(spec: value.Value, core: Core, seen: Observation) -> bool:
    started = isinstance(core, value.Core) and core.row > 0
    return started or seen.role != "match" or (seen.value is not None and spec.is_out(seen.value))


def value_of(alert: Alert, track: Track) -> float | None:
    """The number a notification shows."""
    if isinstance(alert.spec, threshold.Threshold) and isinstance(track.core, threshold.Core):
        return threshold.value(alert.spec, track.core, track.clock)
    return track.core.value if isinstance(track.core, value.Core) else None


def is_idle(alert: Alert, track: Track, at: int) -> bool:
    """May it be forgotten at *at*? What is absent or up must be remembered; what counts while it counts."""
    if track.phase != "inactive" or track.log:
        return False
    if track.is_gone:
        return True
    if isinstance(alert.spec, threshold.Threshold) and isinstance(track.core, threshold.Core):
        return threshold.is_idle(alert.spec, track.core, at)
    return False


_MODULES: Mapping[type[Spec], Any] = {
    state.State: state,
    absent.Absent: absent,
    threshold.Threshold: threshold,
    value.Value: value,
}
