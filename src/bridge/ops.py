"""What an operator's tools ask over HTTP (DESIGN.md §2.7): health, metrics, status, dead letters."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from bridge.dispatch import Dispatcher
from bridge.errors import BridgeError, ConfigError
from bridge.ingest import Ingest
from bridge.metrics import Metrics
from bridge.outbox import DeadLetterFilter, Outbox, SinkTotals, SourceTotals
from bridge.sources import Source

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]

PAGE = 1000  # rows of one answer
OPEN_PATHS = frozenset({"/livez", "/readyz", "/metrics"})


@dataclass(frozen=True, slots=True)
class Parts:
    """The running bridge, as far as it is shown; *now* is unix seconds, *started* the same of the start."""

    version: str
    started: float
    now: Callable[[], float]
    metrics: Metrics
    outbox: Outbox
    ingest: Ingest
    sources: Mapping[str, Source]
    dispatchers: Mapping[str, Dispatcher]
    config_hash: Callable[[], str]
    reload: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask: *token* None leaves reading open and changing shut; *hosts* besides loopback."""

    token: str | None = None
    hosts: tuple[str, ...] = ()


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


def ready(parts: Parts) -> list[str]:
    """Why bridge is not ready; empty if it is. A dead sink is no reason: a restart would not help."""
    reasons = [] if parts.ingest.storing else ["the store does not take events"]
    for source in parts.sources.values():
        status = source.status()
        if not (status.connected or status.ready):
            reasons.append(f"source {source.name}: {status.error or 'not connected yet'}")
    return reasons


async def status(parts: Parts) -> dict[str, Any]:
    """The body of `/api/status`."""
    now = parts.now()
    source_totals, sink_totals = parts.outbox.source_totals(), parts.outbox.sink_totals()
    paused = {name: each.pause for name, each in parts.dispatchers.items()}
    names = sorted({*paused, *sink_totals})
    return {
        "version": parts.version,
        "config_hash": parts.config_hash(),
        "uptime_seconds": round(now - parts.started, 3),
        "ready": not ready(parts),
        "not_ready": ready(parts),
        "outbox": {"bytes": await parts.outbox.bytes_used()},
        "sources": {
            source.name: asdict(source.status()) | asdict(source_totals.get(source.name, SourceTotals()))
            for source in parts.sources.values()
        },
        "sinks": {
            name: asdict(sink_totals.get(name, SinkTotals()))
            | {
                "configured": name in paused,
                "paused": asdict(state) if (state := paused.get(name)) else None,
                "oldest_age_seconds": _age(await parts.outbox.oldest(name), now),
            }
            for name in names
        },
    }


def _age(since: float | None, now: float) -> float | None:
    return None if since is None else round(max(0.0, now - since), 3)


def routes(parts: Parts) -> list[Route]:
    """The endpoints of the admin address."""

    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        reasons = ready(parts)
        return PlainTextResponse("\n".join(reasons or ["ok"]) + "\n", 503 if reasons else 200)

    async def metrics(_: Request) -> Response:
        now = parts.now()
        for name in parts.dispatchers:
            age = _age(await parts.outbox.oldest(name), now)
            parts.metrics.outbox_oldest_age.labels(name).set(age or 0.0)
        parts.metrics.store_bytes.set(await parts.outbox.bytes_used())
        return Response(generate_latest(parts.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def api_status(_: Request) -> Response:
        return JSONResponse(await status(parts))

    async def reload(_: Request) -> Response:
        try:
            await parts.reload()
        except ConfigError as error:
            return JSONResponse({"mistakes": [str(each) for each in error.mistakes]}, 400)
        except BridgeError as error:
            return JSONResponse({"mistakes": [str(error)]}, 503)
        return JSONResponse({"config_hash": parts.config_hash()})

    return [
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
        Route("/api/status", api_status),
        Route("/-/reload", reload, methods=["POST"]),
        *dead_letter_routes(parts),
    ]


def dead_letter_routes(parts: Parts) -> list[Route]:
    async def listed(request: Request) -> Response:
        query = request.query_params
        wanted = DeadLetterFilter(sink=query.get("sink"), rule=query.get("rule"), reason=query.get("reason"))
        found = await parts.outbox.dead_letters(wanted, limit=PAGE, after=query.get("after"))
        return JSONResponse({"dead_letters": [asdict(each) for each in found]})

    async def retry(request: Request) -> Response:
        wanted = DeadLetterFilter(ids=[request.path_params["id"]])
        count = await parts.outbox.retry_dead_letters(wanted, parts.now())
        for each in parts.dispatchers.values():
            each.wake()
        return _changed(count)

    async def drop(request: Request) -> Response:
        wanted = DeadLetterFilter(ids=[request.path_params["id"]])
        return _changed(await parts.outbox.drop_dead_letters(wanted, parts.now()))

    async def many(request: Request) -> Response:
        try:
            wanted = msgspec.json.decode(await request.body(), type=DeadLetterFilter)
        except msgspec.DecodeError as error:
            return JSONResponse({"error": f"not a filter: {error}"}, 400)
        if request.url.path.endswith("/drop"):
            return JSONResponse({"changed": await parts.outbox.drop_dead_letters(wanted, parts.now())})
        count = await parts.outbox.retry_dead_letters(wanted, parts.now())
        for each in parts.dispatchers.values():
            each.wake()
        return JSONResponse({"changed": count})

    return [
        Route("/api/dead-letters", listed),
        Route("/api/dead-letters/retry", many, methods=["POST"]),
        Route("/api/dead-letters/drop", many, methods=["POST"]),
        Route("/api/dead-letters/{id}/retry", retry, methods=["POST"]),
        Route("/api/dead-letters/{id}/drop", drop, methods=["POST"]),
    ]


def _changed(count: int) -> Response:
    if not count:
        return JSONResponse({"error": "no such dead letter"}, 404)
    return JSONResponse({"changed": count})


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
    if path in OPEN_PATHS:
        return None
    if access.token is not None:
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(given.encode(), access.token.encode()):
            return None
        return PlainTextResponse("missing or wrong token\n", 401, {"WWW-Authenticate": "Bearer"})
    if method not in ("GET", "HEAD"):
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
    return Guarded(Starlette(routes=routes(parts)), access)


def metrics_app(parts: Parts) -> ASGIApp:
    """For `metrics_listen`: what has no secrets, to whoever can reach the port."""
    return Starlette(routes=[route for route in routes(parts) if route.path in OPEN_PATHS])
