"""Notifications of alerts as deliveries, for tests of what sinks make of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec

from bridge import decode
from bridge.delivery import Delivery, delivery_id
from bridge.event import Entity, Kind, rfc3339
from bridge.own import identifier

SECOND = 1_000_000_000
_rows = itertools.count(1)


def notification(
    *,
    alert: str = "gateway-down",
    kind: str = "state",
    key: str = "gw-yard",
    by: Kind = "gateway",
    status: str = "firing",
    since: float,
    at: float,
    ends: float | None = None,
    number: int = 1,
    labels: dict[str, str] | None = None,
    members: Sequence[dict[str, Any]] | None = None,
    sink: str = "am",
    **more: Any,
) -> Delivery:
    """One as the alerts make it; times in unix seconds, *members* as `member` makes them."""
    told: dict[str, Any] = {
        "alert": alert,
        "kind": kind,
        "key": key,
        "status": status,
        "labels": {"alertname": alert, by: key, **_application(by, key)} if labels is None else labels,
        "since": rfc3339(int(since * SECOND)),
        "number": number,
        "summary": f"{key} has been offline",
        "events": [],
        **more,
    }
    if ends is not None:
        told["ends"] = rfc3339(int(ends * SECOND))
    if members is not None and "group" not in more:
        told["group"] = {
            "key": key,
            "labels": {"alertname": alert},
            "count": len(members),
            "members": members,
        }
    keys = [each["key"] for each in members] if members is not None else [key]
    document = {
        "name": f"bridge.alert.{status}",
        "time": rfc3339(int(at * SECOND)),
        "identifiers": [identifier(Entity(by, each)) for each in keys],
        "data": told,
        "origin": "bridge",
        "unique_id": f"alert-{alert}-{key}-{since}-{number}",
    }
    event = decode.event(msgspec.json.encode(document))
    return Delivery(
        next(_rows), delivery_id(event.unique_id, alert, sink), event, "alerts", alert, sink, 1, at
    )


def member(
    key: str,
    *,
    since: float,
    ends: float | None = None,
    alert: str = "gateway-down",
    by: str = "gateway",
    **labels: str,
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "key": key,
        "status": "firing" if ends is None else "resolved",
        "labels": {"alertname": alert, by: key, **_application(by, key), **labels},
        "since": rfc3339(int(since * SECOND)),
    }
    return found if ends is None else found | {"ends": rfc3339(int(ends * SECOND))}


def _application(by: str, key: str) -> dict[str, str]:
    return {"application": key.partition("/")[0]} if by == "device" else {}
