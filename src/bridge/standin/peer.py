"""One client connection: requests come out as values, responses go in as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import anyio
import h11
import msgspec
from anyio.abc import AnyByteStream

GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)
"""What reading and writing raise when the client has left."""


@dataclass(frozen=True, slots=True)
class Received:
    """One request; header names in lower case, *path* without the query."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    content: bytes
    keep_alive: bool

    @property
    def body(self) -> object:
        """The decoded JSON, None where there is none."""
        try:
            decoded: object = msgspec.json.decode(self.content)
        except msgspec.DecodeError:
            return None
        return decoded


class Peer:
    """The connection; `send` is used by one task at a time."""

    def __init__(self, stream: AnyByteStream) -> None:
        self._stream = stream
        self._ahead = b""

    async def request(self) -> Received | None:
        """The next request, None once the client has closed; raises h11.RemoteProtocolError."""
        connection = h11.Connection(h11.SERVER)
        if self._ahead:
            connection.receive_data(self._ahead)
        head: h11.Request | None = None
        content = b""
        while True:
            event = connection.next_event()
            match event:
                case h11.NEED_DATA:
                    connection.receive_data(await self._receive())
                case h11.Request():
                    head = event
                case h11.Data():
                    content += event.data
                case h11.EndOfMessage() if head is not None:
                    self._ahead = connection.trailing_data[0]
                    return _received(head, content)
                case _:
                    return None

    async def _receive(self) -> bytes:
        try:
            return await self._stream.receive()
        except GONE:
            return b""

    async def gone(self) -> None:
        """Return when the client closes; what it sends before that is kept for the next request."""
        while data := await self._receive():
            self._ahead += data

    async def send(self, data: bytes) -> None:
        """Raises one of GONE."""
        await self._stream.send(data)


def _received(head: h11.Request, content: bytes) -> Received:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
    path, _, query = head.target.decode("latin-1").partition("?")
    close = head.http_version == b"1.0" or headers.get("connection", "").lower() == "close"
    return Received(head.method.decode(), path, query, headers, content, not close)
