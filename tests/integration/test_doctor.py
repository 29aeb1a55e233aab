"""`bridge doctor` against the stand-in and real receivers: in each broken state the one thing is named."""

from __future__ import annotations

import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio
import msgspec
import pytest

from bridge.commands import doctor_sinks
from bridge.commands.check_online import asked
from bridge.commands.doctor import examined
from bridge.config import load
from bridge.doctor import Finding
from bridge.errors import StartError
from bridge.event import Entity, rfc3339
from bridge.receiver import Reply, receive
from bridge.standin import ALL, Key, Refuse, Rights, Server, World, serve
from bridge.standin.rights import OF_KIND
from tests.alertmanagers import alertmanager
from tests.servers import certificates, free_port, mosquitto, need

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

TOKEN = "NNSXS.KEY.SECRET"
JANE = Entity("user", "jane")
PLANT_A = Entity("application", "plant-a")
METER = Entity("device", "plant-a/meter-01")
ROOF = Entity("gateway", "gw-roof")
READ = ("RIGHT_APPLICATION_INFO", "RIGHT_APPLICATION_DEVICES_READ", "RIGHT_APPLICATION_TRAFFIC_READ")
IDENTIFIERS = "[{application: plant-a}]"
RULE = "{name: uplinks, match: {name: as.up.data.forward}, send: [x]}"


def config(
    folder: Path,
    url: str,
    *,
    identifiers: str = IDENTIFIERS,
    rule: str = RULE,
    sinks: str = "",
    outbox: str = "",
    source: str = "tts",
    more: str = "",
) -> Path:
    (folder / "rules").mkdir(exist_ok=True)
    (folder / "rules" / "some.yaml").write_text(f"rules:\n  - {rule}\n")
    sinks = sinks or f"{{x: {{type: webhook, url: '{url}/x', allow_private_networks: true}}}}"
    what = f"identifiers: {identifiers}" if source == "tts" else "user: jane"
    path = folder / "bridge.yaml"
    path.write_text(
        f"sources:\n  eu1: {{type: {source}, url: '{url}', api_key: {TOKEN}, {what}{more}}}\n"
        f"sinks: {sinks}\noutbox: 'sqlite:{outbox or folder / 'bridge.db'}'\nmax_size: 1MiB\n"
    )
    return path


async def found(path: Path) -> list[Finding]:
    return await examined(load(path, {}))


def wrong(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(each.about, each.check) for each in findings if each.verdict == "wrong"]


def one(findings: list[Finding], check: str) -> Finding:
    return next(each for each in findings if each.check == check)


def reading() -> Key:
    return Key.of(PLANT_A, *READ)


async def test_all_is_well_and_every_check_says_so(tmp_path: Path) -> None:
    async with serve(World({TOKEN: reading()})) as server:
        findings = await found(config(tmp_path, server.url))
    assert wrong(findings) == []
    checks = {each.check: each.verdict for each in findings}
    assert checks == {
        "address": "ok",
        "connection": "ok",
        "key": "ok",
        "clock": "ok",
        "rights": "ok",
        "stream": "ok",
        "history": "ok",
        "window": "unknown",
        "disk": "ok",
        "speed": "ok",
    }


def no_key(world: World) -> None:
    world.revoke(TOKEN)


def no_store(world: World) -> None:
    world.storage = False


def late_clock(world: World) -> None:
    clock = world.clock
    world.clock = lambda: clock() - 3600


def deleted(world: World) -> None:
    world.delete(PLANT_A)


def narrowed(world: World) -> None:
    world.narrow(TOKEN, rights=["RIGHT_APPLICATION_INFO"])


def limited(world: World) -> None:
    world.faults.on_open(Refuse(429))


def failing(world: World) -> None:
    world.faults.always = (Refuse(500),)


def expired(world: World) -> None:
    world.keys[TOKEN] = replace(reading(), expires="2020-01-01T00:00:00Z")


def busy(world: World) -> None:
    """A hundred and more events of the last ten seconds."""
    ids = [{"application_ids": {"application_id": "plant-a"}}]
    for number in range(150):
        event = {"name": "as.up.data.forward", "time": rfc3339(world.now - (150 - number) * 66_000_000)}
        world.publish(msgspec.json.encode(event | {"identifiers": ids, "unique_id": world.new_id()}))


def older(world: World) -> None:
    world.names = {name: carried for name, carried in world.names.items() if name != "as.up.data.forward"}


BROKEN: list[tuple[Callable[[World], None], str, str, str]] = [
    (no_key, "key", "API key not found", "new API key"),
    (expired, "key", "expired", "new API key"),
    (no_store, "history", "keeps none", "events.redis.store.enable"),
    (late_clock, "clock", "60 min ahead", "NTP"),
    (deleted, "scope", "no right on application plant-a", "identifiers"),
    (narrowed, "rights", "rule uplinks does not get as.up.data.forward", "RIGHT_APPLICATION_TRAFFIC_READ"),
    (limited, "rate limit", "for 6 s", "raise the limit"),
    (failing, "stream", "does not open", "server"),
    (busy, "window", "at the present rate", "entity-count"),
    (older, "names", "does not know as.up.data.forward", "upgrade"),
]


@pytest.mark.parametrize(("breaks", "check", "says", "do"), BROKEN, ids=[each[0].__name__ for each in BROKEN])
async def test_a_broken_state_of_the_upstream_is_named(
    tmp_path: Path, breaks: Callable[[World], None], check: str, says: str, do: str
) -> None:
    """That and nothing else is wrong, and what to do is said."""
    world = World({TOKEN: reading()})
    breaks(world)
    async with serve(world) as server:
        findings = await found(config(tmp_path, server.url))
    assert wrong(findings) == [("source eu1", check)]
    finding = next(each for each in findings if each.verdict == "wrong")
    assert says in finding.says
    assert do in finding.do
    assert TOKEN not in str(findings)


@pytest.mark.parametrize(
    ("key", "more", "check", "says"),
    [
        (
            reading(),
            {"identifiers": "[{gateway: gw-roof}, {application: plant-a}]"},
            "key",
            "good for nothing else",
        ),
        (
            Key.of(JANE, on={PLANT_A: (), ROOF: ()}),
            {"rule": "{name: drops, match: {name: ns.up.data.drop}, send: [x]}"},
            "reach",
            "rule drops waits for ns.up.data.drop",
        ),
        (
            Key(JANE, OF_KIND["user"] - {"RIGHT_USER_GATEWAYS_LIST", "RIGHT_USER_ALL"}),
            {"identifiers": "[{gateway: '*'}, {user: jane}]"},
            "scope",
            "gateways cannot be listed",
        ),
        (Key.of(JANE), {"identifiers": "[{gateway: '*'}]"}, "scope", "sees nothing"),
        (reading(), {"source": "tts-notifications"}, "notifications", "no_user_rights"),
    ],
)
async def test_a_key_that_does_not_fit_the_config_is_named(
    tmp_path: Path, key: Rights, more: dict[str, str], check: str, says: str
) -> None:
    async with serve(World({TOKEN: key}, entities=[PLANT_A, ROOF, METER, JANE])) as server:
        findings = await found(config(tmp_path, server.url, **more))
    assert ("source eu1", check) in wrong(findings)
    assert says in next(each.says for each in findings if each.check == check and each.verdict == "wrong")


async def test_a_key_that_may_do_more_than_read_and_ends_soon_is_a_note(tmp_path: Path) -> None:
    world = World({TOKEN: ALL}, entities=[PLANT_A])
    soon = replace(Key.of(PLANT_A, *READ), expires=rfc3339(world.now + 86_400_000_000_000))
    async with serve(world) as server:
        findings = await found(config(tmp_path, server.url))
        world.keys[TOKEN] = soon
        findings += await found(config(tmp_path, server.url))
    assert wrong(findings) == []
    notes = [each.says for each in findings if each.verdict == "note"]
    assert any("admin" in each for each in notes)
    assert any("expires in 24 h" in each for each in notes)


async def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    findings = await found(config(tmp_path, f"http://127.0.0.1:{free_port()}"))
    assert sorted(wrong(findings)) == [("sink x", "connection"), ("source eu1", "server")]


async def test_an_answer_that_is_held_back_is_named(tmp_path: Path) -> None:
    """As by a proxy that buffers: the key is answered for, and the stream never starts."""
    async with serve(World({TOKEN: reading()})) as server:
        server.stall()
        findings = await found(config(tmp_path, server.url))
        server.resume()
    assert wrong(findings) == [("source eu1", "stream")]
    assert "proxy" in one(findings, "stream").says


async def sinks(tmp_path: Path, server: Server, text: str) -> list[Finding]:
    settings = load(config(tmp_path, server.url, sinks=f"{{x: {text}}}"), {})
    return [each async for each in doctor_sinks.sink("x", settings.sinks["x"], time.time)]


async def test_a_broker_is_logged_into_and_published_to(tmp_path: Path) -> None:
    """With an access list: a wrong password and a topic that is not allowed are told apart."""
    (tmp_path / "acl").write_text("user bridge\ntopic readwrite tts/#\n")
    (tmp_path / "passwords").write_text("bridge:secret\n")
    passwd(tmp_path / "passwords")
    rules = f"allow_anonymous false\npassword_file {tmp_path}/passwords\nacl_file {tmp_path}/acl"
    with mosquitto(tmp_path / "broker", config=rules) as broker:
        async with serve(World({TOKEN: reading()})) as server:
            login = f"type: mqtt, url: '{broker.url()}', username: bridge, password"
            good = await sinks(tmp_path, server, f"{{{login}: secret}}")
            bad = await sinks(tmp_path, server, f"{{{login}: other}}")
            shut = await sinks(tmp_path, server, f"{{{login}: secret, topic: other/x}}")
            old = await sinks(tmp_path, server, f"{{{login}: secret, protocol: 3.1.1}}")
    assert [(each.check, each.verdict) for each in good] == [("login", "ok"), ("publish", "ok")]
    assert [(each.check, each.verdict) for each in bad] == [("login", "wrong")]
    assert [(each.check, each.verdict) for each in shut] == [("login", "ok"), ("publish", "wrong")]
    assert [(each.check, each.verdict) for each in old] == [("login", "ok"), ("publish", "unknown")]
    assert "bridge/x/status" not in broker.log


def passwd(path: Path) -> None:
    """Turn clear passwords into mosquitto's hashes."""
    subprocess.run([need("mosquitto_passwd"), "-U", path], check=True)


async def test_receivers_that_cannot_be_reached_are_named(tmp_path: Path) -> None:
    """The guard, a closed port, a name that does not exist, a certificate nobody knows, no broker."""
    certs = certificates(tmp_path / "certs")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certs.server, certs.server_key)
    port = free_port()
    async with serve(World({TOKEN: reading()})) as server, receive(tls=tls) as secured, receive() as plain:
        allow = "allow_private_networks: true"
        webhook = "type: webhook, url"
        cases = {
            f"{{{webhook}: '{plain.url}/x', {allow}}}": [("address", "ok"), ("connection", "ok")],
            f"{{{webhook}: '{plain.url}/x'}}": [("address", "wrong")],
            f"{{{webhook}: 'http://127.0.0.1:{port}/x', {allow}}}": [
                ("address", "ok"),
                ("connection", "wrong"),
            ],
            f"{{{webhook}: 'http://nowhere.invalid/x'}}": [("address", "wrong")],
            f"{{{webhook}: '{secured.url}/x', {allow}}}": [("address", "ok"), ("connection", "wrong")],
            f"{{{webhook}: '{secured.url}/x', {allow}, tls: {{ca_file: {certs.ca}}}}}": [
                ("address", "ok"),
                ("connection", "ok"),
            ],
            f"{{type: mqtt, url: 'mqtt://127.0.0.1:{port}'}}": [("connection", "wrong")],
            "{type: mqtt, url: 'mqtt://nowhere.invalid'}": [("address", "wrong")],
        }
        for text, expected in cases.items():
            findings = await sinks(tmp_path, server, text)
            assert [(each.check, each.verdict) for each in findings] == expected, text
        assert (
            "allow_networks: [127.0.0.1]"
            in (await sinks(tmp_path, server, f"{{{webhook}: '{plain.url}/x'}}"))[0].do
        )
    assert plain.deliveries == []


async def test_slack_is_asked_without_a_message(tmp_path: Path) -> None:
    """A token by auth.test; a webhook by a message that Slack refuses because it has no text."""
    async with serve(World({TOKEN: reading()})) as server, receive() as slack:
        api = f"api_url: '{slack.url}', allow_private_networks: true"
        token = f"{{type: slack, token: xoxb-1, channel: C1, {api}}}"
        webhook = f"{{type: slack, webhook_url: '{slack.url}/services/T/B/X'}}"
        answers: list[tuple[str, Reply, str]] = [
            (token, Reply(200, body=b'{"ok":true,"team":"Acme"}'), "ok"),
            (token, Reply(200, body=b'{"ok":false,"error":"invalid_auth"}'), "wrong"),
            (token, Reply(200, body=b"<html>"), "wrong"),
            (webhook, Reply(400, body=b"no_text"), "ok"),
            (webhook, Reply(404, body=b"no_service"), "wrong"),
            (webhook, Reply(403, body=b"invalid_token"), "wrong"),
        ]
        for text, reply, verdict in answers:
            slack.answer = reply
            findings = await sinks(tmp_path, server, text)
            assert [(each.check, each.verdict) for each in findings] == [("slack", verdict)]
            assert "xoxb-1" not in str(findings)
            assert "/services/" not in str(findings)
    assert {each.body for each in slack.deliveries} == {b"{}"}


async def test_a_real_alertmanager_is_asked_and_told_nothing(tmp_path: Path) -> None:
    """It takes an empty list; what is none, is not there or wants a password is named."""
    async with serve(World({TOKEN: reading()})) as server, receive() as other:
        with alertmanager(tmp_path / "am", other.url) as real:
            (well,) = await sinks(tmp_path, server, f"{{type: alertmanager, url: '{real.url}'}}")
            assert await real.alerts() == []
        assert (well.check, well.verdict) == ("alertmanager", "ok")
        for url, status, expected in (
            (other.url, 404, ("alertmanager", "correct url")),
            (other.url, 401, ("login", "correct username and password, or token")),
            (f"http://127.0.0.1:{free_port()}", 200, ("connection", doctor_sinks.FIREWALL)),
        ):
            other.answer = Reply(status)
            (found,) = await sinks(tmp_path, server, f"{{type: alertmanager, url: '{url}'}}")
            assert (found.check, found.do, found.verdict) == (*expected, "wrong")


async def test_a_disk_that_is_no_good_is_named(tmp_path: Path) -> None:
    (tmp_path / "other.db").write_bytes(b"SQLite format 3\0" + b"\0" * 4096)
    async with serve(World({TOKEN: reading()})) as server:
        nowhere = await found(config(tmp_path, server.url, outbox=str(tmp_path / "none" / "bridge.db")))
        foreign = await found(config(tmp_path, server.url, outbox=str(tmp_path / "other.db")))
    assert wrong(nowhere) == wrong(foreign) == [("outbox", "disk")]
    assert not (tmp_path / "none").exists()


async def test_check_online_names_the_line_of_the_rule_the_key_is_too_weak_for(tmp_path: Path) -> None:
    """And of the alert; a key that is refused is a warning too, a server that is not there an error."""
    world = World({TOKEN: reading()})
    quiet = "{name: quiet, kind: absent, for: 2h, by: device, send: [x], match: {name: as.up.data.forward}}"
    async with serve(world) as server:
        path = config(tmp_path, server.url)
        with (tmp_path / "rules" / "some.yaml").open("a") as file:
            file.write(f"alerts:\n  - {quiet}\n")
        assert await asked(load(path, {})) == (["online: source eu1: 1 entities that the key can see"], [])
        world.narrow(TOKEN, rights=["RIGHT_APPLICATION_INFO"])
        _, weak = await asked(load(path, {}))
        arguments = ["check", "--online", "--strict", "-c", str(path)]
        strict = await anyio.run_process([sys.executable, "-m", "bridge", *arguments], check=False)
        (tmp_path / "rules" / "some.yaml").write_text(
            f"rules:\n  - {RULE[:-1]}, allow: {{rights: not yet}}}}\n"
        )
        _, allowed = await asked(load(path, {}))
        world.revoke(TOKEN)
        _, (refused,) = await asked(load(path, {}))
    lacks = (
        "source eu1: {} does not get as.up.data.forward; give the key RIGHT_APPLICATION_TRAFFIC_READ (rights)"
    )
    said = [
        f"{tmp_path}/rules/some.yaml:2: rules[0].match: {lacks.format('rule uplinks')}",
        f"{tmp_path}/rules/some.yaml:4: alerts[0]: {lacks.format('alert quiet')}",
    ]
    assert list(map(str, weak)) == said
    assert (strict.returncode, strict.stderr.decode().splitlines()) == (2, said)
    assert allowed == []
    assert str(refused).startswith(f"{path}:2: sources.eu1.api_key: the server refuses it")
    with pytest.raises(StartError, match="source eu1: "):
        await asked(load(path, {}))


async def test_the_command_prints_a_line_each_and_ends_with_1_if_something_is_wrong(tmp_path: Path) -> None:
    async def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return await anyio.run_process([sys.executable, "-m", "bridge", "doctor", *arguments], check=False)

    world = World({TOKEN: reading()})
    async with serve(world) as server:
        path = str(config(tmp_path, server.url))
        good = await run("-c", path)
        world.revoke(TOKEN)
        bad = await run("-c", path, "--json")
    assert good.returncode == 0
    assert b"ok      source eu1: key: that of application plant-a" in good.stdout
    assert b"0 wrong" in good.stderr
    assert bad.returncode == 1
    objects = [msgspec.json.decode(line) for line in bad.stdout.splitlines()]
    assert next(each for each in objects if each["verdict"] == "wrong")["check"] == "key"
