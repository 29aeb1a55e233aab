"""What alerts remember, and what of it has changed since it was stored.  No I/O, no clock in this file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from bridge.alerts import Phase, Track
from bridge.alerts.blind import BlindSpot
from bridge.alerts.groups import Group
from bridge.alerts.silences import Silence

Part: TypeAlias = Literal["track", "group", "silence", "blind"]
Row: TypeAlias = tuple[str, str, str]
"""Part, alert and key: what is stored of alerts is filed under it."""


@dataclass(slots=True)
class Tally:
    """What metrics show; moved here, read by whoever owns the metrics."""

    phases: Counter[tuple[str, Phase]]
    flaps: Counter[str]
    late: Counter[str]


class Memory:
    """Tracks and groups by alert and key, who is *active* (pending or firing) by alert, and what is common.

    Whoever changes something in place says so in *dirty*.
    """

    def __init__(self) -> None:
        self.tracks: dict[str, dict[str, Track]] = {}
        self.groups: dict[str, dict[str, Group]] = {}
        self.active: dict[str, set[str]] = {}
        self.silences: dict[str, Silence] = {}
        self.blind: dict[str, list[BlindSpot]] = {}
        """By source, what it missed."""
        self.dirty: dict[Row, None] = {}
        self.tally = Tally(Counter(), Counter(), Counter())
        self.moves = 0
        """Phases entered since the start, and left with what was forgotten."""
        self._sources: dict[tuple[str, ...], tuple[str, ...]] = {}
        """One tuple for all that have the same sources."""

    def prepare(self, name: str) -> None:
        """There is an alert of this *name*."""
        self.tracks.setdefault(name, {})
        self.groups.setdefault(name, {})
        self.active.setdefault(name, set())

    def load(self, rows: Iterable[tuple[str, str, str, bytes]]) -> None:
        """What was stored: part, alert, key and JSON."""
        for part, alert, key, state in rows:
            match part:
                case "track":
                    self.remember(alert, key, _track.decode(state))
                case "group":
                    group = _group.decode(state)
                    group.scheduled = 0
                    self.groups.setdefault(alert, {})[key] = group
                case "silence":
                    self.silences[key] = _silence.decode(state)
                case "blind":
                    self.blind[key] = _blind.decode(state)

    def remember(self, name: str, key: str, track: Track) -> None:
        track.scheduled = 0
        track.sources = self.shared(track.sources)
        self.tracks.setdefault(name, {})[key] = track
        self.tally.phases[name, track.phase] += 1
        if track.phase != "inactive":
            self.active.setdefault(name, set()).add(key)

    def shared(self, sources: tuple[str, ...]) -> tuple[str, ...]:
        return self._sources.setdefault(sources, sources)

    def forget(self, name: str, key: str) -> None:
        track = self.tracks[name].pop(key)
        self.active[name].discard(key)
        self.tally.phases[name, track.phase] -= 1
        self.moves += 1
        self.dirty["track", name, key] = None

    def drop(self, name: str) -> None:
        """Everything of the alert *name*."""
        self.prepare(name)
        for key in list(self.tracks[name]):
            self.forget(name, key)
        for key in self.groups[name]:
            self.dirty["group", name, key] = None
        del self.tracks[name], self.groups[name], self.active[name]

    def rows(self) -> dict[Row, bytes | None]:
        """What has changed since the last call: JSON, or None for what is to be forgotten."""
        found: dict[Row, bytes | None] = {}
        for row in self.dirty:
            state = self._state(row)
            found[row] = None if state is None else msgspec.json.encode(state)
        self.dirty.clear()
        return found

    def _state(self, row: Row) -> object:
        part, alert, key = row
        match part:
            case "track":
                return self.tracks.get(alert, {}).get(key)
            case "group":
                return self.groups.get(alert, {}).get(key)
            case "silence":
                return self.silences.get(key)
            case _:
                return self.blind.get(key)


def silence_row(silence: Silence) -> dict[Row, bytes]:
    """What is stored of *silence*."""
    return {("silence", "", silence.id): msgspec.json.encode(silence)}


_track = msgspec.json.Decoder(Track)
_group = msgspec.json.Decoder(Group)
_silence = msgspec.json.Decoder(Silence)
_blind = msgspec.json.Decoder(list[BlindSpot])
