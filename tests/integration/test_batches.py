"""Batches and digests through the whole of bridge, as an operator runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge.receiver import Received, Reply, receive
from tests.integration.process import running, until, violations
from tests.recordings import RECORDED, unique_ids

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.timeout(90)]

STREAM = "gateways.sse"
GUILTY = "gs.down.tx.success"  # 28 of its 874 events

CONFIG = """
sources:
  lab: {{type: replay, path: {path}, speed: max, verbatim: true}}
sinks:
  crm:
    type: webhook
    url: {crm}
    allow_private_networks: true
    order: {order}
    max_in_flight: 4
    batch: {{max_events: 50, max_wait: 5ms}}
    retry: {{initial: 100ms, max: 1s}}
  ops: {{type: slack, webhook_url: '{slack}/services/T0/B0/x', rate_limit: 5/s}}
rules: [rules.yaml]
admin: {{listen: "127.0.0.1:0"}}
log: {{format: json}}
"""


def picky(got: Received) -> Reply | None:
    """Refuses every batch with a guilty event in it."""
    names = [each["name"] for each in json.loads(got.body)]
    return Reply(422) if GUILTY in names else None


@pytest.mark.parametrize("order", ["none", "entity"])
async def test_every_event_arrives_once_in_batches_and_digests(tmp_path: Path, order: str) -> None:
    """A guilty event is a dead letter and alone; Slack gets a few messages that stand for all."""
    expected = len(set(unique_ids(STREAM)))
    async with receive(on_delivery=picky) as crm, receive(answer=Reply(200, body=b"ok")) as slack:
        config = CONFIG.format(path=RECORDED / STREAM, crm=crm.url, slack=slack.url, order=order)
        (tmp_path / "bridge.yaml").write_text(config)
        (tmp_path / "rules.yaml").write_text("rules: [{name: all, match: {name: /^gs/}, send: [crm, ops]}]")
        async with running(tmp_path) as bridge:
            await until(
                bridge,
                lambda status: all(
                    each["accepted"] == expected and not each["waiting"] for each in status["sinks"].values()
                ),
            )
    refused = [got for got in crm.deliveries if picky(got)]
    accepted = [
        each["unique_id"] for got in crm.deliveries if not picky(got) for each in json.loads(got.body)
    ]
    dead = {
        each["unique_id"]
        for got in refused
        if len(json.loads(got.body)) == 1
        for each in json.loads(got.body)
    }
    assert len(accepted) == len(set(accepted))
    assert set(accepted) | dead == set(unique_ids(STREAM))
    assert set(accepted).isdisjoint(dead)
    assert len(crm.deliveries) < expected
    told = [json.loads(got.body)["text"] for got in slack.deliveries]
    counts = [int(text.split()[0].removeprefix("*")) if " messages in one*" in text else 1 for text in told]
    assert sum(counts) == expected
    assert len(told) < expected / 2
    assert len(dead) == 28
    assert await violations(tmp_path / "bridge.db") == []
