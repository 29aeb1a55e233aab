"""A delivery as the body of a message, alone or among others (DESIGN.md §2.4).  No I/O, no clock here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

import msgspec

from bridge.delivery import Delivery
from bridge.errors import RenderError
from bridge.event import Event, ids_of
from bridge.render import Template, home_assistant, summary, tts_v3

Format: TypeAlias = Literal[
    "event", "data", "cloudevents", "alertmanager", "tts-v3", "home-assistant", "template"
]

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
CLOUDEVENT = "application/cloudevents+json; charset=utf-8"
CLOUDEVENTS = "application/cloudevents-batch+json; charset=utf-8"

NOT_ENDED = "0001-01-01T00:00:00Z"  # how Alertmanager writes that an alert goes on: Go's zero time


class Payload(msgspec.Struct, frozen=True, gc=False):
    """A body, what it is, and further headers it needs (CloudEvents, binary mode)."""

    body: bytes
    content_type: str
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Encoder:
    """One sink's `format` and what belongs to it. Methods raise RenderError: a dead letter."""

    format: Format = "event"
    binary: bool = False
    """CloudEvents with their attributes as headers."""
    template: Template | None = None
    content_type: str | None = None
    """Instead of the format's own; for a template default by content, JSON or text."""
    hosts: Mapping[str, str] = field(default_factory=dict)
    """The TTS host of each source; a source without one stands under its own name."""

    def one(self, delivery: Delivery) -> Payload:
        """*delivery* alone."""
        if self.format == "cloudevents":
            host = self.hosts.get(delivery.source, delivery.source)
            if self.binary:
                return Payload(delivery.event.body, JSON, cloudevent_headers(delivery, host))
            return Payload(cloudevent(delivery, host), CLOUDEVENT)
        if self.format == "alertmanager":
            return self._typed(alertmanager(alerts(delivery), delivery.sink, *grouped(delivery)), JSON)
        if self.format == "template":
            return self._rendered(delivery)
        body = delivery.event.body if self.format == "event" else self.element(delivery)
        return self._typed(body, JSON)

    def element(self, delivery: Delivery) -> bytes:
        """*delivery* as one element of a batch: JSON."""
        match self.format:
            case "event":
                return with_delivery(delivery)
            case "data":
                return data(delivery)
            case "cloudevents":
                return cloudevent(delivery, self.hosts.get(delivery.source, delivery.source))
            case "alertmanager":
                return msgspec.json.encode(alerts(delivery))
            case "tts-v3":
                return tts_v3.message(delivery.event)[1]
            case "home-assistant":
                return home_assistant.state(home_assistant.report(delivery.event))
            case "template":
                return valid_json(self._text(delivery))

    def many(self, elements: Sequence[bytes], sink: str) -> Payload:
        """A batch: a JSON array; Alertmanager's payload has a place for many of its own."""
        if self.format == "alertmanager":
            lists = [msgspec.json.decode(each, type=list[dict[str, Any]]) for each in elements]
            return self._typed(alertmanager([each for found in lists for each in found], sink), JSON)
        body = b"[" + b",".join(elements) + b"]"
        return Payload(body, CLOUDEVENTS) if self.format == "cloudevents" else self._typed(body, JSON)

    def _typed(self, body: bytes, content_type: str) -> Payload:
        return Payload(body, self.content_type or content_type)

    def _text(self, delivery: Delivery) -> str:
        if self.template is None:
            raise RenderError("there is no template")
        return self.template.render(delivery)

    def _rendered(self, delivery: Delivery) -> Payload:
        """What looks like JSON has to be JSON: a quote not escaped is told here, not by the receiver."""
        text = self._text(delivery)
        looks = text.lstrip()[:1] in {"{", "["} if self.content_type is None else is_json(self.content_type)
        body = valid_json(text) if looks else text.encode(errors="replace")
        return self._typed(body, JSON if looks else TEXT)


def is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == JSON or kind.endswith("+json")


def valid_json(text: str) -> bytes:
    """*text* as bytes if it is JSON; raises RenderError."""
    body = text.encode(errors="replace")
    try:
        msgspec.json.decode(body)
    except msgspec.MsgspecError as error:
        raise RenderError(
            f"the template made no valid JSON: {error}; use the filter json for values"
        ) from None
    return body


class _Data(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"null")


def data(delivery: Delivery) -> bytes:
    """The event's `data`, byte for byte."""
    return bytes(msgspec.json.decode(delivery.event.body, type=_Data).data)


def with_delivery(delivery: Delivery) -> bytes:
    """The event's own bytes with `bridge` as its last field: tells the elements of a batch apart."""
    about = {"delivery_id": delivery.id, "rule": delivery.rule, "attempt": delivery.attempt}
    inside = delivery.event.body.strip()[1:-1].rstrip()
    return b"{" + inside + (b"," if inside else b"") + b'"bridge":' + msgspec.json.encode(about) + b"}"


# CloudEvents 1.0.2: https://github.com/cloudevents/spec


def cloudevent_attributes(delivery: Delivery, host: str) -> dict[str, str]:
    """The context attributes; those that would be empty are left out, as the specification demands."""
    event = delivery.event
    path = ids_of(event)["path"]
    attributes = {
        "specversion": "1.0",
        "id": event.unique_id,
        "source": f"//{quote(host, safe=':[]')}/{quote(path, safe='/')}",
        "type": f"org.thethingsstack.{event.name}",
        "subject": path,
        "time": event.time,
        "ttsrule": delivery.rule,
        "ttsdelivery": delivery.id,
    }
    return {name: value for name, value in attributes.items() if value}


def cloudevent(delivery: Delivery, host: str) -> bytes:
    """Structured mode: attributes and event in one JSON object."""
    document: dict[str, Any] = dict(cloudevent_attributes(delivery, host))
    document |= {"datacontenttype": JSON, "data": msgspec.Raw(delivery.event.body)}
    return msgspec.json.encode(document)


def cloudevent_headers(delivery: Delivery, host: str) -> dict[str, str]:
    """Binary mode; all but printable ASCII is percent-encoded, and \" and % too (HTTP binding §3.1.3.2)."""
    safe = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')
    attributes = cloudevent_attributes(delivery, host)
    return {f"ce-{name}": quote(value, safe=safe) for name, value in attributes.items()}


# Alertmanager's webhook payload, version 4: https://prometheus.io/docs/alerting/latest/configuration/#webhook_config


def alerts(delivery: Delivery) -> list[dict[str, Any]]:
    """The alerts of a notification, those of a group each for itself; or an event, which fires by being."""
    event = delivery.event
    told = notified(event)
    if not told:
        ids = {name: value for name, value in ids_of(event).items() if value and name != "path"}
        labels = {"alertname": delivery.rule, **ids, "event": event.name}
        return [_alert(labels, summary(event), event.time, None)]
    resolved = event.name == "bridge.alert.resolved"
    status = "resolved" if resolved else "firing"
    about = str(told.get("summary") or summary(event))
    found = []
    for each in members(told) or [{**told, "status": status}]:
        ends = str(each.get("ends") or event.time) if each.get("status") == "resolved" else None
        found.append(_alert(_labels(each, told), about, str(each.get("since") or event.time), ends))
    return found


def notified(event: Event) -> dict[str, Any]:
    """The data of a notification; {} of any other event."""
    told = event.document().get("data") if event.name.startswith("bridge.alert.") else None
    return told if isinstance(told, dict) else {}


def members(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The members of the group that *told*, the data of a notification, is about; [] if it is about one."""
    group = told.get("group")
    found = group.get("members") if isinstance(group, dict) else None
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _labels(each: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, str]:
    own = each.get("labels")
    named = {"alertname": str(told.get("alert", "alert"))}
    return named | ({str(key): str(value) for key, value in own.items()} if isinstance(own, dict) else {})


def _alert(labels: Mapping[str, str], about: str, since: str, ends: str | None) -> dict[str, Any]:
    """*ends* None: it goes on."""
    return {
        "status": "firing" if ends is None else "resolved",
        "labels": labels,
        "annotations": {"summary": about},
        "startsAt": since or NOT_ENDED,
        "endsAt": ends or NOT_ENDED,
        "generatorURL": "",
        "fingerprint": fingerprint(labels),
    }


def grouped(delivery: Delivery) -> tuple[dict[str, str] | None, int]:
    """The labels that make the group of a notification, and how many alerts of it are left out.

    bridge's groups are within an alert. Without `group_by` each key is one, as with Alertmanager's
    `group_by: ['...']`: receivers that go by the groupKey keep the keys apart.
    """
    told = notified(delivery.event)
    if not told:
        return None, 0
    group = told.get("group")
    if not isinstance(group, dict):
        return _labels(told, told), 0
    count = group.get("count")
    left_out = count - len(members(told)) if isinstance(count, int) else 0
    return _labels(group, told), max(0, left_out)


def fingerprint(labels: Mapping[str, str]) -> str:
    """As Prometheus makes it (model/signature.go): FNV-1a over sorted names and values, ended by 0xFF."""
    value = 0xCBF29CE484222325
    for byte in b"".join(b"%b\xff%b\xff" % (name.encode(), labels[name].encode()) for name in sorted(labels)):
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def alertmanager(
    alerts: Sequence[Mapping[str, Any]], sink: str, group: Mapping[str, str] | None = None, left_out: int = 0
) -> bytes:
    """The payload for *alerts*, which share what is common to all of them; *group* None: by alertname."""
    labels, annotations = common(alerts, "labels"), common(alerts, "annotations")
    if group is None:
        group = {"alertname": labels["alertname"]} if "alertname" in labels else {}
    inside = ", ".join(f"{name}={msgspec.json.encode(group[name]).decode()}" for name in sorted(group))
    return msgspec.json.encode(
        {
            "version": "4",
            "groupKey": f"{{}}:{{{inside}}}",
            "truncatedAlerts": left_out,
            "status": "firing" if any(each["status"] == "firing" for each in alerts) else "resolved",
            "receiver": sink,
            "groupLabels": group,
            "commonLabels": labels,
            "commonAnnotations": annotations,
            "externalURL": "",
            "alerts": alerts,
        }
    )


def common(alerts: Sequence[Mapping[str, Any]], key: str) -> dict[str, str]:
    first, *others = [each[key] for each in alerts]
    return {name: value for name, value in first.items() if all(each.get(name) == value for each in others)}
