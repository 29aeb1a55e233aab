"""One partition of the alerts: what follows from the messages of its log.

No I/O, no clock, no randomness in this file. Its owner (`bridge.replicas.owning`) stores what follows, and
forgets everything when it could not: the next life begins with what was stored, and reads on from there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from bridge.alerts.engine import Alerting, Row
from bridge.alerts.groups import Group, Notice
from bridge.alerts.partition import Item, Message, Moved, Recent, Seen, partition, unpacked
from bridge.alerts.parts import SECOND
from bridge.alerts.readers import PartOf, Readers
from bridge.alerts.sights import AlertSet, Sight

REPEATS = (
    120 * SECOND
)  # ns for which the ids of events are remembered: a dead reader's last batch comes again
AT_ONCE = 1000  # states moved before they are stored
LARGEST_GROUP = 1 << 19  # bytes of JSON, several times less when compressed
MOVED = 20  # tracks in one item


class Follows(NamedTuple):
    """What changes, what is to be told, and what other partitions have to know, with their numbers."""

    rows: Mapping[Row, bytes | None]
    notices: Sequence[Notice]
    passed: Sequence[tuple[int, Item]]


class Judge:
    """Of the partition *number*. *patience* in ns: so long without a beat, and a reader is gone."""

    def __init__(
        self,
        number: int,
        patience: int,
        part_of: PartOf,
        rows: Iterable[tuple[str, str, str, bytes]] = (),
    ) -> None:
        self.number = number
        self.alerting = Alerting()
        self.alerting.at_once = AT_ONCE
        self.alerting.load(rows)
        self.through = 0
        """The number of the last message."""
        self.notices: list[Notice] = []
        """What is to be told."""
        self.rows: dict[Row, bytes | None] = {}
        """What has changed."""
        self.passed: list[tuple[int, Item]] = []
        """What is another partition's."""
        self._readers = Readers(patience, part_of)
        self._recent = Recent(REPEATS)
        self._sources: Mapping[str, Sequence[str]] = {}

    def configure(self, alerts: AlertSet, overlap: int, sources: Mapping[str, Sequence[str]]) -> None:
        """*overlap* in ns; *sources* are the leases of each."""
        before, self._sources = self.alerting.alerts, sources
        self.alerting.configure(alerts, overlap)
        self._move(before)
        self._tick()

    def recall(self, at: int, body: bytes) -> None:
        """A message that was judged before: who reads, and which events have come, counts still."""
        message = _read(body)
        if message is not None:
            self._readers.hear(message.by, at, message.beat)
            for item in message.items:
                self._recent.is_new(item.id, at)

    def hear(self, number: int, at: int, body: bytes) -> None:
        """The next message of the log, stored *at*."""
        message = _read(body)
        self.through = number
        if message is None:
            return
        self._readers.hear(message.by, at, message.beat)
        for item in message.items:
            if self._recent.is_new(item.id, at):
                self._observe(item)
        if message.beat is not None:
            self._tick()
        self._note()

    def go_on(self) -> bool:
        """Do some more of what is due; False if nothing was left."""
        if not self.alerting.has_more:
            return False
        self._tick()
        self._note()
        return True

    def taken(self) -> Follows:
        """What follows from all that came since this was last asked."""
        self._note()
        found = Follows(self.rows, self.notices, self.passed)
        self.rows, self.notices, self.passed = {}, [], []
        return found

    def _observe(self, item: Item) -> None:
        if item.missed is not None:
            self.alerting.missed(item.source, item.missed)
        for each in item.moved:
            self.alerting.adopt(each.alert, each.key, each.track)
        alerts, mine, others = self.alerting.alerts.by_name, list[Sight](), defaultdict[int, list[Seen]](list)
        for seen in item.sights:
            alert = alerts.get(seen.alert)
            if alert is None:
                continue
            number = self.number if item.passed else partition(alert, seen.key)
            if number == self.number:
                mine.append(Sight(alert, seen.key, seen.what))
            else:
                others[number].append(seen)
        self.alerting.observe(item.source, mine, item.now, only_known=item.only_known)
        for number, found in others.items():
            self._pass(number, msgspec.structs.replace(item, sights=tuple(found), missed=None, moved=()))

    def _move(self, before: AlertSet) -> None:
        """With another `group_by` what is known of some is another partition's."""
        found: defaultdict[int, list[Moved]] = defaultdict(list)
        for alert in self.alerting.alerts.alerts:
            if before.by_name.get(alert.name) == alert:
                continue
            for key in self.alerting.keys(alert.name):
                number = partition(alert, key)
                track = self.alerting.give(alert.name, key) if number != self.number else None
                if track is not None:
                    found[number].append(Moved(alert.name, key, track))
        for number, each in found.items():
            for start in range(0, len(each), MOVED):
                moved = tuple(each[start : start + MOVED])
                self._pass(number, Item("", f"moved/{moved[0].alert}/{moved[0].key}", 0, moved=moved))

    def _pass(self, number: int, item: Item) -> None:
        """The same event may have come to that partition by itself, about others."""
        id = f"{item.id}/{self.number}/{self.through}"
        self.passed.append((number, msgspec.structs.replace(item, id=id, passed=True)))

    def _tick(self) -> None:
        clock = self._readers.clock()
        unsettled = self._readers.unsettled(self._sources)
        self.notices += self.alerting.tick(self.alerting.now if clock is None else clock, unsettled)

    def _note(self) -> None:
        """Silences are not a partition's: who shares them lets them go."""
        self.rows |= {
            row: slim(state) if row[0] == "group" and state is not None else state
            for row, state in self.alerting.rows().items()
            if row[0] != "silence"
        }


def slim(group: bytes) -> bytes:
    """The row of a *group*, without the events of its members where it would be no message otherwise."""
    if len(group) <= LARGEST_GROUP:
        return group
    found = msgspec.json.decode(group, type=Group)
    for member in found.members.values():
        member.causes, member.data = [], msgspec.Raw(b"null")
    return msgspec.json.encode(found)


def _read(body: bytes) -> Message | None:
    """None for what a replica of another version may have written."""
    try:
        return unpacked(body)
    except msgspec.DecodeError:
        return None
