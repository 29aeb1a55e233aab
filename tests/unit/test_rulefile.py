"""Rule files: what is read as it is written, and every mistake as a line a stranger can act on."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import ConfigError
from bridge.rulefile import RuleFile, clashes, parse
from bridge.rules.matcher import Subject
from tests.unit.test_rules import device, event

WHOLE = """rules:
  - name: uplinks-to-broker
    description: everything our plants send
    match:
      name: as.up.data.forward
      application: [plant-a, 0123, off]
      dev_addr: 26000000/7
      data:
        uplink_message:
          f_port: [1, {numeric: [">=", 80]}]
          rx_metadata: {rssi: [{numeric: ["<", -110]}]}
    unless: {data: {simulated: [true]}}
    attach: related
    sample: 10/10
    allow: {zero: the device never sends port 0}
    send: [broker, crm]
    tests:
      - event: {name: as.up.data.forward, identifiers: [{device_ids: {device_id: 0123}}], data: {n: 5}}
        sends: [broker, crm]
      - event_file: recorded.sse#01M853Q23ZE14NE1EN25S8HE1X
        description: a join
        sends: []
"""


def read(text: str) -> RuleFile:
    return parse(text, "rules.yaml", sinks=["broker", "crm"])


def said(text: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        read(text)
    return str(refused.value).splitlines()


def test_a_whole_rule_is_read() -> None:
    """Every key of DESIGN.md §2.3."""
    (rule,) = read(WHOLE).rules
    assert (rule.name, rule.send, rule.attach_related) == ("uplinks-to-broker", ("broker", "crm"), True)
    assert (rule.file, rule.line, str(rule.sample)) == ("rules.yaml", 2, "10/10")
    assert rule.allow == {"zero": "the device never sends port 0"}
    inline, recorded = rule.tests
    assert (inline.line, inline.sends, recorded.line, recorded.sends) == (18, ("broker", "crm"), 20, ())
    assert inline.event == {
        "name": "as.up.data.forward",
        "identifiers": [{"device_ids": {"device_id": "0123"}}],
        "data": {"n": 5},
    }
    assert (recorded.file, recorded.unique_id) == ("recorded.sse", "01M853Q23ZE14NE1EN25S8HE1X")
    assert recorded.description == "a join"

    data = {"uplink_message": {"f_port": 1, "rx_metadata": [{"rssi": -120}]}}
    matching = event(identifiers=[device("m1", "0123", dev_addr="26000001")], data=data)
    assert rule.mismatch(Subject(matching)) is None
    assert rule.mismatch(Subject(event(identifiers=[device("m1", "83", dev_addr="26000001")], data=data)))


def test_words_that_yaml_would_turn_into_something_else_stay_what_they_are() -> None:
    """Names, identifiers and addresses only: in `data` YAML decides."""
    match = "{any: [{device: 1e5, dev_eui: 0000000000000000}], data: {a: [0123]}}"
    text = f"rules: [{{name: 0123, send: crm, match: {match}}}]"
    (rule,) = read(text).rules
    assert rule.name == "0123"
    one = device("1e5", dev_eui="0000000000000000")
    assert rule.mismatch(Subject(event(identifiers=[one], data={"a": 123}))) is None


RULE = "rules:\n  - name: a\n    match: {M}\n    send: [crm]\n"


def with_match(match: str) -> str:
    return RULE.replace("{M}", match)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", ["1: must be a map with rules: [...]"]),
        ("- name: a\n", ["1: must be a map with rules: [...]"]),
        ("rules: {a: 1}\n", ["1: rules: must be a list of rules, each beginning with - name:"]),
        (
            "rule: []\n",
            [
                "1: rule: unknown key; did you mean rules?",
                "1: rules: must be a list of rules, each beginning with - name:",
            ],
        ),
        ("rules:\n- 5\n", ["2: rules[0]: must be a rule: a map with name, match and send"]),
        (
            "rules:\n  - name: a\n  match: {}\n",
            ["3: not valid YAML: expected <block end>, but found '?'"],
        ),
        ("rules:\n  - match: {}\n    send: [crm]\n", ["2: rules[0].name: is required"]),
        (
            "rules:\n  - name: a\n    send: [crm]\n",
            ["2: rules[0].match: is required; {} takes every event"],
        ),
        ("rules:\n  - name: a\n    match: {}\n", ["2: rules[0].send: is required"]),
        (
            with_match("{}").replace("[crm]", "[]"),
            ["4: rules[0].send: is empty; name the sinks this rule sends to"],
        ),
        (
            with_match("{}").replace("crm", "crn"),
            ["4: rules[0].send[0]: no sink has this name; did you mean crm?"],
        ),
        (
            with_match("{}").replace("crm", "zzz"),
            ["4: rules[0].send[0]: no sink has this name; there is broker, crm"],
        ),
        (
            with_match("{}").replace("crm", "crm, crm"),
            ["4: rules[0].send[1]: this sink is listed twice; keep one"],
        ),
        (
            with_match("{}").replace("name: a", "name: [a]"),
            ["2: rules[0].name: must be a word, such as uplinks-to-broker"],
        ),
        (
            with_match("{}") + with_match("{}").removeprefix("rules:\n"),
            ["5: rules[1].name: this name is used in line 2 already; rule names are unique"],
        ),
        (
            with_match("{}").replace("send", "sned"),
            [
                "2: rules[0].send: is required",
                "4: rules[0].sned: unknown key; did you mean send?",
            ],
        ),
        (
            with_match("as.up.data.forward"),
            ["3: rules[0].match: must be a map such as {name: as.up.data.forward}"],
        ),
        (
            with_match("{f_port: [1]}"),
            ["3: rules[0].match.f_port: unknown key; fields of the event's data go below data"],
        ),
        (
            with_match("{aplication: x}"),
            ["3: rules[0].match.aplication: unknown key; did you mean application?"],
        ),
        (
            with_match("{name: '/(/'}"),
            ["3: rules[0].match.name: is not a regular expression of RE2: missing )"],
        ),
        (
            with_match("{name: [a, as.up*]}"),
            [
                r"3: rules[0].match.name[1]: has a * beside other characters: it stands for a whole segment; or write /^as\.up/"  # noqa: E501
            ],
        ),
        (
            with_match("{name: []}"),
            ["3: rules[0].match.name: is empty; write the names to match, or leave the field out"],
        ),
        (
            with_match("{dev_addr: 26g}"),
            ["3: rules[0].match.dev_addr: must be up to 8 hex digits, with or without 0x - :"],
        ),
        (
            with_match("{dev_eui: 70B3}"),
            ["3: rules[0].match.dev_eui: needs 16 hex digits, or a prefix such as 70B3D57ED0000000/24"],
        ),
        (
            with_match("{gateway: {id: x}}"),
            ["3: rules[0].match.gateway: must be the id of a gateway, or a list of them"],
        ),
        (
            with_match("{application: a/b}"),
            ["3: rules[0].match.application: is not an id; write an id, or one with *"],
        ),
        (
            with_match("{any: {name: a}}"),
            ["3: rules[0].match.any: must be a list of blocks, of which one has to match: [{...}, {...}]"],
        ),
        (
            with_match("{data: {a: hunter2}}"),
            ["3: rules[0].match.data.a: a value stands in brackets: [...]"],
        ),
        (
            with_match("{data: {a: 1, b: {c: true}}, origin: x}"),
            [
                "3: rules[0].match.data.a: a value stands in brackets: [5]",
                "3: rules[0].match.data.b.c: a value stands in brackets: [true]",
                "3: rules[0].match.origin: a value stands in brackets: [...]",
            ],
        ),
        (
            with_match("{data: {a: [{prefx: x}]}}"),
            ["3: rules[0].match.data.a: an object in the list is no operator; did you mean prefix?"],
        ),
        (
            with_match("{data: {a: [{numeric: ['>', '5']}]}}"),
            ["3: rules[0].match.data.a: numeric takes numbers without quotes"],
        ),
        (with_match("{data: {}}"), ["3: rules[0].match.data: is empty; write field: [values]"]),
        (
            with_match("{}\n    sample: 10%"),
            ["4: rules[0].sample: must be a fraction such as 1/10"],
        ),
        (with_match("{}\n    attach: all"), ["4: rules[0].attach: must be related"]),
        (
            with_match("{}\n    allow: [zero]"),
            ["4: rules[0].allow: must be a map of a warning's name to the reason it does not apply"],
        ),
        (
            with_match("{}\n    allow: {zero: ''}"),
            ["4: rules[0].allow.zero: needs the reason why this warning does not apply"],
        ),
        (
            with_match("{}\n    tests: [{event: {name: a}}]"),
            ["4: rules[0].tests[0].sends: is required; [] if the rule must not match"],
        ),
        (
            with_match("{}\n    tests: [{sends: []}]"),
            ["4: rules[0].tests[0]: needs exactly one of event and event_file"],
        ),
        (
            with_match("{}\n    tests: [{event_file: x.sse, sends: []}]"),
            ["4: rules[0].tests[0].event_file: must be a file and a unique_id: recorded.sse#01M853Q2..."],
        ),
        (
            with_match("{}\n    tests: [{event: {data: {}}, sends: []}]"),
            ["4: rules[0].tests[0].event: must be an event: a map with at least a name"],
        ),
        (
            "rules: []\nalerts: 5\n",
            ["2: alerts: must be a list of alerts, each beginning with - name:"],
        ),
    ],
)
def test_a_wrong_file_is_told_line_by_line(text: str, lines: list[str]) -> None:
    """Where, what is wrong and what to write; no value is repeated."""
    assert said(text) == [f"rules.yaml:{line}" for line in lines]


def test_every_mistake_is_told_at_once() -> None:
    """Of all rules, in the order of the lines."""
    text = "rules:\n- {name: a, match: {nme: x}, send: [crn]}\n- {name: a, match: {data: {x: 1}}, send: 5}\n"
    assert [line.split(": ")[0] + " " + line.split(": ")[1] for line in said(text)] == [
        "rules.yaml:2 rules[0].match.nme",
        "rules.yaml:2 rules[0].send[0]",
        "rules.yaml:3 rules[1].match.data.x",
        "rules.yaml:3 rules[1].name",
        "rules.yaml:3 rules[1].send",
    ]


def test_rules_of_two_files_may_not_share_a_name() -> None:
    """Delivery ids and metrics go by it."""
    first, second = with_match("{}"), with_match("{name: x}")
    files = [parse(first, "one.yaml", sinks=None), parse(second, "two.yaml", sinks=None)]
    advice = "this name is used in one.yaml too; rule names are unique"
    assert [str(each) for each in clashes(files)] == [f"two.yaml:2: rules[0].name: {advice}"]
    assert clashes(files[:1]) == []


def test_without_a_config_any_sink_will_do() -> None:
    """For `bridge test FILE`."""
    assert parse(with_match("{}").replace("crm", "any"), "r", sinks=None).rules[0].send == ("any",)


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["rules", "name", "match", "send", "any", "data", "device", "tests", "dev_addr", "$or"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


rule_entries = st.fixed_dictionaries(
    {"name": json, "match": json, "send": json}, optional={"unless": json, "tests": json, "sample": json}
)


@given(value=st.fixed_dictionaries({"rules": st.lists(rule_entries, max_size=3)}) | json)
def test_garbage_only_ever_raises_config_errors(value: object) -> None:
    """As JSON, which is YAML."""
    with contextlib.suppress(ConfigError):
        read(msgspec.json.encode(value).decode())


@given(text=st.text(max_size=80))
def test_any_text_only_ever_raises_config_errors(text: str) -> None:
    """YAML or not."""
    with contextlib.suppress(ConfigError):
        read(text)
