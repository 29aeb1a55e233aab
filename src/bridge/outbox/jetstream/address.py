"""What stands behind `outbox: nats://…`.  No I/O, no clock in this file.

    nats://user:password@a:4222,b:4222?stream=bridge&replicas=3&credentials=/run/secrets/nats.creds

`tls://` asks for TLS, `ca`, `cert` and `key` name PEM files; what stands alone before `@` is a token. Of
several servers one is used, and another when it goes, also those that a cluster tells of. After `?`:

| option | default | |
|---|---|---|
| stream | bridge | first part of every stream's and bucket's name: letters, digits, `-`, `_` |
| replicas | 1 | copies of each stream in the cluster, 1 to 5 |
| storage | file | file or memory |
| duplicate_window | 2m, at most dedup_window | how long the server itself absorbs a repeated id |
| ack_wait | 30s | so long without a sign of life, and a replica's deliveries go to another |
| lease | 15s | so long without a sign of life, and its sources and alerts go to another |
| replica | host name and process id | its name; one that comes back under it takes up its totals |
| credentials | | `.creds` file (user JWT and seed) or file with the seed of an nkey (SU…) |
| ca cert key | | PEM files |
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from urllib.parse import parse_qsl, unquote, urlsplit

SCHEMES = ("nats", "tls")
STREAM = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)\Z")
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
REPLICA = re.compile(r"[A-Za-z0-9_-]{1,63}\Z")
DURATIONS = ("duplicate_window", "ack_wait", "lease")
DUPLICATE_WINDOW = 120.0  # seconds; what NATS itself takes: every id costs the server memory for so long


@dataclass(frozen=True, slots=True)
class Address:
    """Where the JetStream servers are and how the streams are to be; times in seconds."""

    servers: tuple[str, ...]
    """Each `nats://host:port` or `tls://host:port`, without credentials."""
    user: str | None = None
    password: str | None = None
    stream: str = "bridge"
    replicas: int = 1
    storage: str = "file"
    duplicate_window: float = DUPLICATE_WINDOW
    ack_wait: float = 30.0
    lease: float = 15.0
    replica: str = ""
    credentials: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    @property
    def shown(self) -> str:
        """For messages: servers only."""
        return ",".join(self.servers)


OPTIONS = tuple(each.name for each in fields(Address) if each.name not in ("servers", "user", "password"))


def is_nats(outbox: str) -> bool:
    return outbox.partition(":")[0] in SCHEMES


def parse(url: str) -> Address:
    """Raises ValueError that says what to write, without repeating the value."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise ValueError("write nats://host:4222 or tls://host:4222")
    userinfo, _, hosts = parts.netloc.rpartition("@")
    user, colon, password = userinfo.partition(":")
    options: dict[str, str] = {}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in OPTIONS:
            raise ValueError(f"unknown option after ?; there are {' '.join(OPTIONS)}")
        options[key] = value
    if parts.path.strip("/") or parts.fragment:
        raise ValueError("nothing comes between the servers and ?; the stream is ?stream=bridge")
    return Address(
        servers=tuple(_server(parts.scheme, host) for host in hosts.split(",")),
        user=unquote(user) or None,
        password=unquote(password) if colon else None,
        **_checked(options),  # type: ignore[arg-type]  # each by its name
    )


def _server(scheme: str, host: str) -> str:
    try:
        parts = urlsplit(f"{scheme}://{host}")
        port = parts.port or 4222
    except ValueError:
        raise ValueError("a server is host:port, several are separated by commas") from None
    if not parts.hostname:
        raise ValueError("a server is host:port, several are separated by commas")
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{scheme}://{name}:{port}"


def _checked(options: dict[str, str]) -> dict[str, object]:
    found: dict[str, object] = dict(options)
    for key in DURATIONS:
        if key in options:
            found[key] = _seconds(key, options[key])
    if not STREAM.match(options.get("stream", "bridge")):
        raise ValueError("stream is letters, digits, - and _")
    if not REPLICA.match(options.get("replica", "a")):
        raise ValueError("replica is letters, digits, - and _")
    if options.get("storage", "file") not in ("file", "memory"):
        raise ValueError("storage is file or memory")
    if "replicas" in options:
        if options["replicas"] not in ("1", "2", "3", "4", "5"):
            raise ValueError("replicas is 1 to 5")
        found["replicas"] = int(options["replicas"])
    return found


def _seconds(key: str, text: str) -> float:
    matched = DURATION.match(text)
    if matched is None:
        raise ValueError(f"{key} is a duration such as 30s or 2m")
    seconds = float(matched[1]) * UNITS[matched[2]]
    if seconds < 0.1:
        raise ValueError(f"{key} is at least 100ms")
    return seconds
