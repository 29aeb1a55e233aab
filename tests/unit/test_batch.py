"""Several deliveries in one request: cutting, halving, ids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import anyio
from hypothesis import given
from hypothesis import strategies as st

from bridge.delivery import Delivered, Failure, Outcome, Pause, Rejected, RetryLater
from bridge.sinks.batch import batch_id, by_halves, chunks

WRONG = Rejected(Failure("client_error", "HTTP 413", 413))
AWAY = RetryLater(Failure("server_error", "HTTP 500", 500))
DENIED = Pause(Failure("auth", "HTTP 401", 401))


def test_an_id_stands_for_exactly_these_deliveries() -> None:
    """The same in every attempt; another for other deliveries or another order."""
    assert batch_id(["d_1", "d_2"]) == batch_id(["d_1", "d_2"]) != batch_id(["d_2", "d_1"])
    assert batch_id(["d_1"]) == "d_1"
    assert batch_id(["d_1", "d_2"]) != batch_id(["d_1", "d_2", "d_3"])
    assert len(batch_id(["d_1", "d_2"])) == 28


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 60))
def test_parts_keep_the_order_and_the_limit(sizes: list[int], most: int) -> None:
    """Nothing lost or repeated; larger than the limit only if it is alone; never two that fit together."""
    parts = [list(part) for part in chunks(sizes, lambda size: size, most)]
    assert [size for part in parts for size in part] == sizes
    assert all(len(part) == 1 or sum(part) <= most for part in parts)
    assert all(sum(one) + other[0] > most for one, other in pairwise(parts))


class Receiver:
    """Refuses requests with a guilty item; from request number *breaks* on it answers *then*."""

    def __init__(self, guilty: set[int], breaks: int = 10**9, then: Outcome = AWAY) -> None:
        self.guilty = guilty
        self.breaks = breaks
        self.then = then
        self.requests: list[tuple[int, ...]] = []

    async def attempt(self, items: Sequence[int]) -> Outcome:
        self.requests.append(tuple(items))
        if len(self.requests) >= self.breaks:
            return self.then
        return WRONG if self.guilty & set(items) else Delivered(200)


def outcomes(receiver: Receiver, count: int) -> list[Outcome]:
    async def run() -> list[Outcome]:
        return await by_halves(list(range(count)), receiver.attempt)

    return anyio.run(run, backend="trio")


@given(
    st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), max_size=4)))
)
def test_only_the_guilty_are_rejected(case: tuple[int, set[int]]) -> None:
    """Each of the others is delivered exactly once; the guilty stood alone; few requests."""
    count, guilty = case
    receiver = Receiver(guilty)
    found = outcomes(receiver, count)
    assert [i for i, outcome in enumerate(found) if outcome == WRONG] == sorted(guilty)
    delivered = [i for request in receiver.requests if not guilty & set(request) for i in request]
    assert sorted(delivered) == [i for i in range(count) if i not in guilty]
    assert all((i,) in receiver.requests for i in guilty)
    assert len(receiver.requests) <= 1 + 2 * len(guilty) * 6


def test_a_receiver_that_goes_away_meanwhile_is_left_alone() -> None:
    """What was delivered stays delivered; the rest shares the outcome, untried."""
    receiver = Receiver({5}, breaks=3)
    found = outcomes(receiver, 8)
    assert found == [Delivered(200)] * 4 + [AWAY] * 4
    assert receiver.requests == [tuple(range(8)), (0, 1, 2, 3), (4, 5, 6, 7)]
    earlier = Receiver({5}, breaks=2)
    assert outcomes(earlier, 8) == [AWAY] * 8
    assert earlier.requests == [tuple(range(8)), (0, 1, 2, 3)]


def test_a_pause_is_everybodys() -> None:
    """One request tells it."""
    receiver = Receiver(set(), breaks=1, then=DENIED)
    assert outcomes(receiver, 5) == [DENIED] * 5
    assert len(receiver.requests) == 1
