"""What the alerts of a rule file may say, and how its mistakes read."""

from __future__ import annotations

import pytest

from bridge.errors import ConfigError
from bridge.rulefile import clashes, parse

GOOD = """
  - name: down
    kind: state
    down: {name: gs.gateway.disconnect}
    by: gateway
    send: [ops]
"""


def said(text: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        parse("alerts:" + text, "a.yaml", sinks=["ops", "boss"])
    return [str(each).removeprefix("a.yaml:") for each in refused.value.mistakes]


def entry(*lines: str) -> str:
    return "\n  - name: a\n    by: device\n    send: [ops]\n" + "".join(f"    {line}\n" for line in lines)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("\n  - 5\n", ["2: alerts[0]: must be an alert: a map with name, kind, by and send"]),
        ("\n  - {name: a}\n", ["2: alerts[0].kind: must be state, absent, threshold or value"]),
        (
            "\n  - {kind: absent}\n",
            [f"2: alerts[0].{key}: is required" for key in ("by", "for", "match", "name", "send")],
        ),
        (
            entry("kind: absent", "match: {}", "for: 2h", "count: 5"),
            ["8: alerts[0].count: unknown key; alerts of kind absent do not have it"],
        ),
        (
            entry("kind: absent", "match: {}", "for: 2h", "grup_by: []"),
            ["8: alerts[0].grup_by: unknown key; did you mean group_by?"],
        ),
        (
            entry("kind: absent", "match: {}", "for: x3"),
            ["7: alerts[0].for: write a duration with its unit: 200ms, 10s, 5m, 2h or 7d"],
        ),
        (
            entry("kind: absent", "match: {}", "for: 0.5x"),
            ["7: alerts[0].for: must be a duration such as 2h, or a multiple of the interval: 3x"],
        ),
        (entry("kind: threshold", "match: {}", "within: 1h"), ["2: alerts[0].count: is required"]),
        (
            entry("kind: threshold", "match: {}", "within: 1h", "ratio: 0.1"),
            ["2: alerts[0]: ratio and of belong together: of what matches of, more than ratio matches match"],
        ),
        (
            entry("kind: threshold", "match: {}", "within: 1h", "count: 0"),
            ["8: alerts[0].count: must be a whole number, 1 to 10000"],
        ),
        (entry("kind: value", "match: {}", "field: data.x"), ["2: alerts[0]: needs above or below"]),
        (
            entry("kind: value", "match: {}", "field: x", "above: high"),
            [
                "7: alerts[0].field: must be the path of a field: data.uplink_message.f_cnt",
                "8: alerts[0].above: must be a number",
            ],
        ),
        (
            entry("kind: absent", "match: {nam: x}", "for: 2h", "labels: {status: x}"),
            [
                "6: alerts[0].match.nam: unknown key; did you mean name?",
                "8: alerts[0].labels.status: is a name templates have already; call the label otherwise",
            ],
        ),
        (
            entry("kind: absent", "match: {}", "for: 2h", 'summary: "{{ gatewy }}"'),
            ["8: alerts[0].summary: gatewy is not defined; there is data, event, ids, rule, sink, summary"],
        ),
        (
            entry("kind: absent", "match: {}", "for: 2h", "group_by: [gateway]"),
            ["8: alerts[0].group_by[0]: is no label of this alert; there is alertname, application, device"],
        ),
        (
            entry("kind: absent", "match: {}", "for: 2h", "escalate_after: 1h"),
            ["2: alerts[0]: escalate_after and escalate_to belong together"],
        ),
        (
            entry("kind: absent", "match: {}", "for: 2h", "mute: [{times: [night], location: Mars}]"),
            [
                "8: alerts[0].mute[0].location: is no time zone; write one such as Europe/Berlin",
                "8: alerts[0].mute[0].times[0]: must be hours such as 22:00-06:00",
            ],
        ),
        (
            entry("kind: absent", "match: {}", "for: 2h", "inhibited_by: {when: down}"),
            [
                "8: alerts[0].inhibited_by.alert: is required: the alert that keeps this one back",
                "8: alerts[0].inhibited_by.when: must be last_heard_by; or write equal: [a label]",
            ],
        ),
        (
            entry("kind: absent", "match: {}", "for: 2h", "tests: [{events: [{at: 5}]}]"),
            [
                "8: alerts[0].tests[0].events[0].event: must be an event: a map with at least a name",
                "8: alerts[0].tests[0].notifies: is required; [] if nobody must be told",
            ],
        ),
        (
            GOOD + GOOD.replace("ops", "nobody"),
            [
                "12: alerts[1].send[0]: no sink has this name; there is boss, ops",
                "8: alerts[1].name: this name is used in line 2 already;"
                " names of rules and alerts are unique",
            ],
        ),
    ],
)
def test_a_wrong_alert_is_told_line_by_line(text: str, lines: list[str]) -> None:
    """Where, what is wrong and what to write."""
    assert sorted(said(text)) == sorted(lines)


def test_names_of_rules_and_alerts_are_unique_together() -> None:
    """In one file and over several."""
    rules = "rules: [{name: down, match: {}, send: [ops]}]\n"
    with pytest.raises(ConfigError, match="names of rules and alerts are unique"):
        parse(f"{rules}alerts:{GOOD}", "a.yaml", sinks=None)
    files = [parse(rules, "a.yaml", sinks=None), parse(f"alerts:{GOOD}", "b.yaml", sinks=None)]

    assert [str(each) for each in clashes(files)] == [
        "b.yaml:2: alerts[0].name: this name is used in a.yaml too; names of rules and alerts are unique"
    ]


def test_an_alert_can_only_be_kept_back_by_one_there_is() -> None:
    """In whichever file."""
    inhibited = GOOD.replace("name: down", "name: other") + "    inhibited_by: {alert: down}\n"
    one, other = (parse(f"alerts:{text}", file, sinks=None) for text, file in ((inhibited, "a"), (GOOD, "b")))

    assert clashes([one, other]) == []
    assert [str(each) for each in clashes([one])] == [
        "a:7: alerts[0].inhibited_by: no alert has this name; there is other"
    ]


def test_names_and_labels_keep_their_text() -> None:
    """YAML would make numbers and booleans of them."""
    text = GOOD.replace("down\n", "0123\n", 1) + "    labels: {floor: 012, lit: off}\n"
    alert = parse(f"alerts:{text}", "a", sinks=None).alerts[0]

    assert (alert.name, alert.labels) == ("0123", {"floor": "012", "lit": "off"})
