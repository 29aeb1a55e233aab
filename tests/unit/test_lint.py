"""Warnings: each with a rule that earns it and one that just does not."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given

from bridge.errors import ConfigError, Mistake
from bridge.event import Event
from bridge.lint import lint, unused_sinks
from bridge.rulefile import parse
from bridge.rules.cover import covers
from bridge.rules.matcher import Subject
from bridge.shared import catalogue
from tests.unit.test_rules import blocks, compiled, subjects


def warnings(text: str, followed: Collection[str] = ()) -> list[str]:
    return [str(each) for each in lint([parse(text, "r.yaml", sinks=None)], catalogue(), followed=followed)]


def of(match: str, more: str = "", followed: Collection[str] = ()) -> list[str]:
    text = f"rules:\n- name: a\n  match: {match}\n  send: [crm]\n{more}"
    return [each.removeprefix("r.yaml:3: rules[0].match.") for each in warnings(text, followed)]


UPLINK = "name: as.up.data.forward, data: {uplink_message: "
ZERO = "The Things Stack leaves this field out when it is zero, false or empty; add {exists: false} (zero)"
NO_FIELD = "the events this is about have no such field (unknown-path)"
F_PORT = "data.uplink_message.f_port"


@pytest.mark.parametrize(
    ("match", "expected", "near_miss"),
    [
        (
            "{name: as.up.data.foward}",
            "name: The Things Stack v3.32 has no event of this name; did you mean as.up.data.forward? (unknown-name)",  # noqa: E501
            "{name: [as.up.data.forward, bridge.source.gap, notification.api_key_created]}",
        ),
        (
            "{name: [gs.up.receive, zzz]}",
            "name[1]: The Things Stack v3.32 has no event of this name (unknown-name)",
            "{name: gs.up.receive}",
        ),
        (
            "{name: as.*.forward}",
            "name: no event name of The Things Stack v3.32 fits this pattern (unknown-name)",
            "{name: as.**.forward}",
        ),
        (
            "{name: /forwarded$/}",
            "name: no event name of The Things Stack v3.32 fits this pattern (unknown-name)",
            "{name: /forward$/}",
        ),
        (
            "{name: js.join.reject}",
            "name: no stream carries this event: it is published without identifiers, or never (never)",
            "{name: js.join.accept}",
        ),
        (
            "{application: Plant-A}",
            "application: ids of The Things Stack are lower-case letters, digits and -: this one never matches (never)",  # noqa: E501
            "{application: 'plant-*', device: 'plant-a/m-1'}",
        ),
        (
            f"{{{UPLINK}{{f_prt: [1]}}}}}}",
            f"data.uplink_message.f_prt: {NO_FIELD}",
            f"{{{UPLINK}{{f_port: [1]}}}}}}",
        ),
        (
            "{name: as.up.data.forward, data: {f_port: [1]}}",
            f"data.f_port: {NO_FIELD}",
            "{data: {f_port: [1]}}",
        ),
        (
            "{name: 'gs.gateway.*', data: {protokol: [udp]}}",
            f"data.protokol: {NO_FIELD}",
            "{name: 'gs.gateway.*', data: {protocol: [udp]}}",
        ),
        (
            "{visibility: {right: [x]}}",
            f"visibility.right: {NO_FIELD}",
            "{visibility: {rights: [RIGHT_APPLICATION_INFO]}}",
        ),
        (
            f"{{{UPLINK}{{rx_metadata: [{{exists: true}}]}}}}}}",
            "data.uplink_message.rx_metadata: is an object, and only its fields have values; name one of them (unknown-path)",  # noqa: E501
            f"{{{UPLINK}{{decoded_payload: {{anything: [{{exists: true}}]}}}}}}}}",
        ),
        (
            f"{{{UPLINK}{{f_port: [0]}}}}}}",
            f"{F_PORT}: {ZERO}",
            f"{{{UPLINK}{{f_port: [0, {{exists: false}}]}}}}}}",
        ),
        (
            f"{{{UPLINK}{{confirmed: [false]}}}}}}",
            f"data.uplink_message.confirmed: {ZERO}",
            f"{{{UPLINK}{{confirmed: [true]}}}}}}",
        ),
        (
            f"{{{UPLINK}{{f_port: [{{numeric: ['<', 10]}}]}}}}}}",
            f"{F_PORT}: {ZERO}",
            f"{{{UPLINK}{{f_port: [{{numeric: ['>', 0]}}]}}}}}}",
        ),
        (
            f"{{{UPLINK}{{frm_payload: ['']}}}}}}",
            f"data.uplink_message.frm_payload: {ZERO}",
            f"{{{UPLINK}{{decoded_payload_warnings: ['']}}}}}}",
        ),
        (
            f"{{{UPLINK}{{f_port: ['1']}}}}}}",
            f'{F_PORT}: "1" never matches: it is a number (never)',
            f"{{{UPLINK}{{rx_metadata: {{rssi: [NaN]}}}}}}}}",
        ),
        (
            f"{{{UPLINK}{{settings: {{frequency: [868100000]}}}}}}}}",
            "data.uplink_message.settings.frequency: 868100000 never matches:"
            " a 64-bit integer is a string of digits; quote it, or use numeric (never)",
            f"{{{UPLINK}{{settings: {{frequency: ['868100000', {{numeric: ['>', 869000000]}}]}}}}}}}}",
        ),
        (
            "{name: as.down.data.forward, data: {priority: [HIHG]}}",
            'data.priority: "HIHG" never matches:'
            " it is one of ABOVE_NORMAL, BELOW_NORMAL, HIGH, HIGHEST, LOW, LOWEST, NORMAL (never)",
            "{name: as.down.data.forward, data: {priority: [HIGH]}}",
        ),
        (
            "{any: [{name: gs.up.receive}, {name: as.up.data.forward, data: {x: [1]}}]}",
            f"any[1].data.x: {NO_FIELD}",
            "{any: [{name: gs.up.receive}, {data: {x: [1]}}]}",
        ),
        (
            "{name: 'as.up.data.*', any: [{name: as.up.data.forward, data: {x: [1]}}]}",
            f"any[0].data.x: {NO_FIELD}",
            "{name: as.up.data.receive, data: {x: [1]}}",
        ),
        (
            "{name: gs.gateway.disconnect, data: {val: [EOF]}}",
            f"data.val: {NO_FIELD}",
            "{name: gs.gateway.disconnect, data: {value: [EOF], namespace: [x]}}",
        ),
    ],
)
def test_a_warning_and_a_near_miss(match: str, expected: str, near_miss: str) -> None:
    """The line is the rule's, the key leads to the place."""
    assert of(match) == [expected]
    assert of(near_miss) == []


def test_a_name_applications_do_not_carry() -> None:
    """While only applications are followed; once devices are, nothing is said."""
    unheard = (
        'no application stream carries this; follow the devices (devices: "*") or gateways too (unheard)'
    )
    assert of("{name: gs.up.receive}", followed=["application"]) == [f"name: {unheard}"]
    assert of("{name: [as.up.data.forward, ns.up.data.process]}", followed=["application"]) == [
        f"name[1]: {unheard}"
    ]
    assert of("{name: /up/}", followed=["application"]) == []
    assert of("{name: application.update}", followed=["application"]) == []
    assert of("{name: gs.up.receive}", followed=["application", "gateway"]) == []
    assert of("{name: gs.up.receive}") == []


def test_a_rule_that_takes_out_all_it_lets_in() -> None:
    """`unless` covers `match`."""
    never = [
        "r.yaml:5: rules[0].unless: takes out everything that match lets in: the rule never matches (never)"
    ]
    assert of("{name: gs.up.receive}", "  unless: {name: 'gs.**'}\n") == never
    assert of("{name: 'gs.**'}", "  unless: {name: gs.up.receive}\n") == []


RULES = """rules:
- {{name: a, match: {}, send: [crm, ops]}}
- {{name: b, match: {}, send: [ops]}}
"""


@pytest.mark.parametrize(
    ("first", "second", "shadowed"),
    [
        ("{}", "{name: gs.up.receive}", True),
        ("{name: 'gs.**'}", "{name: gs.up.receive, gateway: x}", True),
        ("{name: gs.up.receive, gateway: x}", "{name: gs.up.receive}", False),
        ("{application: [x, y]}", "{application: x, data: {a: [1]}}", True),
        ("{application: 'x*'}", "{application: [xa, xb]}", True),
        ("{application: 'x*'}", "{application: [xa, y]}", False),
        ("{dev_addr: 26000000/7}", "{dev_addr: 27000000/8}", True),
        ("{dev_addr: 27000000/8}", "{dev_addr: 26000000/7}", False),
        ("{data: {a: [1, 2]}}", "{data: {a: [1], b: [2]}}", True),
        ("{data: {a: [1]}}", "{data: {a: [1, 2]}}", False),
        ("{data: {a: [1]}}", "{data: {a: [1, {exists: false}]}}", False),
        ("{any: [{gateway: x}, {gateway: y}]}", "{gateway: y}", True),
        ("{any: [{gateway: x}, {gateway: y}]}", "{any: [{gateway: y}, {gateway: z}]}", False),
    ],
)
def test_a_rule_whose_events_all_go_the_same_way_already(first: str, second: str, shadowed: bool) -> None:
    """By an earlier rule without `unless` and `sample`, to all its sinks."""
    advice = "rule a already sends all of it to the same sinks: it arrives twice (shadowed)"
    expected = [f"r.yaml:3: rules[1].match: {advice}"] if shadowed else []
    assert warnings(RULES.format(first, second)) == expected
    assert warnings(RULES.format(first, second).replace("[ops]", "[ops, other]")) == []
    assert warnings(RULES.format(first, second).replace("send: [crm", "sample: 1/2, send: [crm")) == []


def test_a_warning_is_taken_back_with_a_reason() -> None:
    """That one, in that rule."""
    match = f"{{{UPLINK}{{f_port: [0], f_prt: [1]}}}}}}"
    assert of(match, "  allow: {zero: this device says 0}\n") == [f"data.uplink_message.f_prt: {NO_FIELD}"]


ALERT = """alerts:
- name: a
  kind: state
  down: {{name: {down}}}
  up: {{name: gs.gateway.connect, data: {{val: [1]}}}}
  by: gateway
  send: [crm]
"""


def test_alerts_are_looked_at_as_rules_are() -> None:
    """Every block of them; a reason in `allow` is taken there too."""
    wrong = [
        "r.yaml:4: alerts[0].down.name: The Things Stack v3.32 has no event of this name;"
        " did you mean gs.gateway.disconnect? (unknown-name)",
        f"r.yaml:5: alerts[0].up.data.val: {NO_FIELD}",
    ]
    assert warnings(ALERT.format(down="gs.gateway.disconect")) == wrong
    assert warnings(ALERT.format(down="gs.gateway.disconnect")) == wrong[1:]
    allowed = "  allow: {unknown-path: a plug-in adds it}\n"
    assert warnings(ALERT.format(down="gs.gateway.disconnect") + allowed) == []
    assert warnings(ALERT.format(down="gs.gateway.disconnect") + allowed, ["application"])[0].startswith(
        "r.yaml:4: alerts[0].down.name: no application stream carries this"
    )


def test_alerts_only_allow_warnings_there_are() -> None:
    """As rules do; it was taken without a word."""
    with pytest.raises(ConfigError, match=r"alerts\[0\].allow.zeroo: no warning .* did you mean zero\?"):
        warnings(ALERT.format(down="gs.gateway.disconnect") + "  allow: {zeroo: x}\n")


def test_a_sink_nobody_sends_to() -> None:
    """With the place its config stands at."""
    file = parse("rules: [{name: a, match: {}, send: [crm]}]", "r.yaml", sinks=None)
    places = {
        name: Mistake("bridge.yaml", 0, f"sinks.{name}", "no rule sends to it") for name in ("crm", "ops")
    }
    assert unused_sinks([file], places) == [places["ops"]]


@given(documents=blocks, other=blocks, one=subjects())
def test_what_is_covered_never_matches_alone(
    documents: dict[str, Any], other: dict[str, Any], one: Event
) -> None:
    """`covers` is only ever right when it says yes."""
    wide, narrow = compiled([documents, other])
    subject = Subject(one)
    if covers(wide.match, narrow.match) and narrow.match.mismatch(subject) is None:
        assert wide.match.mismatch(subject) is None
