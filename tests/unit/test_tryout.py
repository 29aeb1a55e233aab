"""Templates of the config against what rules can send them."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.render import labelled
from bridge.rulefile import parse
from bridge.rules import Rule
from bridge.shared import catalogue
from bridge.sinks.slack import SlackConfig
from bridge.sinks.webhook import WebhookConfig
from bridge.tryout import Finding, findings

HOOK = "https://hooks.slack.com/services/T0/B0/x"


def rules(*blocks: str) -> list[Rule]:
    written = "".join(
        f"  - name: rule-{n}\n    match: {block}\n    send: [ops]\n" for n, block in enumerate(blocks)
    )
    return list(parse(f"rules:\n{written}", "rules.yaml", sinks=["ops"]).rules)


def found(text: str | None, *blocks: str) -> list[Finding]:
    keys: dict[str, Any] = {"type": "slack", "webhook_url": HOOK} | ({"text": text} if text else {})
    return list(findings({"ops": SlackConfig.model_validate(keys)}, rules(*blocks), catalogue()))


def test_a_template_that_fits_all_its_events_is_fine() -> None:
    """And the default text needs no trial."""
    assert found("{{ ids.path }} {{ data.uplink_message.received_at }}", "{name: as.up.data.forward}") == []
    assert found(None, "{name: '/./'}") == []


def test_a_template_that_fits_none_is_told_with_rule_and_event() -> None:
    """Before the first such event comes."""
    (one,) = found("{{ data.uplink_message.f_prt }}", "{name: as.up.data.forward}")
    assert (one.sink, one.key, one.sender, one.sometimes) == ("ops", "text", "rule rule-0", False)
    assert (
        one.advice == "rule rule-0 sends as.up.data.forward, and there 'dict object' has no attribute 'f_prt'"
    )


def test_only_the_rules_whose_events_do_not_fit_are_told() -> None:
    """Each by itself, its events counted."""
    (one,) = found(
        "{{ data.uplink_message.received_at }}", "{name: as.up.data.forward}", "{name: /^ns.mac.*request$/}"
    )
    assert one.sender == "rule rule-1"
    assert " and " in one.advice
    assert "more" in one.advice


def test_a_content_pattern_may_leave_only_those_that_fit() -> None:
    """The rule says itself that the field is there; what fits no event at all is still told."""
    narrowed = "{name: /^as.up/, data: {uplink_message: {f_port: [1]}}}"
    hard = [each for each in found("{{ data.uplink_message.received_at }}", narrowed) if not each.sometimes]
    assert hard == []
    (one,) = [each for each in found("{{ event.nope }}", narrowed) if not each.sometimes]
    assert "nope" in one.advice


def test_a_zero_that_is_left_out_is_a_warning() -> None:
    """It says what to write."""
    (one,) = found("{{ data.uplink_message.f_cnt }}", "{name: as.up.data.forward}")
    assert one.sometimes
    assert one.advice.endswith("add | default(0)")


def test_names_of_no_catalogue_are_not_judged() -> None:
    """Newer servers, bridge's own events."""
    assert found("{{ data.anything.goes }}", "{name: [bridge.source.gap, gs.name.of.tomorrow]}") == []


@pytest.mark.parametrize("key", ["template"])
def test_a_webhooks_template_is_tried_too(key: str) -> None:
    """Whatever kind of sink it belongs to."""
    keys = {"type": "webhook", "url": "https://crm.example/", "format": "template", key: "{{ data.nope }}"}
    config = {"ops": WebhookConfig.model_validate(keys)}
    (one,) = findings(config, rules("{name: as.up.data.forward}"), catalogue())
    assert one.key == key


ALERT = """
alerts:
  - name: gateway-down
    kind: state
    down: {name: gs.gateway.disconnect}
    up: {name: gs.gateway.connect}
    by: gateway
    labels: {severity: page}
    send: [ops]
"""


def test_a_notification_of_an_alert_is_tried_with_its_labels() -> None:
    """Each is a name; those of other alerts are not there."""
    alerts = parse(ALERT, "rules.yaml", sinks=["ops"]).alerts

    def tried(text: str) -> list[str]:
        with labelled(["severity", "team"]):
            config = SlackConfig.model_validate({"type": "slack", "webhook_url": HOOK, "text": text})
        return [each.advice for each in findings({"ops": config}, [], catalogue(), alerts)]

    assert tried("{{ severity }} {{ alert }} {{ since | ago }} {{ labels.gateway }}") == []
    assert tried("{{ team }}") == [
        "alert gateway-down sends bridge.alert.firing, and there 'team' is undefined"
    ]
