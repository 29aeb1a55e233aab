"""Templates, formats, the summary."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.delivery import Delivery
from bridge.errors import RenderError
from bridge.event import Event, Identifiers
from bridge.render import Template, body, context, slack_escape, summary, topic_level

GATEWAY = {"gateway_ids": {"gateway_id": "gw-roof"}}
METER = {"device_ids": {"device_id": "meter-01", "application_ids": {"application_id": "plant-a"}}}


def event(name: str, data: Any = None, *identifiers: dict[str, Any]) -> Event:
    document = {"name": name, "identifiers": list(identifiers), "unique_id": "01"}
    if data is not None:
        document["data"] = data
    ids = msgspec.convert(list(identifiers), tuple[Identifiers, ...])
    return Event(name, "", 0, "01", ids, msgspec.json.encode(document))


def delivery(name: str = "a.b", data: Any = None, *identifiers: dict[str, Any]) -> Delivery:
    return Delivery(1, "d_x", event(name, data, *identifiers), "eu1", "rule-1", "broker", 1, 0.0)


DEFAULT_TOPIC = "tts/{{ ids.path or 'none' }}/{{ event.name }}"


def test_the_default_topic_has_the_path_as_levels() -> None:
    """The slash between application and device is one of the topic."""
    topic = Template(DEFAULT_TOPIC, topic_level).render(delivery("as.up.data.forward", None, METER))
    assert topic == "tts/plant-a/meter-01/as.up.data.forward"


def test_without_a_path_there_is_still_a_topic() -> None:
    """No empty level, no leading slash."""
    assert Template(DEFAULT_TOPIC, topic_level).render(delivery("bridge.test")) == "tts/none/bridge.test"


def test_values_cannot_add_topic_levels_or_wildcards() -> None:
    """A value from an event is one level, whatever is in it."""
    template = Template("t/{{ data.x }}", topic_level)
    assert template.render(delivery("a", {"x": "a/b+c#d\0e"})) == "t/a%2Fb%2Bc%23d%00e"


def test_slack_controls_are_escaped_in_values_only() -> None:
    """The operator's own <link> stays."""
    template = Template("<!here> {{ data.x }}", slack_escape)
    assert template.render(delivery("a", {"x": "<!channel> & co"})) == "<!here> &lt;!channel&gt; &amp; co"


def test_a_field_comes_before_a_method_of_dict() -> None:
    """`data.values`, `data.items`, `data.keys` are fields where the event has them."""
    assert Template("{{ data.values }}").render(delivery("a", {"values": 7})) == "7"


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("{{ x", "unexpected end of template"),
        ("{% for %}", "template:"),
        ("{{ devcie }}", "devcie is not defined"),
        ("{{ x | nofilter }}", "No filter named"),
    ],
)
def test_a_mistake_is_told_at_load(text: str, advice: str) -> None:
    """Not at three in the morning."""
    with pytest.raises(ValueError, match=advice):
        Template(text)


@pytest.mark.parametrize(
    "text",
    [
        "{{ data.nope }}",
        "{{ data.a.b.c }}",
        "{{ 1 / 0 }}",
        "{{ 'a' * 10**10 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ 'x'.__class__.__mro__ }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    ],
)
def test_what_a_template_cannot_do_is_an_error_of_ours(text: str) -> None:
    """Undefined, arithmetic, sizes without end, the sandbox."""
    with pytest.raises(RenderError):
        Template(text).render(delivery("a", {"a": 1}))


def test_event_format_is_the_stored_bytes() -> None:
    """Not parsed, not written again."""
    stored = Event("x", "", 0, "01", (), b'{ "name":"x" }')
    assert body(Delivery(1, "d", stored, "s", "r", "k", 1, 0.0), "event") == b'{ "name":"x" }'


def test_data_format_is_the_data_as_it_came() -> None:
    """Whitespace and all."""
    stored = Event("x", "", 0, "01", (), b'{"name":"x","data":{"a": 1.0}}')
    assert body(Delivery(1, "d", stored, "s", "r", "k", 1, 0.0), "data") == b'{"a": 1.0}'


def test_data_format_of_an_event_without_data_is_null() -> None:
    """A body is valid JSON in any case."""
    assert body(delivery(), "data") == b"null"


def test_a_summary_says_who_what_and_why() -> None:
    """The innermost cause is the one an operator can act on."""
    details = {
        "@type": "type.googleapis.com/ttn.lorawan.v3.ErrorDetails",
        "message_format": "schedule",
        "cause": {"message_format": "no gateway `{id}`", "attributes": {"id": "gw-roof"}},
    }
    told = summary(event("ns.down.data.schedule.fail", details, METER))
    assert told == "plant-a/meter-01: downlink could not be scheduled, no gateway gw-roof"


def test_a_summary_of_an_unknown_event_is_its_name() -> None:
    """Newer servers have names of their own."""
    assert summary(event("gs.new.thing", None, GATEWAY)) == "gw-roof: gs.new.thing"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
KEYS = ("uplink_message", "rx_metadata", "cause", "details", "path_errors", "attributes", "rssi")
shaped = st.recursive(
    st.integers(0, 3) | st.text("ab{}", max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=12,
)


@given(shaped)
def test_no_event_breaks_the_summary(data: Any) -> None:
    """`data` may be anything: a summary is text, never an exception."""
    assert isinstance(summary(event("a.b", data)), str)


@given(json_values)
def test_a_strict_template_renders_or_raises_ours(data: Any) -> None:
    """Rendering against anything ends in text or RenderError."""
    try:
        assert isinstance(Template("{{ data.a.b }} {{ summary }}").render(delivery("a", data)), str)
    except RenderError:
        assert not isinstance(data, dict) or "a" not in data or "b" not in json.dumps(data["a"])


@pytest.mark.parametrize(
    ("text", "decodes"),
    [
        ("tts/{{ event.name }}", False),
        ("tts/{{ ids.path }}/{{ event.name | upper }}/{{ sink }}", False),
        ("{{ event['name'] }}", True),
        ("{{ event.name }} {{ event.time }}", True),
        ("{{ event.name.data }} {% for key in event %}{{ key }}{% endfor %}", True),
        ("{{ {'name': event}.name }}", True),
        ("{{ data }} {{ event.name }}", True),
    ],
)
def test_a_template_that_wants_only_the_name_decodes_nothing(text: str, decodes: bool) -> None:
    """What it sees of the event is the name alone; the text is the same."""
    each = delivery("as.up.data.forward", {"x": 1}, {"gateway_ids": {"gateway_id": "g1"}})
    found = context(each, Template(text).uses)["event"]
    assert (found == each.event.document()) == decodes
    assert decodes or found == {"name": "as.up.data.forward"}


@pytest.mark.parametrize(
    "text", ["{{ ids.path }}/{{ event.name }}/{{ sink }}/{{ rule }}", "{{ event.name }}", "{{ ids.device }}"]
)
@given(data=st.data())
def test_texts_that_are_remembered_are_those_that_are_made(text: str, data: st.DataObject) -> None:
    """Of deliveries that differ in one thing or another, in any order."""
    template = Template(text, topic_level)
    for _ in range(8):
        name = data.draw(st.sampled_from(["a.b", "bridge.alert.firing", "c"]))
        gateway = {"gateway_ids": {"gateway_id": data.draw(st.sampled_from(["g1", "g2"]))}}
        each = delivery(name, {"labels": {"rule": "r"}}, *data.draw(st.sampled_from([[], [gateway]])))
        each = msgspec.structs.replace(each, rule=data.draw(st.sampled_from(["r1", "r2"])))

        def made(by: Template, each: Delivery = each) -> str:
            try:
                return by.render(each)
            except RenderError as error:
                return str(error)

        assert made(template) == made(Template(text, topic_level))
