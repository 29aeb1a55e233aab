"""Notifications as the NotificationService keeps them.  No I/O, no clock, no randomness in this file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from bridge.event import rfc3339
from bridge.standin.registry import MICROSECOND

Status: TypeAlias = Literal["UNSEEN", "SEEN", "ARCHIVED"]
STATUSES: tuple[Status, ...] = get_args(Status)
PREFIX = "NOTIFICATION_STATUS_"

SILENT_TYPES = frozenset({"client_requested", "user_requested"})
"""To all admins, and without an event (`notifyAdminsInternal`, notification_registry.go:291 in v3.32)."""


@dataclass(slots=True)
class Notice:
    """One notification of one receiver; *created* and *changed* in ns."""

    id: str
    kind: str
    created: int
    changed: int
    status: Status = "UNSEEN"
    message: Mapping[str, Any] = field(default_factory=dict)
    """entity_ids, data, sender_ids and receivers, as JSON."""

    def written(self) -> dict[str, Any]:
        """The JSON, zero values left out: `status` never says UNSEEN."""
        first = {"id": self.id, "created_at": rfc3339(self.created // MICROSECOND * MICROSECOND)}
        message = dict(self.message)
        written = first | {"entity_ids": message.pop("entity_ids", None), "notification_type": self.kind}
        written |= message
        if self.status != "UNSEEN":
            written["status"] = PREFIX + self.status
        written["status_updated_at"] = rfc3339(self.changed // MICROSECOND * MICROSECOND)
        return {name: value for name, value in written.items() if value not in (None, "", [], {})}


@dataclass(slots=True)
class Inbox:
    """Of all users, each oldest first."""

    of_user: dict[str, list[Notice]] = field(default_factory=dict)

    def add(self, user: str, notice: Notice) -> None:
        self.of_user.setdefault(user, []).append(notice)

    def listed(self, user: str, statuses: Collection[Status]) -> Sequence[Notice]:
        """Newest first, all of them without *statuses*."""
        found = [each for each in self.of_user.get(user, ()) if not statuses or each.status in statuses]
        found.reverse()
        return sorted(found, key=lambda each: each.created, reverse=True)

    def mark(self, user: str, ids: Collection[str], status: Status, now: int) -> None:
        """Ids of others and unknown ones are passed over."""
        for each in self.of_user.get(user, ()):
            if each.id in ids:
                each.status, each.changed = status, now
