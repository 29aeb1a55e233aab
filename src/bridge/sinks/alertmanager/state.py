"""What an Alertmanager is told: the state of alerts, made from their notifications.

No I/O, no clock, no logging in this file. Times are nanoseconds since 1970.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from bridge.delivery import Delivery
from bridge.event import nanoseconds, rfc3339
from bridge.render.formats import alerts

SECOND = 1_000_000_000
AHEAD = 240 * SECOND  # how long what fires is believed to fire: four times the interval, as Prometheus has it
KEPT = 900 * SECOND  # how long what has ended is told again; Prometheus: resolvedRetention
NOTIFICATIONS = ("bridge.alert.firing", "bridge.alert.resolved")


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """One key of one alert, as it was last told."""

    alert: str
    key: str
    labels: dict[str, str]
    summary: str
    since: int
    at: int
    """The time of the notification."""
    ends: int = 0
    """0 while it fires."""
    began: int = 0
    """The time of the first notification since it fires: where Alertmanager's `group_wait` begins."""

    @property
    def id(self) -> str:
        """Alert and key in one text."""
        return msgspec.json.encode([self.alert, self.key]).decode()


class _Member(msgspec.Struct):
    key: str
    status: str
    since: str
    labels: dict[str, str] = {}
    ends: str = ""


class _Group(msgspec.Struct):
    members: list[_Member]


class _Notification(msgspec.Struct):
    alert: str
    key: str
    status: str
    since: str
    labels: dict[str, str] = {}
    ends: str = ""
    summary: str = ""
    group: _Group | None = None


class _Event(msgspec.Struct):
    data: _Notification


def notified(delivery: Delivery) -> list[Told]:
    """What the notification *delivery* tells, of each key in it; [] if it is no notification."""
    event = delivery.event
    if event.name not in NOTIFICATIONS:
        return []
    try:
        told = msgspec.json.decode(event.body, type=_Event).data
        own = _Member(told.key, told.status, told.since, told.labels, told.ends)
        return [
            Told(
                told.alert,
                each.key,
                each.labels,
                told.summary,
                nanoseconds(each.since),
                event.time_ns,
                (nanoseconds(each.ends) if each.ends else event.time_ns) if each.status == "resolved" else 0,
                event.time_ns,
            )
            for each in (told.group.members if told.group else [own])
        ]
    except (msgspec.DecodeError, ValueError):
        return []


def newer(known: Mapping[str, Told], told: Iterable[Told]) -> dict[str, Told]:
    """What of *told* is not older than what is *known*, by id: deliveries overtake each other."""
    found: dict[str, Told] = {}
    for each in told:
        before = known.get(each.id)
        if before is None or each.at >= before.at:
            goes_on = before is not None and before.since == each.since
            began = min(before.began, each.at) if before is not None and goes_on else each.at
            found[each.id] = msgspec.structs.replace(each, began=began)
    return found


def truly(told: Told, firing: Collection[tuple[str, str]] | None, now: int) -> Told:
    """*told*, ended *now* if it is not among what is *firing* any more, though nobody said so."""
    if told.ends or firing is None or (told.alert, told.key) in firing:
        return told
    return msgspec.structs.replace(told, ends=now)


def is_over(told: Told, now: int) -> bool:
    """Need it not be told again?"""
    return bool(told.ends) and max(told.ends, told.at) + KEPT < now


def posted(told: Told, now: int) -> dict[str, Any]:
    """*told* as Alertmanager's API v2 takes it (`postableAlert` of its openapi.yaml).

    It starts when it fired, as Prometheus has it, and not when its condition began: of what began longer than
    `group_wait` ago Alertmanager tells at once, one by one. The network's clock may be ahead: nothing starts
    or ends later than *now*, since it refuses an end before the start, and takes an end to come for firing.
    """
    if not told.ends:
        return _document(told.labels, told.summary, min(told.began, now), now + AHEAD)
    ends = min(told.ends, now)
    return _document(told.labels, told.summary, min(told.began, ends), ends)


def posted_once(delivery: Delivery, now: int) -> dict[str, Any]:
    """An event that is no notification: fires by being there, and is over if it does not come again."""
    found = alerts(delivery)[0]
    since = min(delivery.event.time_ns or now, now)
    return _document(found["labels"], found["annotations"]["summary"], since, now + AHEAD)


def _document(labels: Mapping[str, str], summary: str, since: int, ends: int) -> dict[str, Any]:
    return {
        "labels": dict(_labels(labels)),
        "annotations": {"summary": summary},
        "startsAt": rfc3339(since),
        "endsAt": rfc3339(ends),
    }


def _labels(labels: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """With names that Alertmanager takes: one that it does not would make it refuse all that came with it."""
    for name, value in labels.items():
        plain = re.sub("[^a-zA-Z0-9_]", "_", name)
        if value:
            yield (f"_{plain}" if plain[:1].isdigit() or not plain else plain), value
