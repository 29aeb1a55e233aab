"""Where a broker is, by the URL an operator writes.  No I/O in this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

Scheme: TypeAlias = Literal["mqtt", "mqtts", "ws", "wss"]

PORTS: dict[Scheme, int] = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
WEBSOCKET_PATH = "/mqtt"  # what brokers and clients agree on; no standard says so


@dataclass(frozen=True, slots=True)
class Address:
    """A broker's address; *path* is that of the WebSocket with its query, '' for the other schemes."""

    scheme: Scheme
    host: str
    port: int
    path: str

    @property
    def is_secured(self) -> bool:
        return self.scheme in ("mqtts", "wss")

    @property
    def is_websocket(self) -> bool:
        return self.scheme in ("ws", "wss")


def parse(url: str) -> Address:
    """The address in *url*; raises ValueError, which never repeats it: it may hold a password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("this is no URL; write one such as mqtts://broker.example:8883") from None
    scheme = next((each for each in PORTS if each == parts.scheme), None)
    if scheme is None or not host:
        raise ValueError("write a URL such as mqtts://broker.example:8883; there is mqtt, mqtts, ws and wss")
    if "@" in parts.netloc:
        raise ValueError("write the user into username and password, not into the URL")
    if parts.fragment:
        raise ValueError("a broker's URL has no #")
    written = parts.path + (f"?{parts.query}" if parts.query else "")
    if scheme in ("ws", "wss"):
        path = f"/{written.lstrip('/')}" if written.strip("/") else WEBSOCKET_PATH
    elif written.strip("/"):
        raise ValueError("only ws and wss URLs have a path; the topic is a key of its own")
    else:
        path = ""
    return Address(scheme, host, port or PORTS[scheme], path)
