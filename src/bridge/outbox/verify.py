"""The conservation sums of DESIGN.md §1, promise 6.  Pure but for asking the store once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from bridge.outbox import SinkTotals, SourceTotals


@dataclass(frozen=True, slots=True)
class Accounts:
    """The totals as stored, and the rows each sink really has; all of one moment."""

    sources: Mapping[str, SourceTotals]
    sinks: Mapping[str, SinkTotals]
    waiting: Mapping[str, int]
    dead: Mapping[str, int]


class Books(Protocol):
    """A store, open for reading."""

    async def accounts(self) -> Accounts: ...


async def verify(store: Books) -> list[str]:
    """The sums that do not hold in *store*, one sentence each; empty if all do."""
    return list(violations(await store.accounts()))


def violations(accounts: Accounts) -> Iterator[str]:
    for name, each in accounts.sources.items():
        if each.received != each.duplicate + each.unmatched + each.accepted:
            yield (
                f"source {name}: received {each.received} is not duplicate {each.duplicate}"
                f" + unmatched {each.unmatched} + accepted {each.accepted}"
            )
    for name in sorted({*accounts.sinks, *accounts.waiting, *accounts.dead}):
        yield from _wrong_sink(name, accounts)


def _wrong_sink(name: str, accounts: Accounts) -> Iterator[str]:
    sums = accounts.sinks.get(name, SinkTotals())
    if sums.accepted != sums.delivered + sums.dead + sums.dropped + sums.waiting:
        yield (
            f"sink {name}: accepted {sums.accepted} is not delivered {sums.delivered}"
            f" + dead {sums.dead} + dropped {sums.dropped} + waiting {sums.waiting}"
        )
    for what, told, counted in (
        ("waiting", sums.waiting, accounts.waiting.get(name, 0)),
        ("dead", sums.dead, accounts.dead.get(name, 0)),
    ):
        if told != counted:
            yield f"sink {name}: {what} is {told}, but there are {counted}"
