"""Formats: what a receiver gets (DESIGN.md §2.4)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_binary_event, from_structured_event
from cloudevents.v1.http import from_http
from hypothesis import given
from hypothesis import strategies as st

from bridge.decode import event as decoded
from bridge.delivery import Delivery
from bridge.errors import RenderError
from bridge.event import Event, Identifiers
from bridge.render import Template
from bridge.render.formats import Encoder, Payload, common, fingerprint, is_json
from tests.notifications import member, notification
from tests.recordings import STREAMS, documents, json_bytes

METER = {"device_ids": {"device_id": "meter-01", "application_ids": {"application_id": "plant-a"}}}
GATEWAY = {"gateway_ids": {"gateway_id": "gw-roof", "eui": "58A0CBFFFE800000"}}
TIME = "2026-11-23T21:09:06.646506081Z"
HOSTS = {"eu1": "eu1.cloud.thethings.network"}


def delivery(
    name: str = "as.up.data.forward", data: Any = None, *ids: dict[str, Any], row: int = 1
) -> Delivery:
    document = {"name": name, "time": TIME, "identifiers": list(ids), "data": data, "unique_id": "01M853"}
    event = Event(
        name,
        TIME,
        0,
        "01M853",
        msgspec.convert(list(ids), tuple[Identifiers, ...]),
        json.dumps(document).encode(),
    )
    return Delivery(row, f"d_{row}", event, "eu1", "uplinks", "crm", 2, 0.0)


def test_a_lone_event_is_its_own_bytes() -> None:
    """No parsing, no writing again."""
    one = delivery("a.b", {"x": 1.0})
    assert Encoder().one(one) == Payload(one.event.body, "application/json")


def test_an_element_of_a_batch_says_which_delivery_it_is() -> None:
    """Added at the end; the rest byte for byte."""
    one = delivery("a.b", {"x": 1.0})
    element = Encoder().element(one)
    assert element.startswith(one.event.body[:-1])
    assert json.loads(element)["bridge"] == {"delivery_id": "d_1", "rule": "uplinks", "attempt": 2}


@pytest.mark.parametrize("body", [b"{}", b" { } \n", b'{"a":1}\n'])
def test_an_element_is_json_however_the_event_was_written(body: bytes) -> None:
    """Spaces around and inside, nothing inside."""
    element = Encoder().element(Delivery(1, "d", Event("", "", 0, "", (), body), "s", "r", "k", 1, 0.0))
    assert json.loads(element) == json.loads(body) | {
        "bridge": {"delivery_id": "d", "rule": "r", "attempt": 1}
    }


def test_a_batch_is_an_array() -> None:
    """In order."""
    encoder = Encoder("data")
    elements = [encoder.element(delivery("a", {"n": n}, row=n)) for n in range(3)]
    payload = encoder.many(elements, "crm")
    assert json.loads(payload.body) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert payload.content_type == "application/json"


# CloudEvents, as the SDK of the project reads them


def test_a_structured_cloudevent_is_read_by_the_sdk() -> None:
    """Attributes of §2.4; the event as data."""
    one = delivery("as.up.data.forward", {"x": 1}, METER)
    payload = Encoder("cloudevents", hosts=HOSTS).one(one)
    read = from_structured_event(HTTPMessage({"content-type": payload.content_type}, payload.body))
    assert payload.content_type.startswith("application/cloudevents+json")
    assert read.get_id() == "01M853"
    assert read.get_source() == "//eu1.cloud.thethings.network/plant-a/meter-01"
    assert read.get_type() == "org.thethingsstack.as.up.data.forward"
    assert read.get_subject() == "plant-a/meter-01"
    assert read.get_datacontenttype() == "application/json"
    assert read.get_extension("ttsrule") == "uplinks"
    assert read.get_extension("ttsdelivery") == "d_1"
    assert read.get_data() == json.loads(one.event.body)
    moment = read.get_time()
    assert moment is not None
    assert moment.isoformat().startswith("2026-11-23T21:09:06.646506")


def test_a_binary_cloudevent_is_read_by_the_sdk() -> None:
    """Attributes as headers, the event as body."""
    one = delivery("gs.gateway.connect", None, GATEWAY)
    payload = Encoder("cloudevents", binary=True, hosts=HOSTS).one(one)
    headers = {"content-type": payload.content_type, **payload.headers}
    read = from_binary_event(HTTPMessage(headers, payload.body))
    assert payload.body == one.event.body
    assert read.get_source() == "//eu1.cloud.thethings.network/gw-roof"
    assert read.get_extension("ttsdelivery") == "d_1"
    assert read.get_data() == json.loads(one.event.body)


def test_both_modes_say_the_same_to_older_sdks() -> None:
    """Version 1 of the SDK finds out the mode by the headers."""
    one = delivery("a.b", [1], METER)
    binary = Encoder("cloudevents", binary=True).one(one)
    structured = Encoder("cloudevents").one(one)
    first = from_http({"content-type": binary.content_type, **binary.headers}, binary.body)
    second = from_http({"content-type": structured.content_type}, structured.body)
    same = {"datacontenttype": "application/json"}
    assert {**first.get_attributes(), **same} == {**second.get_attributes(), **same}
    assert first.get_data() == second.get_data() == json.loads(one.event.body)


def test_a_cloudevents_batch_is_an_array_of_structured_ones() -> None:
    """JSON batch format: each element is a CloudEvent of its own."""
    encoder = Encoder("cloudevents", hosts=HOSTS)
    payload = encoder.many([encoder.element(delivery("a", n, METER, row=n)) for n in range(3)], "crm")
    assert payload.content_type.startswith("application/cloudevents-batch+json")
    for number, element in enumerate(json.loads(payload.body)):
        read = from_http({"content-type": "application/cloudevents+json"}, json.dumps(element))
        assert read["ttsdelivery"] == f"d_{number}"


def test_an_event_about_nothing_has_no_subject_and_is_still_valid() -> None:
    """Empty attributes are not allowed; `source` is."""
    for binary in (False, True):
        payload = Encoder("cloudevents", binary=binary).one(delivery("bridge.test"))
        read = from_http({"content-type": payload.content_type, **payload.headers}, payload.body)
        assert read["source"] == "//eu1/"
        assert "subject" not in read.get_attributes()


@pytest.mark.parametrize("stream", STREAMS)
def test_every_recorded_event_is_a_valid_cloudevent(stream: str) -> None:
    """Whatever The Things Stack sends."""
    for body in map(json_bytes, documents(stream)):
        one = Delivery(1, "d_1", decoded(body), "eu1", "all", "crm", 1, 0.0)
        for binary in (False, True):
            payload = Encoder("cloudevents", binary=binary, hosts=HOSTS).one(one)
            read = from_http({"content-type": payload.content_type, **payload.headers}, payload.body)
            assert read.get_data() == json.loads(body)


def test_a_header_holds_no_character_it_may_not() -> None:
    """A rule's name is the operator's own: percent-encoded as the HTTP binding says."""
    odd = Delivery(1, "d_1", delivery().event, "eu1", 'Zähler "1" 100%\n', "crm", 1, 0.0)
    headers = Encoder("cloudevents", binary=True).one(odd).headers
    assert headers["ce-ttsrule"] == "Z%C3%A4hler%20%221%22%20100%25%0A"


# Alertmanager


def alerts(payload: Payload) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(payload.body)
    return read


def test_an_event_becomes_a_firing_alert() -> None:
    """Named after its rule, labelled with what it is about."""
    read = alerts(Encoder("alertmanager").one(delivery("gs.gateway.disconnect", None, GATEWAY)))
    assert (read["version"], read["status"], read["receiver"]) == ("4", "firing", "crm")
    (one,) = read["alerts"]
    assert one["labels"] == {
        "alertname": "uplinks",
        "gateway_id": "gw-roof",
        "gateway_eui": "58A0CBFFFE800000",
        "event": "gs.gateway.disconnect",
    }
    assert one["annotations"] == {"summary": "gw-roof: gateway disconnected"}
    assert (one["startsAt"], one["endsAt"]) == (TIME, "0001-01-01T00:00:00Z")
    assert read["groupKey"] == '{}:{alertname="uplinks"}'
    assert read["groupLabels"] == {"alertname": "uplinks"}
    assert read["commonLabels"] == one["labels"]


def test_a_notification_is_its_alert() -> None:
    """Its own labels, summary and start; resolved ends it."""
    told = {
        "alert": "gateway-down",
        "labels": {"severity": "page"},
        "since": "2026-11-23T20:00:00Z",
        "summary": "gone",
    }
    firing = alerts(Encoder("alertmanager").one(delivery("bridge.alert.firing", told, GATEWAY)))["alerts"][0]
    resolved = alerts(Encoder("alertmanager").one(delivery("bridge.alert.resolved", told, GATEWAY)))
    assert firing["labels"]["alertname"] == "gateway-down"
    assert firing["labels"]["severity"] == "page"
    assert "event" not in firing["labels"]
    assert firing["annotations"] == {"summary": "gone"}
    assert firing["startsAt"] == "2026-11-23T20:00:00Z"
    assert resolved["status"] == "resolved"
    assert resolved["alerts"][0]["endsAt"] == TIME
    assert resolved["alerts"][0]["fingerprint"] == firing["fingerprint"]


def test_a_notification_of_one_key_is_a_group_of_its_own() -> None:
    """Receivers make one incident of one groupKey: two gateways that are down are two."""
    yard = alerts(Encoder("alertmanager").one(notification(since=0, at=60)))
    roof = alerts(Encoder("alertmanager").one(notification(key="gw-roof", since=0, at=60)))
    assert yard["groupKey"] == '{}:{alertname="gateway-down", gateway="gw-yard"}'
    assert yard["groupLabels"] == {"alertname": "gateway-down", "gateway": "gw-yard"}
    assert yard["groupKey"] != roof["groupKey"]


def test_a_notification_of_a_group_is_its_alerts() -> None:
    """Each with its own status and times; what the notification leaves out is counted."""
    told = [member("gw-roof", since=0, site="hall"), member("gw-yard", since=30, ends=50, site="hall")]
    group = {"key": "site=hall", "labels": {"site": "hall"}, "count": 12, "members": told}
    delivered = notification(key="site=hall", members=told, since=0, at=60, group=group)
    read = alerts(Encoder("alertmanager").one(delivered))
    assert read["groupLabels"] == {"alertname": "gateway-down", "site": "hall"}
    assert read["groupKey"] == '{}:{alertname="gateway-down", site="hall"}'
    assert read["commonLabels"] == {"alertname": "gateway-down", "site": "hall"}
    assert (read["status"], read["truncatedAlerts"]) == ("firing", 10)
    assert [(each["labels"]["gateway"], each["status"]) for each in read["alerts"]] == [
        ("gw-roof", "firing"),
        ("gw-yard", "resolved"),
    ]
    assert [each["endsAt"] for each in read["alerts"]] == ["0001-01-01T00:00:00Z", "1970-01-01T00:00:50Z"]
    assert [each["startsAt"] for each in read["alerts"]] == ["1970-01-01T00:00:00Z", "1970-01-01T00:00:30Z"]
    element = Encoder("alertmanager").element(delivered)
    both = alerts(Encoder("alertmanager").many([element, element], "crm"))
    assert len(both["alerts"]) == 4


def test_what_is_resolved_ends_when_it_ended() -> None:
    """Not when somebody was told."""
    delivered = notification(status="resolved", since=0, at=60, ends=40)
    (one,) = alerts(Encoder("alertmanager").one(delivered))["alerts"]
    assert one["endsAt"] == "1970-01-01T00:00:40Z"


def test_a_batch_of_alerts_is_one_payload() -> None:
    """Version 4 has a list of its own; what all share is common."""
    encoder = Encoder("alertmanager")
    other = {"gateway_ids": {"gateway_id": "gw-barn"}}
    elements = [encoder.element(delivery("gs.gateway.disconnect", None, each)) for each in (GATEWAY, other)]
    read = alerts(encoder.many(elements, "crm"))
    assert [each["labels"]["gateway_id"] for each in read["alerts"]] == ["gw-roof", "gw-barn"]
    assert read["commonLabels"] == {"alertname": "uplinks", "event": "gs.gateway.disconnect"}


def test_a_fingerprint_is_prometheus_own() -> None:
    """The values of prometheus/common/model/signature_test.go."""
    assert fingerprint({}) == f"{14695981039346656037:016x}"
    assert (
        fingerprint({"name": "garland, briggs", "fear": "love is not enough"})
        == f"{5799056148416392346:016x}"
    )


def test_what_is_common_is_in_all() -> None:
    """Name and value."""
    assert common([{"l": {"a": "1", "b": "2"}}, {"l": {"a": "1", "b": "3"}}], "l") == {"a": "1"}


# tts-v3


def test_tts_v3_is_the_application_message() -> None:
    """Without the type of the event's envelope."""
    up = {"end_device_ids": METER["device_ids"], "uplink_message": {"f_port": 1}}
    data = {"@type": "type.googleapis.com/ttn.lorawan.v3.ApplicationUp", **up}
    assert json.loads(Encoder("tts-v3").one(delivery("as.up.data.forward", data, METER)).body) == up


def test_home_assistant_gets_states() -> None:
    """For its webhook trigger: an object of values by key; other events are dead letters."""
    data = {"uplink_message": {"f_port": 1, "decoded_payload": {"temperature": 21.5}}}
    payload = Encoder("home-assistant").one(delivery("as.up.data.forward", data, METER))
    assert json.loads(payload.body)["temperature"] == 21.5
    with pytest.raises(RenderError):
        Encoder("home-assistant").one(delivery("as.up.join.forward", {}, METER))


@pytest.mark.parametrize("data", [None, {}, {"@type": "type.googleapis.com/ttn.lorawan.v3.Gateway"}, [1]])
def test_other_events_are_no_application_messages(data: Any) -> None:
    """A dead letter that says so."""
    with pytest.raises(RenderError, match="carries no application message"):
        Encoder("tts-v3").one(delivery("gs.gateway.connect", data))


# Templates


def rendered(text: str, data: Any = None, content_type: str | None = None) -> Payload:
    return Encoder("template", template=Template(text), content_type=content_type).one(delivery("a.b", data))


def test_a_template_is_text_or_json_by_what_it_makes() -> None:
    """Unless `content_type` says what it is."""
    assert rendered("up: {{ data.x }}", {"x": 1}) == Payload(b"up: 1", "text/plain; charset=utf-8")
    assert rendered(' {"x": {{ data.x | json }}}', {"x": "a"}) == Payload(b' {"x": "a"}', "application/json")
    assert rendered("x={{ data.x }}", {"x": 1}, "application/x-www-form-urlencoded").body == b"x=1"
    assert rendered("1", None, "application/json") == Payload(b"1", "application/json")


@pytest.mark.parametrize(
    ("text", "content_type"),
    [
        ('{"x": "{{ data.x }}"}', None),
        ("{{ data.x }}", "application/json"),
        ('["{{ data.x }}"]', "application/vnd.x+json"),
    ],
)
def test_json_that_is_none_is_told_before_it_is_sent(text: str, content_type: str | None) -> None:
    """A quote in a value breaks a template without `json`."""
    with pytest.raises(RenderError, match="no valid JSON"):
        rendered(text, {"x": 'a "quoted" word'}, content_type)


@pytest.mark.parametrize(
    ("content_type", "json_"),
    [
        ("application/json", True),
        ("application/JSON; charset=utf-8", True),
        ("application/vnd.api+json", True),
        ("text/plain", False),
        ("application/jsonl", False),
    ],
)
def test_which_types_are_json(content_type: str, json_: bool) -> None:
    """RFC 6839's suffix too."""
    assert is_json(content_type) is json_


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(json_values, st.text(), st.sampled_from(["event", "data", "cloudevents", "alertmanager"]))
def test_every_batch_is_json_whatever_is_in_it(data: Any, name: str, format: Any) -> None:
    """Names and values come from elsewhere."""
    encoder = Encoder(format)
    one = delivery(name.encode(errors="replace").decode(), json.loads(json.dumps(data)))
    assert json.loads(encoder.many([encoder.element(one)] * 2, "crm").body)
