"""The stand-in on the wire, byte for byte against what The Things Stack v3.32.1 sent."""

from __future__ import annotations

import re
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest

from bridge.event import Entity, nanoseconds
from bridge.receiver import Received, Reply, receive
from bridge.standin import (
    ALL,
    Answer,
    Cut,
    CutAt,
    Drip,
    Drop,
    Duplicate,
    End,
    ErrorFrame,
    Fault,
    Garbage,
    Refuse,
    Reorder,
    Server,
    Silence,
    Stall,
    World,
    play,
    serve,
)
from bridge.standin.player import merged
from tests.recordings import RECORDED, START, json_bytes, unique_ids
from tests.servers import certificates, free_port, poll

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

TOKEN = "NNSXS.U2VBFN53MVB5WN32MDM3T2PK7UEKX5IVYRRS66Q.SECRET"
PLANT_A = {"application_ids": {"application_id": "plant-a"}}
ROOF = {"gateway_ids": {"gateway_id": "gw-roof"}}
EXISTING = [Entity("application", "plant-a"), Entity("gateway", "gw-roof"), Entity("user", "admin")]
ERRORS = {each["case"]: each for each in msgspec.json.decode((RECORDED / "errors.json").read_bytes())}
VARYING = re.compile(
    rb"(?<=X-Request-Id: )\w{26}|(?<=Date: )[^\r]+|(?<=\"correlation_id\":\")[0-9a-f]{32}"
    rb"|(?<=Stream:)\w{26}|(?<=\"unique_id\":\")\w{26}|(?<=\"time\":\")[^\"]+"
)


def stable(whole: bytes) -> bytes:
    """*whole* without what is different each time."""
    return VARYING.sub(b"~", whole)


@dataclass(slots=True)
class Wire:
    """A client that sees every byte."""

    stream: anyio.abc.ByteStream
    seen: bytes = b""

    async def ask(self, request: bytes) -> None:
        await self.stream.send(request)

    async def until(self, found: Callable[[bytes], bool]) -> bytes:
        while not found(self.seen):
            self.seen += await self.stream.receive()
        return self.seen

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        try:
            while True:
                self.seen += await self.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return self.seen


@asynccontextmanager
async def dial(server: Server) -> AsyncIterator[Wire]:
    with anyio.fail_after(10):
        async with await anyio.connect_tcp(server.host, server.port) as stream:
            yield Wire(stream)


def post(
    body: object, *, accept: str = "text/event-stream", token: str | None = TOKEN, close: bool = False
) -> bytes:
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    lines = [
        "POST /api/v3/events HTTP/1.1",
        "Host: x",
        f"Accept: {accept}",
        f"Content-Length: {len(content)}",
    ]
    lines += [f"Authorization: Bearer {token}"] if token else []
    lines += ["Connection: close"] if close else []
    return "\r\n".join([*lines, "", ""]).encode() + content


def get(path: str, *, accept: str = "text/event-stream", token: str | None = TOKEN) -> bytes:
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    lines = f"GET /api/v3{path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n"
    return f"{lines}{authorization}Connection: close\r\n\r\n".encode()


def body_of(response: bytes) -> bytes:
    """The body of a whole or torn *response*, chunks joined."""
    head, _, rest = response.partition(b"\r\n\r\n")
    if b"Transfer-Encoding: chunked" not in head:
        return rest
    body = b""
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body


def ended(response: bytes) -> bool:
    return response.endswith(b"0\r\n\r\n")


def frames(response: bytes) -> list[dict[str, Any]]:
    lines = [line for line in body_of(response).split(b"\n") if line]
    return [msgspec.json.decode(line) for line in lines]


def names(response: bytes) -> list[str]:
    return [each["result"]["unique_id"] for each in frames(response) if each["result"]["name"] != START]


def world(**more: Any) -> World:
    return World({TOKEN: ALL}, **({"entities": EXISTING} | more))


def events(count: int) -> list[bytes]:
    """Recorded events of plant-a that propagate to it."""
    recorded = merged([(RECORDED / "overlap.sse").read_bytes()])
    found = [each.body for each in recorded if b'"name":"as.up.data.forward"' in each.body]
    return found[:count]


def ids(bodies: list[bytes]) -> list[str]:
    return [msgspec.json.decode(each)["unique_id"] for each in bodies]


TOKENS = {
    "no credentials": None,
    "unknown api key": "NNSXS.XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX.X",
    "malformed token": "hello",
}
STREAM_ERRORS = [
    case for case, each in ERRORS.items() if each["path"] == "/events" and each["method"] == "POST"
]


@pytest.mark.parametrize("case", STREAM_ERRORS)
async def test_a_refused_stream_says_what_the_real_one_said(case: str) -> None:
    """Status, content type, framing and body of errors.json; only ids and times are different."""
    recorded = ERRORS[case]
    asked = recorded["request"].encode() if isinstance(recorded["request"], str) else recorded["request"]
    async with serve(world()) as server, dial(server) as wire:
        await wire.ask(post(asked, token=TOKENS.get(case, TOKEN), close=recorded["status"] != 200))
        response = await (
            wire.until(lambda seen: seen.endswith(b"\r\n") and b"result" in seen)
            if recorded["status"] == 200
            else wire.rest()
        )
    assert response.startswith(b"HTTP/1.1 %d " % recorded["status"])
    assert f"\r\nContent-Type: {recorded['content_type']}\r\n".encode() in response
    assert stable(body_of(response)) == stable(recorded["body"].encode())


async def test_related_without_an_id_and_a_wrong_method_are_flat_errors() -> None:
    """Unary calls and the gateway itself answer with a length and without a wrapper."""
    async with serve(world()) as server:
        for case in ("related without id", "wrong method"):
            async with dial(server) as wire:
                await wire.ask(get(ERRORS[case]["path"]))
                response = await wire.rest()
            assert response.startswith(b"HTTP/1.1 %d " % ERRORS[case]["status"])
            assert stable(body_of(response)) == stable(ERRORS[case]["body"].encode())
            assert b"\r\nContent-Length: %d\r\n\r\n" % len(body_of(response)) in response


async def test_an_unknown_path_is_the_gateways_404() -> None:
    async with serve(world()) as server, dial(server) as wire:
        await wire.ask(get("/nowhere", accept="*/*"))
        response = await wire.rest()
    assert response.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert b"\r\nX-Request-Id: " in response
    assert b"\r\nDate: " in response
    assert body_of(response) == b'{"code":5,"message":"Not Found","details":[]}'


@pytest.mark.parametrize(
    ("accept", "recording"),
    [("text/event-stream", "overlap.sse"), ("application/json", None), ("text/event-stream, */*", None)],
)
async def test_events_come_out_as_the_bytes_that_were_recorded(accept: str, recording: str | None) -> None:
    """Both framings; and only exactly `text/event-stream` gives that."""
    bodies = events(5)
    network = world()
    async with serve(network) as server, dial(server) as wire:
        await wire.ask(post({"identifiers": [PLANT_A]}, accept=accept))
        await wire.until(lambda seen: START.encode() in seen and seen.endswith(b"\r\n"))
        for each in bodies:
            network.publish(each)
        response = await wire.until(
            lambda seen: ids(bodies)[-1].encode() in seen and seen.endswith(b"\n\r\n")
        )
    delimiter = b"\n\n" if recording else b"\n"
    whole = body_of(response)
    assert whole.endswith(b"".join(b'{"result":%s}%s' % (each, delimiter) for each in bodies))
    assert f"Content-Type: {accept if recording else 'application/json'}\r\n".encode() in response


async def test_the_first_bytes_are_those_of_the_recording() -> None:
    """Headers and start event of apps.sse; they leave together."""
    ask = {"identifiers": [PLANT_A, {"applicationIds": {"applicationId": "plant-b"}}], "tail": 1024}
    clock = nanoseconds("2026-11-23T21:09:06.664332819Z") / 1e9
    async with serve(World({TOKEN: ALL}, clock=lambda: clock)) as server, dial(server) as wire:
        await wire.ask(post(ask))
        response = await wire.until(bool)
    headers = (RECORDED / "apps.sse.headers").read_bytes()
    first = (RECORDED / "apps.sse").read_bytes().partition(b"\n\n")[0] + b"\n\n"
    assert stable(response.partition(b"\r\n\r\n")[0]) + b"\r\n\r\n" == stable(headers)
    assert b"Date: Mon, 23 Nov 2026 21:09:06 GMT" in response
    assert stable(body_of(response)) == stable(first)
    request_id = re.search(rb"X-Request-Id: (\w+)", response)
    assert request_id is not None
    assert b"Stream:" + request_id[1] in response


async def test_the_fifth_stream_in_a_minute_is_answered_as_recorded() -> None:
    """rate_limited.http, with its headers; the first four as storage_disabled.http shows."""
    now = nanoseconds("2026-11-23T21:54:01Z") / 1e9
    async with serve(world(rate_limit=4, storage=False, clock=lambda: now)) as server:
        for number in range(5):
            now += 9 if number == 4 else 0
            async with dial(server) as wire:
                await wire.ask(post({"identifiers": [ROOF], "tail": 10}, close=True))
                response = await (wire.rest() if number == 4 else wire.until(bool))
            if number == 0:
                recorded = (RECORDED / "storage_disabled.http").read_bytes()
                end = recorded.index(b"\n\n") + 2
                assert stable(as_recorded(response)) == stable(recorded[:end])
    assert ended(response)
    assert stable(as_recorded(response)) == stable((RECORDED / "rate_limited.http").read_bytes())


def as_recorded(response: bytes) -> bytes:
    """As curl wrote it down: headers, then the body without its chunks."""
    return response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + body_of(response)


async def test_a_stopping_server_says_so_inside_the_200_and_ends_in_good_order() -> None:
    """The last message of server_stop.http; afterwards nobody listens, then again on the same port."""
    network = world()
    async with serve(network) as server:
        async with dial(server) as wire:
            await wire.ask(post({"identifiers": [ROOF], "tail": 10}))
            await wire.until(lambda seen: START.encode() in seen)
            await server.stop()
            response = await wire.rest()
        last = (RECORDED / "server_stop.http").read_bytes().rstrip().rpartition(b"\n")[2]
        assert stable(body_of(response)).endswith(stable(last + b"\n\n"))
        assert ended(response)
        with pytest.raises(OSError, match=r"connect|refused|failed"):
            await anyio.connect_tcp(server.host, server.port)
        await server.start()
        async with dial(server) as wire:
            await wire.ask(post({"identifiers": [ROOF]}))
            await wire.until(lambda seen: START.encode() in seen)


async def test_history_comes_before_what_is_live() -> None:
    """`tail` of what happened before; the connection is good for another request after a clean end."""
    bodies = events(6)
    network = world()
    for each in bodies[:4]:
        network.publish(each)
    network.faults.on_open(End(3))
    async with serve(network) as server, dial(server) as wire:
        await wire.ask(post({"identifiers": [PLANT_A], "tail": 2}))
        await wire.until(lambda seen: ids(bodies)[3].encode() in seen)
        network.publish(bodies[4])
        response = await wire.until(ended)
        assert names(response) == ids(bodies)[2:5]
        wire.seen = b""
        await wire.ask(
            post({"identifiers": [PLANT_A], "after": "2026-11-23T21:00:00Z", "names": ["/data.forward/"]})
        )
        response = await wire.until(lambda seen: ids(bodies)[4].encode() in seen)
        assert names(response) == ids(bodies)[:5]
    assert server.requests[0].body == {"identifiers": [PLANT_A], "tail": 2}


FAULTS: list[tuple[Fault, list[int], bool]] = [
    (Cut(2, 0.5), [0, 1], False),
    (Cut(2, 0.0), [0, 1], False),
    (CutAt(600), [], False),
    (End(2), [0, 1], True),
    (Drip(100), [0, 1, 2, 3], True),
    (Duplicate(1.0), [0, 0, 1, 1, 2, 2, 3, 3], True),
    (Drop(1.0), [], True),
    (Silence(1), [0], True),
]


@pytest.mark.parametrize(("fault", "expected", "clean"), FAULTS, ids=repr)
async def test_a_fault_is_seen_by_the_client(fault: Fault, expected: list[int], clean: bool) -> None:
    """Which events arrive whole, and whether the response ends with its last chunk."""
    bodies = events(4)
    network = world()
    network.faults.on_open(fault)
    for each in bodies:
        network.publish(each)
    async with serve(network) as server, dial(server) as wire:
        await wire.ask(post({"identifiers": [PLANT_A], "tail": 1024}, close=True))
        await wire.until(lambda seen: START.encode() in seen)
        if clean and not isinstance(fault, End):
            await wire.until(lambda seen: whole(seen) > len(expected) or len(expected) == 0)
            await anyio.wait_all_tasks_blocked()
            await server.stop()
        response = await wire.rest()
    lines = body_of(response).split(b"\n\n")[:-1]
    arrived = [each["result"]["unique_id"] for each in map(msgspec.json.decode, lines) if "result" in each]
    assert arrived[1:] == [ids(bodies)[at] for at in expected]
    assert ended(response) == clean


def whole(response: bytes) -> int:
    return body_of(response).count(b"\n\n")


async def test_disorder_on_the_wire_loses_nothing() -> None:
    bodies = events(20)
    network = world()
    network.faults.on_open(Reorder(5, hold=0.01))
    for each in bodies:
        network.publish(each)
    async with serve(network) as server, dial(server) as wire:
        await wire.ask(post({"identifiers": [PLANT_A], "tail": 1024}))
        response = await wire.until(lambda seen: whole(seen) == len(bodies) + 1)
    assert sorted(names(response)) == sorted(ids(bodies))
    assert names(response) != ids(bodies)


async def test_garbage_and_an_error_frame_stand_between_events() -> None:
    bodies = events(3)
    network = world()
    network.faults.on_open(Garbage(1, b"nonsense"), ErrorFrame(2))
    for each in bodies:
        network.publish(each)
    async with serve(network) as server, dial(server) as wire:
        await wire.ask(post({"identifiers": [PLANT_A], "tail": 1024}))
        response = await wire.until(ended)
    _, first, garbage, second, error, _ = body_of(response).split(b"\n\n")
    assert [bodies[0], bodies[1]] == [first[10:-1], second[10:-1]]
    assert garbage == b"nonsense"
    assert msgspec.json.decode(error)["error"]["code"] == 2


async def test_a_stalled_stream_fills_its_channel_and_goes_on_later() -> None:
    """Bytes stop, the connection stays; what did not fit is dropped and only the server knows."""
    bodies = events(20)
    network = world()
    network.faults.on_open(Stall(1))
    async with serve(network) as server, dial(server) as wire:
        await wire.ask(post({"identifiers": [PLANT_A]}))
        await wire.until(lambda seen: START.encode() in seen)
        network.publish(bodies[0])
        await wire.until(lambda seen: ids(bodies)[0].encode() in seen)
        await anyio.wait_all_tasks_blocked()
        for each in bodies[1:]:
            network.publish(each)
        assert server.streams == 1
        assert network.dropped == len(bodies) - 1 - 8
        server.resume()
        response = await wire.until(lambda seen: ids(bodies)[8].encode() in seen)
    assert names(response) == ids(bodies)[:9]


async def test_a_stalled_server_holds_every_stream_until_it_resumes() -> None:
    bodies = events(2)
    network = world()
    async with serve(network) as server, dial(server) as wire:
        await wire.ask(post({"identifiers": [PLANT_A]}))
        await wire.until(lambda seen: START.encode() in seen)
        server.stall()
        network.publish(bodies[0])
        await anyio.wait_all_tasks_blocked()
        assert bodies[0] not in wire.seen
        server.resume()
        await wire.until(lambda seen: bodies[0] in seen)
        server.cut()
        assert not ended(await wire.rest())


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
async def test_a_stream_is_refused_on_demand_once(status: int) -> None:
    """The status asked for; 429 with its seconds; the next opening goes well."""
    network = world()
    network.faults.on_open(Refuse(status, retry=17))
    async with serve(network) as server, dial(server) as wire:
        await wire.ask(post({"identifiers": [PLANT_A]}))
        response = await wire.until(ended)
        assert response.startswith(b"HTTP/1.1 %d " % status)
        assert (b"\r\nX-Rate-Limit-Retry: 17\r\n" in response) == (status == 429)
        assert list(frames(response)[0]) == ["error"]
        wire.seen = b""
        await wire.ask(post({"identifiers": [PLANT_A]}))
        await wire.until(lambda seen: START.encode() in seen)


async def test_a_raw_answer_goes_out_as_it_is() -> None:
    network = world()
    network.faults.on_open(Answer(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"))
    async with serve(network) as server, dial(server) as wire:
        await wire.ask(post({"identifiers": [PLANT_A]}))
        assert await wire.rest() == b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"


async def test_what_is_no_http_gets_gos_answer() -> None:
    async with serve(world()) as server, dial(server) as wire:
        await wire.ask(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert (await wire.rest()).startswith(b"HTTP/1.1 400 Bad Request\r\n")


async def test_an_ordinary_client_reads_it() -> None:
    """httpx: the stream, keep-alive, auth_info, related events and a 401 with its header."""
    network = world()
    bodies = events(3)
    related = msgspec.json.decode(bodies[0])["correlation_ids"][0]
    for each in bodies:
        network.publish(each)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with serve(network) as server, httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
        info = await client.get("/api/v3/auth_info", headers=headers)
        assert info.json()["api_key"]["api_key"]["id"] == TOKEN.split(".")[1]
        found = await client.get(
            "/api/v3/events/related", params={"correlation_id": related}, headers=headers
        )
        assert b'{"events":[%s]}' % bodies[0] == found.content
        wrong = {"Authorization": "Bearer NNSXS.OTHER.KEY"}
        refused = await client.get("/api/v3/auth_info", headers=wrong)
        assert (refused.status_code, refused.json()["code"]) == (401, 16)
        assert refused.headers["www-authenticate"] == refused.json()["message"]
        ask = {"identifiers": [PLANT_A], "tail": 1024}
        async with client.stream("POST", "/api/v3/events", json=ask, headers=headers) as response:
            received = b""
            async for data in response.aiter_raw():
                received += data
                if ids(bodies)[-1].encode() in received:
                    break
            assert server.streams == 1
    assert server.streams == 0


async def test_it_speaks_tls_too(tmp_path: Path) -> None:
    certs = certificates(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certs.server, certs.server_key)
    trusting = ssl.create_default_context(cafile=str(certs.ca))
    async with (
        serve(world(), tls=context) as server,
        httpx.AsyncClient(verify=trusting, trust_env=False) as client,
    ):
        answer = await client.get(
            f"{server.url}/api/v3/auth_info", headers={"Authorization": f"Bearer {TOKEN}"}
        )
    assert answer.status_code == 200


async def test_a_client_that_goes_away_ends_its_stream() -> None:
    async with serve(world()) as server:
        async with dial(server) as wire:
            await wire.ask(post({"identifiers": [PLANT_A]}))
            await wire.until(lambda seen: START.encode() in seen)
        with anyio.fail_after(5):
            while server.streams:
                await anyio.sleep(0.005)
        assert server.world.subscriptions == set()


async def test_a_client_that_resets_its_connection_hurts_nobody_else() -> None:
    """Writing to it fails; the stream ends, the server and the other streams go on."""
    network = world()
    bodies = events(10)
    async with serve(network) as server, dial(server) as other:
        await other.ask(post({"identifiers": [PLANT_A], "tail": 1024}))
        await other.until(lambda seen: START.encode() in seen)
        async with dial(server) as wire:
            await wire.ask(post({"identifiers": [PLANT_A], "tail": 1024}))
            await wire.until(lambda seen: START.encode() in seen)
            raw = wire.stream.extra(anyio.abc.SocketAttribute.raw_socket)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            server.stall()
            for each in bodies:
                network.publish(each)
        server.resume()
        await other.until(lambda seen: bodies[-1] in seen)
        with anyio.fail_after(5):
            while server.streams > 1:
                network.publish(bodies[0])
                await anyio.sleep(0.005)


async def test_a_recording_plays_again_at_another_time() -> None:
    """Every distinct event once, in its order, with times of now and bodies otherwise unchanged."""
    network = World({TOKEN: ALL})
    path = RECORDED / "gateway_flap.sse"
    expected = list(dict.fromkeys(unique_ids("gateway_flap.sse")))
    gateways = [{"gateway_ids": {"gateway_id": each}} for each in ("gw-yard", "gw-roof", "gw-field")]
    began = network.now
    async with serve(network) as server, dial(server) as wire:
        await wire.ask(post({"identifiers": gateways, "tail": 1024}))
        await wire.until(lambda seen: START.encode() in seen)
        assert await play(network, path, 10_000) == len(expected)
        response = await wire.until(lambda seen: whole(seen) == len(expected) + 1)
    results = [each["result"] for each in frames(response)[1:]]
    assert [each["unique_id"] for each in results] == expected
    assert all(began <= nanoseconds(each["time"]) <= network.now for each in results)


async def test_the_standin_runs_as_a_process_of_its_own() -> None:
    """Prints its address, plays once a stream is open, and dies of SIGKILL like anything else."""
    port = free_port()
    command = [sys.executable, "-m", "bridge.standin", "--file", str(RECORDED / "apps.sse")]
    command += ["--port", str(port), "--speed", "inf", "--streams", "1", "--verbatim", "--key", TOKEN]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url == f"http://127.0.0.1:{port}"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        expected = set(unique_ids("apps.sse"))
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            ask = {"identifiers": [PLANT_A, {"application_ids": {"application_id": "plant-b"}}], "tail": 1024}
            async with client.stream("POST", "/api/v3/events", json=ask, headers=headers) as response:
                received = b""
                async for data in response.aiter_raw():
                    received += data
                    if received.count(b"\n") == len(expected) + 1:
                        break
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    poll(lambda: process.returncode is not None, "the end of the stand-in")
    arrived = [msgspec.json.decode(each)["result"]["unique_id"] for each in received.split(b"\n")[1:-1]]
    assert sorted(arrived) == sorted(expected)


async def test_the_receiver_keeps_what_it_gets_and_answers_as_told() -> None:
    """200 by default; a reply of the callback wins; a reset and a hang are what they say."""
    replies = iter([None, Reply(429, {"Retry-After": "3"}), Reply(reset=True), Reply(hang=True)])

    def reply(_: Received) -> Reply | None:
        return next(replies)

    async with receive(on_delivery=reply) as receiver, httpx.AsyncClient(trust_env=False) as client:
        target = f"{receiver.url}/hooks/uplinks"
        first = await client.post(target, content=json_bytes({"a": 1}), headers={"webhook-id": "d_1"})
        limited = await client.post(target, content=b"2")
        with pytest.raises(httpx.TransportError):
            await client.post(target, content=b"3")
        with pytest.raises(httpx.ReadTimeout):
            await client.post(target, content=b"4", timeout=0.05)
    assert (first.status_code, limited.status_code, limited.headers["retry-after"]) == (200, 429, "3")
    assert [each.body for each in receiver.deliveries] == [b'{"a":1}', b"2", b"3", b"4"]
    assert (receiver.deliveries[0].id, receiver.deliveries[0].rule) == ("d_1", "uplinks")
