"""A receiver that asks for rest gets it, also from those that `rate_limit` holds back."""

from __future__ import annotations

import random
import time
from pathlib import Path

import anyio
import pytest

from bridge.delivery import Route
from bridge.dispatch import Dispatcher
from bridge.event import Event
from bridge.metrics import Metrics
from bridge.outbox import Batch, Intake
from bridge.outbox.sqlite import open_outbox, threads
from bridge.receiver import Reply, receive
from bridge.retry import RetryPolicy
from bridge.sinks.registry import open_sink
from bridge.sinks.webhook import WebhookConfig

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


async def test_a_pause_holds_for_those_that_wait_for_their_turn(tmp_path: Path) -> None:
    """429 to the first; the others were already in line behind it."""
    async with (
        threads() as write,
        threads() as read,
        open_outbox(
            tmp_path / "bridge.db",
            durability="process",
            dedup_window=1e6,
            dead_letter_retention=1e6,
            trace_retention=1e6,
            offload_write=write,
            offload_read=read,
            reserve=4096,
        ) as outbox,
        receive(answer=Reply(429, {"Retry-After": "30"})) as crm,
    ):
        intakes = [
            Intake(
                "eu1",
                Event("a.b", "", 0, str(n), (), b'{"name":"a.b"}'),
                time.time(),
                True,
                (Route("r", "crm"),),
            )
            for n in range(50)
        ]
        await outbox.accept(Batch(intakes))
        config = WebhookConfig.model_validate(
            {"type": "webhook", "url": crm.url, "rate_limit": "20/s", "allow_private_networks": True}
        )
        async with open_sink("crm", config, now=time.time) as sink, anyio.create_task_group() as tasks:
            each = Dispatcher(sink, outbox, RetryPolicy(), Metrics(), now=time.time, chance=random.random)
            tasks.start_soon(each.run)
            with anyio.fail_after(10):
                while each.pause is None or outbox.sink_totals()["crm"].retried < 2:
                    await anyio.sleep(0.01)
            await anyio.sleep(0.5)  # in which ten more would have their turn
            each.stop()
        assert len(crm.deliveries) <= 3
        assert outbox.sink_totals()["crm"].waiting == 50
