"""Templates tried before they are needed: against a sample of every event they can meet.

No I/O, no clock, no logging in this file. A sample has every field the wire facts of the catalogue know,
and stands for what they do not know by a value that has everything: what a template does with that
cannot be judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bridge.catalogue import Catalogue, Field, Wire
from bridge.errors import RenderError
from bridge.render import ALERTS, Template
from bridge.render.filters import IdsPath

TIME = "2026-11-23T21:09:06.646506081Z"
NOW = 1_795_468_146.0  # unix seconds of TIME
BYTES = "0102030405060708"  # reads as base64 and as an EUI
DEPTH = 8  # messages inside messages; those that hold themselves end there

WORDS: Mapping[str, str] = {
    "application_id": "plant-a",
    "client_id": "acme-portal",
    "device_id": "meter-01",
    "gateway_id": "gw-roof",
    "message_format": "no gateway `{gateway_id}`",
    "organization_id": "acme",
    "user_id": "admin",
}

UP: Mapping[str, str] = {
    "as.down.data.ack.": "downlink_ack",
    "as.down.data.failed.": "downlink_failed",
    "as.down.data.nack.": "downlink_nack",
    "as.down.data.queue.": "downlink_queue_invalidated",
    "as.down.data.sent.": "downlink_sent",
    "as.up.data.": "uplink_message",
    "as.up.join.": "join_accept",
    "as.up.location.": "location_solved",
    "as.up.normalized.": "uplink_normalized",
    "as.up.service.": "service_data",
    "ns.up.data.": "uplink_message",
    "ns.up.join.": "join_accept",
}
"""Which of an ApplicationUp's messages an event carries (pkg/applicationserver/observability.go in v3.32)."""


class Open(dict[str, Any]):
    """What may be anything: it has every key. *touched* gets an entry when a rendering looks inside."""

    def __init__(self, touched: list[str]) -> None:
        super().__init__()
        self.touched = touched

    def __contains__(self, key: object) -> bool:
        self.touched.append(str(key))
        return True

    def __missing__(self, key: str) -> Open:
        self.touched.append(key)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        self.touched.append(key)
        return self

    def __iter__(self) -> Iterator[str]:
        self.touched.append("*")
        return super().__iter__()

    def __str__(self) -> str:
        self.touched.append("*")
        return "sample"


@dataclass(frozen=True, slots=True)
class Problem:
    """What goes wrong with an event called *name*; *sometimes*: only when a zero was left out."""

    name: str
    error: str
    sometimes: bool = False


def problems(template: Template, names: Iterable[str], catalogue: Catalogue) -> list[Problem]:
    """What goes wrong when *template* meets events called *names*: one problem a name at most."""
    return [found for name in names if (found := problem(template, name, catalogue))]


def problem(
    template: Template, name: str, catalogue: Catalogue, labels: Iterable[str] = ()
) -> Problem | None:
    """TTS leaves out what is zero, so that a name that is always there in full can still fail at night.

    *labels* are those of the alert, where *name* is of a notification.
    """
    for sparse in (False, True):
        for kind in catalogue.types(name) or ("",):
            touched: list[str] = []
            values = dict.fromkeys(labels, "sample") | sample(name, kind, catalogue, touched, sparse=sparse)
            try:
                template.fill(values, NOW)
            except RenderError as error:
                if not touched:
                    return Problem(name, str(error), sparse)
    return None


def sample(
    name: str, kind: str, catalogue: Catalogue, touched: list[str], *, sparse: bool = False
) -> dict[str, Any]:
    """The values of a template for an event called *name* whose data is a *kind* ('' if nobody knows).

    *sparse* leaves out every field that is left out when it is zero.
    """
    data = Sampler(catalogue, touched, UP.get(_start(name), ""), sparse).data(kind)
    ids = {**WORDS, **dict.fromkeys(("dev_eui", "join_eui", "gateway_eui"), BYTES), "dev_addr": "26000001"}
    del ids["message_format"]
    device = {"device_id": "meter-01", "application_ids": {"application_id": "plant-a"}, "dev_eui": BYTES}
    anything = Open(touched)
    event = {
        "name": name,
        "time": TIME,
        "identifiers": [{"device_ids": device}],
        "data": data,
        "correlation_ids": ["rpc:/ttn.lorawan.v3.Sample:01M853VDY84KVF9B48HB5JC9BF"],
        "origin": "sample",
        "context": anything,
        "visibility": anything,
        "authentication": anything,
        "remote_ip": "192.0.2.1",
        "user_agent": "sample",
        "unique_id": "01M853VDYP3VB3D23T1VY1M1YV",
        "related": [],
    }
    values: dict[str, Any] = {
        "event": event,
        "data": data,
        "ids": ids | {"path": IdsPath("plant-a/meter-01")},
        "sink": "sample",
        "rule": "sample",
        "summary": "plant-a/meter-01: sample",
    }
    if name.startswith(ALERTS):
        about = {"alert": "sample", "status": "firing", "labels": anything, "since": TIME, "events": [event]}
        values |= about | {"ends": "", "number": 1, "value": anything, "group": anything}
    return values


def _start(name: str) -> str:
    return next((start for start in UP if name.startswith(start)), "")


def may_be_missing(field: Field, wire: Wire) -> bool:
    """Is *field* left out now and then? Numbers are 0 at times, lists of words empty; an id is never ''."""
    return wire.kind != "object" and (field.repeated or (wire.omitted and field.type != "string"))


@dataclass(frozen=True, slots=True)
class Sampler:
    """Makes data; *up* is the one message of an ApplicationUp to make, '' for all."""

    catalogue: Catalogue
    touched: list[str]
    up: str
    sparse: bool

    def data(self, kind: str) -> Any:
        if not kind:
            return Open(self.touched)
        found = {"@type": f"type.googleapis.com/{kind}"}
        if not self.catalogue.fields(kind):
            value = self.catalogue.at(kind, "value")
            return (
                found | {"value": self.leaf(Field("value", "string"), value)} if value else Open(self.touched)
            )
        return found | self.message(kind, 0)

    def message(self, kind: str, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for field in self.catalogue.fields(kind):
            wire = self.catalogue.at(kind, field.name)
            if field.oneof == "up" and self.up and field.name != self.up:
                continue
            if depth > DEPTH or (self.sparse and wire and may_be_missing(field, wire)):
                continue
            made[field.name] = self.value(field, wire, depth)
        return made

    def value(self, field: Field, wire: Wire | None, depth: int) -> Any:
        if self.catalogue.is_map(field.of):
            return Open(self.touched)
        one = self.message(field.of, depth + 1) if wire and wire.kind == "object" else self.leaf(field, wire)
        return [one] if field.repeated else one

    def leaf(self, field: Field, wire: Wire | None) -> Any:
        match wire.kind if wire else "open":
            case "number":
                return 1.5 if field.type in ("float", "double") else 1
            case "int64":
                return "1"
            case "bool":
                return True
            case "string":
                return self.text(field, wire)
            case _:
                return Open(self.touched)

    def text(self, field: Field, wire: Wire | None) -> str:
        if wire and wire.values:
            return min(wire.values - {wire.zero}, default=str(wire.zero))
        if field.of.endswith("Timestamp"):
            return TIME
        if field.of.endswith("Duration"):
            return "1.5s"
        return BYTES if field.type == "bytes" else WORDS.get(field.name, "sample")
