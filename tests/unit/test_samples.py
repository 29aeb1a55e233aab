"""Templates tried against samples of the events they can meet."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.catalogue import Catalogue
from bridge.decode import event as decoded
from bridge.delivery import Delivery
from bridge.errors import RenderError
from bridge.render import Template
from bridge.render.samples import Open, Problem, problems, sample
from bridge.shared import catalogue
from tests.recordings import STREAMS, documents, json_bytes

UPLINK = "as.up.data.forward"


@pytest.fixture(scope="module")
def names() -> Catalogue:
    return catalogue()


def told(text: str, *names_: str) -> list[Problem]:
    return problems(Template(text), names_, catalogue())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{{ summary }}", UPLINK),
        ("{{ ids.path }} {{ ids.gateway_eui }} {{ event.time | local_time('Europe/Amsterdam') }}", UPLINK),
        ("{{ data.uplink_message.received_at | ago }}", UPLINK),
        ("{{ data.end_device_ids.device_id }}", UPLINK),
        ("{{ data.uplink_message.f_port | default(0) }}", UPLINK),
        ("{{ data.uplink_message.decoded_payload.temperature | round(1) }}", UPLINK),
        ("{% if data.uplink_message.decoded_payload.t > 30 %}hot{% endif %}", UPLINK),
        ("{{ data.uplink_message.frm_payload | default('') | base64_bytes | hex }}", UPLINK),
        ("{{ data | rssi | default('?') }}", UPLINK),
        ("{{ data.join_accept.received_at | default('-') }}", "as.up.join.forward"),
        ("{{ data.anything.at.all }}", "application.create"),
        ("{{ data.anything[0].at.all + 1 }}", "a.name.of.tomorrow"),
        ("{{ event.authentication.token_id }} {{ event.context.x }}", UPLINK),
        ("{{ alert }} {{ status }} {{ labels.severity }} {{ since | ago }}", "bridge.alert.firing"),
    ],
)
def test_what_can_work_is_not_complained_of(text: str, name: str) -> None:
    """Payloads and names nobody knows beforehand included."""
    assert told(text, name) == []


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("{{ data.uplink_mesage }}", UPLINK, "uplink_mesage"),
        ("{{ data.join_accept.received_at }}", UPLINK, "join_accept"),
        ("{{ data.uplink_message.received_at }}", "as.up.join.forward", "uplink_message"),
        ("{{ event.tme }}", UPLINK, "tme"),
        ("{{ ids.device }}", UPLINK, "device"),
        ("{{ data.uplink_message.received_at | round }}", UPLINK, "template"),
        ("{{ 1 / 0 }}", "gs.gateway.disconnect", "division"),
        ("{{ alert }}", UPLINK, "alert"),
    ],
)
def test_what_cannot_work_is_told(text: str, name: str, words: str) -> None:
    """At load, with the event's name."""
    (found,) = told(text, name)
    assert (found.name, found.sometimes) == (name, False)
    assert words in found.error


@pytest.mark.parametrize("field", ["f_port", "f_cnt", "frm_payload", "rx_metadata[0].rssi"])
def test_a_zero_that_is_left_out_is_told_as_sometimes(field: str) -> None:
    """The thousandth uplink has f_cnt 0 again, and no such field."""
    (found,) = told(f"{{{{ data.uplink_message.{field} }}}}", UPLINK)
    assert found.sometimes
    assert told(f"{{{{ data.uplink_message.{field} | default(0) }}}}", UPLINK) == []


def test_one_problem_a_name() -> None:
    """However many types an event may carry."""
    found = told("{{ ids.nope }}", "ns.down.data.schedule.fail", UPLINK)
    assert [each.name for each in found] == ["ns.down.data.schedule.fail", UPLINK]


def test_every_name_has_samples_that_a_plain_template_takes(names: Catalogue) -> None:
    """All 248 names, each type, in full and sparse."""
    template = Template("{{ summary }} {{ ids.path }} {{ event.name }} {{ event.time | ago }}")
    assert problems(template, names.names, names) == []
    for name in names.names:
        for kind in names.types(name) or ("",):
            touched: list[str] = []
            full = sample(name, kind, names, touched)
            assert touched == []
            assert kind == "" or isinstance(full["data"], Open) or full["data"]["@type"].endswith(kind)


def holds(value: Any, made: Any, path: str) -> list[str]:
    """The paths of *value*, a recorded one, that *made*, a sample, does not have."""
    if isinstance(made, Open):
        return []
    if isinstance(value, dict):
        if not isinstance(made, dict):
            return [path]
        return [
            each
            for key, inner in value.items()
            for each in (holds(inner, made[key], f"{path}.{key}") if key in made else [f"{path}.{key}"])
        ]
    if isinstance(value, list):
        return [each for inner in value for each in holds(inner, made[0], f"{path}[]")] if made else [path]
    return (
        []
        if isinstance(made, type(value)) or {type(made), type(value)} == {int, float}
        else [f"{path}: {made!r}"]
    )


@pytest.mark.parametrize("stream", STREAMS)
def test_a_sample_has_what_recorded_events_have(stream: str, names: Catalogue) -> None:
    """Every field and JSON type of the recorded data is in the sample of that event."""
    for recorded in documents(stream):
        data = recorded.get("data")
        if isinstance(data, dict) and names.types(recorded["name"]):
            kind = str(data["@type"]).rpartition("/")[2]
            made = sample(recorded["name"], kind, names, [])["data"]
            assert holds(data, made, recorded["name"]) == []


@pytest.mark.parametrize("stream", STREAMS)
def test_a_template_without_problems_renders_every_recorded_event(stream: str) -> None:
    """What was found good at load does not fail at night."""
    template = Template(
        "{{ data.uplink_message.received_at }} {{ data.uplink_message.f_port | default(0) }}"
        " {{ data | rssi | default('-') }}"
    )
    assert problems(template, [UPLINK], catalogue()) == []
    for recorded in documents(stream):
        if recorded["name"] == UPLINK and "data" in recorded:
            one = Delivery(1, "d", decoded(json_bytes(recorded)), "eu1", "r", "s", 1, 0.0)
            assert template.render(one)
            with pytest.raises(RenderError):
                Template("{{ data.join_accept }}").render(one)
