"""Who is told what, and when: Alertmanager's groups.  No I/O, no clock, no randomness in this file.

Times are nanoseconds of the server's clock. A group is told when something in it is new: `wait` after it
began, `interval` after the last time, and again after `repeat`. What was told as firing is told as resolved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgspec

from bridge.alerts import ALL, CAUSES, Alert
from bridge.alerts.mute import muted_until
from bridge.alerts.parts import SECOND
from bridge.errors import RenderError
from bridge.event import KINDS, Entity, Event, Identifiers, ids_of, rfc3339
from bridge.ids import digest
from bridge.own import identifier
from bridge.render import Template
from bridge.render.filters import IdsPath

Status = Literal["firing", "resolved"]

MEMBERS = 100  # of a group that a notification lists
SHOWN = 5  # of them in its summary


class Member(msgspec.Struct, omit_defaults=True, gc=False):
    """One key of a group, from when it fires until it is told as resolved."""

    since: int
    ends: int = 0
    """0 while it fires."""
    told: bool = False
    """As firing."""
    causes: list[msgspec.Raw] = []
    data: msgspec.Raw = msgspec.Raw(b"null")
    value: float | None = None


class Group(msgspec.Struct, omit_defaults=True, gc=False):
    start: int
    """The start of its first member: with the number it makes the ids of notifications."""
    members: dict[str, Member] = {}
    number: int = 0
    flush: int | None = None
    """When it is to be looked at next."""
    sent: int = 0
    """When it was last told, or would have been, had bridge been there."""
    renewed: int = 0
    """When it was last told in fact: repeats count from there, so that they do not pile up."""
    told: int = 0
    """When it was first told as firing."""
    escalated: bool = False
    held: bool = False
    """Was somebody kept back when it was looked at last? Then it is looked at when silences change."""
    scheduled: int = 0
    """Where it stands in the engine's heap; meaningless on disk."""


class Suppression(NamedTuple):
    reason: Literal["silenced", "inhibited"]
    until: int
    """When to ask again."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One notification that is to be sent."""

    alert: Alert
    key: str
    status: Status
    sinks: tuple[str, ...]
    document: Mapping[str, Any]
    """The event, as JSON values."""


def group_key(alert: Alert, key: str) -> str:
    """Which group the one that is *key* belongs to."""
    if alert.grouping.by is None:
        return key
    labels = alert.labels_of(key)
    return ",".join(f"{each}={labels.get(each, '')}" for each in alert.grouping.by) or ALL


def is_today(alert: Alert, name: str, group: Group) -> bool:
    """Is *group* one that the alert has as it is now? With another `group_by` its members are elsewhere."""
    return all(group_key(alert, each) == name for each in group.members)


def fired(alert: Alert, group: Group, key: str, member: Member, at: int) -> None:
    """*key* fires; *at* is when that is known."""
    known = group.members.get(key)
    if known is not None and known.told and known.ends:
        member.told = False
    group.members[key] = member
    _look(group, max(at, group.sent + alert.grouping.interval) if group.number else at + alert.grouping.wait)


def resolved(alert: Alert, group: Group, key: str, ends: int, at: int) -> None:
    """*key* does not fire any more; what nobody was told is forgotten."""
    member = group.members.get(key)
    if member is None:
        return
    if not member.told:
        del group.members[key]
        return
    member.ends = ends
    _look(group, max(at, group.sent + alert.grouping.interval))


def _look(group: Group, at: int) -> None:
    group.flush = at if group.flush is None else min(group.flush, at)


def flush(
    alert: Alert,
    key: str,
    group: Group,
    due: int,
    now: int,
    suppressed: Callable[[str], Suppression | None],
) -> list[Notice]:
    """What is to be said of *group* at *now*; afterwards `group.flush` says when to ask again.

    It was *due* before, if bridge was not there then.
    """
    group.flush = None
    muted = muted_until(alert.mute, now / SECOND) if alert.mute else None
    if muted is not None:
        group.flush = int(muted * SECOND)
        return []
    held = {each: why for each in group.members if (why := _held(group.members[each], suppressed, each))}
    group.held = bool(held)
    seen = {each: member for each, member in sorted(group.members.items()) if each not in held}
    firing = {each: member for each, member in seen.items() if not member.ends}
    is_new = any(bool(member.ends) or not member.told for member in seen.values())
    notices: list[Notice] = []
    if is_new or (firing and _repeats(alert, group, now)):
        notices.append(_notice(alert, key, group, seen, now, _sinks(alert, group)))
        _was_told(group, seen, due, now, bool(firing))
    elif firing and _escalates(alert, group) <= now:
        group.escalated = True
        notices.append(_notice(alert, key, group, seen, now, alert.grouping.escalate_to, escalated=True))
    _next(alert, group, held.values(), now)
    return notices


def _held(member: Member, suppressed: Callable[[str], Suppression | None], key: str) -> Suppression | None:
    """What has been told as firing is told as resolved, whatever was silenced meanwhile."""
    return None if member.ends else suppressed(key)


def _repeats(alert: Alert, group: Group, now: int) -> bool:
    repeat = alert.grouping.repeat
    return repeat is not None and now >= group.renewed + repeat


def _escalates(alert: Alert, group: Group) -> int:
    """When it goes to further sinks too."""
    after = alert.grouping.escalate_after
    if after is None or group.escalated or not group.told:
        return 1 << 62
    return group.told + after


def _sinks(alert: Alert, group: Group) -> tuple[str, ...]:
    if not group.escalated:
        return alert.send
    return alert.tells


def _was_told(group: Group, seen: Mapping[str, Member], due: int, now: int, is_firing: bool) -> None:
    group.sent, group.renewed = due, now
    group.told = (group.told or due) if is_firing else 0
    for each, member in seen.items():
        if member.ends:
            del group.members[each]
        else:
            member.told = True


def _next(alert: Alert, group: Group, held: Iterable[Suppression], now: int) -> None:
    """When it has to be looked at again, if nothing happens before."""
    due = [each.until for each in held]
    if group.told and any(member.told and not member.ends for member in group.members.values()):
        if alert.grouping.repeat is not None:
            due.append(group.renewed + alert.grouping.repeat)
        due.append(_escalates(alert, group))
    due = [each for each in due if each < 1 << 62]
    group.flush = max(min(due), now + 1) if due else None


def _notice(
    alert: Alert,
    key: str,
    group: Group,
    seen: Mapping[str, Member],
    now: int,
    sinks: tuple[str, ...],
    *,
    escalated: bool = False,
) -> Notice:
    group.number += 1
    firing = {each: member for each, member in seen.items() if not member.ends}
    status: Status = "firing" if firing else "resolved"
    about = firing or seen
    since = min(member.since for member in about.values())
    labels = _common(alert.labels_of(each) for each in about)
    first = min(about, key=lambda each: (about[each].since, each))
    told: dict[str, Any] = {
        "alert": alert.name,
        "kind": alert.kind,
        "key": key,
        "status": status,
        "labels": labels,
        "since": rfc3339(since),
        "number": group.number,
        "events": _events(about),
    }
    if status == "resolved":
        told["ends"] = rfc3339(max(member.ends for member in seen.values()))
    if escalated:
        told["escalated"] = True
    if about[first].value is not None:
        told["value"] = about[first].value
    if alert.grouping.by is not None:
        told["group"] = _group(alert, key, seen)
    told["summary"] = _summary(alert, first, about, seen, told, now)
    document = {
        "name": f"bridge.alert.{status}",
        "time": rfc3339(now),
        "identifiers": [
            found for each in list(about)[:MEMBERS] if (found := entity_of(alert, each, about[each]))
        ],
        "data": told,
        "origin": "bridge",
        "unique_id": notification_id(alert.name, key, group.start, group.number),
    }
    return Notice(alert, key, status, sinks, document)


def notification_id(alert: str, key: str, start: int, number: int) -> str:
    """The same for the same notification, whoever makes it, however often."""
    return "alert-" + digest(alert, key, str(start), str(number))


def entity_of(alert: Alert, key: str, member: Member) -> dict[str, Any] | None:
    """The entity of *key* as an identifier, with its EUIs where an event had them; None if it is none."""
    if alert.by not in KINDS:
        return None
    entity = Entity(alert.by, key)
    for cause in reversed(member.causes):
        for each in msgspec.json.decode(cause).get("identifiers") or ():
            if isinstance(each, dict) and _is(each, entity):
                return each
    return identifier(entity)


def _is(found: Mapping[str, Any], entity: Entity) -> bool:
    ids = found.get(f"{entity.kind}_ids") or {}
    if entity.kind == "device":
        path = f"{(ids.get('application_ids') or {}).get('application_id', '')}/{ids.get('device_id', '')}"
        return path == entity.id
    return bool(ids.get(f"{entity.kind}_id") == entity.id)


def _common(labels: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """What all have in common, as Alertmanager's commonLabels."""
    found: dict[str, str] | None = None
    for each in labels:
        found = (
            dict(each) if found is None else {key: found[key] for key in found if each.get(key) == found[key]}
        )
    return found or {}


def _events(about: Mapping[str, Member]) -> list[Any]:
    """The newest causes of each, at most CAUSES in all."""
    found: list[Any] = []
    for member in about.values():
        found += [msgspec.json.decode(each) for each in member.causes]
        if len(found) >= CAUSES:
            break
    return found[-CAUSES:] if len(about) == 1 else found[:CAUSES]


def _group(alert: Alert, key: str, seen: Mapping[str, Member]) -> dict[str, Any]:
    labels = _common(alert.labels_of(each) for each in seen)
    members = [
        {
            "key": each,
            "status": "resolved" if member.ends else "firing",
            "labels": alert.labels_of(each),
            "since": rfc3339(member.since),
            **({"ends": rfc3339(member.ends)} if member.ends else {}),
        }
        for each, member in list(seen.items())[:MEMBERS]
    ]
    by = alert.grouping.by or ()
    return {
        "key": key,
        "labels": {each: labels.get(each, "") for each in by},
        "count": len(seen),
        "members": members,
    }


def _summary(
    alert: Alert,
    first: str,
    about: Mapping[str, Member],
    seen: Mapping[str, Member],
    told: Mapping[str, Any],
    now: int,
) -> str:
    """The alert's own sentence for one; for several also how many, and who."""
    text = _sentence(alert, first, about[first], told, now)
    if len(seen) == 1:
        return text
    firing = sum(not member.ends for member in seen.values())
    counts = [f"{firing} firing"] if firing else []
    counts += [f"{len(seen) - firing} resolved"] if len(seen) > firing else []
    names = ", ".join(sorted(about)[:SHOWN])
    more = f" and {len(about) - SHOWN} more" if len(about) > SHOWN else ""
    return f"{alert.name}: {', '.join(counts)}: {names}{more}"


def _sentence(alert: Alert, key: str, member: Member, told: Mapping[str, Any], now: int) -> str:
    is_firing = told["status"] == "firing"
    plain = f"{key}: {alert.name} since {told['since']}" if key else f"{alert.name} since {told['since']}"
    text = plain
    if alert.summary is not None:
        try:
            text = alert.summary.fill(values(alert, key, member, told), now / SECOND)
        except RenderError:
            text = plain
        if "status" in alert.summary.uses:
            return text
    return text if is_firing else f"Resolved: {text}"


def values(alert: Alert, key: str, member: Member, told: Mapping[str, Any]) -> dict[str, Any]:
    """What the summary of an alert sees."""
    entity = entity_of(alert, key, member)
    ids = _ids(entity, key)
    return {
        **alert.labels_of(key),
        **{each: told[each] for each in ("alert", "status", "labels", "since", "events", "number")},
        "ends": told.get("ends", ""),
        "value": member.value,
        "ids": ids | {"path": IdsPath(ids["path"])},
        "data": msgspec.json.decode(member.data) or {},
        "event": {"name": f"bridge.alert.{told['status']}"},
        "rule": alert.name,
        "group": told.get("group", {}),
    }


def _ids(entity: Mapping[str, Any] | None, key: str) -> dict[str, str]:
    identifiers = (msgspec.convert(entity, Identifiers),) if entity else ()
    found = ids_of(Event("", "", 0, "", identifiers, b"{}"))
    found["path"] = found["path"] or key
    return found


def uses(template: Template | None, name: str) -> bool:
    return template is not None and name in template.uses
