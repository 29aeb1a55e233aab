"""Which alerts look at an event, and what they see of it.  No I/O, no clock, no randomness in this file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from bridge.alerts import ALL, Alert
from bridge.alerts.groups import uses
from bridge.alerts.parts import Observation
from bridge.alerts.threshold import Threshold
from bridge.event import KINDS, Event
from bridge.pattern.leaves import Field, is_digits
from bridge.rules.index import index
from bridge.rules.matcher import Matcher, Subject, Wide, never
from bridge.rules.names import MAX_NAMES, NamePattern, Names

FOLD = "fold:"
GONE = {f"{'end_device' if kind == 'device' else kind}.delete": kind for kind in KINDS}
"""Events after which nobody misses an entity."""


class Sight(NamedTuple):
    """One alert that looks at an event, for one key."""

    alert: Alert
    key: str
    seen: Observation


class AlertSet:
    """Alerts ready to be asked. An event whose name none of them can match costs one look into a dict."""

    def __init__(self, alerts: Iterable[Alert], wide: Wide = never) -> None:
        self.alerts = tuple(alerts)
        self.by_name = {alert.name: alert for alert in self.alerts}
        self._wide = wide
        roles = [(alert, role) for alert in self.alerts for role in alert.matchers]
        self._asked: list[tuple[Alert, str, Matcher]] = [
            (alert, role, alert.matchers[role]) for alert, role in roles
        ]
        self._names = Names(
            pattern for alert in self.alerts for each in alert.patterns() for pattern in each.names
        )
        self._index = index(enumerate(matcher for _, _, matcher in self._asked))
        self._gate: dict[str, bool] = {}
        self._by = frozenset(alert.by for alert in self.alerts)
        self._hears = frozenset(
            alert.name for alert in self.alerts if any(each.last_heard_by for each in alert.inhibitors)
        )
        self._fields = {path: Field(path) for alert in self.alerts for path in (alert.by, alert.distinct)}

    def matchers(self) -> list[Matcher]:
        """What is asked of The Things Stack for them; deletions too, so that nobody is missed for ever."""
        gone = [name for name, kind in GONE.items() if kind in self._by]
        found = [matcher for _, _, matcher in self._asked]
        return found + [Matcher(names=(NamePattern.compile(name),)) for name in gone]

    def may_look(self, name: str) -> bool:
        """Can any of them want an event of this *name*?"""
        found = self._gate.get(name)
        if found is None:
            if len(self._gate) >= MAX_NAMES:
                self._gate.clear()
            wanted = any(matcher.may_be_named(name) for _, _, matcher in self._asked)
            found = self._gate[name] = wanted or GONE.get(name) in self._by
        return found

    def sights(self, event: Event, redact: Callable[[Event], Event]) -> list[Sight]:
        """What each alert that looks at *event* sees; *redact* is asked before anything is kept of it."""
        if not self.may_look(event.name):
            return []
        subject = Subject(event, self._names, self._wide)
        numbers: set[int] = set()
        self._index.find(subject, numbers)
        asked = [self._asked[each] for each in sorted(numbers)]
        looking = [(alert, role) for alert, role, matcher in asked if _wants(alert, matcher, subject)]
        kind = GONE.get(event.name)
        if kind is not None:
            looking += [(alert, "gone") for alert in self.alerts if alert.by == kind]
        if not looking:
            return []
        kept = _kept(redact(event), wants_data=any(uses(alert.summary, "data") for alert, _ in looking))
        return [sight for alert, role in looking for sight in self._sights(alert, role, subject, kept)]

    def _sights(self, alert: Alert, role: str, subject: Subject, kept: _Kept) -> Iterable[Sight]:
        event = subject.event
        value = self._value(alert, subject)
        text = self._text(alert, subject)
        heard = gateways(event) if alert.name in self._hears and role == "match" else ()
        data = kept.data if uses(alert.summary, "data") else NOTHING
        for key in self.keys(alert, subject):
            seen = Observation(event.time_ns, event.unique_id, role, value, text, heard, kept.cause, data)
            yield Sight(alert, key, seen)

    def keys(self, alert: Alert, subject: Subject) -> Sequence[str]:
        """What of *subject* the alert is about: none if it does not have what the alert goes by."""
        if alert.by == ALL:
            return ("",)
        if "." in alert.by:
            found = (value for value, _ in subject.leaves.at(self._fields[alert.by]))
            return [str(each) for each in found if isinstance(each, str | int | float)]
        return subject.ids.get(alert.by, ())

    def _value(self, alert: Alert, subject: Subject) -> float | None:
        if alert.field is None:
            return None
        numbers = [number(value) for value, _ in subject.leaves.numeric_at(alert.field)]
        found = [each for each in numbers if each is not None]
        if not found:
            return None
        if alert.pick == "first":
            return found[0]
        return max(found) if alert.pick == "max" else min(found)

    def _text(self, alert: Alert, subject: Subject) -> str:
        """What counts once, or which counter it is."""
        if isinstance(alert.spec, Threshold) and alert.spec.falls:
            return "".join(subject.ids.get("dev_addr", ()))
        if not alert.distinct:
            return ""
        if alert.distinct.startswith(FOLD):
            return _correlation(subject, alert.distinct.removeprefix(FOLD)) or subject.event.unique_id
        if "." not in alert.distinct:
            return ",".join(subject.ids.get(alert.distinct, ()))
        return ",".join(str(value) for value, _ in subject.leaves.at(self._fields[alert.distinct]))


def _wants(alert: Alert, matcher: Matcher, subject: Subject) -> bool:
    if matcher.mismatch(subject) is not None:
        return False
    return alert.unless is None or alert.unless.mismatch(subject) is not None


def _correlation(subject: Subject, prefix: str) -> str | None:
    for value, _ in subject.leaves.at(Field("correlation_ids")):
        if isinstance(value, str) and value.startswith(prefix + ":"):
            return value
    return None


def number(value: Any) -> float | None:
    """*value* as a number; The Things Stack writes 64-bit integers as strings of digits."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    return float(value) if is_digits(value) else None


class _Head(msgspec.Struct):
    identifiers: msgspec.Raw = msgspec.Raw(b"[]")
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Kept(NamedTuple):
    cause: msgspec.Raw
    data: msgspec.Raw


NOTHING = msgspec.Raw(b"null")


def _kept(event: Event, *, wants_data: bool) -> _Kept:
    """What is remembered of *event*, in memory of its own: a view would keep the whole body."""
    head = msgspec.json.decode(event.body, type=_Head)
    name, time, unique_id = (msgspec.json.encode(each) for each in (event.name, event.time, event.unique_id))
    cause = b'{"name":%s,"time":%s,"unique_id":%s,"identifiers":%s}' % (
        *(name, time, unique_id),
        bytes(head.identifiers),
    )
    return _Kept(msgspec.Raw(cause), msgspec.Raw(bytes(head.data)) if wants_data else NOTHING)


class _GatewayIds(msgspec.Struct, frozen=True):
    gateway_id: str = ""


class _Metadata(msgspec.Struct, frozen=True):
    gateway_ids: _GatewayIds = _GatewayIds()


class _Uplink(msgspec.Struct, frozen=True):
    rx_metadata: list[_Metadata] = []


class _Data(msgspec.Struct, frozen=True):
    uplink_message: _Uplink = _Uplink()
    rx_metadata: list[_Metadata] = []
    message: _Uplink = _Uplink()


class _Body(msgspec.Struct, frozen=True):
    data: _Data | None = None


def gateways(event: Event) -> tuple[str, ...]:
    """Which gateways heard an uplink, by the `rx_metadata` of its events as they are on the wire."""
    try:
        data = msgspec.json.decode(event.body, type=_Body).data
    except msgspec.DecodeError:
        return ()
    if data is None:
        return ()
    found = (*data.uplink_message.rx_metadata, *data.rx_metadata, *data.message.rx_metadata)
    ids = (each.gateway_ids.gateway_id for each in found)
    return tuple(sorted({sys.intern(each) for each in ids if each}))
