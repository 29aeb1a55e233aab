"""One partition of the alerts: what follows from the messages of its log.

No I/O, no clock, no randomness in this file. Its owner (`bridge.owning`) stores what follows, and forgets
everything when it could not: the next life begins with what was stored, and reads on from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from bridge.alerts.engine import Alerting, Row
from bridge.alerts.groups import Notice
from bridge.alerts.partition import Item, Message, Recent, unpacked
from bridge.alerts.parts import SECOND
from bridge.alerts.readers import PartOf, Readers
from bridge.alerts.sights import AlertSet, Sight

REPEATS = (
    120 * SECOND
)  # ns for which the ids of events are remembered: a dead reader's last batch comes again
AT_ONCE = 1000  # states moved before they are stored


class Judge:
    """*patience* in ns: so long without a beat, and a reader is gone."""

    def __init__(
        self, patience: int, part_of: PartOf, rows: Iterable[tuple[str, str, str, bytes]] = ()
    ) -> None:
        self.alerting = Alerting()
        self.alerting.at_once = AT_ONCE
        self.alerting.load(rows)
        self.through = 0
        """The number of the last message."""
        self.notices: list[Notice] = []
        """What is to be told."""
        self.rows: dict[Row, bytes | None] = {}
        """What has changed."""
        self._readers = Readers(patience, part_of)
        self._recent = Recent(REPEATS)
        self._sources: Mapping[str, Sequence[str]] = {}

    def configure(self, alerts: AlertSet, overlap: int, sources: Mapping[str, Sequence[str]]) -> None:
        """*overlap* in ns; *sources* are the leases of each."""
        self._sources = sources
        self.alerting.configure(alerts, overlap)
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

    def taken(self) -> tuple[Mapping[Row, bytes | None], Sequence[Notice]]:
        """What has changed, and what is to be told of it, since this was last asked."""
        self._note()
        rows, notices = self.rows, self.notices
        self.rows, self.notices = {}, []
        return rows, notices

    def _observe(self, item: Item) -> None:
        if item.missed is not None:
            self.alerting.missed(item.source, item.missed)
        alerts = self.alerting.alerts.by_name
        sights = [
            Sight(alerts[each.alert], each.key, each.what) for each in item.sights if each.alert in alerts
        ]
        self.alerting.observe(item.source, sights, item.now, only_known=item.only_known)

    def _tick(self) -> None:
        clock = self._readers.clock()
        unsettled = self._readers.unsettled(self._sources)
        self.notices += self.alerting.tick(self.alerting.now if clock is None else clock, unsettled)

    def _note(self) -> None:
        """Silences are not a partition's: who shares them lets them go."""
        self.rows |= {row: state for row, state in self.alerting.rows().items() if row[0] != "silence"}


def _read(body: bytes) -> Message | None:
    """None for what a replica of another version may have written."""
    try:
        return unpacked(body)
    except msgspec.DecodeError:
        return None
