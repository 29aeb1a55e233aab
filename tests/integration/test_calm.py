"""A calm run: every recorded stream, verbatim and at full speed, from a file to two real receivers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from bridge.decode import Decoder
from bridge.event import Event
from bridge.receiver import receive
from tests.integration.listening import UNLIMITED, subscribed, until_arrived
from tests.integration.process import running, until_settled, violations
from tests.recordings import RECORDED, STREAMS
from tests.servers import mosquitto

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.timeout(120)]

CONFIG = """
sources:
  file: {{type: replay, path: {path}, speed: max, verbatim: true}}
sinks:
  crm:
    type: webhook
    url: {crm}
    allow_private_networks: true
  broker:
    type: mqtt
    url: {broker}
    topic: "events/{{{{ ids.path or 'none' }}}}"
    qos: 1
rules: [rules.yaml]
admin: {{listen: "127.0.0.1:0"}}
log: {{format: json}}
"""

RULES = "rules: [{name: everything, match: {}, send: [crm, broker]}]"


def recorded(name: str) -> list[Event]:
    """The events of a stream, repeats included, under the ids bridge knows them by."""
    decoder = Decoder()
    frames = [*decoder.feed((RECORDED / name).read_bytes()), *decoder.close()]
    return [frame for frame in frames if isinstance(frame, Event)]


def written_id(event: Event) -> str:
    found: str = json.loads(event.body)["unique_id"]
    return found


@pytest.mark.parametrize("stream", STREAMS)
async def test_every_event_arrives_exactly_once(stream: str, tmp_path: Path) -> None:
    """At the broker and at the receiver; what the recording repeats is counted as a duplicate."""
    events = recorded(stream)
    distinct = {event.unique_id: event for event in reversed(events)}
    expected = Counter(written_id(event) for event in distinct.values())
    posted: list[str] = []

    with mosquitto(tmp_path / "mosquitto", config=UNLIMITED) as broker:
        async with (
            receive(on_delivery=lambda got: posted.append(json.loads(got.body)["unique_id"])) as crm,
            subscribed(broker, "events/#") as arrived,
        ):
            config = CONFIG.format(path=RECORDED / stream, crm=crm.url, broker=broker.url())
            (tmp_path / "bridge.yaml").write_text(config)
            (tmp_path / "rules.yaml").write_text(RULES)
            async with running(tmp_path) as bridge:
                await until_settled(bridge, {"crm": len(distinct), "broker": len(distinct)})
                metrics = await bridge.metrics()
                assert bridge.terminate() == 0
            await until_arrived(set(expected), arrived)

    assert Counter(posted) == expected
    assert Counter(arrived) == expected
    assert total(metrics, "bridge_source_events_received_total") == len(events)
    assert total(metrics, "bridge_events_duplicate_total") == len(events) - len(distinct)
    assert await violations(tmp_path / "bridge.db") == []


def total(metrics: str, name: str) -> int:
    """The value of a metric of the source `file`."""
    (line,) = (each for each in metrics.splitlines() if each.startswith(f'{name}{{source="file"}}'))
    return int(float(line.rpartition(" ")[2]))
