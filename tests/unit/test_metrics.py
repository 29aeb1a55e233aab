"""Collectors of our own show what the library's would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.openmetrics.exposition import generate_latest

from bridge.metrics import LATENCY_BUCKETS, Latencies

observed = st.lists(
    st.tuples(
        st.floats(0, 1e6) | st.sampled_from(LATENCY_BUCKETS),
        st.none() | st.builds(lambda id: {"unique_id": id}, st.text("abc", max_size=5)),
    ),
    max_size=30,
)


def lines(registry: CollectorRegistry) -> list[str]:
    """Without the times: of examples, and of when a series began."""
    text: str = generate_latest(registry).decode()  # type: ignore[no-untyped-call]
    return [
        line.rpartition(" ")[0] if "#" in line[1:] else line
        for line in text.splitlines()
        if "_created" not in line
    ]


@given(observed)
def test_a_histogram_of_ours_shows_what_the_librarys_does(
    observed: list[tuple[float, dict[str, str] | None]],
) -> None:
    """Buckets, sum, count and the last example of each bucket."""
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    library = Histogram("took_seconds", "Time.", ("sink",), buckets=LATENCY_BUCKETS, registry=theirs)
    own = Latencies("took_seconds", "Time.", ours)
    for seconds, example in observed:
        library.labels("crm").observe(seconds, example)
        own.of["crm"].observe(seconds, example)
    assert lines(ours) == lines(theirs)
