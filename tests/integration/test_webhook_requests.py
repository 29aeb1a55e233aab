"""The webhook sink's requests against a real receiver: batches, pace, formats, proxies."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from cloudevents.v1.http import from_http
from pydantic import ValidationError
from standardwebhooks import Webhook

from bridge.delivery import Delivered, Pause, Rejected, RetryLater
from bridge.receiver import Received, Reply, receive
from bridge.sinks import BatchSink, Sink
from bridge.sinks.webhook import WebhookConfig, open_webhook
from tests.integration.test_webhook import SECRET, delivery, opened, secured, sent, serving
from tests.servers import HOST, certificates

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

BATCH = {"max_events": 100, "max_wait": 0.1, "max_bytes": "1MiB"}


def batching(sink: Sink) -> BatchSink:
    assert isinstance(sink, BatchSink)
    return sink


def numbered(number: int, padding: int = 0) -> bytes:
    return json.dumps(
        {"name": "a.b", "unique_id": f"{number}", "data": {"n": number, "x": "x" * padding}}
    ).encode()


def numbers(got: Received) -> list[int]:
    return [each["data"]["n"] for each in json.loads(got.body)]


# Batches


async def test_a_batch_is_one_signed_array() -> None:
    """One request; each element says which delivery it is; 2xx settles all."""
    deliveries = [delivery(n, numbered(n)) for n in range(5)]
    async with receive() as crm, opened(crm.url, batch=BATCH, secret=SECRET) as sink:
        assert await batching(sink).send_batch(deliveries) == [Delivered(200)] * 5
    (got,) = crm.deliveries
    assert Webhook(SECRET).verify(got.body, dict(got.headers))
    assert got.headers["content-type"] == "application/json"
    assert [each["bridge"]["delivery_id"] for each in json.loads(got.body)] == [
        each.id for each in deliveries
    ]
    assert got.id.startswith("b_")


async def test_the_same_batch_has_the_same_id_again() -> None:
    """Derived from the delivery ids in it."""
    deliveries = [delivery(n, numbered(n)) for n in range(3)]
    async with receive() as crm, opened(crm.url, batch=BATCH) as sink:
        for some in (deliveries, deliveries, deliveries[:2]):
            await batching(sink).send_batch(some)
    first, again, other = (got.id for got in crm.deliveries)
    assert first == again != other


async def test_a_single_send_of_a_batching_sink_is_an_array_too() -> None:
    """The receiver gets one kind of body; a probe is such a one."""
    async with receive() as crm, opened(crm.url, batch=BATCH) as sink:
        assert await sink.send(delivery(7, numbered(7))) == Delivered(200)
    assert numbers(crm.deliveries[0]) == [7]
    assert crm.deliveries[0].id == delivery(7).id


async def test_a_request_is_not_larger_than_max_bytes() -> None:
    """What is more goes into further requests; one delivery that is larger goes alone."""
    sizes = [100, 100, 5000, 100, 900]
    deliveries = [delivery(n, numbered(n, size)) for n, size in enumerate(sizes)]
    async with receive() as crm, opened(crm.url, batch=BATCH | {"max_bytes": "1200B"}) as sink:
        assert await batching(sink).send_batch(deliveries) == [Delivered(200)] * 5
    assert [numbers(got) for got in crm.deliveries] == [[0, 1], [2], [3], [4]]
    assert all(len(got.body) <= 1200 for got in crm.deliveries if numbers(got) != [2])


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_refused_batch_is_split_until_the_guilty_stands_alone(status: int) -> None:
    """The others are delivered once each."""

    def picky(got: Received) -> Reply:
        return Reply(status if {3, 11} & set(numbers(got)) else 200)

    async with receive(on_delivery=picky) as crm, opened(crm.url, batch=BATCH) as sink:
        outcomes = await batching(sink).send_batch([delivery(n, numbered(n)) for n in range(16)])
    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Rejected)] == [3, 11]
    accepted = sorted(n for got in crm.deliveries if picky(got).status == 200 for n in numbers(got))
    assert accepted == [n for n in range(16) if n not in {3, 11}]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [(Reply(500), RetryLater), (Reply(401), Pause), (Reply(429, {"Retry-After": "9"}), Pause)],
)
async def test_other_answers_are_about_the_whole_batch(reply: Reply, kind: type) -> None:
    """One request, one answer for all."""
    async with receive(answer=reply) as crm, opened(crm.url, batch=BATCH) as sink:
        outcomes = await batching(sink).send_batch([delivery(n, numbered(n)) for n in range(4)])
    assert [type(outcome) for outcome in outcomes] == [kind] * 4
    assert len(crm.deliveries) == 1


async def test_what_cannot_be_rendered_does_not_stop_the_others() -> None:
    """One dead letter, the rest in the request."""
    bodies = [numbered(0), b'{"name":"a.b"}', numbered(2)]
    keys: dict[str, Any] = {"format": "template", "template": '{"data": {"n": {{ data.n }}}}', "batch": BATCH}
    async with receive() as crm, opened(crm.url, **keys) as sink:
        outcomes = await batching(sink).send_batch([delivery(n, body) for n, body in enumerate(bodies)])
    assert [type(each) for each in outcomes] == [Delivered, Rejected, Delivered]
    assert numbers(crm.deliveries[0]) == [0, 2]


async def test_without_batch_the_dispatcher_is_told_so() -> None:
    """One event a request is the default."""
    async with opened("http://crm.example/") as sink:
        assert batching(sink).batch_limits.max_events == 1


# Pace


async def test_the_rate_counts_requests() -> None:
    """Sends at once are spread out; a batch counts once."""
    async with receive() as crm, opened(crm.url, rate_limit="20/s", batch=BATCH) as sink:
        started = time.monotonic()
        async with anyio.create_task_group() as tasks:
            for n in range(0, 40, 4):
                tasks.start_soon(
                    batching(sink).send_batch, [delivery(k, numbered(k)) for k in range(n, n + 4)]
                )
        took = time.monotonic() - started
    assert len(crm.deliveries) == 10
    assert took > 9 / 20 - 0.05


# Formats


async def test_cloudevents_in_each_mode_are_read_by_the_sdk() -> None:
    """Structured, binary, batch."""
    hosts = {"eu1": "eu1.cloud.thethings.network"}
    for keys in ({}, {"cloudevents": "binary"}, {"batch": BATCH}):
        async with receive() as crm:
            model = WebhookConfig.model_validate(
                {
                    "type": "webhook",
                    "url": crm.url,
                    "format": "cloudevents",
                    "allow_private_networks": True,
                    **keys,
                }
            )
            async with open_webhook("crm", model, now=time.time, hosts=hosts) as sink:
                assert await sink.send(delivery()) == Delivered(200)
        (got,) = crm.deliveries
        headers, body = dict(got.headers), got.body
        if "batch" in keys:
            assert headers["content-type"].startswith("application/cloudevents-batch+json")
            (element,) = json.loads(body)
            headers, body = {"content-type": "application/cloudevents+json"}, json.dumps(element).encode()
        read = from_http(headers, body)
        assert read["source"] == "//eu1.cloud.thethings.network/"
        assert read["type"] == "org.thethingsstack.as.up.data.forward"
        document: Any = read.get_data()
        assert document["data"] == {"a": 1.0}


async def test_a_template_with_its_content_type() -> None:
    """And one that fails is a dead letter that asks nobody."""
    keys = {"format": "template", "content_type": "application/x-www-form-urlencoded"}
    async with receive() as crm:
        assert await sent(crm.url, template="a={{ data.a | urlencode }}", **keys) == Delivered(200)
        failed = await sent(crm.url, template="{{ data.nope }}", **keys)
    assert isinstance(failed, Rejected)
    assert failed.failure.reason == "template"
    (got,) = crm.deliveries
    assert (got.body, got.headers["content-type"]) == (b"a=1.0", "application/x-www-form-urlencoded")


@pytest.mark.parametrize(
    ("keys", "advice"),
    [
        ({"format": "template"}, "goes with format: template"),
        ({"template": "x"}, "goes with format: template"),
        ({"format": "template", "template": "{{ x"}, "template: unexpected"),
        ({"format": "template", "template": "{{ devcie }}"}, "devcie is not defined"),
        ({"cloudevents": "binary"}, "goes with format: cloudevents"),
        ({"format": "cloudevents", "content_type": "text/plain"}, "have their own"),
        (
            {"format": "cloudevents", "cloudevents": "binary", "batch": {"max_events": 2}},
            "no batches of binary",
        ),
        ({"content_type": "text/plain", "batch": {"max_events": 2}}, "a batch is JSON"),
        ({"content_type": "nonsense"}, "write a media type"),
        ({"content_type": "text/plain\r\nX-Evil: 1"}, "write a media type"),
        ({"headers": {"Content-Type": "x/y"}}, "use content_type"),
        ({"headers": {"Webhook-Id": "1"}}, "is set by bridge"),
        ({"headers": {"X Y": "1"}}, "letters, digits"),
        ({"headers": {"X-Key": "s3cr3t\r\nX-Evil: 1"}}, "one line of printable"),
        ({"secret": "whsec_s3cr3t!"}, "must be base64"),
        ({"rate_limit": "50"}, "write a rate"),
        ({"timeout": 10}, "write a duration"),
        ({"proxy": "proxy.s3cr3t:3128"}, "write a URL"),
        ({"url": "crm.example/s3cr3t"}, "write a URL"),
        ({"url": "ftp://crm.example/s3cr3t"}, "write a URL"),
    ],
)
def test_a_mistake_in_the_config_reads_like_advice(keys: dict[str, Any], advice: str) -> None:
    """And repeats no value."""
    with pytest.raises(ValidationError, match=advice) as caught:
        WebhookConfig.model_validate({"type": "webhook", "url": "https://crm.example/"} | keys)
    assert "s3cr3t" not in str(caught.value)


def test_a_config_does_not_show_its_secrets() -> None:
    """Printed or logged whole."""
    keys = {"secret": SECRET, "headers": {"X": "s3cr3t"}, "proxy": "http://u:s3cr3t@proxy.example"}
    shown = repr(WebhookConfig.model_validate({"type": "webhook", "url": "https://crm.example/"} | keys))
    assert "s3cr3t" not in shown
    assert SECRET not in shown


# Proxies


@asynccontextmanager
async def tunnels(status: int = 200) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A proxy for CONNECT that leads all names to loopback, or refuses with *status*; the heads it got."""
    heads: list[bytes] = []
    listener = await anyio.create_tcp_listener(local_host=HOST)

    async def pump(source: SocketStream, drain: SocketStream) -> None:
        async for data in source:
            await drain.send(data)
        await drain.send_eof()

    async def handle(client: SocketStream) -> None:
        async with client:
            head = await client.receive()
            heads.append(head)
            await client.send(f"HTTP/1.1 {status} X\r\n\r\n".encode())
            if status != 200:
                return
            port = int(head.split(b" ")[1].rpartition(b":")[2])
            async with await anyio.connect_tcp(HOST, port) as server, anyio.create_task_group() as pumping:
                pumping.start_soon(pump, client, server)
                await pump(server, client)
                pumping.cancel_scope.cancel()

    async with listener, anyio.create_task_group() as serving:
        serving.start_soon(listener.serve, handle)
        yield f"http://{HOST}:{listener.extra(SocketAttribute.local_port)}", heads
        serving.cancel_scope.cancel()


async def test_a_plain_request_goes_to_the_proxy() -> None:
    """The configured one, which may be private although the receiver may not."""
    async with receive() as proxy:
        outcome = await sent("http://crm.example/hook", proxy=proxy.url, private=False)
    assert outcome == Delivered(200)
    (got,) = proxy.deliveries
    assert got.headers["host"] == "crm.example"


async def test_tls_goes_through_the_proxy_to_the_receiver(tmp_path: Path) -> None:
    """CONNECT with the proxy's password; the certificate is the receiver's."""
    certs = certificates(tmp_path)
    async with receive(tls=serving(certs)) as crm, tunnels() as (proxy, heads):
        url = proxy.replace("//", "//bob:s3cr3t@")
        outcome = await sent(secured(crm), proxy=url, tls={"ca_file": str(certs.ca)})
        assert outcome == Delivered(200)
    assert heads[0].startswith(b"CONNECT localhost:")
    assert b"Proxy-Authorization: Basic Ym9iOnMzY3IzdA==" in heads[0]
    assert "proxy-authorization" not in crm.deliveries[0].headers


@pytest.mark.parametrize(
    ("status", "kind", "reason"), [(407, Pause, "auth"), (403, Pause, "auth"), (502, RetryLater, "connect")]
)
async def test_what_a_proxy_refuses(status: int, kind: type, reason: str) -> None:
    """Its login is the sink's fault; that it cannot reach the receiver is not."""
    async with tunnels(status) as (proxy, _):
        outcome = await sent("https://crm.example/", proxy=proxy)
    assert type(outcome) is kind
    assert not isinstance(outcome, Delivered)
    assert outcome.failure.reason == reason


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "[::1]", "169.254.169.254", "10.0.0.1"])
async def test_a_proxy_is_no_way_around_the_guard(host: str) -> None:
    """An address in the URL is judged; the proxy is not even asked."""
    async with receive() as proxy:
        outcome = await sent(f"http://{host}:{proxy.port}/", proxy=proxy.url, private=False)
    assert isinstance(outcome, Pause)
    assert outcome.failure.reason == "blocked_address"
    assert proxy.deliveries == []


async def test_a_proxy_that_is_down_is_asked_later() -> None:
    """As a receiver that is."""
    outcome = await sent("http://crm.example/", proxy=f"http://{HOST}:1")
    assert isinstance(outcome, RetryLater)
