"""Alerts under any order of arrival and any restart (issue 7)."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from bridge.alerts.groups import Notice
from tests.alerting import Life, alert_set, device, event, gateway

ALERTS = alert_set("""
alerts:
  - name: down
    kind: state
    down: {name: gs.gateway.disconnect}
    up: {name: [gs.gateway.connect, gs.gateway.connection.stats]}
    silent: 2m
    flapping: {changes: 4, within: 90s}
    by: gateway
    for: 20s
    send: [ops]
    escalate_after: 3m
    escalate_to: [boss]
    repeat_interval: 5m
  - name: silent
    kind: absent
    match: {name: as.up.data.forward}
    by: device
    for: 20s
    group_by: [application]
    group_wait: 30s
    group_interval: 30s
    send: [ops]
  - name: learned
    kind: absent
    match: {name: as.up.data.forward}
    by: device
    for: 2x
    send: [ops]
  - name: joins
    kind: threshold
    match: {name: ns.up.join.drop}
    by: application
    count: 3
    within: 30s
    send: [ops]
  - name: weak
    kind: value
    match: {name: as.up.data.forward}
    field: data.battery
    below: 3
    hysteresis: 0.2
    readings: 2
    by: device
    send: [ops]
""")

NAMES = ("gs.gateway.disconnect", "gs.gateway.connect", "gs.gateway.connection.stats")
SENT = ("as.up.data.forward", "ns.up.join.drop")


class Alerts(RuleBasedStateMachine):
    """One engine that gets events late and is restarted, one that gets them at once and lives."""

    def __init__(self) -> None:
        super().__init__()
        self.life = Life(ALERTS)
        self.reference = Life(ALERTS)
        self.coming: list[tuple[float, int]] = []
        self.events: list[object] = []

    def happen(self, made: object, late: float) -> None:
        self.reference.see(made)  # type: ignore[arg-type]
        self.events.append(made)
        self.coming.append((self.life.now + late, len(self.events) - 1))

    @rule(name=st.sampled_from(NAMES), id=st.sampled_from("ab"), late=st.floats(0, 9), ago=st.floats(0, 0.9))
    def a_gateway_changes(self, name: str, id: str, late: float, ago: float) -> None:
        at = max(0.0, self.life.now - ago)
        self.happen(event(name, at, gateway(id), id=f"{len(self.events):06}"), late)

    @rule(
        name=st.sampled_from(SENT),
        id=st.sampled_from("xy"),
        late=st.floats(0, 9),
        battery=st.sampled_from([2.0, 2.9, 3.1, 3.3, None]),
    )
    def a_device_sends(self, name: str, id: str, late: float, battery: float | None) -> None:
        data = {} if battery is None else {"battery": battery}
        self.happen(event(name, self.life.now, device(id), data, id=f"{len(self.events):06}"), late)

    @rule(seconds=st.integers(1, 40))
    def time_goes_on(self, seconds: int) -> None:
        for _ in range(seconds):
            now = self.life.now + 1
            for at, number in sorted(each for each in self.coming if each[0] <= now):
                self.life.see(self.events[number])  # type: ignore[arg-type]
                self.coming.remove((at, number))
            self.life.tick(now)
            self.reference.tick(now)

    @rule()
    def the_process_dies(self) -> None:
        self.life.restart()

    @invariant()
    def both_say_the_same(self) -> None:
        assert said(self.life) == said(self.reference)

    @invariant()
    def what_is_resolved_was_firing(self) -> None:
        """Of each key in turn, and no notification twice."""
        firing: dict[tuple[str, str], bool] = defaultdict(bool)
        for _, notice in self.life.notices:
            key = notice.alert.name, notice.key
            if notice.status == "resolved":
                assert firing[key], key
            firing[key] = notice.status == "firing"
        ids = [notice.document["unique_id"] for _, notice in self.life.notices]
        assert len(set(ids)) == len(ids)

    @invariant()
    def an_alert_is_open_once(self) -> None:
        keys = [(each.alert, each.key) for each in self.life.engine.current()]
        assert len(set(keys)) == len(keys)


def said(life: Life) -> list[tuple[float, str, str, str, tuple[str, ...], object]]:
    return [(at, *words(notice)) for at, notice in life.notices]


def words(notice: Notice) -> tuple[str, str, str, tuple[str, ...], object]:
    return notice.alert.name, notice.key, notice.status, notice.sinks, notice.document


def test_neither_order_nor_restarts_change_what_is_told() -> None:
    """Arrival within the overlap and restarts at any point; resolved only after firing, nothing twice."""
    run_state_machine_as_test(Alerts, settings=settings(max_examples=100, stateful_step_count=40))
