"""gRPC for real: certificates, connections that age, limits, and the whole of bridge over it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import grpc
import msgspec
import pytest

from bridge.config import load
from bridge.decode import StreamStart
from bridge.errors import ConfigError, SourceError, StartError
from bridge.event import Entity, Event, rfc3339
from bridge.receiver import receive
from bridge.sources.grpc import OPTIONS, GrpcUpstream, connect, credentials
from bridge.sources.upstream import Stream
from bridge.standin import ALL, World, entities_in
from bridge.standin.grpc import GrpcServer, Options, serve_grpc
from bridge.tls import TlsConfig
from tests.integration.process import running, until_connected, until_settled
from tests.recordings import RECORDED, documents, json_bytes
from tests.servers import Certificates, certificates, free_port

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

KEY = "NNSXS.ADMIN.SECRET"
PLANT = Entity("application", "plant-a")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def world() -> World:
    existing = entities_in(path.read_bytes() for path in RECORDED.glob("*.sse"))
    return World({KEY: ALL}, entities=[*existing, PLANT])


def secret(files: Certificates, *, client: bool = False) -> grpc.ServerCredentials:
    """The server's certificate; with *client* it asks for one, too."""
    pair = (files.server_key.read_bytes(), files.server.read_bytes())
    return grpc.ssl_server_credentials([pair], files.ca.read_bytes() if client else None, client)


@asynccontextmanager
async def upstream(address: str, tls: TlsConfig | None, types: list[str]) -> AsyncIterator[GrpcUpstream]:
    connection = connect(address, KEY, tls)
    try:
        yield GrpcUpstream(connection, types.append)
    finally:
        await connection.aclose()


async def opens(address: str, tls: TlsConfig | None) -> None:
    """Open a stream and see its start; raises SourceError."""
    with anyio.fail_after(10):
        async with upstream(address, tls, []) as up, up.open([PLANT], None, []) as stream:
            assert isinstance(await anext(stream.frames()), StreamStart)


async def refused(address: str, tls: TlsConfig | None) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await opens(address, tls)
    return caught.value


def event(number: int, **more: Any) -> dict[str, Any]:
    return {
        "name": "as.up.data.forward",
        "time": rfc3339(1_800_000_000_000_000_000 + number),
        "identifiers": [{"application_ids": {"application_id": "plant-a"}}],
        "unique_id": f"01TEST{number:020d}",
        **more,
    }


async def test_plain_text(world: World) -> None:
    """Without a certificate on either side, as on port 1884."""
    async with serve_grpc(world) as server:
        await opens(server.address, None)


async def test_a_server_that_asks_for_a_certificate(world: World, files: Certificates) -> None:
    """With one it opens, without it does not, and that is worth another try."""
    with_one = TlsConfig(ca_file=files.ca, cert_file=files.client, key_file=files.client_key)
    async with serve_grpc(world, secret=secret(files, client=True)) as server:
        await opens(server.address, with_one)
        error = await refused(server.address, TlsConfig(ca_file=files.ca))

    assert error.kind == "transient"


async def test_a_certificate_that_nobody_vouches_for(world: World, files: Certificates) -> None:
    """Neither the system's authorities nor a wrong CA will do, and the error says what is wrong."""
    async with serve_grpc(world, secret=secret(files)) as server:
        for tls in (TlsConfig(), TlsConfig(ca_file=files.client)):
            error = await refused(server.address, tls)
            assert error.kind == "transient"
            assert "certificate" in str(error).lower() or "ssl" in str(error).lower()


async def test_a_certificate_for_another_name(world: World, files: Certificates) -> None:
    """The name of the address is what the certificate has to say."""
    async with serve_grpc(world, secret=secret(files)) as server:
        port = server.address.rpartition(":")[2]
        await opens(f"127.0.0.1:{port}", TlsConfig(ca_file=files.ca))
        error = await refused(f"127.0.0.2:{port}", TlsConfig(ca_file=files.ca))

    assert error.kind == "transient"


def test_a_certificate_file_that_is_not_there(tmp_path: Path) -> None:
    """StartError, before anything is connected."""
    with pytest.raises(StartError, match="tls: a certificate or key file cannot be used"):
        credentials(TlsConfig(ca_file=tmp_path / "missing.pem"))


def test_pings_are_no_closer_than_the_server_allows() -> None:
    """The third within 60 s each would be answered by GOAWAY (UPSTREAM.md §7)."""
    options = dict(OPTIONS)

    assert int(options["grpc.keepalive_time_ms"]) >= 70_000
    assert options["grpc.max_receive_message_length"] == 16 << 20


@asynccontextmanager
async def opened(
    world: World, types: list[str] | None = None, options: Options = ()
) -> AsyncIterator[tuple[GrpcServer, GrpcUpstream, Stream]]:
    """A plain server, its client, and a stream."""
    async with (
        serve_grpc(world, options=options) as server,
        upstream(server.address, None, [] if types is None else types) as up,
        up.open([PLANT], world.now, []) as stream,
    ):
        yield server, up, stream


async def test_a_connection_that_grew_old_is_replaced_beside_its_streams(world: World) -> None:
    """GOAWAY after a second: the stream goes on, a new one gets a new connection."""
    aging = (("grpc.max_connection_age_ms", 300), ("grpc.max_connection_age_grace_ms", 60_000))
    async with opened(world, options=aging) as (server, up, old):
        frames = old.frames()
        await anext(frames)
        await anyio.sleep(1.0)  # the connection's age is counted in real time
        async with up.open([PLANT], world.now, []) as new:
            fresh = new.frames()
            await anext(fresh)
            connections = server.connections
            world.publish(json_bytes(event(1)))
            with anyio.fail_after(5):
                came = [await anext(frames), await anext(fresh)]

    assert [each.unique_id for each in came if isinstance(each, Event)] == [event(1)["unique_id"]] * 2
    assert connections == 2


async def test_a_message_above_the_limit_is_no_rate_limit(world: World) -> None:
    """grpcio says RESOURCE_EXHAUSTED for both; this one is not waited out."""
    world.storage = False
    text = {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "x" * (17 << 20)}
    wide = (("grpc.max_send_message_length", 64 << 20),)
    async with opened(world, options=wide) as (_, _, stream):
        frames = stream.frames()
        await anext(frames)
        world.publish(json_bytes(event(1, data=text)))
        with anyio.fail_after(15), pytest.raises(SourceError) as caught:
            await anext(frames)

    assert caught.value.kind == "transient"
    assert "larger than max" in str(caught.value)


async def test_a_type_from_the_future_comes_through_and_is_told(world: World) -> None:
    """Its bytes stand as base64 beside its name."""
    data = {"@type": "type.googleapis.com/ttn.lorawan.v3.Newer", "value": "CAE="}
    types: list[str] = []
    async with opened(world, types) as (_, _, stream):
        frames = stream.frames()
        await anext(frames)
        world.publish(json_bytes(event(1, data=data)))
        came = await anext(frames)

    assert isinstance(came, Event)
    assert came.document()["data"] == data
    assert types == ["ttn.lorawan.v3.Newer"]


async def test_the_environment_names_no_proxy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """grpcio would take it from there."""
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    async with serve_grpc(world) as server:
        await opens(server.address, None)


SOURCE = """
sources:
  eu1:
    type: tts
    url: "{scheme}://localhost:1"
    api_key: {key}
    transport: grpc
    grpc_address: "{address}"
    identifiers: [{{application: plant-a}}, {{application: plant-b}}]
    from: 1h
    tls: {{ca_file: "{ca}"}}
sinks:
  hook:
    type: webhook
    url: "{receiver}/hook"
    allow_private_networks: true
    retry: {{initial: 100ms, max: 1s}}
rules: ["rules/*.yaml"]
outbox: "sqlite:bridge.db"
admin: {{listen: "127.0.0.1:0"}}
log: {{format: json}}
redact: []
"""
RULES = """
rules:
  - name: all
    match: {}
    attach: related
    send: [hook]
"""


def configured(folder: Path, *, address: str, receiver: str, ca: Path) -> Path:
    (folder / "rules").mkdir()
    (folder / "rules" / "all.yaml").write_text(RULES)
    path = folder / "bridge.yaml"
    path.write_text(SOURCE.format(scheme="https", key=KEY, address=address, receiver=receiver, ca=ca))
    return path


def test_without_the_extra_the_config_says_what_to_install(
    tmp_path: Path, files: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, with the place in the file."""
    path = configured(tmp_path, address="localhost:8884", receiver="http://127.0.0.1:1", ca=files.ca)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(ConfigError) as caught:
        load(path, {})

    (line,) = str(caught.value).splitlines()
    assert ": sources.eu1" in line
    assert "pip install 'tts-event-bridge[grpc]'" in line


async def test_bridge_runs_over_grpc(world: World, files: Certificates, tmp_path: Path) -> None:
    """A process in TLS, a server that goes away and comes back: every event arrives as it was, once.

    The HTTP side of the server is not there at all. Each delivery brings its chain.
    """
    recorded = list({each["unique_id"]: each for each in documents("apps.sse")}.values())[:150]
    async with serve_grpc(world, secret=secret(files)) as server, receive() as receiver:
        configured(tmp_path, address=server.address, receiver=receiver.url, ca=files.ca)
        async with running(tmp_path) as bridge:
            await until_connected(bridge)
            publish(world, recorded[:50])
            await until_settled(bridge, {"hook": 50})
            await server.stop()
            publish(world, recorded[50:100])
            await server.start()
            await until_settled(bridge, {"hook": 100})
            server.cut()
            publish(world, recorded[100:])
            await until_settled(bridge, {"hook": 150})
            exported = await bridge.metrics()
            code = bridge.terminate()

    got = [msgspec.json.decode(each.body) for each in receiver.deliveries]
    chains = {each["unique_id"]: [one["unique_id"] for one in each.pop("related")] for each in got}
    assert code == 0
    assert sorted(got, key=by_id) == sorted(recorded, key=by_id)
    assert any(chains.values())
    assert 'bridge_source_opaque_data_total{source="eu1"} 0.0' in exported


def by_id(event: dict[str, Any]) -> str:
    return str(event["unique_id"])


def publish(world: World, events: Sequence[dict[str, Any]]) -> None:
    """Now: what the server keeps is asked for by time."""
    for each in events:
        each["time"] = rfc3339(world.now)
        world.publish(json_bytes(each))
