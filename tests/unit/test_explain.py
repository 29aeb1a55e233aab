"""`explain` says what the engine does, and why."""

from __future__ import annotations

import msgspec
import pytest

from bridge.errors import FrameError
from bridge.rules import RuleSet
from bridge.rules.explain import explain, read_events
from tests.recordings import RECORDED, STREAMS, documents
from tests.unit.test_rules import device, event, rules

TEXT = """rules:
  - {name: uplinks, match: {name: as.up.data.forward}, send: [crm, ops]}
  - {name: port-80, match: {data: {uplink_message: {f_port: [80]}}}, send: [ops]}
  - {name: others, match: {}, unless: {application: plant-a}, send: [ops]}
"""


def test_every_rule_gives_its_verdict() -> None:
    """In their order, with where it would go or the first clause that failed."""
    one = event(identifiers=[device("m1")], data={"uplink_message": {"f_port": 1}})
    found = explain(RuleSet.of(rules(TEXT)), one)
    assert [(each.rule, each.line, each.why, each.send) for each in found] == [
        ("uplinks", 2, None, ("crm", "ops")),
        ("port-80", 3, "data.uplink_message.f_port is 1, not 80", ()),
        ("others", 4, "unless matches", ()),
    ]


def test_it_agrees_with_the_engine_on_every_recorded_event() -> None:
    """The rules that have no reason are the rules that are selected."""
    rule_set = RuleSet.of(rules(TEXT))
    for name in STREAMS:
        for one in read_events((RECORDED / name).read_bytes()):
            wanted = [each.name for each in rule_set.select(one)]
            assert [each.rule for each in explain(rule_set, one) if each.why is None] == wanted


@pytest.mark.parametrize("name", STREAMS)
def test_a_recorded_stream_is_read(name: str) -> None:
    """Without its start event."""
    found = [each.unique_id for each in read_events((RECORDED / name).read_bytes())]
    assert found == [each["unique_id"] for each in documents(name)]


def test_single_events_and_lists_are_read() -> None:
    """Pretty-printed, wrapped or bare."""
    one = {"name": "a", "unique_id": "01A"}
    for value in (one, {"result": one}, [one], [{"result": one}]):
        pretty = msgspec.json.format(msgspec.json.encode(value), indent=2)
        assert [each.unique_id for each in read_events(pretty)] == ["01A"]


@pytest.mark.parametrize("text", [b"5", b'{"a": 1}', b"[[1]]", b'{"name": 5}'])
def test_json_that_is_no_event_is_refused(text: bytes) -> None:
    """With our own error."""
    with pytest.raises(FrameError):
        list(read_events(text))
