"""OpenTelemetry traces: one of each event, from receipt to acknowledgement, one span per attempt.

Off unless `tracing.endpoint` is set; needs the extra `bridge[otel]`. Ids are made from the event's and the
delivery's own, so the attempts after a restart, or on another machine, are in the same trace:

    event        receipt → on disk            trace and span id from unique_id
    └ delivery   receipt → settled            span id from the delivery id
      └ attempt  sent → answered              one each

Spans are handed over when what they show is over, and sent from a thread of their own in batches; if the
collector does not keep up they are dropped, deliveries never wait.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from bridge.delivery import Dead, Delivered, Done, Settlement
from bridge.errors import StartError
from bridge.event import Event
from bridge.fields import Section

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

Trace: TypeAlias = Callable[[Settlement, float], None]
"""Takes each attempt when it is settled, at *now* unix seconds."""

TIMEOUT = 5.0  # seconds for one request to the collector
FLUSH = 2.0  # seconds the collector gets for the last spans when bridge ends
PATH = "/v1/traces"  # OTLP/HTTP 1.x: added where the endpoint has no path of its own


def untraced(_settled: Settlement, _now: float) -> None:
    """No traces."""


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("write the collector's address, such as http://otel-collector:4318")
    return url.rstrip("/") + ("" if parts.path.strip("/") else PATH)


class TracingConfig(Section):
    """OpenTelemetry traces; needs the extra bridge[otel]."""

    endpoint: Annotated[str, AfterValidator(_endpoint)] | None = None
    """Where OTLP over HTTP (protobuf) is taken; /v1/traces is added. Default: no traces."""
    headers: Mapping[str, SecretStr] = {}
    """Sent with each request, such as Authorization."""
    ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the events that are traced: the same ones on every machine."""


@contextmanager
def tracing(config: TracingConfig, version: str) -> Iterator[Tracer | None]:
    """What traces by *config*, None if nothing is to be traced; at the end what is held is sent.

    Raises StartError if the extra is not installed.
    """
    if config.endpoint is None:
        yield None
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        advice = "pip install 'tts-event-bridge[otel]', or take tracing out"
        raise StartError(f"tracing.endpoint: OpenTelemetry is not installed; {advice}") from None
    headers = {name: value.get_secret_value() for name, value in config.headers.items()}
    exporter = OTLPSpanExporter(config.endpoint, headers=headers, timeout=TIMEOUT)
    processor = BatchSpanProcessor(exporter)
    try:
        yield Tracer(processor, version, config.ratio)
    finally:
        ending = Thread(target=processor.shutdown, daemon=True)
        ending.start()
        ending.join(FLUSH)
        exporter.shutdown()  # type: ignore[no-untyped-call]  # the SDK leaves it without


class Tracer:
    """Makes spans and hands them to *processor*; *ratio* of the events, chosen by their id."""

    def __init__(self, processor: SpanProcessor, version: str, ratio: float = 1.0) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._processor = processor
        self._resource: Resource = Resource.create({"service.name": "bridge", "service.version": version})
        self._scope = InstrumentationScope("bridge", version)
        self._limit = int(ratio * (1 << 64))

    def stored(self, event: Event, source: str, received: float, now: float) -> None:
        """*event* came at *received* and is on disk at *now*, unix seconds."""
        trace, span = ids(event.unique_id)
        if self._takes(trace):
            about = {"bridge.unique_id": event.unique_id, "bridge.event": event.name, "bridge.source": source}
            self._hand_over(f"event {event.name}", trace, span, None, received, now, about)

    def settled(self, settled: Settlement, now: float) -> None:
        """One attempt is over; when it was the last one, so is its delivery."""
        delivery, outcome, verdict = settled.delivery, settled.outcome, settled.verdict
        trace, root = ids(delivery.event.unique_id)
        if not self._takes(trace):
            return
        parent = ids(delivery.id)[1]
        about: dict[str, str | int] = {
            "bridge.delivery_id": delivery.id,
            "bridge.sink": delivery.sink,
            "bridge.rule": delivery.rule,
        }
        attempt = about | {
            "bridge.attempt": delivery.attempt,
            "bridge.outcome": type(outcome).__name__.lower(),
        }
        if isinstance(outcome, Delivered):
            status, error = outcome.status, ""
        else:
            status, error = outcome.failure.status, f"{outcome.failure.reason}: {outcome.failure.error}"
        if status is not None:
            attempt["bridge.status"] = status
        own = ids(f"{delivery.id} {delivery.attempt} {settled.started!r}")[1]
        ended = settled.started + settled.duration
        name = f"attempt {delivery.sink}"
        self._hand_over(name, trace, own, parent, settled.started, ended, attempt, error)
        if isinstance(verdict, Done | Dead):
            error = f"dead letter: {verdict.reason}" if isinstance(verdict, Dead) else ""
            name = f"delivery {delivery.sink}"
            self._hand_over(name, trace, parent, root, delivery.received, max(now, ended), about, error)

    def _takes(self, trace: int) -> bool:
        return trace & 0xFFFF_FFFF_FFFF_FFFF < self._limit

    def _hand_over(
        self,
        name: str,
        trace: int,
        span: int,
        parent: int | None,
        started: float,
        ended: float,
        attributes: Mapping[str, str | int],
        error: str = "",
    ) -> None:
        made = self._span(name, trace, span, parent, started, ended, attributes, error)
        self._processor.on_end(made)

    def _span(
        self,
        name: str,
        trace: int,
        span: int,
        parent: int | None,
        started: float,
        ended: float,
        attributes: Mapping[str, Any],
        error: str,
    ) -> ReadableSpan:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        sampled = TraceFlags(TraceFlags.SAMPLED)
        return ReadableSpan(
            name=name,
            context=SpanContext(trace, span, is_remote=False, trace_flags=sampled),
            parent=None
            if parent is None
            else SpanContext(trace, parent, is_remote=False, trace_flags=sampled),
            resource=self._resource,
            attributes=attributes,
            kind=SpanKind.CONSUMER if parent is None else SpanKind.PRODUCER,
            instrumentation_scope=self._scope,
            status=Status(StatusCode.ERROR, error) if error else Status(StatusCode.OK),
            start_time=round(started * 1e9),
            end_time=round(max(started, ended) * 1e9),
        )


def ids(text: str) -> tuple[int, int]:
    """A trace id (128 bits) and a span id (64 bits) made from *text*; neither is ever 0."""
    digest = hashlib.blake2b(text.encode(errors="replace"), digest_size=24, person=b"bridge trace").digest()
    return int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:]) or 1
