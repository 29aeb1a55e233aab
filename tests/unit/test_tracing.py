"""Which spans an event makes, and that their ids need no memory."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from bridge.decode import event as decoded
from bridge.delivery import (
    Dead,
    Delivered,
    Delivery,
    Done,
    Failure,
    Later,
    Outcome,
    Rejected,
    RetryLater,
    Settlement,
    Verdict,
)
from bridge.tracing import Tracer, TracingConfig, ids, tracing

EVENT = decoded(
    b'{"name":"as.up.data.forward","time":"2026-01-01T00:00:00Z","unique_id":"01M853VH8NXVNDRMS4PA0815PN"}'
)
BUSY = Failure("server_error", "HTTP 503", 503)


def settled(attempt: int, outcome: Outcome, verdict: Verdict) -> Settlement:
    delivery = Delivery(7, "d_x", EVENT, "eu1", "uplinks", "crm", attempt, 100.0)
    return Settlement(delivery, 110.0 + attempt, 0.5, outcome, verdict)


def made(*settlements: Settlement, ratio: float = 1.0) -> tuple[ReadableSpan, ...]:
    exporter = InMemorySpanExporter()
    tracer = Tracer(SimpleSpanProcessor(exporter), "1", ratio)
    tracer.stored(EVENT, "eu1", 100.0, 101.0)
    for each in settlements:
        tracer.settled(each, 120.0)
    return exporter.get_finished_spans()


def test_a_delivery_that_worked_at_once() -> None:
    """Three spans in one another: the event, its delivery, the attempt."""
    event, attempt, delivery = made(settled(1, Delivered(200), Done()))
    assert [span.name for span in (event, attempt, delivery)] == [
        "event as.up.data.forward",
        "attempt crm",
        "delivery crm",
    ]
    assert event.parent is None
    assert delivery.parent == event.context
    assert attempt.parent == delivery.context
    assert (delivery.start_time, delivery.end_time) == (100 * 10**9, 120 * 10**9)
    assert (attempt.start_time, attempt.end_time) == (111 * 10**9, 111_500_000_000)
    assert attributes(attempt)["bridge.status"] == 200
    assert event.resource.attributes["service.name"] == "bridge"


def attributes(span: ReadableSpan) -> Mapping[str, object]:
    return dict(span.attributes or {})


def test_each_attempt_is_a_span_and_the_delivery_ends_with_the_last() -> None:
    """A failed attempt is an error; the delivery is one only if it was given up."""
    later, done = Later(200.0, 2, 100.0), Done()
    spans = made(settled(1, RetryLater(BUSY), later), settled(2, Delivered(), done))
    assert [span.name.split()[0] for span in spans] == ["event", "attempt", "attempt", "delivery"]
    assert [span.status.status_code for span in spans[1:]] == [StatusCode.ERROR, StatusCode.OK, StatusCode.OK]
    assert spans[1].status.description == "server_error: HTTP 503"
    spans = made(settled(1, Rejected(BUSY), Dead("client_error")))
    assert spans[-1].status.description == "dead letter: client_error"


def test_attempts_after_a_restart_are_in_the_same_trace() -> None:
    """Ids come from the event and the delivery, not from a process."""
    first = made(settled(1, RetryLater(BUSY), Later(200.0, 2, 100.0)))
    second = made(settled(2, Delivered(), Done()))
    assert first[1].parent == second[1].parent
    assert first[1].context != second[1].context


def test_a_ratio_leaves_whole_events_out() -> None:
    """All spans of an event or none, so that no trace has holes."""
    done = settled(1, Delivered(), Done())
    assert made(done, ratio=1e-9) == ()
    assert len(made(done, ratio=1.0)) == 3


@given(st.text())
def test_ids_are_valid_whatever_the_text(text: str) -> None:
    """W3C Trace Context forbids zeros; the same text gives the same ids."""
    trace, span = ids(text)
    assert 0 < trace < 1 << 128
    assert 0 < span < 1 << 64
    assert ids(text) == (trace, span)


def test_it_is_off_unless_an_endpoint_is_named() -> None:
    """Then nothing of OpenTelemetry is even imported."""
    with tracing(TracingConfig(), "1") as tracer:
        assert tracer is None


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://otel:4318", "http://otel:4318/v1/traces"),
        ("https://otel/", "https://otel/v1/traces"),
        ("http://otel:4318/v1/traces", "http://otel:4318/v1/traces"),
        ("https://api.example/otlp", "https://api.example/otlp"),
    ],
)
def test_the_path_is_added_where_there_is_none(given: str, meant: str) -> None:
    """As OTEL_EXPORTER_OTLP_ENDPOINT has it."""
    assert TracingConfig(endpoint=given).endpoint == meant


@pytest.mark.parametrize("given", ["otel:4318", "grpc://otel:4317", "http://", ""])
def test_an_endpoint_that_is_no_address_is_refused(given: str) -> None:
    """With what to write instead."""
    with pytest.raises(ValueError, match="collector's address"):
        TracingConfig(endpoint=given)
