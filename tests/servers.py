"""Real servers for integration tests: started on loopback, waited for, killed, started again."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest

HOST = "127.0.0.1"
BUILT = Path(__file__).parents[1] / ".cache" / "bin"  # by .ci/programs
START_WITHIN = 10.0  # seconds; mosquitto needs 20 ms, a busy machine more
POLL = 0.01  # seconds between two looks


def need(program: str, group: str = "integration") -> str:
    """The path of *program*; without it the test is skipped, or fails where CI=true promises it."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        lack(f"{group}: {program} is not installed")
    return path


def lack(reason: str) -> NoReturn:
    """Skip the test, or fail it where CI=true promises that nothing is skipped."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def built(program: str) -> str:
    """The path of *program* as `.ci/programs` builds it, else of the one that is installed."""
    return str(BUILT / program) if (BUILT / program).exists() else need(program)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def poll(condition: Callable[[], bool], what: str, within: float = START_WITHIN) -> None:
    """Return once *condition* holds; fail the test after *within* seconds, naming *what* did not happen.

    Blocks the thread: for starting a server, not for waiting on what the same event loop has to do.
    """
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {within} s")
        time.sleep(POLL)


def is_listening(port: int, host: str = HOST) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until_listening(port: int, host: str = HOST, within: float = START_WITHIN) -> None:
    """Return once somebody accepts connections on *port*."""
    poll(lambda: is_listening(port, host), f"listening on {host}:{port}", within)


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files of a private CA, of a server called localhost and 127.0.0.1, and of a client."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


def certificates(directory: Path) -> Certificates:
    """Make the certificates in *directory* with openssl, valid for a day."""
    openssl = need("openssl")
    directory.mkdir(parents=True, exist_ok=True)
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    made = Certificates(
        *(directory / name for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key"))
    )
    ca_key = directory / "ca.key"

    def request(subject: str, key: Path, out: Path, *more: str | Path) -> None:
        subprocess.run(
            [openssl, "req", "-x509", *curve, "-subj", f"/CN={subject}", "-keyout", key, "-out", out, *more],
            check=True,
            capture_output=True,
        )

    signed = ("-CA", made.ca, "-CAkey", ca_key, "-addext", "basicConstraints=critical,CA:FALSE")
    request("bridge test CA", ca_key, made.ca)
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    request("localhost", made.server_key, made.server, *signed, "-addext", names)
    request("bridge", made.client_key, made.client, *signed)
    return made


@dataclass(slots=True)
class Mosquitto:
    """A mosquitto and its ports by listener: `mqtt ws`, and with certificates `mqtts mtls wss` too."""

    program: str
    directory: Path
    ports: Mapping[str, int]
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def port(self) -> int:
        return self.ports["mqtt"]

    def url(self, listener: str = "mqtt") -> str:
        """The broker's address for a listener; `mtls` is the mqtts one that asks for a certificate."""
        scheme = "mqtts" if listener == "mtls" else listener
        host = "localhost" if scheme in {"mqtts", "wss"} else HOST
        return f"{scheme}://{host}:{self.ports[listener]}"

    @property
    def log(self) -> str:
        return (self.directory / "mosquitto.log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, on the same ports each time, and wait until all of them are open."""
        with (self.directory / "mosquitto.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.program, "-v", "-c", str(self.directory / "mosquitto.conf")], stdout=log, stderr=log
            )
        for port in self.ports.values():
            poll(partial(self._up, port), f"mosquitto on port {port}")

    def _up(self, port: int) -> bool:
        if self.process is None or self.process.poll() is not None:
            pytest.fail(f"mosquitto ended at start:\n{self.log}")
        return is_listening(port)

    def stop(self) -> None:
        """End it with SIGTERM: clients get their connection closed, persistence is written."""
        self._end(subprocess.Popen.terminate)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._end(subprocess.Popen.kill)

    def _end(self, end: Callable[[subprocess.Popen[bytes]], None]) -> None:
        if self.process is not None:
            end(self.process)
            self.process.wait(START_WITHIN)
            self.process = None

    def restart(self) -> None:
        self.kill()
        self.start()


def mosquitto_conf(ports: Mapping[str, int], certs: Certificates | None, config: str) -> str:
    """The config file: one listener for each of *ports*; *config* goes first and may set anything global."""
    lines = [
        config,
        f"user {getpass.getuser()}",  # or root would become `mosquitto` and not read the key files
        "" if "allow_anonymous" in config else "allow_anonymous true",
    ]
    for listener, port in ports.items():
        lines.append(f"listener {port} {HOST}")
        if listener in {"ws", "wss"}:
            lines.append("protocol websockets")
        if listener in {"mqtts", "mtls", "wss"} and certs is not None:
            lines += [f"cafile {certs.ca}", f"certfile {certs.server}", f"keyfile {certs.server_key}"]
        if listener == "mtls":
            lines += ["require_certificate true", "use_identity_as_username true"]
    return "\n".join(lines) + "\n"


@contextmanager
def mosquitto(directory: Path, *, certs: Certificates | None = None, config: str = "") -> Iterator[Mosquitto]:
    """A running mosquitto with its files in *directory*; *config* is added to its config file.

    Persistence is off unless *config* turns it on; passwords and ACLs go into *config* as well.
    """
    program = need("mosquitto")
    directory.mkdir(parents=True, exist_ok=True)
    listeners = ["mqtt", "ws"] + (["mqtts", "mtls", "wss"] if certs else [])
    broker = Mosquitto(program, directory, {listener: free_port() for listener in listeners})
    (directory / "mosquitto.conf").write_text(mosquitto_conf(broker.ports, certs, config))
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()
