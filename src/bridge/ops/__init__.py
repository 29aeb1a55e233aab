"""Health and metrics, and who is let in (DESIGN.md §2.7)."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from shutil import disk_usage

import anyio.to_thread
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from bridge import ui
from bridge.errors import OutboxError
from bridge.ops.alert_metrics import publish
from bridge.ops.api import api_routes
from bridge.ops.parts import Access, Parts, ready
from bridge.outbox import Outbox, SinkTotals, SourceTotals
from bridge.outbox.jetstream.outbox import JetStreamOutbox
from bridge.sources import SourceStatus

OPEN_PATHS = frozenset({"/livez", "/readyz", "/metrics"})
READS = frozenset({"/api/explain"})
"""Asked with POST, and yet nothing changes."""


class StoreCollector(Collector):
    """Promise 6 as metrics: the totals of the store, and nothing that could disagree with them."""

    def __init__(
        self, outbox: Outbox, sources: Callable[[], Iterable[str]], sinks: Callable[[], Iterable[str]]
    ) -> None:
        self._outbox = outbox
        self._sources = sources
        self._sinks = sinks

    def collect(self) -> Iterator[Metric]:
        stored = self._outbox.source_totals()
        sources = {name: stored.get(name, SourceTotals()) for name in {*self._sources(), *stored}}
        for name, help, field in (
            ("bridge_source_events_received", "Events read, repeats included.", "received"),
            ("bridge_events_duplicate", "Events whose unique_id had been seen.", "duplicate"),
            ("bridge_events_unmatched", "Events no rule wanted.", "unmatched"),
            ("bridge_events_accepted", "Events a rule looked at.", "accepted"),
        ):
            family = CounterMetricFamily(name, help, labels=["source"])
            for source in sorted(sources):
                family.add_metric([source], getattr(sources[source], field))
            yield family
        yield from self._sink_families()

    def _sink_families(self) -> Iterator[Metric]:
        stored = self._outbox.sink_totals()
        sinks = {name: stored.get(name, SinkTotals()) for name in sorted({*self._sinks(), *stored})}
        accepted = CounterMetricFamily("bridge_deliveries_accepted", "Deliveries stored.", labels=["sink"])
        outcomes = CounterMetricFamily(
            "bridge_deliveries", "What became of deliveries and attempts.", labels=["sink", "outcome"]
        )
        rows = GaugeMetricFamily("bridge_outbox_rows", "Deliveries that wait.", labels=["sink"])
        dead = GaugeMetricFamily("bridge_dead_letters", "Dead letters held.", labels=["sink"])
        for sink, totals in sinks.items():
            accepted.add_metric([sink], totals.accepted)
            rows.add_metric([sink], totals.waiting)
            dead.add_metric([sink], totals.dead)
            for outcome, value in (
                ("delivered", totals.delivered),
                ("retried", totals.retried),
                ("dead", totals.died),
                ("dropped", totals.dropped),
            ):
                outcomes.add_metric([sink, outcome], value)
        yield from (accepted, outcomes, rows, dead)


def routes(parts: Parts) -> list[Route]:
    """Health and metrics."""

    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        reasons = ready(parts)
        return PlainTextResponse("\n".join(reasons or ["ok"]) + "\n", 503 if reasons else 200)

    async def metrics(request: Request) -> Response:
        with suppress(OutboxError):  # a store that does not answer: its figures stay as they were
            await measure(parts)
        encode, media_type = choose_encoder(request.headers.get("accept", ""))  # exemplars: OpenMetrics only
        return Response(encode(parts.metrics.registry), media_type=media_type)

    return [
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
    ]


async def measure(parts: Parts) -> None:
    """Set what is looked up only when somebody asks: ages of the outbox, bytes of the store and its disk."""
    now, metrics = parts.now(), parts.metrics
    measure_sources(parts)
    if isinstance(parts.outbox, JetStreamOutbox):
        metrics.replicas.set(len(parts.outbox.replicas.alive))
    used = await parts.outbox.bytes_used()
    totals = parts.outbox.sink_totals()
    held = {name: each.waiting + each.dead for name, each in totals.items()}
    rows = max(1, sum(held.values()))
    for name in parts.dispatchers:
        since = await parts.outbox.oldest(name)
        metrics.outbox_oldest_age.labels(name).set(0.0 if since is None else max(0.0, now - since))
    for name in {*parts.dispatchers, *held}:
        metrics.outbox_bytes.labels(name).set(used * held.get(name, 0) / rows)
    config = parts.config()
    metrics.store_bytes.set(used)
    metrics.store_limit.set(config.max_size)
    publish(metrics, parts.alerts)
    if config.nats is not None:
        return
    with suppress(OSError):
        disk = await anyio.to_thread.run_sync(disk_usage, config.outbox_path.absolute().parent)
        metrics.store_disk.set(disk.total)
        metrics.store_disk_free.set(disk.free)


def measure_sources(parts: Parts) -> None:
    """What the sources say of themselves; one that another replica reads is none of ours."""
    for name in parts.config().sources:
        source = parts.sources.get(name)
        status = source.status() if source else SourceStatus(connected=False, ready=True)
        parts.metrics.source_connected.labels(name).set(status.connected)
        parts.metrics.source_entities.labels(name).set(status.entities)


class Guarded:
    """Lets through what DESIGN.md §2.7 allows: known Host names, the token, reads without one."""

    def __init__(self, app: ASGIApp, access: Callable[[], Access]) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refused = refusal(scope["method"], scope["path"], headers, self._access())
        if refused is None:
            await self._app(scope, receive, send)
        else:
            await refused(scope, receive, send)


def refusal(method: str, path: str, headers: Mapping[str, str], access: Access) -> Response | None:
    """Why a request is not answered; header names in lower case. The token is compared in constant time."""
    if not known_host(headers.get("host", ""), access.hosts):
        return PlainTextResponse("this Host name is not in admin.hosts\n", 421)
    if path in OPEN_PATHS or path in ui.FILES:
        return None
    if access.token is not None:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.encode(), access.token.encode()):
            return None
        return PlainTextResponse("missing or wrong token\n", 401, {"WWW-Authenticate": "Bearer"})
    if method not in ("GET", "HEAD") and path not in READS:
        return PlainTextResponse("set admin.token to allow changes\n", 403)
    return None


def known_host(host: str, hosts: Sequence[str]) -> bool:
    """Is *host* (a Host header, port and all) a loopback name, or one of *hosts*?"""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.strip("[]").lower().rstrip(".")
    if name == "localhost" or name in (each.lower() for each in hosts):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def admin_app(parts: Parts, access: Callable[[], Access]) -> ASGIApp:
    return Guarded(Starlette(routes=[*routes(parts), *api_routes(parts), *ui.routes()]), access)


def metrics_app(parts: Parts) -> ASGIApp:
    """For `metrics_listen`: what has no secrets, to whoever can reach the port."""
    return Starlette(routes=[route for route in routes(parts) if route.path in OPEN_PATHS])
