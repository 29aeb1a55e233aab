"""Who is let in by a real nats-server, and how: password, token, nkey, JWT, certificates."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from bridge.errors import BridgeError, OutboxError, StartError
from bridge.outbox.jetstream.address import parse
from bridge.outbox.jetstream.outbox import JetStreamOutbox, open_reader
from tests.contract.outboxes import CRM, batch, ids_due, intake
from tests.integration.test_nats import opened
from tests.nats import nats_server
from tests.natsauth import Key, Operator
from tests.servers import HOST, certificates

pytestmark = [pytest.mark.integration, pytest.mark.anyio, pytest.mark.timeout(60)]

WITHIN = 15.0  # seconds


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def lets_in(url: str) -> None:
    """An event goes in and comes out."""
    async with opened(url) as outbox:
        await outbox.accept(batch(intake("u1", CRM)))
        assert await ids_due(outbox) == ["u1"]


async def until_it_answers(outbox: JetStreamOutbox) -> None:
    with anyio.fail_after(WITHIN):
        while True:
            with suppress(OutboxError):
                await outbox.cursors("eu1")
                return
            await anyio.sleep(0.05)


async def refuses(url: str, *, but: str = "") -> str:
    """What is told, and nothing secret in it."""
    with pytest.raises(BridgeError) as told:
        async with open_reader(parse(url)):
            pass
    assert not but or but not in str(told.value)
    assert "\n" not in str(told.value)
    return str(told.value)


async def test_a_user_with_a_password_is_let_in(tmp_path: Path) -> None:
    """And one without is told, without the password."""
    more = 'authorization { user: bridge, password: "s3cret" }'
    with nats_server(tmp_path, more) as server:
        url = server.url().replace("nats://", "nats://bridge:s3cret@")
        await lets_in(url)
        assert "Authorization Violation" in await refuses(url.replace("s3cret", "wr0ng"), but="wr0ng")


async def test_a_token_is_let_in(tmp_path: Path) -> None:
    """It stands alone before the @, as for the tools of NATS."""
    with nats_server(tmp_path, 'authorization { token: "t0ken" }') as server:
        url = server.url().replace("nats://", "nats://t0ken@")
        await lets_in(url)
        await refuses(url.replace("t0ken", "wr0ng"), but="wr0ng")


async def test_a_file_of_credentials_is_let_in_and_may_be_renewed(tmp_path: Path) -> None:
    """The JWT says who it is, the seed proves it; a new file counts from the next connection on."""
    operator, stranger = Operator.new(), Operator.new()
    creds = operator.credentials(tmp_path / "user.creds")
    with nats_server(tmp_path / "nats", operator.config) as server:
        url = server.url(credentials=creds)
        await lets_in(url)
        other = stranger.credentials(tmp_path / "other.creds")
        assert "Authorization Violation" in await refuses(server.url(credentials=other))
        async with opened(url) as outbox:
            for content in (operator.credentials(creds).read_text(), "half a fi"):
                creds.write_text(content)
                server.restart()
                await until_it_answers(outbox)


async def test_a_file_with_a_seed_is_let_in(tmp_path: Path) -> None:
    """The server knows the public key by its config."""
    user = Key.new("user")
    seed = tmp_path / "user.nk"
    seed.write_text(user.seed + "\n")
    with nats_server(
        tmp_path / "nats", f"authorization {{ users: [ {{ nkey: {user.public} }} ] }}"
    ) as server:
        await lets_in(server.url(credentials=seed))
        seed.write_text(Key.new("user").seed)
        await refuses(server.url(credentials=seed), but=seed.read_text())


@pytest.mark.parametrize(
    ("text", "told"),
    [(None, "cannot be read: No such file"), ("", "has no seed"), ("-----BEGIN", "has no seed")],
)
async def test_a_file_that_is_none_is_told(tmp_path: Path, text: str | None, told: str) -> None:
    """In one line, before anything is connected."""
    path = tmp_path / "user.creds"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StartError, match=told):
        async with open_reader(parse(f"nats://{HOST}:1?credentials={path}")):
            pass


async def test_tls_with_an_own_authority(tmp_path: Path) -> None:
    """`tls://` with `ca`, and a client certificate where the server wants one; without, one line says no."""
    certs = certificates(tmp_path / "certs")
    more = (
        f'tls {{ cert_file: "{certs.server}", key_file: "{certs.server_key}",'
        f' ca_file: "{certs.ca}", verify: true }}'
    )
    with nats_server(tmp_path / "nats", more) as server:
        url = f"tls://localhost:{server.port}?ca={certs.ca}"
        await lets_in(f"{url}&cert={certs.client}&key={certs.client_key}")
        assert "cannot be reached" in await refuses(url)
        assert "cannot be reached" in await refuses(f"tls://localhost:{server.port}")
        assert "PEM files" in await refuses(f"tls://localhost:{server.port}?ca={tmp_path}/none.pem")
