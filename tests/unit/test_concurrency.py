"""The limit of requests at once finds what a receiver bears."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.delivery import Delivered, Failure, Outcome, Pause, Reason, Rejected, RetryLater
from bridge.dispatch.concurrency import Concurrency

OK = Delivered(200)
SLOW = RetryLater(Failure("timeout", "no answer"))


def later(reason: Reason) -> Outcome:
    return RetryLater(Failure(reason, "no"))


def test_it_begins_at_the_most() -> None:
    """A healthy receiver never notices."""
    assert Concurrency(64).limit == 64


def test_an_overloaded_receiver_gets_half() -> None:
    """Timeout, 5xx, 429, reset."""
    for reason in ("timeout", "server_error", "rate_limited", "connect"):
        limit = Concurrency(64)
        limit.ended([later(reason)], started=0.0, now=1.0)
        assert limit.limit == 32


def test_a_wrong_message_says_nothing_of_the_load() -> None:
    """Nor does a name that is not found."""
    limit = Concurrency(64)
    limit.ended([Rejected(Failure("client_error", "HTTP 400", 400))], started=0.0, now=1.0)
    limit.ended([Pause(Failure("dns", "no such name"))], started=0.0, now=1.0)
    assert limit.limit == 64


def test_what_was_on_its_way_at_the_cut_does_not_cut_again() -> None:
    """64 requests that time out together are one sign, not 64."""
    limit = Concurrency(64)
    for _ in range(64):
        limit.ended([SLOW], started=0.0, now=10.0)
    assert limit.limit == 32


def test_it_grows_by_one_a_round() -> None:
    """As many successes as the limit allows at once."""
    limit = Concurrency(64)
    limit.ended([SLOW], started=0.0, now=1.0)
    for _ in range(33):
        limit.ended([OK], started=2.0, now=2.1)
    assert limit.limit == 33


def test_a_receiver_that_recovers_gets_all_of_it_again() -> None:
    """From one at a time to the most, and no further."""
    limit = Concurrency(8)
    for second in range(10):
        limit.ended([SLOW], started=float(second), now=float(second) + 0.5)
    assert limit.limit == 1
    for _ in range(100):
        limit.ended([OK], started=20.0, now=20.1)
    assert limit.limit == 8


@given(
    most=st.integers(1, 1000),
    story=st.lists(
        st.tuples(st.sampled_from([OK, SLOW, later("other")]), st.floats(0, 100), st.floats(0, 100))
    ),
)
def test_it_stays_between_one_and_the_most(most: int, story: list[tuple[Outcome, float, float]]) -> None:
    """Whatever comes in whatever order."""
    limit = Concurrency(most)
    for outcome, started, took in story:
        limit.ended([outcome], started=started, now=started + took)
        assert 1 <= limit.limit <= most
