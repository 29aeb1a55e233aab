"""Each kind of alert, what bridge alone knows, and who is told (issue 7)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import decode
from bridge.alerts.engine import GAP
from bridge.alerts.parts import SECOND, extended
from bridge.alerts.silences import Silence, matcher
from bridge.event import Entity, Event, rfc3339
from bridge.rules import upstream_names
from tests.alerting import START, Life, alert_set, device, event, gateway, play
from tests.recordings import documents, json_bytes

DOWN = """
  - name: down
    kind: state
    down: {name: gs.gateway.disconnect}
    up: {any: [{name: gs.gateway.connect},
               {name: gs.gateway.connection.stats, data: {disconnected_at: [{exists: false}]}}]}
    by: gateway
    send: [ops]
"""
SILENT = """
  - name: silent
    kind: absent
    match: {name: as.up.data.forward}
    by: device
    send: [ops]
"""


def alerts(*texts: str) -> Any:
    return alert_set("alerts:\n" + "".join(texts))


def with_(text: str, *lines: str) -> str:
    return text + "".join(f"    {line}\n" for line in lines)


def connect(at: float, id: str = "gw1") -> tuple[float, Event]:
    return at, event("gs.gateway.connect", at, gateway(id))


def disconnect(at: float, id: str = "gw1") -> tuple[float, Event]:
    return at, event("gs.gateway.disconnect", at, gateway(id))


def uplink(at: float, id: str = "d1", heard: tuple[str, ...] = ()) -> tuple[float, Event]:
    metadata = [{"gateway_ids": {"gateway_id": each}} for each in heard]
    return at, event("as.up.data.forward", at, device(id), {"uplink_message": {"rx_metadata": metadata}})


def words(life: Life) -> list[tuple[float, str, str]]:
    return [(at, notice.status, notice.key) for at, notice in life.notices]


# state


def test_a_gateway_that_is_down_long_enough_is_told_once_and_resolved() -> None:
    """At `for` plus the overlap, to the second; near miss: a second shorter."""
    long = play(alerts(with_(DOWN, "for: 5m")), [connect(0), disconnect(10), connect(400)], 1000)
    short = play(alerts(with_(DOWN, "for: 5m")), [connect(0), disconnect(10), connect(309)], 1000)

    assert words(long) == [(320, "firing", "gw1"), (410, "resolved", "gw1")]
    assert words(short) == []


def test_a_reconnect_is_no_alert_even_without_for() -> None:
    """`disconnect(new_connection)` and `connect` come back to back (UPSTREAM.md §3)."""
    assert words(play(alerts(DOWN), [connect(0), disconnect(60), connect(60.001)], 200)) == []
    assert words(play(alerts(DOWN), [connect(0), disconnect(60)], 200)) == [(71, "firing", "gw1")]


def test_silence_is_down_too() -> None:
    """No up event for `silent`; the last one says since when."""
    life = play(alerts(with_(DOWN, "silent: 5m", "for: 1m")), [connect(0)], 1000)

    assert words(life) == [(370, "firing", "gw1")]
    assert life.notices[0][1].document["data"]["since"] == rfc3339(START)


def test_who_flaps_is_told_once_while_it_lasts() -> None:
    """Five times down in ten minutes hold the alert until the window is calm; four do not."""
    text = with_(DOWN, "for: 5m", "flapping: {changes: 5, within: 10m}")
    flaps = [each for at in range(0, 300, 60) for each in (disconnect(at + 1), connect(at + 5))]

    assert words(play(alerts(text), [connect(0), *flaps], 1500)) == [
        (251, "firing", "gw1"),
        (611, "resolved", "gw1"),
    ]
    assert words(play(alerts(text), [connect(0), *flaps[:-2]], 1500)) == []


FLAP = [decode.event(json_bytes(each)) for each in documents("gateway_flap.sse")]
FLAP_START = min(each.time_ns for each in FLAP)


def flapped(arrivals: list[float]) -> Life:
    """The recorded flaps, each event late by some of *arrivals*; statistics follow the disconnect."""
    shift = (FLAP_START - START) / SECOND
    events = [
        ((each.time_ns - FLAP_START) / SECOND + late, each) for each, late in zip(FLAP, arrivals, strict=True)
    ]
    moved = [
        (at, msgspec.structs.replace(each, time_ns=each.time_ns - round(shift * SECOND)))
        for at, each in events
    ]
    return play(alerts(with_(DOWN, "for: 5m")), moved, 600)


@given(st.lists(st.floats(0, 9.5), min_size=len(FLAP), max_size=len(FLAP)))
def test_the_recorded_gateways_end_down_in_any_order_of_arrival(late: list[float]) -> None:
    """The five flaps of gw-yard send nothing while they last; statistics after a disconnect mean nothing."""
    life = flapped(late)

    assert [(notice.status, notice.key) for _, notice in life.notices] == [
        ("firing", "gw-yard"),
        ("firing", "gw-roof"),
        ("firing", "gw-field"),
    ]
    at_once = flapped([0.0] * len(FLAP))
    assert [(at, notice.document) for at, notice in life.notices] == [
        (at, notice.document) for at, notice in at_once.notices
    ]
    assert life.notices[0][0] > (FLAP[-1].time_ns - FLAP_START) / SECOND


# absent


def test_a_device_is_missed_after_a_fixed_time() -> None:
    """To the second, and found again."""
    life = play(alerts(with_(SILENT, "for: 2h")), [uplink(0), uplink(7000), uplink(20_000)], 21_000)

    assert words(life) == [(14_210, "firing", "plant-a/d1"), (20_010, "resolved", "plant-a/d1")]


def test_a_device_is_missed_by_the_interval_it_has_taught() -> None:
    """Eight intervals are its grace; then three times the learned one."""
    young = play(alerts(with_(SILENT, "for: 3x")), [uplink(600 * each) for each in range(8)], 9000)
    known = play(alerts(with_(SILENT, "for: 3x")), [uplink(600 * each) for each in range(9)], 9000)

    assert words(young) == []
    assert words(known) == [(4800 + 1800 + 10, "firing", "plant-a/d1")]


def test_a_device_with_a_new_habit_is_told_once() -> None:
    """From ten minutes to an hour: the first hour is told, the second one is known."""
    times = [*(600 * each for each in range(9)), *(4800 + 3600 * each for each in range(1, 6))]
    life = play(alerts(with_(SILENT, "for: 3x")), [uplink(each) for each in times], times[-1], step=5.0)

    assert [status for _, status, _ in words(life)] == ["firing", "resolved"]


def test_a_device_that_sends_in_bursts_is_not_missed_between_them() -> None:
    """The interval is near the longest that is usual."""
    bursts = [uplink(3600 * hour + 5 * each) for hour in range(24) for each in range(4)]

    assert words(play(alerts(with_(SILENT, "for: 3x")), bursts, 24 * 3600, step=10.0)) == []


def test_a_deleted_device_is_not_missed() -> None:
    """Nor does its alert stay open."""
    delete = (100.0, event("end_device.delete", 100, device("d1")))
    late = (900.0, event("end_device.delete", 900, device("d1")))

    assert words(play(alerts(with_(SILENT, "for: 10m")), [uplink(0), delete], 5000)) == []
    assert words(play(alerts(with_(SILENT, "for: 10m")), [uplink(0), late], 5000)) == [
        (610, "firing", "plant-a/d1"),
        (910, "resolved", "plant-a/d1"),
    ]


def gap(began: float, ended: float, entities: list[str] | None = None) -> tuple[float, Event]:
    def at(seconds: float) -> str:
        return rfc3339(START + round(seconds * SECOND))

    data = {"from": at(began), "to": at(ended), "entities": entities or [], "count": len(entities or [0])}
    return ended, event(GAP, ended, gateway("gw1"), data)


def test_a_gap_suspends_absence_instead_of_raising_a_thousand() -> None:
    """What may have come in the gap counts as come; near miss: the gap of another application."""
    text = with_(SILENT, "for: 10m")
    hit = play(alerts(text), [uplink(0), gap(300, 500, ["application:plant-a"])], 5000)
    missed = play(alerts(text), [uplink(0), gap(300, 500, ["application:plant-b"])], 5000)

    assert words(hit) == [(1110, "firing", "plant-a/d1")]
    assert words(missed) == [(610, "firing", "plant-a/d1")]


def test_gaps_again_and_again_do_not_keep_an_alert_quiet_for_ever() -> None:
    """At most one span is added, and what bridge did not see."""
    gaps = [(each, each + 1) for each in range(50, 100_000, 50)]

    assert extended(0, 100, gaps) == 204
    assert extended(0, 100, []) == 100
    assert extended(0, 100, [(150, 160)]) == 100


def test_timers_wait_for_sources_that_have_not_finished_their_replay() -> None:
    """The replay brings the uplink that was missed: nobody is told. Of others time goes on."""
    life = Life(alerts(with_(SILENT, "for: 10m")))
    life.see(uplink(0)[1])
    life.see(uplink(0, "other")[1], "eu2")
    life.unsettled = {"eu1": frozenset({Entity("application", "plant-a")})}
    life.run(700)
    life.see(uplink(300)[1])
    life.unsettled = {}
    life.run(1000)

    assert words(life) == [(610, "firing", "plant-a/other"), (910, "firing", "plant-a/d1")]


# threshold


def drops(*times: float, ids: Any = None) -> list[tuple[float, Event]]:
    return [(at, event("ns.up.join.drop", at, ids or device("d1"))) for at in times]


JOINS = """
  - name: joins
    kind: threshold
    match: {name: "/join.*(drop|fail|reject)$/"}
    within: 10m
    send: [ops]
"""


def test_too_many_within_the_window_and_one_too_few() -> None:
    """Fires with the last, is over when the window has let go of enough."""
    text = with_(JOINS, "by: application", "count: 5")

    assert words(play(alerts(text), drops(0, 100, 200, 300, 599), 3000)) == [
        (609, "firing", "plant-a"),
        (610, "resolved", "plant-a"),
    ]
    assert words(play(alerts(text), drops(0, 100, 200, 300, 600), 3000)) == []


def test_a_join_storm_goes_by_the_join_eui() -> None:
    """Many devices of one JoinEUI, each once: `distinct` counts devices, not tries."""
    text = with_(JOINS, "by: join_eui", "count: 3", "distinct: device")
    storm = [drops(at, ids=device(f"d{at}", join_eui="70B3D57ED0000000"))[0] for at in range(3)]
    stubborn = drops(0, 1, 2, 3, ids=device("d1", join_eui="70B3D57ED0000000"))

    assert words(play(alerts(text), storm, 100)) == [(12, "firing", "70B3D57ED0000000")]
    assert words(play(alerts(text), stubborn, 100)) == []


def test_attempt_and_failure_of_one_downlink_count_once() -> None:
    """Folded by the correlation id they share."""
    text = """
  - name: downlinks
    kind: threshold
    match: {name: "ns.down.data.schedule.*"}
    by: device
    fold: "ns:downlink"
    count: 3
    within: 10m
    send: [ops]
"""

    def tried(at: float, number: int, name: str) -> tuple[float, Event]:
        made = event(f"ns.down.data.schedule.{name}", at, device("d1"))
        document = made.document() | {"correlation_ids": [f"gs:uplink:{at}", f"ns:downlink:{number}"]}
        return at, decode.event(msgspec.json.encode(document))

    pairs = [
        tried(each + half / 2, each, name)
        for each in range(2)
        for half, name in enumerate(("attempt", "fail"))
    ]

    assert words(play(alerts(text), pairs, 100)) == []
    assert words(play(alerts(text), [*pairs, tried(2, 2, "attempt")], 100)) == [(12, "firing", "plant-a/d1")]


def test_a_frame_counter_that_falls_is_a_reset_unless_the_device_joined() -> None:
    """A new session has a new DevAddr; a counter that is not there is zero."""
    text = """
  - name: resets
    kind: threshold
    match: {name: as.up.data.forward}
    by: device
    falls: data.uplink_message.f_cnt
    count: 1
    within: 1h
    send: [ops]
"""

    def counted(at: float, count: int | None, address: str = "26000001") -> tuple[float, Event]:
        data = {"uplink_message": {} if count is None else {"f_cnt": count}}
        return at, event("as.up.data.forward", at, device("d1", dev_addr=address), data)

    assert words(play(alerts(text), [counted(0, 7), counted(1, 8), counted(2, None)], 60)) == [
        (12, "firing", "plant-a/d1")
    ]
    assert words(play(alerts(text), [counted(0, 7), counted(1, 8), counted(2, 0, "26000002")], 60)) == []


def test_a_ratio_is_of_two_counts() -> None:
    """A tenth of at least ten uplinks; nine are too few to say."""
    text = """
  - name: decoder
    kind: threshold
    match: {name: as.up.data.decode.fail}
    of: {name: [as.up.data.forward, as.up.data.decode.fail]}
    ratio: 0.1
    count: 10
    by: application
    within: 1h
    send: [ops]
"""
    fine = [uplink(each, f"d{each}") for each in range(8)]
    failed = [(10 + each, event("as.up.data.decode.fail", 10 + each, device("d1"))) for each in range(2)]

    life = play(alerts(text), [*fine, *failed], 60)

    assert words(life) == [(21, "firing", "plant-a")]
    assert life.notices[0][1].document["data"]["value"] == 0.2
    assert words(play(alerts(text), [*fine[:7], *failed], 60)) == []


# value


BATTERY = """
  - name: battery
    kind: value
    match: {name: as.up.data.forward}
    field: data.battery
    by: device
    send: [ops]
"""


def readings(*values: float) -> list[tuple[float, Event]]:
    return [
        (60.0 * number, event("as.up.data.forward", 60.0 * number, device("d1"), {"battery": value}))
        for number, value in enumerate(values)
    ]


def test_a_value_is_low_for_some_readings_and_back_by_the_hysteresis() -> None:
    """One low reading is none; 3.1 is not back yet."""
    text = with_(BATTERY, "below: 3", "readings: 2", "hysteresis: 0.2")

    assert words(play(alerts(text), readings(3.3, 2.9, 3.3, 2.9, 2.8, 3.1, 3.2), 1000)) == [
        (250, "firing", "plant-a/d1"),
        (370, "resolved", "plant-a/d1"),
    ]
    assert words(play(alerts(text), readings(3.3, 2.9, 3.3, 2.9), 1000)) == []


def test_a_value_is_high_for_a_time() -> None:
    """`for` of a value: two minutes above, without a reading that is not."""
    text = with_(BATTERY, "above: 30", "for: 2m")

    assert words(play(alerts(text), readings(31, 32, 31, 31), 1000)) == [(130, "firing", "plant-a/d1")]
    assert words(play(alerts(text), readings(31, 32, 29, 31, 29), 1000)) == []


def test_bad_radio_is_when_the_best_gateway_is_bad() -> None:
    """Of several numbers `below` looks at the highest."""
    text = """
  - name: radio
    kind: value
    match: {name: as.up.data.forward}
    field: data.uplink_message.rx_metadata.rssi
    below: -120
    by: device
    send: [ops]
"""

    def heard(*rssi: float) -> list[tuple[float, Event]]:
        data = {"uplink_message": {"rx_metadata": [{"rssi": each} for each in rssi]}}
        return [(0.0, event("as.up.data.forward", 0, device("d1"), data))]

    assert words(play(alerts(text), heard(-125, -121), 60)) == [(10, "firing", "plant-a/d1")]
    assert words(play(alerts(text), heard(-125, -119), 60)) == []


# Who is told


def test_devices_last_heard_by_a_gateway_that_is_down_are_not_told() -> None:
    """Nor right after it is back; a device that another gateway heard too is."""
    text = [
        with_(DOWN, "for: 1m"),
        with_(SILENT, "for: 10m", "inhibited_by: {alert: down, when: last_heard_by}"),
    ]
    lone, both = uplink(100, "lone", ("gw1",)), uplink(101, "both", ("gw1", "gw2"))
    events = [connect(0), connect(1, "gw2"), lone, both, disconnect(105)]
    back = [connect(2000), uplink(2300, "lone", ("gw1",))]

    out = [each for each in words(play(alerts(*text), events, 1500)) if "gw" not in each[2]]
    again = [each for each in words(play(alerts(*text), [*events, *back], 4000)) if "lone" in each[2]]
    lost = [each for each in words(play(alerts(*text), [*events, *back[:1]], 4000)) if "lone" in each[2]]

    assert out == [(711, "firing", "plant-a/both")]
    assert again[:1] == [(2910, "firing", "plant-a/lone")], "silent again, after its own ten minutes"
    assert [status for _, status, _ in lost] == ["firing"]
    assert 2600 <= lost[0][0] <= 2650


def test_a_group_is_told_together_and_what_follows_after_the_interval() -> None:
    """group_wait, group_interval, repeat_interval as Alertmanager has them."""
    text = with_(
        DOWN,
        "for: 1m",
        "group_by: [alertname]",
        "group_wait: 30s",
        "group_interval: 5m",
        "repeat_interval: 1h",
    )
    life = play(alerts(text), [disconnect(0, "a"), disconnect(20, "b"), disconnect(120, "c")], 4400)

    assert [at for at, _ in life.notices] == [100, 400, 4000]
    members = [
        [each["key"] for each in notice.document["data"]["group"]["members"]] for _, notice in life.notices
    ]
    assert members == [["a", "b"], ["a", "b", "c"], ["a", "b", "c"]]
    assert life.notices[0][1].document["data"]["group"]["labels"] == {"alertname": "down"}
    assert life.notices[0][1].document["data"]["summary"] == "down: 2 firing: a, b"


def test_what_goes_on_is_told_to_others() -> None:
    """escalate_after: to the further sinks only; the end goes to both."""
    text = with_(DOWN, "escalate_after: 30m", "escalate_to: [boss]", "repeat_interval: never")
    life = play(alerts(text), [disconnect(0), connect(3600)], 4000)

    assert [(notice.status, notice.sinks) for _, notice in life.notices] == [
        ("firing", ("ops",)),
        ("firing", ("boss",)),
        ("resolved", ("ops", "boss")),
    ]
    assert life.notices[1][0] == 11 + 1800


def test_a_silence_keeps_back_and_what_still_fires_is_told_when_it_ends() -> None:
    """What resolves meanwhile was never told, and is not."""
    silence = Silence("s1", (matcher("gateway=gw1"),), START / SECOND, START / SECOND + 1000)
    life = Life(alerts(DOWN))
    life.engine.silence(silence)
    for each in (disconnect(0), disconnect(0, "gw2")):
        life.see(each[1])
    life.run(1100)
    quiet = Life(alerts(DOWN))
    quiet.engine.silence(silence)
    quiet.see(disconnect(0)[1])
    quiet.run(500)
    quiet.see(connect(500)[1])
    quiet.run(1100)

    assert words(life) == [(11, "firing", "gw2"), (1000, "firing", "gw1")]
    assert words(quiet) == []


def test_an_alert_that_is_taken_out_of_the_rules_ends() -> None:
    """With a reload: who was told is told; near miss: a reload that keeps it."""
    life = Life(alerts(DOWN))
    life.see(disconnect(0)[1])
    life.run(20)
    life.engine.configure(alerts(DOWN), 10 * SECOND)
    life.run(30)
    life.engine.configure(alerts(with_(SILENT, "for: 1h")), 10 * SECOND)
    life.run(40)

    assert words(life) == [(11, "firing", "gw1"), (31, "resolved", "gw1")]
    assert life.rows == {}


def test_with_another_group_by_old_groups_end_and_those_of_today_begin() -> None:
    """With a reload, and with a restart on another config; and what ends later ends the new group."""
    grouped = alerts(with_(DOWN, "group_by: [alertname]", "group_wait: 2s", "group_interval: 5s"))
    for restarts in (False, True):
        life = Life(alerts(DOWN))
        for each in (disconnect(0), disconnect(0, "gw2")):
            life.see(each[1])
        life.run(20)
        if restarts:
            life.alerts = grouped
            life.restart()
        else:
            life.engine.configure(grouped, 10 * SECOND)
        life.run(30)
        for each in (connect(30), connect(30, "gw2")):
            life.see(each[1])
        life.run(60)

        told = [(at, word, key) for at, word, key in words(life) if at > 11]
        assert told == [
            (21, "resolved", "gw1"),
            (21, "resolved", "gw2"),
            (23, "firing", "alertname=down"),
            (40, "resolved", "alertname=down"),
        ]
        assert len({notice.document["unique_id"] for _, notice in life.notices}) == 6
        assert not [row for row in life.rows if row[0] == "group"]


def test_nobody_is_told_at_night() -> None:
    """Mute times hold everything until they end; START is 21:20."""
    text = with_(DOWN, "mute: [{times: ['21:00-21:30']}]", "repeat_interval: never")
    life = play(alerts(text), [disconnect(0)], 1000)
    other = play(alerts(text.replace("21:30", "21:20")), [disconnect(0)], 1000)

    assert words(life) == [(600, "firing", "gw1")]
    assert words(other) == [(11, "firing", "gw1")]


def test_a_notification_is_an_event_with_a_stable_id() -> None:
    """What the contract says of it."""
    text = with_(
        DOWN, "labels: {severity: page}", 'summary: "{{ ids.path }} {{ severity }} since {{ since }}"'
    )
    eui = {"gateway_ids": {"gateway_id": "gw1", "eui": "B827EBFFFE000001"}}
    firing, resolved = (
        notice.document
        for _, notice in play(
            alerts(text), [(0, event("gs.gateway.disconnect", 0, eui, id="u1")), connect(600)], 700
        ).notices
    )

    assert firing == {
        "name": "bridge.alert.firing",
        "time": rfc3339(START + 11 * SECOND),
        "identifiers": [eui],
        "data": {
            "alert": "down",
            "kind": "state",
            "key": "gw1",
            "status": "firing",
            "labels": {"alertname": "down", "gateway": "gw1", "severity": "page"},
            "since": rfc3339(START),
            "number": 1,
            "events": [
                {
                    "name": "gs.gateway.disconnect",
                    "time": rfc3339(START),
                    "unique_id": "u1",
                    "identifiers": [eui],
                }
            ],
            "summary": f"gw1 page since {rfc3339(START)}",
        },
        "origin": "bridge",
        "unique_id": firing["unique_id"],
    }
    assert resolved["name"] == "bridge.alert.resolved"
    assert resolved["data"]["ends"] == rfc3339(START + 600 * SECOND)
    assert resolved["data"]["summary"] == f"Resolved: gw1 page since {rfc3339(START)}"
    assert resolved["unique_id"] != firing["unique_id"]


@pytest.mark.parametrize(
    ("text", "labels", "holds"),
    [
        ("down", {"alertname": "down"}, True),
        ("down", {"alertname": "downs"}, False),
        ("device=~plant-a/.*", {"device": "plant-a/d1"}, True),
        ("device=~plant-a", {"device": "plant-a/d1"}, False),
        ("severity!=page", {}, True),
        ("severity!=page", {"severity": "page"}, False),
        ('gateway="gw 1"', {"gateway": "gw 1"}, True),
        ("gateway!~gw.*", {"gateway": "gw1"}, False),
    ],
)
def test_matchers_of_silences(text: str, labels: dict[str, str], holds: bool) -> None:
    """Alertmanager's four; expressions are anchored; a word is the name of an alert."""
    assert matcher(text).holds(labels) is holds


def test_an_event_no_alert_can_want_is_let_go_by_its_name() -> None:
    """Nothing of it is decoded."""
    found = alerts(DOWN, with_(SILENT, "for: 1h"))

    assert found.sights(Event("gs.up.receive", "", 0, "x", (), b"not JSON"), lambda each: each) == []
    assert found.may_look("gs.gateway.connect")
    assert found.may_look("end_device.delete")


def test_what_alerts_need_is_asked_of_the_server() -> None:
    """Beside their blocks the deletions of what they go by; own events are none of the server's."""
    own = """
  - name: gaps
    kind: threshold
    match: {name: bridge.source.gap}
    by: data.source
    count: 1
    within: 1h
    send: [ops]
"""
    found = alerts(DOWN, with_(SILENT, "for: 1h"), own)

    assert upstream_names(found.matchers()) == [
        "as.up.data.forward",
        "end_device.delete",
        "gateway.delete",
        "gs.gateway.connect",
        "gs.gateway.connection.stats",
        "gs.gateway.disconnect",
    ]
