"""The MQTT sink against a real mosquitto, and against a scripted peer where mosquitto is too well-behaved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import pytest

from bridge import decode
from bridge.delivery import Delivered, Delivery, Outcome, Pause, Rejected, RetryLater
from bridge.sinks.mqtt import Mqtt, MqttConfig, open_mqtt
from tests.mqtt_peer import (
    MAXIMUM_QOS,
    RECEIVE_MAXIMUM,
    RETAIN_AVAILABLE,
    Acknowledge,
    Break,
    Hold,
    Peer,
    mqtt_peer,
)
from tests.servers import Certificates, Mosquitto, certificates, free_port, mosquitto, need
from tests.subscriber import subscriber

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

SCHEMES = ("mqtt", "mqtts", "mtls", "ws", "wss")
STATUS = "bridge/sut/status"


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("certs"))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, certs: Certificates) -> Iterator[Mosquitto]:
    """Of every listener; not to be stopped by a test."""
    with mosquitto(tmp_path_factory.mktemp("broker"), certs=certs) as running:
        yield running


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """One to kill."""
    with mosquitto(tmp_path / "broker") as running:
        yield running


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with mqtt_peer(Peer(free_port())) as listening:
        yield listening


def delivery(number: int = 1, body: bytes | None = None) -> Delivery:
    made = body or (
        b'{"name":"as.up.data.forward","time":"2026-11-23T21:09:06Z","identifiers":[{"device_ids":{"device_id":'
        b'"meter-01","application_ids":{"application_id":"plant-a"}}}],"unique_id":"%d"}' % number
    )
    return Delivery(number, f"d_{number:026}", decode.event(made), "eu1", "rule-1", "sut", 1, 0.0)


def sink(url: str, **keys: Any) -> AbstractAsyncContextManager[Mqtt]:
    config = MqttConfig.model_validate({"type": "mqtt", "url": url} | keys)
    return open_mqtt("sut", config, now=lambda: 0.0)


def peer_sink(peer: Peer, **keys: Any) -> AbstractAsyncContextManager[Mqtt]:
    return sink(f"mqtt://127.0.0.1:{peer.port}", **keys)


def tls_keys(certs: Certificates, listener: str) -> dict[str, Any]:
    if listener not in ("mqtts", "mtls", "wss"):
        return {}
    keys = {"ca_file": str(certs.ca)}
    if listener == "mtls":
        keys |= {"cert_file": str(certs.client), "key_file": str(certs.client_key)}
    return {"tls": keys}


async def sent(opened: Mqtt, numbers: range) -> dict[int, Outcome]:
    """The outcomes of sending *numbers* all at once."""
    outcomes: dict[int, Outcome] = {}

    async def one(number: int) -> None:
        outcomes[number] = await opened.send(delivery(number))

    async with anyio.create_task_group() as tasks:
        for number in numbers:
            tasks.start_soon(one, number)
    return outcomes


async def delivered(opened: Mqtt, number: int) -> None:
    with anyio.fail_after(15):
        while not isinstance(await opened.send(delivery(number)), Delivered):
            await anyio.sleep(0.05)


async def until(condition: Any, what: str) -> None:
    with anyio.move_on_after(10):
        while not condition():
            await anyio.sleep(0.01)
        return
    pytest.fail(f"{what} did not happen")


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("protocol", [5, "3.1.1"])
@pytest.mark.parametrize("listener", SCHEMES)
async def test_every_delivery_arrives_once(
    broker: Mosquitto, certs: Certificates, listener: str, protocol: object, qos: int
) -> None:
    """Every scheme, protocol and QoS; more at once than the broker's receive maximum of 20."""
    topic = f"{listener}/{protocol}/{qos}"
    keys = {"protocol": protocol, "qos": qos, "topic": topic + "/{{ event.unique_id }}"}
    with subscriber(broker.port, topic + "/#") as found:
        async with sink(broker.url(listener), **keys, **tls_keys(certs, listener)) as opened:
            outcomes = await sent(opened, range(60))
        await until(lambda: len(found.messages) >= 60, "the arrival of 60 messages")
    assert {type(outcome) for outcome in outcomes.values()} == {Delivered}
    assert Counter(message.topic for message in found.messages) == {f"{topic}/{n}": 1 for n in range(60)}
    assert {message.qos for message in found.messages} == {qos}


@pytest.mark.parametrize("listener", SCHEMES)
async def test_large_messages_arrive_whole(broker: Mosquitto, certs: Certificates, listener: str) -> None:
    """More than the socket takes at once: written in pieces, the acknowledgements read meanwhile."""
    topic = f"large/{listener}"
    bodies = {number: large(2_000_000 + number) for number in range(4)}
    with subscriber(broker.port, topic + "/#") as found:
        keys = {"topic": topic + "/{{ event.unique_id }}", **tls_keys(certs, listener)}
        async with sink(broker.url(listener), **keys) as opened, anyio.create_task_group() as tasks:
            outcomes: list[Outcome] = []

            async def one(number: int) -> None:
                outcomes.append(await opened.send(delivery(number, bodies[number])))

            for number in bodies:
                tasks.start_soon(one, number)
        await until(lambda: len(found.messages) >= 4, "the arrival of four")
    assert {type(outcome) for outcome in outcomes} == {Delivered}
    assert sorted(message.payload for message in found.messages) == sorted(bodies.values())


async def test_a_message_says_what_it_is(broker: Mosquitto) -> None:
    """Payload, content type, user properties, expiry, retain."""
    keys = {"message_expiry": "1h", "topic": "what/{{ ids.path }}", "retain": True}
    async with sink(broker.url(), **keys) as opened:
        assert isinstance(await opened.send(delivery(7)), Delivered)
    with subscriber(broker.port, "what/#") as found:
        await until(lambda: found.messages, "the retained message")
    (message,) = found.messages
    assert message.topic == "what/plant-a/meter-01"
    assert message.payload == delivery(7).event.body
    assert message.user == {
        "bridge-delivery": delivery(7).id,
        "unique_id": "7",
        "event": "as.up.data.forward",
    }
    assert message.content_type == "application/json"
    assert message.retain
    assert message.expiry is not None
    assert 3590 <= message.expiry <= 3600


async def test_the_status_is_online_while_connected_and_offline_after(broker: Mosquitto) -> None:
    """Retained: who subscribes later sees it too; a closed bridge leaves `offline`."""
    with subscriber(broker.port, "bridge/#") as found:
        async with sink(broker.url()) as opened:
            await delivered(opened, 1)
            await until(lambda: found.payloads(STATUS)[-1:] == [b"online"], "online")
            with subscriber(broker.port, STATUS) as later:
                await until(lambda: later.messages, "the retained status")
            assert (later.messages[0].payload, later.messages[0].retain) == (b"online", True)
        await until(lambda: found.payloads(STATUS)[-1:] == [b"offline"], "offline")


PROGRAM = """
import asyncio, sys
from bridge.sinks.mqtt import MqttConfig, open_mqtt
async def main():
    config = MqttConfig.model_validate({"type": "mqtt", "url": sys.argv[1], "protocol": sys.argv[2]})
    async with open_mqtt("killed", config, now=lambda: 0.0):
        await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_killed_process_is_offline(broker: Mosquitto, protocol: str) -> None:
    """The last will speaks for a bridge that cannot."""
    with subscriber(broker.port, "bridge/killed/#") as found:
        command = [sys.executable, "-c", PROGRAM, broker.url(), protocol]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            found.wait_for("bridge/killed/status", b"online")
            os.kill(process.pid, signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
        found.wait_for("bridge/killed/status", b"offline")


async def test_a_command_leaves_the_bridge_and_its_status_alone(broker: Mosquitto) -> None:
    """A client id with a suffix takes over no session, and says neither online nor offline."""
    config = MqttConfig.model_validate({"type": "mqtt", "url": broker.url()})
    with subscriber(broker.port, "bridge/#") as found:
        async with sink(broker.url()) as running:
            await delivered(running, 1)
            async with open_mqtt("sut", config, now=lambda: 0.0, suffix="x7f") as command:
                await delivered(command, 2)
            outcomes = await sent(running, range(10))
            assert {type(outcome) for outcome in outcomes.values()} == {Delivered}
            assert b"offline" not in found.payloads(STATUS)[1:]


def acl(directory: Path) -> str:
    """A config with the user `bridge` (password `right`), who may publish below `free` and his status."""
    directory.mkdir(parents=True, exist_ok=True)
    passwords = directory / "passwords"
    subprocess.run([need("mosquitto_passwd"), "-b", "-c", passwords, "bridge", "right"], check=True)
    rules = directory / "acl"
    rules.write_text(f"user bridge\ntopic readwrite free/#\ntopic readwrite {STATUS}\n")
    return f"allow_anonymous false\npassword_file {passwords}\nacl_file {rules}\n"


@pytest.mark.parametrize("qos", [1, 2])
async def test_a_publish_the_access_list_denies_pauses_the_sink(tmp_path: Path, qos: int) -> None:
    """PUBACK and PUBREC with 0x87 are no success."""
    with mosquitto(tmp_path, config=acl(tmp_path)) as broker:
        login = {"username": "bridge", "password": "right", "qos": qos}
        async with sink(broker.url(), topic="denied/x", **login) as opened:
            outcome = await opened.send(delivery())
        assert isinstance(outcome, Pause)
        assert (outcome.failure.reason, outcome.failure.status) == ("auth", 0x87)
        async with sink(broker.url(), topic="free/x", **login) as opened:
            assert isinstance(await opened.send(delivery()), Delivered)


@pytest.mark.parametrize("protocol", [5, "3.1.1"])
async def test_a_wrong_password_pauses_the_sink(tmp_path: Path, protocol: object) -> None:
    """CONNACK says so; each later attempt finds out anew, so a corrected broker is seen."""
    with mosquitto(tmp_path, config=acl(tmp_path)) as broker:
        keys = {"username": "bridge", "password": "wrong", "protocol": protocol, "topic": "free/x"}
        async with sink(broker.url(), **keys) as opened:
            for _ in range(2):
                outcome = await opened.send(delivery())
                assert isinstance(outcome, Pause)
                assert outcome.failure.reason == "auth"
            passwords = tmp_path / "passwords"
            subprocess.run([need("mosquitto_passwd"), "-b", passwords, "bridge", "wrong"], check=True)
            await anyio.to_thread.run_sync(broker.restart)
            await delivered(opened, 2)


async def test_an_unknown_authority_pauses_the_sink(broker: Mosquitto, tmp_path: Path) -> None:
    """So does the system's trust for a private CA."""
    other = certificates(tmp_path / "other")
    for keys in ({"tls": {"ca_file": str(other.ca)}}, {}):
        async with sink(broker.url("mqtts"), **keys) as opened:
            outcome = await opened.send(delivery())
        assert isinstance(outcome, Pause)
        assert outcome.failure.reason == "tls"
        assert "certificate" in outcome.failure.error


async def test_a_missing_client_certificate_pauses_the_sink(broker: Mosquitto, certs: Certificates) -> None:
    """TLS 1.3 says so only after the handshake."""
    async with sink(broker.url("mtls"), tls={"ca_file": str(certs.ca)}) as opened:
        outcome = await opened.send(delivery())
    assert isinstance(outcome, Pause)
    assert outcome.failure.reason == "tls"


async def test_a_name_that_does_not_resolve_pauses_the_sink() -> None:
    """`.invalid` never does (RFC 6761)."""
    async with sink("mqtt://no-such-broker.invalid") as opened:
        outcome = await opened.send(delivery())
    assert isinstance(outcome, Pause)
    assert outcome.failure.reason == "dns"


async def test_a_broker_that_is_away_at_start_is_found_later(own_broker: Mosquitto) -> None:
    """Opening does not wait for it, and nothing has to be opened again."""
    own_broker.kill()
    with anyio.fail_after(1):
        context = sink(own_broker.url(), timeout="300ms")
        opened = await context.__aenter__()
    outcome = await opened.send(delivery())
    assert isinstance(outcome, RetryLater)
    assert outcome.failure.reason == "connect"
    assert "Connection refused" in outcome.failure.error
    own_broker.start()
    await delivered(opened, 1)
    await context.__aexit__(None, None, None)


@pytest.mark.parametrize("qos", [1, 2])
async def test_a_broker_killed_in_flight_loses_nothing_that_was_acknowledged(
    own_broker: Mosquitto, qos: int
) -> None:
    """What counted as delivered is at the subscriber; the rest comes again only when the caller says so."""
    outcomes: dict[int, Outcome] = {}
    killed = anyio.Event()

    async def slot(opened: Mqtt, numbers: Iterator[int]) -> None:
        for number in numbers:
            outcomes[number] = await opened.send(delivery(number))
            if killed.is_set():
                return

    with subscriber(own_broker.port, "tts/#", qos=0) as found:
        async with sink(own_broker.url(), qos=qos, timeout="1s") as opened:
            async with anyio.create_task_group() as tasks:
                numbers = iter(range(100_000))
                for _ in range(50):
                    tasks.start_soon(slot, opened, numbers)
                await until(lambda: len(outcomes) > 300, "300 outcomes")
                own_broker.kill()
                killed.set()
            done = {number for number, outcome in outcomes.items() if isinstance(outcome, Delivered)}
            again = sorted(outcomes.keys() - done)
            assert 0 < len(again) <= 50
            await until(lambda: found.ids.count(delivery(max(done)).id) == 1, "the last acknowledged one")
            own_broker.start()
            await until(lambda: found.subscriptions == 2, "the new subscription")
            before = len(found.messages)
            await delivered(opened, 1_000_000)
            await until(lambda: delivery(1_000_000).id in found.ids, "the first one afterwards")
            assert [each.user["bridge-delivery"] for each in found.messages[before:]] == [
                delivery(1_000_000).id
            ]
            for number in again:
                await delivered(opened, number)
            await until(lambda: delivery(again[-1]).id in found.ids, "the last repeat")
    arrived = Counter(found.ids)
    assert {number for number in done if arrived[delivery(number).id] != 1} == set()
    assert {number for number in again if not 1 <= arrived[delivery(number).id] <= 2} == set()


async def test_a_broker_that_restarts_costs_nothing_but_time(own_broker: Mosquitto) -> None:
    """An attempt made meanwhile waits for the connection within its timeout; status is said again."""
    async with sink(own_broker.url()) as opened:
        await delivered(opened, 1)
        own_broker.restart()
        await delivered(opened, 2)
        with subscriber(own_broker.port, STATUS) as found:
            await until(lambda: found.payloads(STATUS) == [b"online"], "the status")


async def test_a_payload_over_the_brokers_limit_is_a_dead_letter(tmp_path: Path) -> None:
    """mosquitto answers 0x95 beyond its message_size_limit; the connection holds."""
    with mosquitto(tmp_path, config="message_size_limit 2000") as broker:
        async with sink(broker.url()) as opened:
            outcome = await opened.send(delivery(1, large(2500)))
            assert isinstance(outcome, Rejected)
            assert outcome.failure.status == 0x95
            assert isinstance(await opened.send(delivery(2)), Delivered)
        assert broker.log.count("New client connected") == 1


async def test_a_packet_over_the_brokers_maximum_is_not_even_sent(tmp_path: Path) -> None:
    """Exactly the maximum still goes."""
    with mosquitto(tmp_path, config="max_packet_size 2000") as broker:
        async with sink(broker.url(), topic="t") as opened:
            (message,) = opened.compose(delivery(1, large(1500)))
            body = large(1500 + 2000 - message.size)
            assert isinstance(await opened.send(delivery(1, body)), Delivered)
            outcome = await opened.send(delivery(1, large(len(body) + 1)))
            assert isinstance(outcome, Rejected)
            assert "packet of 2001 bytes; the broker takes 2000" in outcome.failure.error
        assert "disconnected due to" not in broker.log


def large(size: int) -> bytes:
    """An event of *size* bytes."""
    start, end = b'{"name":"x","unique_id":"1","data":"', b'"}'
    return start + b"x" * (size - len(start) - len(end)) + end


async def test_a_receive_maximum_is_kept(peer: Peer) -> None:
    """MQTT 5 §3.3.4: never more unacknowledged than the broker said, and all of them arrive."""
    peer.limits = bytes([RECEIVE_MAXIMUM, 0, 2])
    peer.answer = Hold()

    async def release() -> None:
        while True:
            await until(lambda: peer.unacknowledged == 2 or len(peer.deliveries) == 9, "two in flight")
            peer.release()
            await anyio.sleep(0)

    async with peer_sink(peer, status_topic=None) as opened, anyio.create_task_group() as tasks:
        tasks.start_soon(release)
        outcomes = await sent(opened, range(9))
        tasks.cancel_scope.cancel()
    assert {type(outcome) for outcome in outcomes.values()} == {Delivered}
    assert peer.most_unacknowledged == 2
    assert len(peer.deliveries) == 9


async def test_a_late_acknowledgement_makes_room_and_is_not_mistaken(peer: Peer) -> None:
    """Attempts whose time is over leave nothing behind once the broker answers after all."""
    peer.limits = bytes([RECEIVE_MAXIMUM, 0, 2])
    held = {delivery(1).id, delivery(2).id}
    peer.reaction = lambda message: Hold() if message.delivery_id in held else Acknowledge()
    async with peer_sink(peer, timeout="200ms", status_topic=None) as opened:
        for late in (1, 2):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(opened.send, delivery(late))
                for number in range(10 * late, 10 * late + 8):
                    assert isinstance(await opened.send(delivery(number)), Delivered)
                    await anyio.sleep(0.05)
            peer.release()
        outcomes = await sent(opened, range(30, 40))
    assert {type(outcome) for outcome in outcomes.values()} == {Delivered}
    assert len(peer.clean) == 1


async def test_a_broker_that_acknowledges_nothing_is_left_and_nothing_is_resent(peer: Peer) -> None:
    """A silent connection is dropped; the new one starts clean, and without what was in flight."""
    async with peer_sink(peer, timeout="300ms") as opened:
        peer.answer = Acknowledge()
        await delivered(opened, 6)
        peer.answer = Hold()
        outcomes = await sent(opened, range(5))
        assert all(
            isinstance(o, RetryLater) and o.failure.reason in ("timeout", "connect")
            for o in outcomes.values()
        )
        peer.answer = Acknowledge()
        await delivered(opened, 7)
    assert [message.delivery_id for message in peer.deliveries].count(delivery(0).id) == 1
    assert not any(message.dup for message in peer.published)
    assert peer.clean == [True, True]


async def test_qos_0_is_done_when_its_bytes_are_written(peer: Peer) -> None:
    """Not while they wait for a broker that does not read."""
    peer.is_deaf = True
    async with peer_sink(peer, qos=0, timeout="500ms", status_topic=None) as opened:
        assert isinstance(await opened.send(delivery(1)), Delivered)
        outcome = await opened.send(delivery(2, large(16_000_000)))
    assert isinstance(outcome, RetryLater)
    assert outcome.failure.reason == "timeout"


async def test_a_refused_pubrec_is_the_end_of_it(peer: Peer) -> None:
    """MQTT 5 §4.3.3: no PUBREL follows a PUBREC that says no."""
    peer.answer = Acknowledge(0x97)
    async with peer_sink(peer, qos=2) as opened:
        outcome = await opened.send(delivery(1))
        peer.answer = Acknowledge()
        assert isinstance(await opened.send(delivery(2)), Delivered)
    assert isinstance(outcome, RetryLater)
    assert outcome.failure.status == 0x97
    refused = next(message.mid for message in peer.deliveries if message.delivery_id == delivery(1).id)
    assert refused not in peer.pubrels


async def test_a_packet_the_broker_throws_us_out_for_is_the_only_dead_letter(peer: Peer) -> None:
    """DISCONNECT 0x95 with several in flight: the largest was too large; the rest comes later."""
    peer.reaction = lambda message: Break(0x95) if message.size > 5000 else Hold()
    outcomes: dict[int, Outcome] = {}

    async def one(number: int, size: int) -> None:
        outcomes[number] = await opened.send(delivery(number, large(size)))

    async with peer_sink(peer, status_topic=None) as opened, anyio.create_task_group() as tasks:
        for number, size in ((1, 500), (2, 1000), (3, 6000)):
            tasks.start_soon(one, number, size)
    assert [type(outcomes[number]) for number in (1, 2, 3)] == [RetryLater, RetryLater, Rejected]


@pytest.mark.parametrize(
    ("limits", "keys", "reason"),
    [
        (bytes([MAXIMUM_QOS, 0]), {"qos": 1}, "client_error"),
        (bytes([RETAIN_AVAILABLE, 0]), {"retain": True, "status_topic": None}, "client_error"),
    ],
)
async def test_what_the_broker_cannot_do_pauses_the_sink(
    peer: Peer, limits: bytes, keys: dict[str, Any], reason: str
) -> None:
    """And says which key to change."""
    peer.limits = limits
    async with peer_sink(peer, **keys) as opened:
        outcome = await opened.send(delivery())
    assert isinstance(outcome, Pause)
    assert outcome.failure.reason == reason
    assert "set" in outcome.failure.error


async def test_a_busy_broker_is_asked_later(peer: Peer) -> None:
    """CONNACK 0x89; and it is found when it is no longer busy."""
    peer.connack = 0x89
    async with peer_sink(peer, timeout="500ms") as opened:
        outcome = await opened.send(delivery(1))
        assert isinstance(outcome, RetryLater)
        assert outcome.failure.reason == "server_error"
        peer.connack = 0
        await delivered(opened, 2)


async def test_who_does_not_speak_mqtt_is_no_success() -> None:
    """A web server on the port: later, with words that help."""

    async def answer(stream: Any) -> None:
        await stream.receive()
        await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await stream.aclose()

    cases = {"mqtt": "before it answered", "ws": "opens no WebSocket"}
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.start_soon(listener.serve, answer)
        outcomes: dict[str, Outcome] = {}
        for scheme in cases:
            async with sink(f"{scheme}://127.0.0.1:{port}", timeout="500ms") as opened:
                outcomes[scheme] = await opened.send(delivery())
        tasks.cancel_scope.cancel()
    for scheme, text in cases.items():
        outcome = outcomes[scheme]
        assert isinstance(outcome, RetryLater)
        assert text in outcome.failure.error


async def test_a_topic_nobody_can_publish_on_is_a_dead_letter(peer: Peer) -> None:
    """Reason template, and nothing is sent."""
    async with peer_sink(peer, topic="{{ ids.gateway_id }}") as opened:
        outcome = await opened.send(delivery())
    assert isinstance(outcome, Rejected)
    assert outcome.failure.reason == "template"
    assert not peer.deliveries
