"""The alertmanager sink: against a real Alertmanager, and against a receiver where answers matter."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from bridge.delivery import Delivered, Pause, Rejected, RetryLater
from bridge.receiver import Receiver, Reply, receive
from bridge.render.formats import Encoder
from bridge.sinks.alertmanager import Alertmanager, AlertmanagerConfig, open_alertmanager
from bridge.sinks.memory import Fleeting
from tests.alertmanagers import alertmanager
from tests.notifications import member, notification

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

OFTEN = 0.2  # seconds between rounds, instead of a minute


def opened(url: str, **more: Any) -> AbstractAsyncContextManager[Alertmanager]:
    keys = {"type": "alertmanager", "url": url} | more.pop("keys", {})
    return open_alertmanager("am", AlertmanagerConfig.model_validate(keys), **{"now": time.time} | more)


def told(person: Receiver) -> list[dict[str, Any]]:
    """What Alertmanager has told a person, each time."""
    return [json.loads(got.body) for got in person.deliveries]


async def until(condition: Callable[[], bool], what: str, within: float = 15.0) -> None:
    with anyio.move_on_after(within):
        while not condition():
            await anyio.sleep(0.02)
        return
    pytest.fail(f"{what} did not happen within {within} s")


def ahead(alert: dict[str, Any]) -> float:
    """Seconds from when it was updated to its end."""
    ends, updated = (datetime.fromisoformat(alert[key]) for key in ("endsAt", "updatedAt"))
    return (ends - updated).total_seconds()


async def test_it_receives_groups_and_resolves(tmp_path: Path) -> None:
    """Two gateways of one alert are one message; when both are back it says so."""
    began = time.time() - 600
    async with receive() as person:
        with alertmanager(tmp_path, person.url) as server:
            async with opened(server.url) as sink:
                for key in ("gw-roof", "gw-yard"):
                    fires = notification(key=key, since=began, at=time.time())
                    assert await sink.send(fires) == Delivered(200)
                roof, yard = await server.until(["gateway-down", "gateway-down"])
                assert {each["labels"]["gateway"] for each in (roof, yard)} == {"gw-roof", "gw-yard"}
                assert roof["annotations"]["summary"].endswith("has been offline")
                assert abs(datetime.fromisoformat(roof["startsAt"]).timestamp() - time.time()) < 10
                assert abs(ahead(roof) - 240) < 5
                await until(lambda: len(person.deliveries) == 1, "one message")
                for key in ("gw-roof", "gw-yard"):
                    ends = notification(
                        key=key,
                        status="resolved",
                        since=began,
                        at=time.time(),
                        ends=time.time() - 1,
                        number=2,
                    )
                    assert await sink.send(ends) == Delivered(200)
                await server.until([])
                await until(lambda: told(person)[-1]["status"] == "resolved", "the all-clear")
    first = told(person)[0]
    assert (first["status"], first["groupLabels"]) == ("firing", {"alertname": "gateway-down"})
    assert {each["labels"]["gateway"] for each in first["alerts"]} == {"gw-roof", "gw-yard"}
    assert {each["status"] for each in told(person)[-1]["alerts"]} == {"resolved"}


async def test_one_that_was_started_anew_knows_it_again(tmp_path: Path) -> None:
    """It has alerts in memory only: bridge tells it what fires, and only what ended of the rest."""
    async with receive() as person:
        with alertmanager(tmp_path, person.url) as server:
            async with opened(server.url, every=OFTEN) as sink:
                now = time.time()
                await sink.send(notification(alert="a", since=now - 60, at=now))
                await sink.send(notification(alert="b", since=now - 60, at=now))
                await sink.send(
                    notification(alert="b", status="resolved", since=now - 60, at=now + 0.1, ends=now)
                )
                await server.until(["a"])
                server.kill()
                gone = await sink.send(notification(alert="c", since=now - 60, at=now))
                assert isinstance(gone, RetryLater)
                server.forget()
                await server.until(["a", "c"])


async def test_bridge_started_anew_goes_on(tmp_path: Path) -> None:
    """From what it remembers: nothing waits any more in the outbox."""
    memory = Fleeting()
    async with receive() as person:
        with alertmanager(tmp_path, person.url) as server:
            async with opened(server.url, memory=memory) as sink:
                assert await sink.send(notification(since=time.time() - 60, at=time.time())) == Delivered(200)
            server.forget()
            assert await server.alerts() == []
            async with opened(server.url, memory=memory):
                await server.until(["gateway-down"])


async def test_it_lets_go_when_bridge_is_gone(tmp_path: Path) -> None:
    """Four minutes after it was told last; here by a clock of bridge's that is so much behind."""
    async with receive() as person:
        with alertmanager(tmp_path, person.url) as server:
            async with opened(server.url, now=lambda: time.time() - 237, every=None) as sink:
                await sink.send(notification(since=time.time() - 600, at=time.time()))
                await server.until(["gateway-down"])
            await server.until([])


async def test_what_the_alerts_no_longer_know_is_resolved(tmp_path: Path) -> None:
    """An alert was taken out of the config while it fired."""
    fires = {("a", "gw-yard"), ("b", "gw-yard")}
    async with receive() as person:
        with alertmanager(tmp_path, person.url) as server:
            async with opened(server.url, firing=lambda: fires, every=OFTEN) as sink:
                for alert in "ab":
                    await sink.send(notification(alert=alert, since=time.time() - 60, at=time.time()))
                await server.until(["a", "b"])
                fires.discard(("a", "gw-yard"))
                await server.until(["b"])


async def test_a_hundred_members_of_a_group(tmp_path: Path) -> None:
    """One delivery, one request, a hundred alerts, and one message for a person."""
    now = time.time()
    members = [member(f"gw-{number}", since=now - 60) for number in range(100)]
    async with receive() as person:
        with alertmanager(tmp_path, person.url) as server:
            async with opened(server.url) as sink:
                assert await sink.send(
                    notification(key="all", members=members, since=now - 60, at=now)
                ) == Delivered(200)
                await server.until(["gateway-down"] * 100)
                await until(lambda: len(person.deliveries) == 1, "one message")
    assert len(told(person)[0]["alerts"]) == 100


@pytest.mark.parametrize("ahead_by", [-3600.0, 3600.0])
async def test_the_networks_clock_may_be_wrong(tmp_path: Path, ahead_by: float) -> None:
    """By an hour, either way: it fires while it fires, and not a moment longer."""
    async with receive() as person:
        with alertmanager(tmp_path, person.url) as server:
            async with opened(server.url) as sink:
                now = time.time() + ahead_by
                assert await sink.send(notification(since=now, at=now)) == Delivered(200)
                await server.until(["gateway-down"])
                ends = notification(status="resolved", since=now, at=now + 2, ends=now + 1, number=2)
                assert await sink.send(ends) == Delivered(200)
                await server.until([])


async def test_what_is_not_taken_is_told_in_the_next_round() -> None:
    """The delivery waits its backoff; the state does not."""
    refusing = Reply(503)
    async with (
        receive(answer=refusing) as server,
        opened(server.url, every=OFTEN, keys={"username": "me", "password": "pass"}) as sink,
    ):
        outcome = await sink.send(notification(since=time.time(), at=time.time()))
        assert isinstance(outcome, RetryLater)
        seen = len(server.deliveries)
        await until(lambda: len(server.deliveries) > seen, "another round")
    assert server.deliveries[-1].path == "/api/v2/alerts"
    assert server.deliveries[-1].headers["authorization"] == "Basic bWU6cGFzcw=="
    assert [each["labels"]["gateway"] for each in json.loads(server.deliveries[-1].body)] == ["gw-yard"]


async def test_its_answers_are_judged_like_any_webhooks() -> None:
    """DESIGN.md §2.5; and a secret it echoes is not kept."""
    fires = notification(since=time.time(), at=time.time())
    async with receive() as server, opened(server.url, every=None, keys={"token": "t0p-s3cret"}) as sink:
        server.answer = Reply(401, body=b"no Bearer t0p-s3cret here")
        refused = await sink.send(fires)
        server.answer = Reply(400, body=b"bad labels")
        rejected = await sink.send(fires)
        server.answer = Reply(429, {"Retry-After": "7"})
        limited = await sink.send(fires)
    assert isinstance(refused, Pause)
    assert (refused.failure.reason, refused.failure.response) == ("auth", "no Bearer [redacted] here")
    assert isinstance(rejected, Rejected)
    assert isinstance(limited, Pause)
    assert limited.seconds == 7


async def test_our_webhooks_get_the_payload_its_webhooks_get(tmp_path: Path) -> None:
    """`format: alertmanager` beside the real thing, of the same alert: the same keys, labels, fingerprint."""
    fires = notification(since=time.time() - 60, at=time.time())
    async with receive() as person:
        with alertmanager(tmp_path, person.url, group_by="'...'") as server:
            async with opened(server.url) as sink:
                await sink.send(fires)
                await until(lambda: len(person.deliveries) == 1, "a message")
    (theirs,) = told(person)
    ours = json.loads(Encoder("alertmanager").one(fires).body)
    assert ours.keys() == theirs.keys()
    assert ours["alerts"][0].keys() == theirs["alerts"][0].keys()
    for key in ("version", "groupKey", "groupLabels", "commonLabels", "commonAnnotations", "status"):
        assert ours[key] == theirs[key], key
    for key in ("labels", "annotations", "fingerprint", "status"):
        assert ours["alerts"][0][key] == theirs["alerts"][0][key], key
