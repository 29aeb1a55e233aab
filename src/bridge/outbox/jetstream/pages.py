"""What replicas have written down of their totals, and what came after that."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

import msgspec

from bridge.outbox.jetstream.books import Counting, Page, Total
from bridge.outbox.jetstream.bucket import Bucket
from bridge.outbox.jetstream.link import Link
from bridge.outbox.jetstream.streams import EVENTS, SETTLED
from bridge.outbox.jetstream.wire import Decision, Subjects, Taken, read


async def pages(bucket: Bucket) -> dict[str, Page]:
    """By replica."""
    return {
        entry.key.removeprefix("totals."): msgspec.json.decode(entry.value, type=Page)
        for entry in await bucket.all("totals")
    }


async def uncounted(
    link: Link, subjects: Subjects, known: Mapping[str, Page], only: str | None = None
) -> dict[str, Counter[Total]]:
    """By replica (or of one *only*) what its messages count beyond its page; without a page, all of them."""
    found: defaultdict[str, Counter[Total]] = defaultdict(Counter)
    for by, _, moves in await since(link, subjects, known, only):
        found[by].update(moves)
    return found


async def since(
    link: Link, subjects: Subjects, known: Mapping[str, Page], only: str | None = None
) -> list[tuple[str, tuple[str, int], Counter[Total]]]:
    """Replica, stream and number, and moves of each message that no page has counted."""
    wanted = [page for name, page in known.items() if (only == name if only else not page.closed)]
    events = {name: Counting(page.events) for name, page in known.items()}
    settled = {name: Counting(page.settled) for name, page in known.items()}
    found: list[tuple[str, tuple[str, int], Counter[Total]]] = []
    start = min((page.events.through for page in wanted), default=0) + 1
    async for each in link.scan(subjects.stream(EVENTS), start):
        taken = read(each.headers, Taken)
        if only in (None, taken.by) and not (taken.by in events and events[taken.by].has(each.seq)):
            found.append((taken.by, (EVENTS, each.seq), _accepted(taken)))
    start = min((page.settled.through for page in wanted), default=0) + 1
    async for each in link.scan(subjects.stream(SETTLED), start):
        decision = read(each.headers, Decision)
        if only in (None, decision.by) and not (
            decision.by in settled and settled[decision.by].has(each.seq)
        ):
            found.append((decision.by, (SETTLED, each.seq), _decided(decision)))
    return found


def _accepted(taken: Taken) -> Counter[Total]:
    moves: Counter[Total] = Counter()
    moves["source", taken.source, "received"] += 1
    moves["source", taken.source, "accepted"] += 1
    for each in taken.routes:
        moves["sink", each.sink, "accepted"] += 1
        moves["sink", each.sink, "waiting"] += 1
    return moves


def _decided(decision: Decision) -> Counter[Total]:
    return Counter({("sink", decision.sink, what): by for what, by in decision.moves().items()})
