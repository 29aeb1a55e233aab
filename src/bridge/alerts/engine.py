"""The alerts of the running bridge: their states in memory, and what follows from events and from time.

No I/O, no clock, no randomness in this file: `ingest` calls it, and stores what `rows` says in the
transaction of the events that caused it. Times are nanoseconds of the server's clock, as those of events.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import msgspec

from bridge.alerts import (
    Alert,
    Change,
    Track,
    advance,
    groups,
    is_idle,
    new_track,
    next_due,
    observe,
    value_of,
)
from bridge.alerts.blind import GAP, BlindSpot, blind_of, blind_spot, kept
from bridge.alerts.groups import Group, Member, Notice, Suppression
from bridge.alerts.memory import Memory, Row, Tally, silence_row
from bridge.alerts.parts import SECOND, Blind
from bridge.alerts.settling import Unsettled, is_behind
from bridge.alerts.sights import AlertSet, Sight
from bridge.alerts.silences import KEEP, Silence
from bridge.alerts.state import State
from bridge.alerts.suppression import View, suppressed
from bridge.event import Event, rfc3339

__all__ = ["GAP", "Alerting", "Current", "Row", "Tally", "Unsettled", "as_object", "silence_row"]

AHEAD = 60 * SECOND  # ns an event may be ahead of the server's clock; a later one counts as of now
AT_ONCE = 10_000  # states moved by one tick, some 0.2 s, a notification counting five times: events go on
SWEEP = 600 * SECOND  # ns between rounds of forgetting what counts no more


class Current(NamedTuple):
    """One alert that is pending or firing; *since* in ns, *suppressed* says why nobody is told."""

    alert: str
    key: str
    state: str
    since: int
    labels: Mapping[str, str]
    suppressed: str


class Alerting:
    """*redact* is asked before anything of an event is kept; *overlap* in ns."""

    def __init__(self, redact: Callable[[Event], Event] = lambda event: event) -> None:
        self.redact = redact
        self.alerts = AlertSet(())
        self._memory = memory = Memory()
        self.tally = memory.tally
        self.silences = memory.silences
        self.others: dict[str, dict[str, Track]] = {}
        """By alert and key: what other engines judge, as far as it inhibits alerts of this one."""
        self.now = 0
        """The server's clock at the last tick."""
        self.at_once = AT_ONCE
        self.has_more = False
        """Was more due than the last tick could do?"""
        self._overlap = 10 * SECOND
        self._upto = 0
        self._tracks, self._groups, self._active = memory.tracks, memory.groups, memory.active
        self._blind, self._dirty = memory.blind, memory.dirty
        self._due: list[tuple[int, str, str]] = []
        self._flushes: list[tuple[int, str, str]] = []
        self._parked: list[tuple[str, str]] = []
        self._unsettled: Unsettled = {}
        self._swept = 0
        self._leaving: dict[str, Alert | None] = {}
        self._is_changed = False
        """Is the config another one since the last tick?"""

    @property
    def moves(self) -> int:
        """Phases entered since the start, and left with what was forgotten."""
        return self._memory.moves

    # Config and store

    def configure(self, alerts: AlertSet, overlap: int) -> None:
        """From now on watch *alerts*. Others end with the next tick; states of another kind are dropped."""
        self._overlap, self._is_changed = overlap, True
        gone = {*self._tracks, *self._groups} - set(alerts.by_name)
        self._leaving |= {name: self.alerts.by_name.get(name) for name in gone - set(self._leaving)}
        self.alerts = alerts
        for alert in alerts.alerts:
            kind, tracks = type(new_track(alert).core), self._tracks.get(alert.name, {})
            if any(type(track.core) is not kind for track in tracks.values()):
                self._memory.drop(alert.name)
            self._memory.prepare(alert.name)
            for key, track in self._tracks[alert.name].items():
                self._schedule(alert, key, track)

    def _leave(self) -> list[Notice]:
        """Alerts that are in no file any more: what was told as firing is told as resolved."""
        notices: list[Notice] = []
        leaving, self._leaving = self._leaving, {}
        for name, alert in leaving.items():
            if name in self.alerts.by_name:
                continue
            if alert is not None:
                notices += self._ended(alert)
            self._memory.drop(name)
        return notices

    def _ended(self, alert: Alert) -> list[Notice]:
        found = self._groups.get(alert.name, {})
        return [notice for key, group in found.items() for notice in self._end(alert, key, group)]

    def _end(self, alert: Alert, key: str, group: Group) -> list[Notice]:
        for each in list(group.members):
            groups.resolved(alert, group, each, self.now, self.now)
        return groups.flush(alert, key, group, self.now, self.now, lambda _: None)

    def _regroup(self) -> list[Notice]:
        """Groups that another `group_by` has made end, and who was in them is told of with those of today."""
        notices: list[Notice] = []
        for alert in self.alerts.alerts:
            found = self._groups[alert.name]
            old = [name for name, each in found.items() if not groups.is_today(alert, name, each)]
            members = [key for name in old for key in found[name].members]
            for name in old:
                notices += self._end(alert, name, found.pop(name))
                self._dirty["group", alert.name, name] = None
            for key in members:
                track = self._tracks[alert.name].get(key)
                if track is not None and track.phase == "firing":
                    self._fire(alert, key, track, self.now, start=self.now)
        return notices

    def keys(self, name: str) -> list[str]:
        """Of whom the alert *name* remembers something."""
        return list(self._tracks.get(name, ()))

    def give(self, name: str, key: str) -> Track | None:
        """What is remembered of *key*, which another engine judges from now on."""
        track = self._tracks.get(name, {}).get(key)
        if track is not None:
            self._memory.forget(name, key)
        return track

    def adopt(self, name: str, key: str, track: Track) -> None:
        """What another engine has given away; what is known here already by newer events stands."""
        alert, known = self.alerts.by_name.get(name), self._tracks.get(name, {}).get(key)
        is_known = known is not None and known.seen >= track.seen
        if alert is None or is_known or type(track.core) is not type(new_track(alert).core):
            return
        if known is not None:
            self.give(name, key)
        self._memory.remember(name, key, track)
        self._dirty["track", name, key] = None
        if track.phase == "firing":
            self._fire(alert, key, track, self.now, start=self.now)
        self._schedule(alert, key, track)

    def load(self, rows: Iterable[tuple[str, str, str, bytes]]) -> None:
        """What an earlier process stored, before `configure`: part, alert, key and JSON."""
        self._memory.load(rows)
        clocks = (track.clock for tracks in self._tracks.values() for track in tracks.values())
        self._upto = max(self._upto, max(clocks, default=0))
        for name, found in self._groups.items():
            for key, group in found.items():
                self._schedule_flush(name, key, group)

    def rows(self) -> dict[Row, bytes | None]:
        """What has changed since the last call: JSON, or None for what is to be forgotten."""
        return self._memory.rows()

    # Events

    def look(self, event: Event) -> list[Sight]:
        """What alerts see of *event*; nothing has changed yet."""
        return self.alerts.sights(event, self.redact)

    def observe(self, source: str, sights: Iterable[Sight], now: int, *, only_known: bool = False) -> None:
        """Note what came by *source*; *now* is the server's clock. *only_known*: nobody new is watched."""
        for alert, key, seen in sights:
            if self.alerts.by_name.get(alert.name) is not alert:
                continue  # a reload came in between
            tracks = self._tracks[alert.name]
            track = tracks.get(key)
            if track is None:
                if seen.role == "gone" or only_known:
                    continue
                track = tracks[key] = new_track(alert)
                self.tally.phases[alert.name, "inactive"] += 1
            if source not in track.sources:
                track.sources = self._memory.shared((*track.sources, source))
            is_sane = seen.time <= now + AHEAD
            if not observe(track, seen if is_sane else msgspec.structs.replace(seen, time=now)):
                self.tally.late[alert.name] += 1
                continue
            if not self._is_blocked(alert, key, track):
                blind = self._blind_of(alert, key, track)
                self._apply(alert, key, track, advance(alert, track, self._upto, self._overlap, blind))
            self._schedule(alert, key, track)
            self._dirty["track", alert.name, key] = None

    def gap(self, source: str, event: Event) -> None:
        """Events are missing for certain: what was waited for may have been among them."""
        spot = blind_spot(event)
        if spot is not None:
            self.missed(source, spot)

    def missed(self, source: str, spot: BlindSpot) -> None:
        """What `gap` reads from its event."""
        self._blind[source] = kept(self._blind.get(source, ()), spot)
        self._dirty["blind", "", source] = None

    def _blind_of(self, alert: Alert, key: str, track: Track) -> Blind:
        return blind_of(alert.by, key, track.sources, self._blind) if self._blind else ()

    def _is_blocked(self, alert: Alert, key: str, track: Track) -> bool:
        """Is a source that follows it still in its replay?"""
        unsettled = self._unsettled
        return any(
            source in unsettled and is_behind(alert.by, key, unsettled[source]) for source in track.sources
        )

    # Time

    def tick(self, now: int, unsettled: Unsettled, _parts: Collection[str] = ()) -> list[Notice]:
        """What is to be told at *now*, the server's clock, in the order of its time."""
        self.now = max(self.now, now)
        if unsettled != self._unsettled:
            self._unsettled = unsettled
            parked, self._parked = self._parked, []
            for name, key in parked:
                self._reschedule(name, key)
        self._upto = max(self._upto, self.now - self._overlap)
        notices = self._leave()
        if self._is_changed and self.now:
            notices += self._regroup()
            self._is_changed = False
        left = self.at_once
        while left > 0:
            due = self._due[0][0] + self._overlap if self._due else None
            flush = self._flushes[0][0] if self._flushes else None
            if flush is not None and flush <= self.now and (due is None or flush < due):
                told = self._flush(*heapq.heappop(self._flushes))
                notices.extend(told)
                left -= 1 + 5 * len(told)
            elif due is not None and due <= self.now:
                self._run(*heapq.heappop(self._due))
                left -= 1
            else:
                break
        self.has_more = left <= 0
        if self.now - self._swept > SWEEP:
            self._sweep()
        return notices

    def next_tick(self) -> int | None:
        """When, by the server's clock, there is something to do; sources apart."""
        due = [self._due[0][0] + self._overlap] if self._due else []
        due += [self._flushes[0][0]] if self._flushes else []
        return min(due, default=None)

    def _run(self, due: int, name: str, key: str) -> None:
        alert, track = self.alerts.by_name.get(name), self._tracks.get(name, {}).get(key)
        if alert is None or track is None or track.scheduled != due:
            return
        track.scheduled = 0
        if self._is_blocked(alert, key, track):
            self._parked.append((name, key))
            return
        blind = self._blind_of(alert, key, track)
        changes = advance(alert, track, due, self._overlap, blind)
        if changes:
            self._dirty["track", name, key] = None
            self._apply(alert, key, track, changes)
        if track.is_gone and is_idle(alert, track, due):
            self._memory.forget(name, key)
        else:
            self._schedule(alert, key, track, after=due)

    def _reschedule(self, name: str, key: str) -> None:
        alert, track = self.alerts.by_name.get(name), self._tracks.get(name, {}).get(key)
        if alert is not None and track is not None:
            self._schedule(alert, key, track)

    def _schedule(self, alert: Alert, key: str, track: Track, after: int = -1) -> None:
        """One entry of the heap stands for a track; it may ring too early, never too late."""
        due = next_due(alert, track, self._overlap, self._blind_of(alert, key, track))
        if due is None:
            return
        due = max(due, after + 1)
        if not track.scheduled or due < track.scheduled:
            track.scheduled = due
            heapq.heappush(self._due, (due, alert.name, key))

    def _sweep(self) -> None:
        self._swept = self.now
        for alert in self.alerts.alerts:
            if alert.kind == "threshold":
                idle = [
                    key
                    for key, each in self._tracks[alert.name].items()
                    if is_idle(alert, each, self._upto) and not self._is_blocked(alert, key, each)
                ]
                for key in idle:
                    self._memory.forget(alert.name, key)
        for each in [each for each in self.silences.values() if each.ends + KEEP < self.now / SECOND]:
            del self.silences[each.id]
            self._dirty["silence", "", each.id] = None

    # Changes

    def _apply(self, alert: Alert, key: str, track: Track, changes: Iterable[Change]) -> None:
        for change in changes:
            self.tally.phases[alert.name, change.was] -= 1
            self.tally.phases[alert.name, change.phase] += 1
            self._memory.moves += 1
            self._count(alert, change)
            known = change.at + self._overlap
            if change.phase == "firing":
                self._fire(alert, key, track, known, start=track.since)
            elif change.was == "firing":
                self._resolve(alert, key, change.at, known)
            if change.phase == "inactive":
                self._active[alert.name].discard(key)
            else:
                self._active[alert.name].add(key)

    def _count(self, alert: Alert, change: Change) -> None:
        if isinstance(alert.spec, State) and change.was == "pending" and change.phase == "inactive":
            self.tally.flaps[alert.by] += 1

    def _fire(self, alert: Alert, key: str, track: Track, at: int, *, start: int) -> None:
        """*start* is that of the group, if it begins with this: no two of one name have the same."""
        name = groups.group_key(alert, key)
        group = self._groups[alert.name].setdefault(name, Group(start))
        member = Member(track.since, causes=list(track.causes), data=track.data, value=value_of(alert, track))
        groups.fired(alert, group, key, member, at)
        self._touch(alert.name, name, group)

    def _resolve(self, alert: Alert, key: str, ends: int, at: int) -> None:
        name = groups.group_key(alert, key)
        group = self._groups[alert.name].get(name)
        if group is not None:
            groups.resolved(alert, group, key, ends, at)
            self._touch(alert.name, name, group)

    def _touch(self, name: str, key: str, group: Group) -> None:
        """*group* has changed; an empty one is over."""
        self._dirty["group", name, key] = None
        if group.members:
            self._schedule_flush(name, key, group)
        else:
            del self._groups[name][key]

    def _schedule_flush(self, name: str, key: str, group: Group) -> None:
        if group.flush is not None and (not group.scheduled or group.flush < group.scheduled):
            group.scheduled = group.flush
            heapq.heappush(self._flushes, (group.flush, name, key))

    def _flush(self, due: int, name: str, key: str) -> list[Notice]:
        alert, group = self.alerts.by_name.get(name), self._groups.get(name, {}).get(key)
        if alert is None or group is None or group.scheduled != due:
            return []
        group.scheduled = 0
        notices = groups.flush(alert, key, group, due, self.now, lambda each: self._suppressed(alert, each))
        self._touch(name, key, group)
        return notices

    # Who is not told

    def _suppressed(self, alert: Alert, key: str) -> Suppression | None:
        return suppressed(alert, key, self._view())

    def _view(self) -> View:
        return View(
            self.now, self._overlap, self.alerts.by_name, self.silences.values(), self._known, self._firing
        )

    def _known(self, alert: str, key: str) -> Track | None:
        found = self._tracks.get(alert, {}).get(key)
        return self.others.get(alert, {}).get(key) if found is None else found

    def _firing(self, alert: str) -> Iterable[str]:
        yield from self._active.get(alert, ())
        for key, track in self.others.get(alert, {}).items():
            if track.phase != "inactive" and key not in self._tracks.get(alert, {}):
                yield key

    def silence(self, silence: Silence) -> None:
        """Add *silence*, or put it in the place of the one with its id; it is stored already.

        Who was silenced until now is looked at anew.
        """
        self.silences[silence.id] = silence
        for name, waiting in self._groups.items():
            for key, group in waiting.items():
                if group.held:
                    group.flush = self.now
                    self._schedule_flush(name, key, group)

    def silent(self) -> Counter[str]:
        """How many are missed, by what their alert goes by."""
        found: Counter[str] = Counter()
        for alert in self.alerts.alerts:
            if alert.kind == "absent":
                found[alert.by] += self.tally.phases[alert.name, "firing"]
        return found

    def count(self, phase: str) -> int:
        """How many are in *phase*, told or not."""
        return sum(count for (_, each), count in self.tally.phases.items() if each == phase)

    def current(self) -> list[Current]:
        """All that is pending or firing, with why nobody is told of it."""
        found: list[Current] = []
        for alert in self.alerts.alerts:
            for key in sorted(self._active[alert.name]):
                track = self._tracks[alert.name][key]
                held = self._suppressed(alert, key)
                labels = alert.labels_of(key)
                reason = held.reason if held else ""
                found.append(Current(alert.name, key, track.phase, track.since, labels, reason))
        return found


def as_object(each: Current) -> dict[str, object]:
    """*each* as `/api/alerts` and `alerts list --json` show it."""
    return {**each._asdict(), "since": rfc3339(each.since), "labels": dict(each.labels)}
