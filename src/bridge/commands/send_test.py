"""`bridge send-test --sink S`: one clearly marked delivery to the real receiver, with its answer."""

from __future__ import annotations

import random
import secrets
import time
from typing import Annotated

import msgspec
import typer

from bridge import decode, logs
from bridge.commands.terminal import NOT_SO, ConfigOption, JsonOption, loaded, print_json, run_async
from bridge.config import Config
from bridge.delivery import Delivered, Delivery, Outcome, delivery_id
from bridge.errors import ConfigError, Mistake
from bridge.event import rfc3339
from bridge.ids import ulid
from bridge.sinks.registry import open_sink

RULE = "send-test"


def send_test(
    sink: Annotated[str, typer.Option("--sink", help="Which sink.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send one marked test delivery and print the answer."""
    logs.configure("error")
    outcome = run_async(sent, loaded(config), sink)
    delivered = isinstance(outcome, Delivered)
    if as_json:
        print_json({"sink": sink, "delivered": delivered, "answer": answer(outcome)})
    else:
        print(f"sink {sink}: {answer(outcome)}")
    if not delivered:
        raise typer.Exit(NOT_SO)


async def sent(config: Config, sink: str) -> Outcome:
    """What the receiver of *sink* made of it; nothing is stored. Raises ConfigError for an unknown sink."""
    if sink not in config.sinks:
        known = ", ".join(sorted(config.sinks)) or "none"
        raise ConfigError([Mistake("--sink", 0, sink, f"no such sink; there is {known}")])
    suffix = secrets.token_hex(3)
    async with open_sink(sink, config.sinks[sink], now=time.time, suffix=suffix) as opened:
        return await opened.send(delivery(sink, time.time()))


def delivery(sink: str, now: float) -> Delivery:
    """The test's delivery; *now* in unix seconds."""
    ns = int(now * 1e9)
    unique_id = ulid(ns, random.SystemRandom())
    body = {
        "name": "bridge.test",
        "time": rfc3339(ns),
        "identifiers": [{"application_ids": {"application_id": "bridge-test"}}],
        "data": {"message": "test delivery of bridge: nothing happened in the network"},
        "unique_id": unique_id,
    }
    event = decode.event(msgspec.json.encode(body))
    return Delivery(0, delivery_id(unique_id, RULE, sink), event, "bridge", RULE, sink, 1, now)


def answer(outcome: Outcome) -> str:
    """One line for a person."""
    if isinstance(outcome, Delivered):
        return "delivered" + (f", status {outcome.status}" if outcome.status else "")
    failure = outcome.failure
    response = f"; it answered: {failure.response}" if failure.response else ""
    return f"not delivered: {failure.reason}: {failure.error}{response}"
