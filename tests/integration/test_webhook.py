"""The webhook sink against a real receiver: answers, limits, TLS, proxies, the guard."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from anyio.abc import SocketStream
from standardwebhooks import Webhook

from bridge.delivery import Delivered, Delivery, Outcome, Pause, Rejected, RetryLater
from bridge.event import Event
from bridge.receiver import Receiver, Reply, receive
from bridge.sinks import Sink, guard
from bridge.sinks.http import Answer, post, target
from bridge.sinks.webhook import WebhookConfig, open_webhook
from tests.servers import HOST, Certificates, certificates, free_port

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

BODY = b'{"name":"as.up.data.forward","time":"2026-11-23T21:09:06Z","unique_id":"01","data":{"a": 1.0}}'
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NEW_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


def delivery(number: int = 1, body: bytes = BODY) -> Delivery:
    event = Event("as.up.data.forward", "2026-11-23T21:09:06Z", 0, f"{number:02}", (), body)
    return Delivery(number, f"d_{number:026}", event, "eu1", "rule-1", "crm", 1, 1_700_000_000.0)


def opened(
    url: str, *, now: Callable[[], float] = time.time, private: bool = True, **more: Any
) -> AbstractAsyncContextManager[Sink]:
    keys = {"type": "webhook", "url": url, "timeout": 5.0, "allow_private_networks": private}
    return open_webhook("crm", WebhookConfig.model_validate(keys | more), now=now)


async def sent(url: str, **more: Any) -> Outcome:
    async with opened(url, **more) as sink:
        return await sink.send(delivery())


@asynccontextmanager
async def raw(answer: Callable[[SocketStream], Any]) -> AsyncIterator[str]:
    """A server that does with a connection what it wants; yields its URL."""
    listener = await anyio.create_tcp_listener(local_host=HOST)

    async def handle(stream: SocketStream) -> None:
        async with stream:
            await answer(stream)

    async with listener, anyio.create_task_group() as serving:
        serving.start_soon(listener.serve, handle)
        yield f"http://{HOST}:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        serving.cancel_scope.cancel()


async def request(stream: SocketStream) -> bytes:
    """What the client sent, up to the end of its headers and a body that came with them."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += await stream.receive()
    return got


async def test_a_request_is_what_the_specification_says() -> None:
    """Body as stored, a type, an id, a time and a signature that the reference implementation verifies."""
    async with receive() as crm:
        outcome = await sent(crm.url + "/hooks/tts?key=1", secret=SECRET, headers={"X-Env": "prod"})
    assert outcome == Delivered(200)
    (got,) = crm.deliveries
    assert (got.body, got.path, got.id) == (BODY, "/hooks/tts", delivery().id)
    assert got.headers["content-type"] == "application/json"
    assert got.headers["x-env"] == "prod"
    assert got.headers["user-agent"].startswith("bridge/")
    assert Webhook(SECRET).verify(got.body, dict(got.headers)) == json.loads(BODY)


async def test_a_list_of_secrets_signs_with_all_of_them() -> None:
    """Rotation: the receiver verifies with the old one and with the new one."""
    async with receive() as crm:
        await sent(crm.url, secret=[SECRET, NEW_SECRET])
    for secret in (SECRET, NEW_SECRET):
        Webhook(secret).verify(crm.deliveries[0].body, dict(crm.deliveries[0].headers))


async def test_the_id_is_stable_and_the_time_is_not() -> None:
    """Two attempts at one delivery: same `webhook-id`, each its own time and signature."""
    clock = iter((1_700_000_000.0, 1_700_000_000.0, 1_700_000_100.0, 1_700_000_100.0))
    async with receive() as crm, opened(crm.url, secret=SECRET, now=lambda: next(clock)) as sink:
        await sink.send(delivery())
        await sink.send(delivery())
    first, second = (got.headers for got in crm.deliveries)
    assert first["webhook-id"] == second["webhook-id"]
    assert (first["webhook-timestamp"], second["webhook-timestamp"]) == ("1700000000", "1700000100")
    assert first["webhook-signature"] != second["webhook-signature"]


async def test_format_data_sends_the_data_alone() -> None:
    """Byte for byte."""
    async with receive() as crm:
        await sent(crm.url, format="data")
    assert crm.deliveries[0].body == b'{"a": 1.0}'


ROWS: list[tuple[Reply, type, str | None, float | None]] = [
    *((Reply(status), Delivered, None, None) for status in (200, 201, 202, 204, 299)),
    *((Reply(s), Rejected, "client_error", None) for s in (400, 409, 411, 413, 414, 415, 422, 431)),
    *((Reply(s, {"Location": "/x"}), Pause, "redirect", None) for s in (300, 301, 302, 303, 304, 307, 308)),
    *((Reply(status), Pause, "auth", None) for status in (401, 403, 407)),
    *((Reply(status), Pause, "client_error", None) for status in (402, 404, 405, 410)),
    (Reply(429, {"Retry-After": "30"}), Pause, "rate_limited", 30.0),
    (Reply(503, {"Retry-After": "120"}), Pause, "server_error", 120.0),
    (Reply(429), RetryLater, "rate_limited", None),
    (Reply(503), RetryLater, "server_error", None),
    (Reply(500, {"Retry-After": "30"}), RetryLater, "server_error", None),
    *(
        (Reply(status), RetryLater, "client_error", None)
        for status in (406, 408, 412, 418, 423, 425, 428, 451)
    ),
    *((Reply(status), RetryLater, "server_error", None) for status in (500, 501, 502, 504, 507, 599)),
    (Reply(reset=True), RetryLater, "connect", None),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0].status}{'-reset' if row[0].reset else ''}")
async def test_the_table_of_answers_row_by_row(row: tuple[Reply, type, str | None, float | None]) -> None:
    """DESIGN.md §2.5."""
    reply, kind, reason, seconds = row
    async with receive(answer=reply) as crm:
        outcome = await sent(crm.url)
    assert type(outcome) is kind
    assert len(crm.deliveries) == 1
    if isinstance(outcome, Delivered):
        assert outcome.status == reply.status
        return
    assert outcome.failure.reason == reason
    assert outcome.failure.status == (None if reply.reset else reply.status)
    if isinstance(outcome, Pause):
        assert outcome.seconds == seconds


async def test_retry_after_may_be_a_date() -> None:
    """RFC 9110 §10.2.3, against the injected clock."""
    reply = Reply(429, {"Retry-After": formatdate(1_700_000_090, usegmt=True)})
    async with receive(answer=reply) as crm:
        outcome = await sent(crm.url, now=lambda: 1_700_000_000.0)
    assert isinstance(outcome, Pause)
    assert outcome.seconds == 90.0


async def test_a_redirect_is_not_followed() -> None:
    """A receiver cannot send us elsewhere: not with our signature, not past the guard."""
    async with receive() as elsewhere, receive(answer=Reply(307, {"Location": elsewhere.url})) as crm:
        outcome = await sent(crm.url)
    assert isinstance(outcome, Pause)
    assert elsewhere.deliveries == []


@pytest.mark.parametrize("size", [100, 4096, 4097, 1_000_000])
async def test_four_kilobytes_of_an_answer_are_kept(size: int) -> None:
    """Enough to see why; not enough to fill the disk."""
    async with receive(answer=Reply(500, body=b"x" * size)) as crm:
        outcome = await sent(crm.url)
    assert isinstance(outcome, RetryLater)
    assert outcome.failure.response == "x" * min(size, 4096)


async def test_an_answer_without_end_ends() -> None:
    """A body that never stops coming costs 4 kB and no time."""

    async def babble(stream: SocketStream) -> None:
        await request(stream)
        await stream.send(b"HTTP/1.1 500 No\r\nConnection: close\r\n\r\n")
        with anyio.move_on_after(10):
            while True:
                await stream.send(b"bla " * 1000)

    async with raw(babble) as url:
        with anyio.fail_after(3):
            outcome = await sent(url)
    assert isinstance(outcome, RetryLater)
    assert len(outcome.failure.response) == 4096


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b""])
async def test_the_status_is_the_answer_even_if_the_body_hangs(head: bytes) -> None:
    """2xx is delivered once it is there; without it the timeout ends the attempt."""

    async def hang(stream: SocketStream) -> None:
        await request(stream)
        if head:
            await stream.send(head)
        await anyio.sleep_forever()

    async with raw(hang) as url:
        with anyio.fail_after(3):
            outcome = await sent(url, timeout=0.4)
    if head:
        assert outcome == Delivered(200)
    else:
        assert isinstance(outcome, RetryLater)
        assert outcome.failure.reason == "timeout"


async def test_the_timeout_is_for_the_whole_attempt() -> None:
    """A receiver that sends a byte now and then does not hold a place for ever."""

    async def drip(stream: SocketStream) -> None:
        await request(stream)
        await stream.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            await stream.send(b"X-A: b\r\n")
            await anyio.sleep(0.05)

    async with raw(drip) as url:
        with anyio.fail_after(3):
            outcome = await sent(url, timeout=0.4)
    assert isinstance(outcome, RetryLater)
    assert outcome.failure.reason == "timeout"


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200"])
async def test_what_speaks_no_http_is_no_success(answer: bytes) -> None:
    """Closed at once, another protocol, half a status line."""

    async def other(stream: SocketStream) -> None:
        await request(stream)
        if answer:
            await stream.send(answer)

    async with raw(other) as url:
        outcome = await sent(url)
    assert isinstance(outcome, RetryLater)
    assert outcome.failure.reason == "connect"


async def test_nobody_listening_is_said_without_the_address() -> None:
    """Messages name no host: the sink's name is beside them in the log."""
    port = free_port()
    outcome = await sent(f"http://{HOST}:{port}/secret")
    assert isinstance(outcome, RetryLater)
    assert outcome.failure.error == "connection refused"


async def test_a_name_that_does_not_exist_pauses_the_sink() -> None:
    """`.invalid` never resolves (RFC 6761)."""
    outcome = await sent("http://crm.invalid/hook")
    assert isinstance(outcome, Pause)
    assert outcome.failure.reason == "dns"
    assert "crm" not in repr(outcome)


# TLS


@pytest.fixture
def certs(tmp_path: Path) -> Certificates:
    return certificates(tmp_path)


def serving(certs: Certificates, *, ask_client: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certs.ca))
    context.load_cert_chain(certs.server, certs.server_key)
    context.verify_mode = ssl.CERT_REQUIRED if ask_client else ssl.CERT_NONE
    return context


def secured(crm: Receiver, host: str = "localhost") -> str:
    return f"https://{host}:{crm.port}"


async def test_a_private_ca_is_trusted_when_it_is_named_and_only_then(certs: Certificates) -> None:
    """`tls.ca_file` replaces the system's authorities."""
    async with receive(tls=serving(certs)) as crm:
        assert await sent(secured(crm), tls={"ca_file": str(certs.ca)}) == Delivered(200)
        refused = await sent(secured(crm))
    assert isinstance(refused, Pause)
    assert refused.failure.reason == "tls"
    assert len(crm.deliveries) == 1


async def test_another_ca_is_not_trusted(certs: Certificates, tmp_path: Path) -> None:
    """The sink pauses with its reason; nothing was sent."""
    other = certificates(tmp_path / "other")
    async with receive(tls=serving(certs)) as crm:
        outcome = await sent(secured(crm), tls={"ca_file": str(other.ca)})
    assert isinstance(outcome, Pause)
    assert outcome.failure.error == "TLS failed: CERTIFICATE_VERIFY_FAILED"
    assert crm.deliveries == []


async def test_a_certificate_of_another_name_is_refused(certs: Certificates) -> None:
    """Names are verified."""
    async with receive("127.0.0.2", tls=serving(certs)) as crm:
        outcome = await sent(secured(crm, "127.0.0.2"), tls={"ca_file": str(certs.ca)})
    assert isinstance(outcome, Pause)
    assert outcome.failure.reason == "tls"


@contextmanager
def handshakes(context: ssl.SSLContext) -> Iterator[int]:
    """A port where each connection gets a handshake and no more; a refusal is sent before the end."""
    with socket.create_server((HOST, 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection, suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
                    tls.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


async def test_a_client_certificate_is_shown_when_asked(certs: Certificates) -> None:
    """With it delivered; without it the receiver ends the connection and nothing arrives."""
    async with receive(tls=serving(certs, ask_client=True)) as crm:
        ours = {"ca_file": str(certs.ca), "cert_file": str(certs.client), "key_file": str(certs.client_key)}
        assert await sent(secured(crm), tls=ours) == Delivered(200)
        assert not isinstance(await sent(secured(crm), tls={"ca_file": str(certs.ca)}), Delivered)
    assert len(crm.deliveries) == 1


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_missing_client_certificate_pauses(certs: Certificates, version: ssl.TLSVersion) -> None:
    """In TLS 1.3 the receiver says so only after our side of the handshake is over."""
    context = serving(certs, ask_client=True)
    context.minimum_version = context.maximum_version = version
    with handshakes(context) as port:
        outcome = await sent(f"https://localhost:{port}", tls={"ca_file": str(certs.ca)})
    assert isinstance(outcome, Pause)
    assert outcome.failure.reason == "tls"


async def test_tls_1_1_is_too_old(certs: Certificates) -> None:
    """Minimum 1.2, whatever the system allows."""
    old = serving(certs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with handshakes(old) as port:
        outcome = await sent(f"https://localhost:{port}", tls={"ca_file": str(certs.ca)})
    assert isinstance(outcome, Pause)
    assert outcome.failure.reason == "tls"


async def test_plain_http_behind_https_is_a_tls_failure() -> None:
    """A wrong scheme in the URL: the operator's to correct."""
    async with receive() as crm:
        outcome = await sent(secured(crm))
    assert isinstance(outcome, Pause)
    assert outcome.failure.reason == "tls"


# The guard


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.2",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "169.254.169.254",
        "[fe80::1]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "[fd00::1]",
        "224.0.0.1",
        "①②⑦.⓪.⓪.①",
        "127。0。0。1",
    ],
)
async def test_no_spelling_reaches_a_private_receiver(host: str) -> None:
    """The address really connected to is judged: whatever the URL says, nothing arrives."""
    async with receive("0.0.0.0") as crm:
        with anyio.fail_after(5):
            outcome = await sent(f"http://{host}:{crm.port}/", private=False)
    assert isinstance(outcome, Pause)
    assert outcome.failure.reason in {"blocked_address", "dns"}
    assert crm.deliveries == []


async def test_a_refusal_says_what_would_open_it() -> None:
    """And for link-local and metadata, that nothing does."""
    loopback = await sent("http://127.0.0.1:9/", private=False)
    metadata = await sent("http://169.254.169.254/latest/meta-data", private=True)
    assert isinstance(loopback, Pause)
    assert isinstance(metadata, Pause)
    assert "loopback; list its network or host in allow_networks" in loopback.failure.error
    assert "link-local; no setting opens it" in metadata.failure.error


@pytest.mark.parametrize(
    "opened_", [["127.0.0.0/8"], ["127.0.0.1"], ["localhost"], ["10.0.0.0/8", "localhost"]]
)
async def test_a_network_or_a_host_is_opened(opened_: list[str]) -> None:
    """By CIDR, by address, by the name in the URL."""
    async with receive() as crm:
        outcome = await sent(f"http://localhost:{crm.port}/", private=False, allow_networks=opened_)
    assert outcome == Delivered(200)


async def test_another_name_of_the_same_address_stays_shut() -> None:
    """Opening a host opens that name."""
    async with receive() as crm:
        outcome = await sent(f"http://127.0.0.1:{crm.port}/", private=False, allow_networks=["localhost"])
    assert isinstance(outcome, Pause)
    assert crm.deliveries == []


class Names(AbstractResolver):
    """A name server whose answers change: the *n*th look-up gets the *n*th answer, then the last."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        addresses = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [
            ResolveResult(hostname=host, host=address, port=port, family=2, proto=0, flags=0)
            for address in addresses
        ]

    async def close(self) -> None:
        pass


async def posted(url: str, names: Names, *allowed: str) -> Answer | Outcome:
    tls = ssl.create_default_context()
    policy = guard.policy(False, allowed)
    async with target(url, policy, limit=1, timeout=5.0, tls=tls, resolver=names) as to:
        return await post(to, b"{}", {})


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "192.168.1.1"])
async def test_a_name_that_means_a_private_address_is_refused(address: str) -> None:
    """A public name is no proof."""
    outcome = await posted("http://crm.example/", Names([address]))
    assert isinstance(outcome, Pause)
    assert outcome.failure.reason == "blocked_address"


async def test_an_answer_that_changes_before_the_connect_gains_nothing() -> None:
    """Rebinding: what was looked up first is allowed, what the connect gets is not."""
    async with receive("0.0.0.0") as crm:
        names = Names(["127.0.0.2"], ["127.0.0.1"])
        url = f"http://crm.example:{crm.port}/"
        (first,) = await names.resolve("crm.example", crm.port)
        assert guard.blocked(first["host"], guard.policy(False, ["127.0.0.2"])) is None
        outcome = await posted(url, names, "127.0.0.2")
        assert isinstance(outcome, Pause)
        assert outcome.failure.reason == "blocked_address"
        assert crm.deliveries == []


async def test_of_several_addresses_a_good_one_is_taken() -> None:
    """A private address beside it is passed over; a good one that is only away is no reason to pause."""
    async with receive("127.0.0.2") as crm:
        answer = await posted(
            f"http://crm.example:{crm.port}/", Names(["10.0.0.1", "127.0.0.2"]), "127.0.0.2"
        )
        assert isinstance(answer, Answer)
    for addresses in (["10.0.0.1", "127.0.0.2"], ["127.0.0.2", "10.0.0.1"]):
        away = await posted(f"http://crm.example:{free_port()}/", Names(addresses), "127.0.0.2")
        assert isinstance(away, RetryLater)


# Proxies


async def test_the_environment_names_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable somebody set for a shell does not redirect deliveries."""
    async with receive() as crm, receive() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("NO_PROXY", "")
        assert await sent(crm.url) == Delivered(200)
    assert proxy.deliveries == []
