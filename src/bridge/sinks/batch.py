"""What sinks that put several deliveries into one request share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from bridge.delivery import Delivered, Outcome, Rejected
from bridge.ids import digest

T = TypeVar("T")


def batch_id(delivery_ids: Sequence[str]) -> str:
    """The `webhook-id` of a request: the delivery's own id, or one made from all the ids in it.

    The same deliveries in the same order have the same id, in every attempt and process.
    """
    if len(delivery_ids) == 1:
        return delivery_ids[0]
    return "b_" + digest(*delivery_ids)


async def by_halves(
    items: Sequence[T], attempt: Callable[[Sequence[T]], Awaitable[Outcome]]
) -> list[Outcome]:
    """The outcome of each of *items*, attempted together; refused together, in halves, down to one.

    When a half says that the sink is wrong or away, the other half is not tried: it shares the outcome.
    """
    outcome = await attempt(items)
    if len(items) == 1 or not isinstance(outcome, Rejected):
        return [outcome] * len(items)
    middle = len(items) // 2
    return await in_turn([items[:middle], items[middle:]], lambda half: by_halves(half, attempt))


async def in_turn(
    parts: Sequence[Sequence[T]], send: Callable[[Sequence[T]], Awaitable[list[Outcome]]]
) -> list[Outcome]:
    """The outcomes of all *parts*, sent one after the other until the sink is wrong or away."""
    outcomes: list[Outcome] = []
    for part in parts:
        last = outcomes[-1] if outcomes else Delivered()
        if isinstance(last, Delivered | Rejected):
            outcomes += await send(part)
        else:
            outcomes += [last] * len(part)
    return outcomes


def chunks(items: Sequence[T], size: Callable[[T], int], most: int) -> Iterator[Sequence[T]]:
    """*items* in order, cut so that no part is larger than *most* bytes, unless one alone is."""
    start, total = 0, 0
    for i, item in enumerate(items):
        here = size(item)
        if i > start and total + here > most:
            yield items[start:i]
            start, total = i, 0
        total += here
    if start < len(items):
        yield items[start:]
