"""The totals one replica counts: exact after a kill too, for every count is a message before it is a count.

An event counts with its own message, a delivery with the decision about it; both name the replica that counts
them. What is written down now and then (`Page`) says up to which message it has counted; the next life, or
another replica, adds what came after that. No I/O, no clock in this file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import msgspec

from bridge.outbox import SinkTotals, SourceTotals
from bridge.outbox.jetstream.wire import Decision, Taken

Total: TypeAlias = tuple[str, str, str]
"""Kind (source or sink), name, and what is counted of it."""


class Ledger(msgspec.Struct, frozen=True, omit_defaults=True):
    """Every message up to *through* has been counted, and besides those in *beyond*."""

    through: int = 0
    beyond: tuple[int, ...] = ()


class Page(msgspec.Struct, frozen=True, omit_defaults=True):
    """One replica's totals as they were written down."""

    sums: tuple[tuple[str, str, str, int], ...] = ()
    events: Ledger = Ledger()
    settled: Ledger = Ledger()
    closed: bool = False
    """It is gone for good: nothing of it comes any more, and nobody looks for it."""

    def counter(self) -> Counter[Total]:
        return Counter({(kind, name, what): value for kind, name, what, value in self.sums})


class Counting:
    """Which messages of one stream have been counted.

    A message whose publish is under way may have any number beyond the last one known when it was begun: the
    page must not claim to have counted it.
    """

    def __init__(self, ledger: Ledger = Ledger()) -> None:  # noqa: B008  # frozen
        self._beyond = set(ledger.beyond)
        self._last = max((ledger.through, *ledger.beyond))
        self._floor = ledger.through
        self._begun: dict[int, int] = {}
        self._tickets = 0

    def begin(self) -> int:
        """A publish is under way; the ticket is for `end`."""
        self._tickets += 1
        self._begun[self._tickets] = self._last
        return self._tickets

    def end(self, ticket: int, seq: int | None) -> None:
        """It is stored as *seq*, or was not stored."""
        del self._begun[ticket]
        if seq is not None:
            self._beyond.add(seq)
            self._last = max(self._last, seq)

    def has(self, seq: int) -> bool:
        return seq <= self._floor or seq in self._beyond

    def ledger(self) -> Ledger:
        """For a page written now. What others have stored meanwhile is none of ours to count."""
        self._floor = max(self._floor, min(self._begun.values(), default=self._last))
        self._beyond = {seq for seq in self._beyond if seq > self._floor}
        return Ledger(self._floor, tuple(sorted(self._beyond)))


class Books:
    """The running totals of the replica *name*, and what the others have written down."""

    def __init__(self, name: str, page: Page = Page()) -> None:  # noqa: B008  # frozen
        self.name = name
        self.sums = page.counter()
        self.events = Counting(page.events)
        self.settled = Counting(page.settled)
        self.others: dict[str, Counter[Total]] = {}
        self.changed = False

    def move(self, kind: str, name: str, **by: int) -> None:
        for what, value in by.items():
            self.sums[kind, name, what] += value
        self.changed = True

    def accepted(self, taken: Taken) -> None:
        self.move("source", taken.source, received=1, accepted=1)
        for sink, count in Counter(each.sink for each in taken.routes).items():
            self.move("sink", sink, accepted=count, waiting=count)

    def decided(self, decision: Decision) -> None:
        self.move("sink", decision.sink, **decision.moves())

    def page(self) -> Page:
        sums = tuple((*total, value) for total, value in sorted(self.sums.items()))
        self.changed = False
        return Page(sums, self.events.ledger(), self.settled.ledger())

    def source_totals(self) -> dict[str, SourceTotals]:
        return source_totals(self.sums)

    def sink_totals(self) -> dict[str, SinkTotals]:
        """Own counts; what waits and what is dead is everybody's, for anybody may deliver it.

        The others' counts are those of their last sign of life: what one of them has accepted and this one
        delivered since would be less than nothing.
        """
        found = dict(self.sums)
        for each in self.others.values():
            for (kind, name, what), value in each.items():
                if kind == "sink" and what in ("waiting", "dead"):
                    found[kind, name, what] = found.get((kind, name, what), 0) + value
        held = {total: max(0, value) for total, value in found.items() if total[2] in ("waiting", "dead")}
        return sink_totals(found | held)


def source_totals(sums: Mapping[Total, int]) -> dict[str, SourceTotals]:
    return {name: SourceTotals(**values) for name, values in _by_name(sums, "source").items()}


def sink_totals(sums: Mapping[Total, int]) -> dict[str, SinkTotals]:
    return {name: SinkTotals(**values) for name, values in _by_name(sums, "sink").items()}


def together(pages: Iterable[Mapping[Total, int]]) -> Counter[Total]:
    found: Counter[Total] = Counter()
    for each in pages:
        for total, value in each.items():
            found[total] += value
    return found


def _by_name(sums: Mapping[Total, int], wanted: str) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (kind, name, what), value in sums.items():
        if kind == wanted:
            found.setdefault(name, {})[what] = value
    return found
