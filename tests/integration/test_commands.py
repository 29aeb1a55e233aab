"""The commands, as an operator types them: against a running bridge, and against its store alone."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from bridge.receiver import OK, Receiver, Reply, receive
from bridge.standin import ALL, World, serve
from tests.integration.process import Bridge, run, running, until, until_connected, until_settled
from tests.recordings import documents, json_bytes

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.timeout(90)]

TOKEN = "NNSXS.AAAAAAAA.BBBBBBBB"
ADMIN = "s3cret-admin-token"
CONFIG = """\
sources:
  eu1:
    type: tts
    url: {tts}
    api_key: {token}
    identifiers: [{{application: plant-a}}, {{application: plant-b}}]
sinks:
  crm:
    type: webhook
    url: {crm}/hook
    allow_private_networks: true
    secret: whsec_c2VjcmV0c2VjcmV0
    retry: {{initial: 50ms, max: 100ms}}
rules: [rules.yaml]
admin: {{listen: "127.0.0.1:0", token: {admin}}}
log: {{format: json}}
"""
RULES = "rules:\n  - name: all\n    match: {}\n    send: [crm]\n"
WRONG = Reply(400, body=b"no such field")


@asynccontextmanager
async def with_dead_letters(folder: Path, count: int) -> AsyncIterator[tuple[Bridge, Receiver, list[str]]]:
    """A running bridge whose receiver has refused *count* events for good, and their ids."""
    async with serve(World({TOKEN: ALL})) as upstream, receive(answer=WRONG) as crm:
        config = CONFIG.format(tts=upstream.url, token=TOKEN, crm=crm.url, admin=ADMIN)
        (folder / "bridge.yaml").write_text(config)
        (folder / "rules.yaml").write_text(RULES)
        events = list(documents("apps.sse"))[:count]
        async with running(folder) as bridge:
            bridge.token = ADMIN
            await until_connected(bridge)
            for event in events:
                upstream.world.publish(json_bytes(event))
            await until(bridge, lambda status: status["sinks"]["crm"]["dead"] == count)
            yield bridge, crm, [event["unique_id"] for event in events]


async def bridge_command(folder: Path, *arguments: str) -> Any:
    return await anyio.to_thread.run_sync(lambda: run(*arguments, cwd=folder))


async def test_dead_letters_are_listed_shown_retried_and_dropped(tmp_path: Path) -> None:
    """While bridge runs; a retry keeps the delivery id."""
    async with with_dead_letters(tmp_path, 3) as (bridge, crm, ids):
        listed = await bridge_command(tmp_path, "dead-letters", "list", "--json")
        letters = [json.loads(line) for line in listed.stdout.splitlines()]
        assert [letter["unique_id"] for letter in letters] == ids
        assert {
            "id",
            "sink",
            "rule",
            "name",
            "unique_id",
            "reason",
            "attempts",
            "first",
            "last",
            "status",
        } == set(letters[0])
        assert (letters[0]["reason"], letters[0]["status"], letters[0]["attempts"]) == (
            "client_error",
            400,
            1,
        )
        shown = await bridge_command(tmp_path, "dead-letters", "show", letters[0]["id"])
        assert "no such field" in shown.stdout
        dropped = await bridge_command(tmp_path, "dead-letters", "drop", letters[0]["id"])
        assert (dropped.returncode, dropped.stdout) == (0, "1 dropped\n")
        crm.answer = OK
        retried = await bridge_command(tmp_path, "dead-letters", "retry", "--sink", "crm")
        assert (retried.returncode, retried.stdout) == (0, "2 will be tried again\n")
        await until_settled(bridge, {"crm": 2})
        again = [got.id for got in crm.deliveries[-2:]]
        assert sorted(again) == sorted(letter["id"] for letter in letters[1:])


async def test_dead_letters_are_retried_without_a_running_bridge(tmp_path: Path) -> None:
    """The command takes the lock itself, and the next start delivers."""
    async with with_dead_letters(tmp_path, 2) as (bridge, _, _):
        assert bridge.terminate() == 0
        retried = await bridge_command(tmp_path, "dead-letters", "retry", "--all")
        assert (retried.returncode, retried.stdout) == (0, "2 will be tried again\n")
        none = await bridge_command(tmp_path, "dead-letters", "retry", "--all")
        assert none.returncode == 1


async def test_changing_everything_has_to_be_meant(tmp_path: Path) -> None:
    """No filter is a mistake, not everything."""
    (tmp_path / "bridge.yaml").write_text("{}\n")
    refused = await bridge_command(tmp_path, "dead-letters", "drop")
    assert (refused.returncode, refused.stderr) == (2, "name ids, a filter such as --sink, or --all\n")


async def test_the_story_of_an_event(tmp_path: Path) -> None:
    """Known and unknown."""
    async with with_dead_letters(tmp_path, 1) as (_, _, ids):
        story = await bridge_command(tmp_path, "trace", ids[0])
        assert "rule all -> sink crm: dead" in story.stdout
        assert "client_error: HTTP 400" in story.stdout
        as_json = await bridge_command(tmp_path, "trace", ids[0], "--json")
        assert json.loads(as_json.stdout)["deliveries"][0]["state"] == "dead"
        unknown = await bridge_command(tmp_path, "trace", "01NOBODY")
        assert (unknown.returncode, unknown.stdout) == (1, "")


async def test_a_test_delivery_reaches_the_real_receiver(tmp_path: Path) -> None:
    """Marked, signed, with the receiver's answer and exit code."""
    async with receive() as crm:
        text = CONFIG.format(tts="http://127.0.0.1:1", token=TOKEN, crm=crm.url, admin=ADMIN)
        (tmp_path / "bridge.yaml").write_text(text)
        (tmp_path / "rules.yaml").write_text(RULES)
        sent = await bridge_command(tmp_path, "send-test", "--sink", "crm")
        assert (sent.returncode, sent.stdout) == (0, "sink crm: delivered, status 200\n")
        body = json.loads(crm.deliveries[0].body)
        assert body["name"] == "bridge.test"
        assert crm.deliveries[0].headers["webhook-signature"].startswith("v1,")
        crm.answer = Reply(401)
        refused = await bridge_command(tmp_path, "send-test", "--sink", "crm")
        assert (refused.returncode, refused.stdout) == (1, "sink crm: not delivered: auth: HTTP 401\n")
        unknown = await bridge_command(tmp_path, "send-test", "--sink", "crn")
        assert (unknown.returncode, unknown.stderr) == (2, "--sink: crn: no such sink; there is crm\n")


async def test_every_command_is_told_in_a_whole_sentence(tmp_path: Path) -> None:
    """On a terminal of 80 columns nothing is cut off."""
    for group in ((), ("dead-letters",), ("queue",), ("silence",), ("alerts",)):
        told = await bridge_command(tmp_path, *group, "--help")
        assert told.returncode == 0
        assert "..." not in told.stdout.partition("Commands:")[2]


async def test_warnings_of_a_load_are_logged_as_that_config_says(tmp_path: Path) -> None:
    """At the start they came before log.level and log.format counted; a reload did not change the two."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (tmp_path / "bridge.yaml").write_text(
            "sinks: {idle: {type: webhook, url: 'https://crm.example/hook'}}\n"
            f"admin: {{listen: '127.0.0.1:{taken.getsockname()[1]}'}}\nlog: {{level: error}}\n"
        )
        found = await bridge_command(tmp_path, "run")
    assert found.returncode == 3
    assert len(found.stderr.splitlines()) == 1, found.stderr


async def test_every_command_takes_a_config(tmp_path: Path) -> None:
    """Also those that need none; `init` writes it."""
    (tmp_path / "key").write_text("NNSXS.X")
    for command in (("catalogue", "as.up.data.forward"), ("schema",)):
        assert (await bridge_command(tmp_path, *command, "-c", "other.yaml")).returncode == 0
    (tmp_path / "other.yaml").touch()
    asked = ("init", "--url", "http://127.0.0.1:1", "--api-key-file", "key", "-c", "other.yaml")
    found = await bridge_command(tmp_path, *asked)
    assert (found.returncode, found.stderr) == (
        2,
        "other.yaml: exists; name another file with -o, or add --force\n",
    )


async def test_warnings_and_streams_have_their_places(tmp_path: Path) -> None:
    """A sink nobody sends to, a template no event fits: each with its line; and what is opened."""
    text = CONFIG.format(tts="http://127.0.0.1:1", token=TOKEN, crm="http://127.0.0.1:1", admin=ADMIN)
    more = (
        "  idle: {type: slack, webhook_url: 'https://hooks.slack.com/services/x'}\n"
        "  chat:\n    type: slack\n    webhook_url: https://hooks.slack.com/services/x\n"
        "    text: '{{ data.uplink_message.f_prt }}'\n"
    )
    text = text.replace("sinks:\n", f"sinks:\n{more}")
    line = text.splitlines().index("sinks:") + 1
    (tmp_path / "bridge.yaml").write_text(text)
    (tmp_path / "rules.yaml").write_text(
        "rules:\n  - {name: a, match: {name: as.up.data.forward}, send: [chat, crm]}\n"
    )
    found = await bridge_command(tmp_path, "check")
    assert found.returncode == 0, found.stderr
    assert f"bridge.yaml:{line + 1}: sinks.idle: no rule sends to it" in found.stdout
    assert f"bridge.yaml:{line + 5}: sinks.chat.text: rule a sends as.up.data.forward" in found.stdout
    assert "  stream of application plant-a" in found.stdout


async def test_check_prints_what_would_run_or_the_line_to_add(tmp_path: Path) -> None:
    """Exit 1 for an address the guard would refuse, which no syntax can tell."""
    text = CONFIG.format(tts="http://127.0.0.1:1", token=TOKEN, crm="http://127.0.0.1:1", admin=ADMIN)
    (tmp_path / "bridge.yaml").write_text(text)
    (tmp_path / "rules.yaml").write_text(RULES)
    good = await bridge_command(tmp_path, "check")
    assert good.returncode == 0, good.stderr
    assert "sink crm: webhook" in good.stdout
    (tmp_path / "bridge.yaml").write_text(text.replace("    allow_private_networks: true\n", ""))
    refused = await bridge_command(tmp_path, "check")
    assert refused.returncode == 1
    said = "the guard refuses its address: loopback; add allow_networks: [127.0.0.1]"
    assert f"bridge.yaml:10: sinks.crm.url: {said}" in refused.stderr
