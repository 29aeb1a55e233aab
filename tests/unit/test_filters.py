"""The filters of templates."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import RenderError
from bridge.render import Template, slack_escape, topic_level
from bridge.render.filters import FILTERS
from tests.recordings import documents, json_bytes
from tests.unit.test_render import METER, delivery

HEARD = [{"rssi": -110, "snr": -3.5}, {"rssi": -79, "snr": 9.2}, {"snr": 10}, {"rssi": "loud"}]


def shown(text: str, data: Any = None, now: float | None = None) -> str:
    return Template(text).render(delivery("a", data, METER), now)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ 'AQL/' | base64_bytes | hex }}", "0102FF"),
        ("{{ 'AQL_' | base64_bytes | hex }}", "0102FF"),  # the alphabet of URLs
        ("{{ 'AQI' | base64_bytes | hex }}", "0102"),  # without padding
        ("{{ 'AQL/' | base64_bytes | hex(':') }}", "01:02:FF"),
        ("{{ 'AQL/' | hex }}", "0102FF"),
        ("{{ 255 | hex }}", "FF"),
        ("{{ [1, 255] | hex }}", "01FF"),
        ("{{ ('AQL/' | base64_bytes)[2] }}", "255"),
        ("{{ 'AQL/' | base64_bytes | list | json }}", "[1,2,255]"),
        ("{{ 'AQL/' | base64_bytes | length }}", "3"),
        ("{{ 'AQL/' | base64_bytes }}", "0102FF"),
        ("{{ '' | base64_bytes | hex }}", ""),
    ],
)
def test_payloads_as_bytes_and_hex(text: str, expected: str) -> None:
    """`frm_payload` is base64 on the wire, people read hexadecimal."""
    assert shown(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'a b' | base64_bytes }}",
        "{{ 'A' | base64_bytes }}",
        "{{ [256] | hex }}",
        "{{ ['a'] | hex }}",
        "{{ none | hex }}",
        "{{ event.time | ago }}",
        "{{ 'yesterday' | ago }}",
        "{{ 'x' | local_time }}",
        "{{ 0 | local_time('Mars/Olympus') }}",
        "{{ 0 | local_time('../../etc/passwd') }}",
        "{{ 0 | local_time('UTC', '%') }}",
        "{{ 0 | local_time('UTC', '%5Y') }}",
        "{{ true | ago }}",
        "{{ '%d' | format('x') }}",
        "{{ '%' | format(1) }}",
        "{{ '%q' | format(1) }}",
        "{{ '%n' | format(1) }}",
        "{{ data | rssi }}",
        "{{ ('AQ' | base64_bytes, 1) | json | base64_bytes }}",
        "{{ data.nope | json }}",
        "{{ range | json }}",
        "{{ [1] | join(',', attribute='x') }}",
    ],
)
def test_what_a_filter_cannot_do_is_an_error_of_ours(text: str) -> None:
    """A dead letter with its reason, not a bug."""
    with pytest.raises(RenderError):
        shown(text, {"a": 1})


@pytest.mark.parametrize(
    "where",
    [
        HEARD,
        {"rx_metadata": HEARD},
        {"uplink_message": {"rx_metadata": HEARD}},
        {"message": {"rx_metadata": HEARD}},
    ],
)
def test_the_best_of_several_receptions(where: Any) -> None:
    """Wherever the list stands; what is no number does not count."""
    assert shown("{{ data | rssi }} {{ data | snr }}", where) == "-79 10"


def test_nothing_received_can_have_a_default() -> None:
    """`rssi` of an event without receptions is undefined."""
    assert shown("{{ data | rssi | default('?') }}", {"uplink_message": {}}) == "?"
    assert shown("{{ event | snr | default('?') }}", None) == "?"


def test_the_best_of_a_recorded_uplink() -> None:
    """Against the maximum worked out by hand."""
    uplink = next(each for each in documents("apps.sse") if each["name"] == "as.up.data.forward")
    heard = [each["rssi"] for each in uplink["data"]["uplink_message"]["rx_metadata"]]
    assert shown("{{ data | rssi }}", uplink["data"]) == str(max(heard))
    assert json_bytes(uplink)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "now"),
        (59, "59 s ago"),
        (60, "1 min ago"),
        (3599, "59 min ago"),
        (3600, "1 h ago"),
        (86399, "23 h ago"),
        (86400, "1 d ago"),
        (30 * 86400, "30 d ago"),
        (-90, "in 1 min"),
    ],
)
def test_ago_is_the_largest_unit(seconds: float, said: str) -> None:
    """Of RFC 3339 times and of unix seconds."""
    at = 1_763_971_190.0  # 2025-11-24T07:59:50Z
    assert (
        shown("{{ data.t | ago }}", {"t": "2025-11-24T07:59:50Z"}, at + seconds) == "now"
        if not seconds
        else said
    )
    assert shown("{{ data.t | ago }}", {"t": at}, at + seconds) == said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ data.t | local_time }}", "2026-07-01 12:30:00 UTC"),
        ("{{ data.t | local_time('Europe/Amsterdam') }}", "2026-07-01 14:30:00 CEST"),
        ("{{ data.w | local_time('Europe/Amsterdam') }}", "2026-01-01 13:30:00 CET"),
        ("{{ data.t | local_time('Asia/Kathmandu', '%H:%M') }}", "18:15"),
        ("{{ data.t | local_time(format='%d %b, 100%%') }}", "01 Jul, 100%"),
        ("{{ 0 | local_time('America/New_York') }}", "1969-12-31 19:00:00 EST"),
    ],
)
def test_local_time_knows_summer_and_winter(text: str, expected: str) -> None:
    """Times on the wire are UTC with up to nine digits."""
    times = {"t": "2026-07-01T12:30:00.123456789Z", "w": "2026-01-01T12:30:00Z"}
    assert shown(text, times) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ '%.1f' | format(2.25) }}", "2.2"),
        ("{{ '%04d|%-4s|%x' | format(7, 'a', 255) }}", "0007|a   |ff"),
        ("{{ '%(a)s %%' | format(a=1) }}", "1 %"),
        ("{{ 2.25 | round(1) }} {{ 2.5 | round }} {{ 2.1 | round(method='ceil') }}", "2.2 2.0 3.0"),
        ("{{ 'a' | center(5) }}|", "  a  |"),
        ("{{ 'a\\nb' | indent(2) }}", "a\n  b"),
        ("{{ 'abcdefgh' | truncate(4) }}", "abc…"),
        ("{{ [1, 2.5] | sum }}", "3.5"),
        ("{{ [1, true, none] | join(' ') }}", "1 true null"),
        ("{{ {'a': [1, none, 'ü']} | json }}", '{"a":[1,null,"ü"]}'),
        ("{{ 'aXbX' | replace('X', '-') }}", "a-b-"),
    ],
)
def test_jinjas_own_with_limits(text: str, expected: str) -> None:
    """They do what Jinja's documentation says."""
    assert shown(text) == expected


def test_json_keeps_types() -> None:
    """A number stays a number, a text with a quote stays whole."""
    data = {"n": 1.5, "b": False, "s": 'say "hi"\n', "l": [1, {"x": None}]}
    assert json.loads(shown("{{ data | json }}", data)) == data


def test_slack_escape_is_applied_once() -> None:
    """The filter in a text that is escaped anyway."""
    text = Template("{{ data.x }} {{ data.x | slack_escape }}", slack_escape)
    assert text.render(delivery("a", {"x": "<&"})) == "&lt;&amp; &lt;&amp;"
    assert shown("{{ data.x | slack_escape }}", {"x": "<&"}) == "&lt;&amp;"


def test_topic_level_can_be_used_anywhere() -> None:
    """In a topic it changes nothing, since % is left alone."""
    assert shown("{{ data.x | topic_level }}", {"x": "a/b+#"}) == "a%2Fb%2B%23"
    text = Template("{{ data.x | topic_level }}/{{ ids.path | topic_level }}", topic_level)
    assert text.render(delivery("a", {"x": "a/b"}, METER)) == "a%2Fb/plant-a/meter-01"


def test_a_notification_of_an_alert_has_its_own_names() -> None:
    """`alert status labels since events`, each label, and its own summary."""
    told = {
        "alert": "gateway-down",
        "labels": {"severity": "page", "status": "mine"},
        "since": "2026-07-01T12:30:00Z",
        "summary": "gw-roof is gone",
        "events": [{"name": "gs.gateway.disconnect"}],
    }
    names = ("alert", "status", "severity", "labels.severity", "since", "events[0].name", "summary")
    template = Template(" ".join(f"{{{{ {name} }}}}" for name in names), labels=["severity"])
    assert template.render(delivery("bridge.alert.firing", told)) == (
        "gateway-down firing page page 2026-07-01T12:30:00Z gs.gateway.disconnect gw-roof is gone"
    )
    assert Template("{{ status }}").render(delivery("bridge.alert.resolved", told)) == "resolved"
    with pytest.raises(RenderError, match="'alert' is undefined"):
        Template("{{ alert }}").render(delivery("gs.gateway.disconnect", told))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("name", sorted(FILTERS))
@settings(max_examples=25)
@given(value=values | st.binary(max_size=4))
def test_no_value_breaks_a_filter(name: str, value: Any) -> None:
    """A RenderError at worst."""
    data = {"x": base64.b64encode(value).decode() if isinstance(value, bytes) else value}
    source = "{{ (data.x | base64_bytes) | " if isinstance(value, bytes) else "{{ data.x | "
    argument = {"map": "('string')", "groupby": "('a')", "replace": "('a', 'b')", "selectattr": "('a')"}
    more = argument | {"rejectattr": "('a')", "select": "('odd')", "reject": "('odd')", "format": "(1)"}
    with suppress(RenderError):
        Template(f"{source}{name}{more.get(name, '')} }}}}").render(delivery("a", data))
