"""`bridge verify`: the conservation sums of DESIGN.md §1, promise 6, from the store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from bridge.commands.terminal import (
    NOT_SO,
    ConfigOption,
    JsonOption,
    fail,
    print_json,
    print_lines,
    run_async,
    to_read,
)
from bridge.config import Config
from bridge.control import opened_reader
from bridge.outbox.verify import Accounts, violations


def verify(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check that every event and delivery is accounted for."""
    accounts = run_async(read, to_read(config))
    if as_json:
        for each in documents(accounts):
            print_json(each)
    else:
        print_lines(sums(accounts))
    wrong = list(violations(accounts))
    if wrong:
        fail(wrong, NOT_SO)
    if not as_json:
        print("all sums hold")


async def read(config: Config) -> Accounts:
    async with opened_reader(config) as store:
        return await store.accounts()


def sums(accounts: Accounts) -> Iterator[str]:
    """Each sum as it is written in the promise."""
    for name, each in sorted(accounts.sources.items()):
        yield (
            f"source {name}: received {each.received} = duplicate {each.duplicate}"
            f" + unmatched {each.unmatched} + accepted {each.accepted}"
        )
    for name, sink in sorted(accounts.sinks.items()):
        yield (
            f"sink {name}: accepted {sink.accepted} = delivered {sink.delivered} + dead {sink.dead}"
            f" + dropped {sink.dropped} + waiting {sink.waiting}"
        )


def documents(accounts: Accounts) -> Iterator[dict[str, object]]:
    for name, each in sorted(accounts.sources.items()):
        yield {"source": name} | asdict(each)
    for name, sink in sorted(accounts.sinks.items()):
        yield {"sink": name} | asdict(sink)
