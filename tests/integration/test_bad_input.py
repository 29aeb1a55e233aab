"""Wrong input, each once: one clear line, the right exit code or the right retry, nothing lost."""

from __future__ import annotations

import itertools
import socket
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest

from bridge.receiver import receive
from bridge.standin import ALL, World, serve
from bridge.standin.faults import Garbage
from tests.integration.process import run, running, until, until_connected, until_settled
from tests.recordings import documents, json_bytes
from tests.servers import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.timeout(90)]

TOKEN = "NNSXS.AAAAAAAA.BBBBBBBB"
RULES = "rules:\n  - name: all\n    match: {}\n    send: [crm]\n"


def config(
    *,
    tts: str = "http://127.0.0.1:1",
    crm: str = "http://127.0.0.1:1/",
    key: str = TOKEN,
    admin: str = "127.0.0.1:0",
    more: str = "",
) -> str:
    return f"""sources:
  eu1:
    type: tts
    url: {tts}
    api_key: {key}
    identifiers:
      - application: plant-a
sinks:
  crm:
    type: webhook
    url: {crm}
    allow_private_networks: true
    retry: {{initial: 100ms, max: 500ms}}
rules: [rules.yaml]
admin: {{listen: "{admin}"}}
log: {{format: json}}
{more}"""


def write(folder: Path, text: str, rules: str = RULES) -> None:
    (folder / "bridge.yaml").write_text(text)
    (folder / "rules.yaml").write_text(rules)


def refused(folder: Path, code: int, *lines: str, env: Mapping[str, str] | None = None) -> None:
    """`bridge run` ends with *code* and says each of *lines*, without a traceback and without the key."""
    ended = run("run", "-c", "bridge.yaml", cwd=folder, env=env)
    said = ended.stdout + ended.stderr
    assert ended.returncode == code, said
    assert "Traceback" not in said
    assert TOKEN not in said
    for line in lines:
        assert line in said, said


def test_yaml_that_is_none(tmp_path: Path) -> None:
    """The line the parser stopped at."""
    write(tmp_path, "sources:\n  eu1: {type: tts\nsinks: {}\n")
    refused(tmp_path, 2, "bridge.yaml:3: not valid YAML")


def test_an_unknown_key(tmp_path: Path) -> None:
    """With the key that was probably meant."""
    write(tmp_path, config().replace("max: 500ms", "maxx: 500ms"))
    refused(tmp_path, 2, "bridge.yaml:13: sinks.crm.retry.maxx: unknown key; did you mean max?")


def test_a_bad_regular_expression(tmp_path: Path) -> None:
    """In the rule file, by its line."""
    write(tmp_path, config(), RULES.replace("match: {}", 'match: {name: "/(/"}'))
    refused(tmp_path, 2, "rules.yaml:3: rules[0].match.name")


def test_a_sink_nobody_knows(tmp_path: Path) -> None:
    """With the sink that was probably meant."""
    write(tmp_path, config(), RULES.replace("[crm]", "[crn]"))
    refused(tmp_path, 2, "rules.yaml:4: rules[0].send[0]", "did you mean crm?")


def test_a_secret_file_that_is_not_there(tmp_path: Path) -> None:
    """The key is named, the path is not a secret but the line says enough."""
    write(tmp_path, config(key="${file:secret-key}"))
    refused(tmp_path, 2, "bridge.yaml:5: sources.eu1.api_key:")


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    """In both files."""
    write(tmp_path, config(key="${env:NOT_SET}").replace("type: webhook", "type: webhok"), "rules: [{}]\n")
    refused(tmp_path, 2, "bridge.yaml:5: sources.eu1.api_key", "sinks.crm", "rules.yaml:1: rules[0]")


def test_no_config_file(tmp_path: Path) -> None:
    """The name and what to do."""
    refused(tmp_path, 2, "bridge.yaml")


def test_an_upstream_nobody_answers_at(tmp_path: Path) -> None:
    """Nothing waits and nothing opens: exit 3, after a grace."""
    write(tmp_path, config(tts=f"http://127.0.0.1:{free_port()}"))
    refused(tmp_path, 3, "no source opens")


async def test_a_wrong_key(tmp_path: Path) -> None:
    """A key the server does not know is no reason to wait."""
    async with serve(World({"NNSXS.OTHER.KEY": ALL})) as upstream:
        write(tmp_path, config(tts=upstream.url))
        await anyio.to_thread.run_sync(refused, tmp_path, 3, "no source opens", "API key not found")


def test_a_port_in_use(tmp_path: Path) -> None:
    """The address and the key to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        write(tmp_path, config(admin=f"127.0.0.1:{taken.getsockname()[1]}"))
        refused(tmp_path, 3, "cannot listen on 127.0.0.1", "admin.listen")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Read-only is told at once, not with the first event."""
    (tmp_path / "store").mkdir(mode=0o500)
    write(tmp_path, config(more="outbox: sqlite:store/bridge.db"))
    refused(tmp_path, 3, "bridge.db")


def test_a_database_of_another_program(tmp_path: Path) -> None:
    """It is left as it was."""
    with sqlite3.connect(tmp_path / "bridge.db") as other:
        other.execute("CREATE TABLE contacts (name TEXT)")
    before = (tmp_path / "bridge.db").read_bytes()
    write(tmp_path, config())
    refused(tmp_path, 3, "bridge.db")
    assert (tmp_path / "bridge.db").read_bytes() == before


async def test_a_second_bridge_on_the_same_store(tmp_path: Path) -> None:
    """The first goes on."""
    async with serve(World({TOKEN: ALL})) as upstream:
        for event in documents("apps.sse"):
            upstream.world.publish(json_bytes(event))
        write(tmp_path, config(tts=upstream.url))
        async with running(tmp_path) as bridge:
            await anyio.to_thread.run_sync(refused, tmp_path, 3, "bridge.db")
            assert bridge.process.poll() is None


async def test_a_receiver_that_is_down_at_start_gets_everything_later(tmp_path: Path) -> None:
    """Retried, not given up."""
    port = free_port()
    async with serve(World({TOKEN: ALL})) as upstream:
        write(tmp_path, config(tts=upstream.url, crm=f"http://127.0.0.1:{port}/"))
        async with running(tmp_path) as bridge:
            await until_connected(bridge)
            upstream.world.publish(json_bytes(next(documents("apps.sse"))))
            await until(bridge, lambda status: status["sinks"]["crm"]["retried"] >= 2)
            async with receive(port=port):
                await until_settled(bridge, {"crm": 1})


async def test_a_frame_of_garbage_is_skipped(tmp_path: Path) -> None:
    """Counted, and the events around it arrive."""
    world = World({TOKEN: ALL})
    world.faults.always = (Garbage(1),)
    uplinks = (each for each in documents("apps.sse") if "plant-a" in str(each["identifiers"]))
    events = list(itertools.islice(uplinks, 3))
    async with serve(world) as upstream, receive() as crm:
        write(tmp_path, config(tts=upstream.url, crm=crm.url))
        async with running(tmp_path) as bridge:
            await until_connected(bridge)
            for event in events:
                world.publish(json_bytes(event))
            await until_settled(bridge, {"crm": 3})
            assert 'bridge_source_frame_errors_total{source="eu1"} 1.0' in await bridge.metrics()
