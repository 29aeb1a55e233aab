"""Alerts under test: an engine on a clock of its own, a store that keeps what it says, and restarts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from bridge import decode
from bridge.alerts.engine import GAP, Alerting, Unsettled
from bridge.alerts.groups import Notice
from bridge.alerts.parts import SECOND
from bridge.alerts.sights import AlertSet
from bridge.event import Event, rfc3339
from bridge.rulefile import parse

START = 1_795_468_800 * SECOND  # 2026-11-23T21:20:00Z


def gateway(id: str) -> dict[str, Any]:
    return {"gateway_ids": {"gateway_id": id}}


def device(id: str, application: str = "plant-a", **more: str) -> dict[str, Any]:
    return {"device_ids": {"device_id": id, "application_ids": {"application_id": application}, **more}}


def event(name: str, at: float, ids: Mapping[str, Any], data: Any = None, id: str = "") -> Event:
    """*at* in seconds after START."""
    ns = START + round(at * SECOND)
    document = {
        "name": name,
        "time": rfc3339(ns),
        "identifiers": [ids],
        **({} if data is None else {"data": data}),
        "unique_id": id or f"{name}@{at}{sorted(ids.values(), key=str)}",
    }
    return decode.event(msgspec.json.encode(document))


def alert_set(text: str) -> AlertSet:
    return AlertSet(parse(text, "alerts.yaml", sinks=None).alerts)


def told(notice: Notice) -> tuple[str, str, str]:
    """Status, alert and key."""
    return notice.status, notice.alert.name, notice.key


@dataclass
class Life:
    """An engine whose rows are kept as the store would; *now* in seconds after START."""

    alerts: AlertSet
    overlap: float = 10.0
    now: float = 0.0
    rows: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    unsettled: Unsettled = field(default_factory=dict)
    notices: list[tuple[float, Notice]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = self._engine()

    def _engine(self) -> Alerting:
        engine = Alerting()
        engine.load((*row, state) for row, state in self.rows.items())
        engine.configure(self.alerts, round(self.overlap * SECOND))
        return engine

    def restart(self) -> None:
        """Only what was stored is left."""
        self.engine = self._engine()

    def see(self, event: Event, source: str = "eu1") -> None:
        if event.name == GAP:
            self.engine.gap(source, event)
        self.engine.observe(source, self.engine.look(event), START + round(self.now * SECOND))
        self.store()

    def tick(self, now: float) -> list[Notice]:
        self.now = now
        found = self.engine.tick(START + round(now * SECOND), self.unsettled)
        self.notices += [(now, each) for each in found]
        self.store()
        return found

    def run(self, until: float, step: float = 1.0) -> list[tuple[float, tuple[str, str, str]]]:
        """Tick every *step* seconds; what was told, and when."""
        before = len(self.notices)
        while self.now + step <= until:
            self.tick(self.now + step)
        return [(at, told(each)) for at, each in self.notices[before:]]

    def store(self) -> None:
        for row, state in self.engine.rows().items():
            if state is None:
                self.rows.pop(row, None)
            else:
                self.rows[row] = state


def play(
    alerts: AlertSet, events: Sequence[tuple[float, Event]], until: float, step: float = 1.0, **more: Any
) -> Life:
    """*events* with the time each arrives at, and ticks in between."""
    life = Life(alerts, **more)
    for arrives, each in sorted(events, key=lambda both: both[0]):
        life.run(arrives, step)
        life.see(each)
    life.run(until, step)
    return life
