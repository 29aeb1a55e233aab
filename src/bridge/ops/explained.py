"""An event explained: verdicts and the deliveries they lead to.  No I/O, no clock in this file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from bridge.config import Config
from bridge.delivery import Delivery, delivery_id
from bridge.event import Event
from bridge.redact import Redactor
from bridge.rules.explain import Verdict
from bridge.sinks.preview import Preview, previews

SOURCE = "explain"


def deliveries(config: Config, event: Event, verdicts: tuple[Verdict, ...], now: float) -> Iterator[Preview]:
    """What the rules would send of *event*, after redaction; *now* in unix seconds."""
    stored = Redactor.of(config.redact).redact(event)
    for verdict in verdicts:
        for sink in verdict.send:
            if sink in config.sinks:
                identifier = delivery_id(event.unique_id, verdict.rule, sink)
                delivery = Delivery(0, identifier, stored, SOURCE, verdict.rule, sink, 1, now)
                yield from previews(config.sinks[sink], delivery, {})


def as_object(event: Event, verdicts: tuple[Verdict, ...], rendered: list[Preview]) -> dict[str, object]:
    """What `--json` and `POST /api/explain` answer for one event."""
    return {
        "unique_id": event.unique_id,
        "name": event.name,
        "rules": [asdict(each) | {"matched": each.why is None} for each in verdicts],
        "deliveries": [asdict(each) for each in rendered],
    }
