"""Traces as a collector gets them, over OTLP/HTTP, from a real bridge."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from bridge.receiver import Received, Reply, receive
from bridge.tracing import ids
from tests.integration.process import running, until
from tests.recordings import RECORDED

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.timeout(60)]

CONFIG = """
sources:
  file: {{type: replay, path: {path}, speed: max}}
sinks:
  crm: {{type: webhook, url: {url}/crm, allow_private_networks: true, retry: {{initial: 100ms}}}}
rules: [rules.yaml]
tracing:
  endpoint: {collector}
  headers: {{X-Tenant: lab}}
admin: {{listen: "127.0.0.1:0"}}
log: {{format: json}}
"""
RULES = "rules: [{name: uplinks, match: {name: as.up.data.forward}, send: [crm]}]"


@asynccontextmanager
async def collector(spans: list[Span], headers: list[str]) -> AsyncIterator[str]:
    """The address of an OTLP/HTTP receiver that keeps what it gets in *spans*."""

    async def take(request: web.Request) -> web.Response:
        asked = ExportTraceServiceRequest.FromString(await request.read())
        headers.append(request.headers.get("X-Tenant", ""))
        for resource in asked.resource_spans:
            for scope in resource.scope_spans:
                spans.extend(scope.spans)
        return web.Response(content_type="application/x-protobuf")

    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]  # of a TCP server
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def test_an_event_is_one_trace_from_receipt_to_acknowledgement(tmp_path: Path) -> None:
    """A span per attempt under its delivery under its event; the first try of each fails here."""
    spans: list[Span] = []
    headers: list[str] = []
    tried: set[str] = set()

    def answer(got: Received) -> Reply | None:
        first = got.id not in tried
        tried.add(got.id)
        return Reply(503) if first else None

    async with collector(spans, headers) as endpoint, receive(on_delivery=answer) as receiver:
        config = CONFIG.format(path=RECORDED / "apps.sse", url=receiver.url, collector=endpoint)
        (tmp_path / "bridge.yaml").write_text(config)
        (tmp_path / "rules.yaml").write_text(RULES)
        async with running(tmp_path) as bridge:
            status = await until(bridge, lambda status: status["sinks"]["crm"]["waiting"] == 0 < len(tried))
            delivered = status["sinks"]["crm"]["delivered"]
            assert await anyio.to_thread.run_sync(bridge.terminate) == 0
    assert delivered > 10
    assert set(headers) == {"lab"}
    by_id = {span.span_id: span for span in spans}
    events = [span for span in spans if not span.parent_span_id]
    deliveries = [span for span in spans if span.name == "delivery crm"]
    attempts = [span for span in spans if span.name == "attempt crm"]
    assert len(by_id) == len(spans)
    assert (len(events), len(deliveries), len(attempts)) == (delivered, delivered, 2 * delivered)
    for attempt in attempts:
        delivery = by_id[attempt.parent_span_id]
        event = by_id[delivery.parent_span_id]
        assert attempt.trace_id == delivery.trace_id == event.trace_id
        assert event.start_time_unix_nano <= delivery.start_time_unix_nano <= attempt.start_time_unix_nano
        assert attempt.end_time_unix_nano <= delivery.end_time_unix_nano
    failed = [span for span in attempts if span.status.code == 2]
    assert len(failed) == delivered
    assert "server_error" in failed[0].status.message
    about = {each.key: each.value.string_value for each in events[0].attributes}
    trace, _ = ids(about["bridge.unique_id"])
    assert events[0].trace_id == trace.to_bytes(16)


async def test_a_collector_that_is_away_costs_no_delivery(tmp_path: Path) -> None:
    """Nothing listens at the endpoint: everything is delivered, and bridge ends in time."""
    async with receive() as receiver:
        config = CONFIG.format(path=RECORDED / "apps.sse", url=receiver.url, collector="http://127.0.0.1:9")
        (tmp_path / "bridge.yaml").write_text(config)
        (tmp_path / "rules.yaml").write_text(RULES)
        async with running(tmp_path) as bridge:
            await until(bridge, lambda status: status["sinks"]["crm"]["delivered"] > 10)
            with anyio.fail_after(15):
                assert await anyio.to_thread.run_sync(bridge.terminate) == 0
