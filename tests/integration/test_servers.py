"""The real servers the other tests stand on."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from tests.servers import Mosquitto, certificates, is_listening, mosquitto, need

pytestmark = pytest.mark.integration


def test_a_broker_listens_everywhere_and_comes_back_where_it_was(tmp_path: Path) -> None:
    """Every listener answers after a SIGKILL and a new start, on the same ports; stopped, none does."""
    certs = certificates(tmp_path / "certs")
    with mosquitto(tmp_path / "broker", certs=certs) as broker:
        broker.restart()
        assert set(broker.ports) == {"mqtt", "ws", "mqtts", "mtls", "wss"}
        assert all(is_listening(port) for port in broker.ports.values())
        assert greeted(broker, certs.ca, None)
        assert greeted(broker, certs.ca, (certs.client, certs.client_key))
        broker.stop()
        assert not any(is_listening(port) for port in broker.ports.values())


def greeted(broker: Mosquitto, ca: Path, client: tuple[Path, Path] | None) -> bool:
    """Whether a TLS handshake succeeds, with a client certificate on the listener that asks for one."""
    context = ssl.create_default_context(cafile=str(ca))
    if client:
        context.load_cert_chain(*client)
    port = broker.ports["mtls" if client else "mqtts"]
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        return secured.version() is not None


def test_a_missing_server_fails_where_it_is_promised_and_skips_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CI=true promises all of them; the reason names the group and the program."""
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="broker tests: no-such-server is not installed"):
        need("no-such-server", "broker tests")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="broker tests: no-such-server is not installed"):
        need("no-such-server", "broker tests")
