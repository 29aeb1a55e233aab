"""Reloading while events flow: nothing lost, nothing twice, nothing judged by half a set of rules."""

from __future__ import annotations

import json
import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import msgspec
import pytest

from bridge.app import Running, serve
from bridge.config import Config, load
from bridge.event import rfc3339
from bridge.receiver import Received, receive
from bridge.standin import ALL, World
from bridge.standin import serve as serve_standin
from tests.integration.process import announced, running, start, until, until_connected, until_settled
from tests.recordings import documents

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.timeout(180)]

TOKEN = "NNSXS.AAAAAAAA.BBBBBBBB"
ADMIN = "s3cret-admin-token"
RELOADS = 1000
PARTS = 4  # rules of a set: an event judged by half a set would lack some of them

CONFIG = """\
sources:
  eu1:
    type: tts
    url: {tts}
    api_key: {token}
    identifiers: [{{application: plant-a}}]
sinks:
  crm:
    type: webhook
    url: {crm}
    timeout: {timeout}s
    max_in_flight: 16
    allow_private_networks: true
    retry: {{initial: 100ms, max: 200ms}}
rules: [rules.yaml]
admin: {{listen: "127.0.0.1:0", token: {admin}}}
log: {{format: json}}
"""


def rules(letter: str, match: str = "{}") -> str:
    """A set of rules, each of which takes every event."""
    each = "  - name: {}{}\n    match: {}\n    send: [crm]\n"
    return "rules:\n" + "".join(each.format(letter, part, match) for part in range(PARTS))


def written(folder: Path, upstream: str, crm: str, number: int) -> None:
    """The files of reload *number*: other rules each time, now and then another sink or other names."""
    timeout = 10 + number // 100
    text = CONFIG.format(tts=upstream, token=TOKEN, crm=crm, timeout=timeout, admin=ADMIN)
    (folder / "bridge.yaml").write_text(text)
    match = "{name: as.up.data.forward}" if number % 200 > 150 else "{}"
    (folder / "rules.yaml").write_text(rules("ab"[number % 2], match))


def uplinks(world: World) -> Iterator[bytes]:
    """Fresh uplinks of plant-a without end."""
    recorded = next(event for event in documents("apps.sse") if event["name"] == "as.up.data.forward")
    ids = [{"device_ids": {"device_id": "meter-01", "application_ids": {"application_id": "plant-a"}}}]
    while True:
        yield msgspec.json.encode(
            recorded | {"identifiers": ids, "unique_id": world.new_id(), "time": rfc3339(world.now)}
        )


async def test_a_thousand_reloads_under_load(tmp_path: Path) -> None:
    """Every event arrives once for each rule of exactly one set."""
    arrived: dict[str, list[str]] = defaultdict(list)
    delivered: list[str] = []
    world = World({TOKEN: ALL})
    published: list[str] = []

    def note(got: Received) -> None:
        arrived[json.loads(got.body)["unique_id"]].append(got.id)
        delivered.append(got.id)

    async def publish() -> None:
        for body in uplinks(world):
            published.append(json.loads(body)["unique_id"])
            world.publish(body)
            await anyio.sleep(0.01)

    async with serve_standin(world) as upstream, receive(on_delivery=note) as crm:
        written(tmp_path, upstream.url, crm.url, 0)
        stop, up = anyio.Event(), anyio.Event()
        apps: list[Running] = []

        def announce(found: Running) -> None:
            apps.append(found)
            up.set()

        def read() -> Config:
            return load(tmp_path / "bridge.yaml", {"BRIDGE_OUTBOX": f"sqlite:{tmp_path}/bridge.db"})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: serve(read(), stop, announce, load=read))
            await up.wait()
            app = apps[0].app
            while not world.subscriptions:
                await anyio.sleep(0.01)
            async with anyio.create_task_group() as publishing:
                publishing.start_soon(publish)
                for number in range(1, RELOADS + 1):
                    written(tmp_path, upstream.url, crm.url, number)
                    await app.reload()
                publishing.cancel_scope.cancel()
            with anyio.fail_after(60):
                while len(delivered) < PARTS * len(published):
                    await anyio.sleep(0.05)
            stop.set()

    assert len(published) > 200
    assert set(arrived) == set(published)
    assert len(delivered) == len(set(delivered)) == PARTS * len(published)
    assert all(len(ids) == PARTS for ids in arrived.values())


async def test_a_broken_config_keeps_the_running_one(tmp_path: Path) -> None:
    """Every mistake is told, the metric says so, the old rules go on; then the good one is taken."""
    world = World({TOKEN: ALL})
    async with serve_standin(world) as upstream, receive() as crm:
        written(tmp_path, upstream.url, crm.url, 0)
        async with running(tmp_path) as bridge:
            bridge.token = ADMIN
            await until_connected(bridge)
            (tmp_path / "rules.yaml").write_text("rules: [{name: x, match: {nam: y}, send: [crm]}]")
            headers = {"Authorization": f"Bearer {ADMIN}"}
            async with httpx.AsyncClient(trust_env=False, headers=headers) as client:
                answer = await client.post(f"{bridge.url}/-/reload")
                assert answer.status_code == 400
                (mistake,) = answer.json()["mistakes"]
                assert "rules.yaml:1: rules[0].match.nam: unknown key; did you mean name?" in mistake
                assert "bridge_config_last_reload_successful 0.0" in await bridge.metrics()
                world.publish(next(uplinks(world)))
                await until_settled(bridge, {"crm": PARTS})
                written(tmp_path, upstream.url, crm.url, 1)
                assert (await client.post(f"{bridge.url}/-/reload")).status_code == 200
                assert "bridge_config_last_reload_successful 1.0" in await bridge.metrics()


async def test_sighup_takes_a_removed_sink_away_and_keeps_its_rows(tmp_path: Path) -> None:
    """What waits for it is listed, and delivered once it is back."""
    world = World({TOKEN: ALL})
    async with serve_standin(world) as upstream, receive() as crm:
        text = CONFIG.format(tts=upstream.url, token=TOKEN, crm=crm.url, timeout=10, admin=ADMIN)
        gone = "http://127.0.0.1:1/"
        extra = (
            f"  old: {{type: webhook, url: '{gone}', allow_private_networks: true, retry: {{initial: 1h}}}}\n"
        )
        with_old = text.replace("rules: [", extra + "rules: [")
        (tmp_path / "bridge.yaml").write_text(with_old)
        (tmp_path / "rules.yaml").write_text(rules("a").replace("[crm]", "[crm, old]"))
        async with running(tmp_path) as bridge:
            bridge.token = ADMIN
            await until_connected(bridge)
            world.publish(next(uplinks(world)))
            await until(bridge, lambda status: status["sinks"]["old"]["retried"] == PARTS)
            (tmp_path / "bridge.yaml").write_text(text)
            (tmp_path / "rules.yaml").write_text(rules("a"))
            os.kill(bridge.process.pid, signal.SIGHUP)
            status = await until(bridge, lambda status: not status["sinks"]["old"]["configured"])
            assert status["sinks"]["old"]["waiting"] == PARTS
            world.publish(next(uplinks(world)))
            await until_settled(bridge, {"crm": 2 * PARTS})


async def test_watching_the_files_needs_no_signal(tmp_path: Path) -> None:
    """A Kubernetes volume is swapped by its `..data` link: the files keep their names."""
    world = World({TOKEN: ALL})
    async with serve_standin(world) as upstream, receive() as crm:
        for version in ("one", "two"):
            (tmp_path / f"..{version}").mkdir()
            written(tmp_path / f"..{version}", upstream.url, crm.url, 0 if version == "one" else 1)
        (tmp_path / "..data").symlink_to("..one")
        for name in ("bridge.yaml", "rules.yaml"):
            (tmp_path / name).symlink_to(f"..data/{name}")
        bridge = await announced(start(tmp_path, arguments=["--watch"]))
        bridge.token = ADMIN
        try:
            before = (await bridge.status())["config_hash"]
            (tmp_path / "..next").symlink_to("..two")
            (tmp_path / "..next").rename(tmp_path / "..data")
            await until(bridge, lambda status: status["config_hash"] != before)
        finally:
            bridge.kill()
