"""`/api`: what runs, what waits, what was given up, and why a rule wants an event (DESIGN.md §2.7)."""

from __future__ import annotations

import heapq
from dataclasses import asdict
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bridge.alerts.engine import as_object as alert_object
from bridge.alerts.engine import silence_row
from bridge.alerts.silences import Silence, checked
from bridge.errors import BridgeError, ConfigError, FrameError
from bridge.event import Event, ids_of
from bridge.ops.explained import as_object, deliveries
from bridge.ops.parts import Parts, ready
from bridge.outbox import Batch, DeadLetterFilter, SinkTotals, SourceTotals
from bridge.redact import Redactor
from bridge.render import summary
from bridge.rules.explain import explain, read_events

PAGE = 1000  # rows of one answer, at most and by default
RULES = 50  # rules listed at once
EXPLAINED = 20  # events of one question to explain
LARGEST = 1 << 20  # bytes of a question


def api_routes(parts: Parts) -> list[Route]:
    """Everything below `/api`, and `/-/reload`."""

    async def api_status(_: Request) -> Response:
        return JSONResponse(await status(parts))

    async def reload(_: Request) -> Response:
        try:
            await parts.reload()
        except ConfigError as error:
            return JSONResponse({"mistakes": [str(each) for each in error.mistakes]}, 400)
        except BridgeError as error:
            return JSONResponse({"mistakes": [str(error)]}, 503)
        return JSONResponse({"config_hash": parts.config().hash})

    async def rules(request: Request) -> Response:
        """The rules with `q` in their name, most matches first, and how many there are."""
        wanted, hits = request.query_params.get("q", "").lower(), parts.metrics.rule_matches.of
        found = [rule for rule in parts.config().rule_set.rules if wanted in rule.name.lower()]
        first = heapq.nlargest(RULES, found, key=lambda rule: hits[rule.name])
        shown = [{"name": rule.name, "send": rule.send, "matches": hits[rule.name]} for rule in first]
        return JSONResponse({"total": len(found), "rules": shown})

    async def waiting(request: Request) -> Response:
        """What waits, in the order received; `next` is the `after` of the page that follows."""
        query = request.query_params
        after = int(found) if (found := query.get("after", "")).isdecimal() else 0
        rows = await parts.outbox.waiting(
            query.get("sink"), query.get("rule"), after=after, limit=limit_of(request)
        )
        following = rows[-1].row if rows else None
        return JSONResponse({"deliveries": [asdict(each) for each in rows], "next": following})

    async def trace(request: Request) -> Response:
        found = await parts.outbox.trace(request.path_params["unique_id"])
        return _missing("event") if found is None else JSONResponse(asdict(found))

    return [
        Route("/api/status", api_status),
        Route("/-/reload", reload, methods=["POST"]),
        Route("/api/rules", rules),
        Route("/api/trace/{unique_id:path}", trace),
        Route("/api/deliveries", waiting),
        *explain_routes(parts),
        *dead_letter_routes(parts),
        *alert_routes(parts),
    ]


def alert_routes(parts: Parts) -> list[Route]:
    async def alerts(_: Request) -> Response:
        alerting, now = parts.alerts, parts.now()
        silences = [
            msgspec.to_builtins(each) | {"state": each.state(now)} for each in alerting.silences.values()
        ]
        return JSONResponse({"alerts": list(map(alert_object, alerting.current())), "silences": silences})

    async def silence(request: Request) -> Response:
        """A new one, or another end of one that is there."""
        try:
            found = checked(msgspec.json.decode(await request.body(), type=Silence))
        except (msgspec.DecodeError, ValueError) as error:
            return JSONResponse({"error": f"not a silence: {error}"}, 400)
        await parts.outbox.accept(Batch(alerts=silence_row(found)))
        parts.alerts.silence(found)
        return JSONResponse({"id": found.id})

    return [Route("/api/alerts", alerts), Route("/api/silences", silence, methods=["POST"])]


def explain_routes(parts: Parts) -> list[Route]:
    async def explained(request: Request) -> Response:
        """The events in the body, as `bridge explain` takes them; or `{"recent": unique_id}`."""
        text = await request.body()
        if len(text) > LARGEST:
            return JSONResponse({"error": "larger than 1 MiB"}, 413)
        try:
            events = asked(parts, text)
        except FrameError as error:
            return JSONResponse({"error": str(error)}, 400)
        config = parts.config()
        found: list[dict[str, Any]] = []
        for event in events[:EXPLAINED]:
            verdicts = explain(config.rule_set, event)
            rendered = list(deliveries(config, event, verdicts, parts.now()))
            found.append(as_object(event, verdicts, rendered))
        return JSONResponse({"events": found})

    async def recent(_: Request) -> Response:
        redactor = Redactor.of(parts.config().redact)
        return JSONResponse({"events": [shown(redactor.redact(each)) for each in parts.ingest.recent]})

    return [Route("/api/explain", explained, methods=["POST"]), Route("/api/recent", recent)]


class _Recent(msgspec.Struct):
    recent: str = ""


def asked(parts: Parts, text: bytes) -> list[Event]:
    """The events a question to explain is about; raises FrameError."""
    try:
        unique_id = msgspec.json.decode(text, type=_Recent).recent
    except msgspec.DecodeError:
        unique_id = ""
    if unique_id:
        return [each for each in parts.ingest.recent if each.unique_id == unique_id]
    return list(read_events(text))


def shown(event: Event) -> dict[str, Any]:
    """One line of the list of recent events."""
    return {
        "unique_id": event.unique_id,
        "name": event.name,
        "time": event.time,
        "path": ids_of(event)["path"],
        "summary": summary(event),
        "event": event.document(),
    }


def limit_of(request: Request) -> int:
    """How many rows a page may have."""
    text = request.query_params.get("limit", "")
    return min(PAGE, max(1, int(text))) if text.isdecimal() else PAGE


def _missing(what: str) -> Response:
    return JSONResponse({"error": f"no such {what}"}, 404)


async def status(parts: Parts) -> dict[str, Any]:
    """The body of `/api/status`."""
    now = parts.now()
    source_totals, sink_totals = parts.outbox.source_totals(), parts.outbox.sink_totals()
    paused = {name: each.pause for name, each in parts.dispatchers.items()}
    names = sorted({*paused, *sink_totals})
    return {
        "version": parts.version,
        "config_hash": parts.config().hash,
        "uptime_seconds": round(now - parts.started, 3),
        "ready": not ready(parts),
        "not_ready": ready(parts),
        "outbox": {"bytes": await parts.outbox.bytes_used()},
        "alerts": {phase: parts.alerts.count(phase) for phase in ("pending", "firing")},
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


def dead_letter_routes(parts: Parts) -> list[Route]:
    async def listed(request: Request) -> Response:
        query = request.query_params
        wanted = DeadLetterFilter(sink=query.get("sink"), rule=query.get("rule"), reason=query.get("reason"))
        found = await parts.outbox.dead_letters(wanted, limit=limit_of(request), after=query.get("after"))
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
        return _missing("dead letter")
    return JSONResponse({"changed": count})
