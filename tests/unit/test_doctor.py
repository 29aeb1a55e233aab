"""The doctor's judgements, with plain values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.doctor import (
    DAY,
    SECOND,
    SKEW,
    Carried,
    Stored,
    Want,
    clock,
    disk,
    duration,
    expiry,
    listing,
    reach,
    recovery,
    rights,
    size,
    strangers,
    sync_speed,
    window,
)
from bridge.event import Entity

NOW = 1_795_000_000 * SECOND
PLANT_A, PLANT_B = Entity("application", "plant-a"), Entity("application", "plant-b")
METER = Entity("device", "plant-a/meter-01")
ROOF = Entity("gateway", "gw-roof")
UPLINK = Carried("as.up.data.forward", frozenset({"application", "device"}), frozenset({"TRAFFIC"}))
DROP = Carried("ns.up.data.drop", frozenset({"device"}), frozenset({"TRAFFIC"}))
LINKED = Carried("gs.gateway.connect", frozenset({"gateway"}), frozenset({"LINK", "STATUS"}))
NEVER = Carried("js.join.reject", frozenset(), frozenset())
CARRIED = {each.name: each for each in (UPLINK, DROP, LINKED, NEVER)}


def rule(*names: str, explicit: bool = True) -> Want:
    return Want("r", names, explicit)


@given(st.floats(-3600, 3600), st.floats(0, 8))
def test_a_clock_is_wrong_only_beyond_the_skew_and_what_cannot_be_known(ahead: float, took: float) -> None:
    """The server's second is cut off, and the answer may have taken its time anywhere on the way."""
    sent = NOW + int(ahead * SECOND)
    server = NOW // SECOND * SECOND
    found = clock("source x", server, sent, sent + int(took * SECOND), SECOND)
    if abs(ahead) < SKEW - 1:
        assert found.verdict == "ok"
    if abs(ahead) > SKEW + took + 2:
        assert found.verdict == "wrong"
        assert ("ahead of" in found.says) == (ahead > 0)


def test_a_right_that_is_missing_is_named_with_the_rule_and_the_event() -> None:
    found = list(rights("source x", [rule(UPLINK.name)], CARRIED, {PLANT_A: frozenset({"INFO"})}))
    assert [(each.check, each.verdict) for each in found] == [("rights", "wrong")]
    assert "rule r does not get as.up.data.forward" in found[0].says
    assert "TRAFFIC" in found[0].do


def test_one_right_of_several_is_enough_and_other_kinds_do_not_count() -> None:
    """A rule for gateways wants nothing of an application."""
    found = list(
        rights(
            "source x", [rule(LINKED.name)], CARRIED, {ROOF: frozenset({"STATUS"}), PLANT_A: frozenset({"X"})}
        )
    )
    assert [(each.check, each.verdict) for each in found] == [("rights", "ok")]


def test_a_rule_for_everything_that_gets_less_is_only_a_note() -> None:
    want = rule(UPLINK.name, LINKED.name, explicit=False)
    found = list(rights("source x", [want], CARRIED, {PLANT_A: frozenset({"INFO"})}))
    assert [(each.check, each.verdict) for each in found] == [("rights", "note")]


def test_an_entity_without_any_right_is_a_matter_of_scope() -> None:
    granted = {PLANT_A: frozenset({"TRAFFIC"}), PLANT_B: frozenset[str]()}
    found = list(rights("source x", [rule(UPLINK.name)], CARRIED, granted))
    assert [(each.check, each.verdict) for each in found] == [("scope", "wrong")]
    assert "application plant-b" in found[0].says


@pytest.mark.parametrize(
    ("want", "kinds", "advice"),
    [
        (rule(DROP.name), ["application"], 'follow devices ("*" under an application)'),
        (rule(NEVER.name), ["application", "device"], "drop the rule"),
        (rule(LINKED.name), ["application"], "follow a gateway"),
        (rule(UPLINK.name), ["application"], None),
        (rule(DROP.name, UPLINK.name), ["application"], None),
        (rule(DROP.name, explicit=False), ["application"], None),
        (rule("newer.than.the.catalogue"), ["application"], None),
    ],
)
def test_a_rule_whose_events_no_stream_carries_is_told_what_to_follow(
    want: Want, kinds: list[str], advice: str | None
) -> None:
    found = list(reach("source x", [want], CARRIED, kinds))  # type: ignore[arg-type]  # kinds, as words
    assert [each.verdict for each in found] == ([] if advice is None else ["wrong"])
    assert not found or advice in found[0].do  # type: ignore[operator]  # not None here


@pytest.mark.parametrize(
    ("stored", "verdict"),
    [
        ({PLANT_A: Stored(150, NOW - 15 * SECOND, NOW)}, "wrong"),
        ({PLANT_A: Stored(100, NOW - 120 * SECOND, NOW)}, "note"),
        ({PLANT_A: Stored(10, NOW - 3600 * SECOND, NOW)}, "ok"),
        ({PLANT_A: Stored(10, NOW - 3600 * SECOND, NOW), ROOF: Stored(150, NOW - 15 * SECOND, NOW)}, "wrong"),
        ({PLANT_A: Stored(0)}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_the_busiest_entity_decides_how_long_an_interruption_may_last(
    stored: dict[Entity, Stored], verdict: str
) -> None:
    assert window("source x", stored, NOW, 240.0).verdict == verdict


@given(st.integers(1, 200), st.integers(0, 10**18))
def test_a_recovery_window_is_never_longer_than_the_servers_memory(count: int, ago: int) -> None:
    assert 0 < recovery(Stored(count, NOW - ago, NOW), NOW) <= DAY


def test_a_key_of_one_entity_is_good_for_that_alone() -> None:
    assert not list(strangers("s", PLANT_A, [PLANT_A, METER]))
    assert not list(strangers("s", Entity("user", "jane"), [ROOF]))
    assert [each.verdict for each in strangers("s", PLANT_A, [PLANT_A, ROOF])] == ["wrong"]


def test_a_key_that_ends_within_two_weeks_is_told() -> None:
    assert not list(expiry("s", None, NOW))
    assert not list(expiry("s", NOW + 30 * int(DAY) * SECOND, NOW))
    assert [each.verdict for each in expiry("s", NOW + int(DAY) * SECOND, NOW)] == ["note"]


@pytest.mark.parametrize(
    ("free", "used", "verdict"),
    [(10 << 30, 0, "ok"), (1 << 30, 0, "note"), (1 << 20, 0, "wrong"), (2 << 30, 3 << 30, "ok")],
)
def test_space_is_judged_against_max_size_and_the_reserve(free: int, used: int, verdict: str) -> None:
    assert disk("outbox", free, used, 4 << 30, 64 << 20).verdict == verdict


def test_numbers_are_said_as_the_operator_would() -> None:
    assert [duration(each) for each in (0, 59.6, 90, 119, 120, 7200, 3 * DAY)] == [
        "0 s",
        "60 s",
        "90 s",
        "119 s",
        "2 min",
        "2 h",
        "3 d",
    ]
    assert [size(each) for each in (0, 1023, 1024, 64 << 20, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "64 MiB",
        "3.0 TiB",
    ]
    assert listing("abcdefg") == "a, b, c, d, e and 2 more"
    assert sync_speed("outbox", 0.2).verdict == "note"
    assert sync_speed("outbox", 0.002).verdict == "ok"
