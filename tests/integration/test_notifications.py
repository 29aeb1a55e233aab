"""Notifications through the whole of bridge: the stand-in over HTTP, a real store, a real receiver."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from bridge.app import serve as run_bridge
from bridge.commands.terminal import first
from bridge.config import Config, load
from bridge.errors import StartError
from bridge.event import Entity
from bridge.receiver import Receiver, Reply, receive
from bridge.standin import Key, Server, World, serve

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

TOKEN = "NNSXS.JANE.SECRET"
JANE = Entity("user", "jane")
PLANT_A = Entity("application", "plant-a")


def config(folder: Path, server: Server, receiver: Receiver, mark: str = "seen") -> Config:
    (folder / "rules").mkdir(exist_ok=True)
    rules = "rules:\n  - name: account\n    match: {name: notification.api_key_created}\n    send: [hook]\n"
    (folder / "rules" / "account.yaml").write_text(rules)
    path = folder / "bridge.yaml"
    path.write_text(
        f"""
sources:
  inbox:
    {{type: tts-notifications, url: "{server.url}", api_key: {TOKEN}, user: jane, interval: 1s, mark: {mark}}}
sinks:
  hook:
    type: webhook
    url: "{receiver.url}/account"
    allow_private_networks: true
    retry: {{initial: 100ms, max: 200ms}}
outbox: "sqlite:{folder / "bridge.db"}"
admin: {{listen: "127.0.0.1:0"}}
"""
    )
    return load(path, {})


@asynccontextmanager
async def bridge(settings: Config) -> AsyncIterator[None]:
    stop, up = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_bridge, settings, stop, lambda _running: up.set())
        await up.wait()
        yield
        stop.set()


async def until(condition: Callable[[], bool], what: str) -> None:
    with anyio.move_on_after(10):
        while not condition():
            await anyio.sleep(0.02)
        return
    pytest.fail(f"{what} did not happen")


def statuses(world: World) -> list[str]:
    return [each.status for each in world.inbox.of_user["jane"]]


def sent(receiver: Receiver) -> list[dict[str, Any]]:
    return [msgspec.json.decode(each.body) for each in receiver.deliveries]


async def test_a_notification_arrives_once_and_is_marked_after_the_receiver_has_it(tmp_path: Path) -> None:
    """While the receiver refuses it stays unseen; what no rule wants stays so for good."""
    world = World({TOKEN: Key.of(JANE)})
    world.notify("jane", "api_key_created", about=PLANT_A, data={"@type": "t", "name": "temp"})
    async with serve(world) as server, receive() as receiver:
        receiver.answer = Reply(503)
        async with bridge(config(tmp_path, server, receiver)):
            await until(lambda: len(receiver.deliveries) > 1, "an attempt")
            world.notify("jane", "password_changed")
            await anyio.sleep(1.5)
            assert statuses(world) == ["UNSEEN", "UNSEEN"]
            receiver.answer = Reply(200)
            await until(lambda: statuses(world)[0] == "SEEN", "marking")
            receiver.deliveries.clear()
            world.notify("jane", "api_key_created", about=PLANT_A)
            await until(lambda: len(receiver.deliveries) == 1, "the second")
            await until(lambda: statuses(world)[2] == "SEEN", "marking the second")
    assert statuses(world) == ["SEEN", "UNSEEN", "SEEN"]
    event = sent(receiver)[0]
    notice = world.inbox.of_user["jane"][2]
    assert event["name"] == "notification.api_key_created"
    assert event["unique_id"] == f"notification/jane/{notice.id}"
    assert event["data"]["id"] == notice.id
    assert event["identifiers"] == [
        {"application_ids": {"application_id": "plant-a"}},
        {"user_ids": {"user_id": "jane"}},
    ]


async def test_a_restart_takes_nothing_in_again(tmp_path: Path) -> None:
    """Whatever people do to the status meanwhile: the mark is in the store."""
    world = World({TOKEN: Key.of(JANE)})
    ids = [world.notify("jane", "api_key_created") for _ in range(12)]
    async with serve(world) as server, receive() as receiver:
        settings = config(tmp_path, server, receiver, mark="none")
        async with bridge(settings):
            await until(lambda: len(receiver.deliveries) == 12, "twelve deliveries")
        world.mark("jane", ids[:6], "SEEN")
        async with bridge(settings):
            world.mark("jane", ids[:6], "UNSEEN")
            world.notify("jane", "api_key_created")
            await until(lambda: len(receiver.deliveries) >= 13, "the new one")
            await anyio.sleep(2.5)
    assert len({each["unique_id"] for each in sent(receiver)}) == len(receiver.deliveries) == 13


async def test_it_is_woken_by_the_servers_event_long_before_the_poll(tmp_path: Path) -> None:
    world = World({TOKEN: Key.of(JANE)})
    async with serve(world) as server, receive() as receiver:
        config(tmp_path, server, receiver, mark="none")
        text = (tmp_path / "bridge.yaml").read_text().replace("interval: 1s", "interval: 300s")
        (tmp_path / "bridge.yaml").write_text(text)
        async with bridge(load(tmp_path / "bridge.yaml", {})):
            await until(lambda: server.streams == 1, "the stream on the user")
            world.notify("jane", "api_key_created")
            await until(lambda: len(receiver.deliveries) == 1, "the delivery")


async def test_an_applications_key_is_refused_and_said_to_be(tmp_path: Path) -> None:
    """Nothing else is there to start for, so the start fails with the reason."""
    world = World({TOKEN: frozenset({PLANT_A})}, entities=[JANE])
    async with serve(world) as server, receive() as receiver:
        settings = config(tmp_path, server, receiver)
        with pytest.raises(BaseExceptionGroup) as caught:
            await run_bridge(settings, anyio.Event())
    error = first(caught.value)
    assert isinstance(error, StartError)
    assert "no_user_rights" in str(error)
