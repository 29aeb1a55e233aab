"""HTTP/1.1 as a client that only posts speaks it (RFC 9112), sans I/O: requests to bytes, bytes to answers.

The parser is llhttp, through httptools.  No I/O, no clock, no logging in this file.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urlsplit

import msgspec
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from bridge.errors import AnswerError

LONGEST_HEAD = 65_536  # bytes of status line and headers, 1xx answers before it included
LONGEST_BODY = 65_536  # bytes of a body that are read so that its connection can be used again
KEEP_ALIVE = re.compile(r"timeout\s*=\s*(\d{1,9})")
STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?\r?\n")

UNSAFE_KEPT = "%/:=&?~#+!$,;'@()*[]|"
"""What `quote` leaves alone in a path or query: everything that may already stand there by RFC 3986."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a URL says of where its requests go; *host* in ASCII, as it is looked up and verified."""

    scheme: str
    host: str
    port: int
    authorization: str | None = None
    """From user and password of the URL."""

    @classmethod
    def of(cls, url: str) -> Origin:
        """Raises ValueError; never repeats *url*, which may hold a token."""
        parts = urlsplit(url)
        port = parts.port if parts.port is not None else 443 if parts.scheme == "https" else 80
        return cls(parts.scheme, ascii_host(parts.hostname or ""), port, basic(parts))

    @property
    def authority(self) -> str:
        """As in `Host`: the port only where it is not the scheme's own."""
        usual = 443 if self.scheme == "https" else 80
        return self._bracketed() if self.port == usual else f"{self._bracketed()}:{self.port}"

    @property
    def tunnel(self) -> str:
        """As in CONNECT: always with the port (RFC 9112 §3.2.3)."""
        return f"{self._bracketed()}:{self.port}"

    def _bracketed(self) -> str:
        return f"[{self.host.partition('%')[0]}]" if ":" in self.host else self.host


def ascii_host(host: str) -> str:
    """*host* in the letters of the DNS; raises ValueError for what is no name."""
    if host.isascii():
        return host
    return host.encode("idna").decode()


def basic(parts: SplitResult) -> str | None:
    """The credentials in a URL as RFC 7617 wants them."""
    if parts.username is None:
        return None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def target_of(url: str) -> str:
    """The request target in *url*: path and query, every character of it allowed."""
    parts = urlsplit(url)
    path = quote(parts.path or "/", safe=UNSAFE_KEPT)
    return f"{path}?{quote(parts.query, safe=UNSAFE_KEPT)}" if parts.query else path


def request_line(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """A request's beginning that is the same each time; `request` puts the rest behind it."""
    return f"{method} {target} HTTP/1.1\r\n".encode() + fields(headers)


def request(beginning: bytes, headers: Mapping[str, str], body: bytes, head: bytes = b"") -> bytes:
    """One request, whole; *head*: more headers, by `fields`. Raises ValueError for one that would be two."""
    return b"".join((beginning, head, fields(headers), b"Content-Length: %d\r\n\r\n" % len(body), body))


def fields(headers: Mapping[str, str]) -> bytes:
    """*headers* as lines; raises ValueError for one that would be two."""
    text = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    lines = len(headers)
    if text.count("\n") != lines or text.count("\r") != lines or "\0" in text:
        raise ValueError("a header holds the end of a line")
    return text.encode()


def connect_request(to: Origin, user_agent: str, authorization: str | None) -> bytes:
    """Asks a proxy for a tunnel to *to* (RFC 9110 §9.3.6)."""
    headers = {"Host": to.tunnel, "User-Agent": user_agent}
    if authorization:
        headers["Proxy-Authorization"] = authorization
    return request_line("CONNECT", to.tunnel, headers) + b"\r\n"


def connect_status(head: bytes) -> int | None:
    """The status of a proxy's answer to CONNECT once its head is whole; raises AnswerError."""
    if b"\r\n\r\n" not in head and b"\n\n" not in head:
        if len(head) > LONGEST_HEAD:
            raise AnswerError("the proxy's answer has no end")
        return None
    line = STATUS_LINE.match(head)
    if line is None:
        raise AnswerError("the proxy does not speak HTTP")
    return int(line[1])


class Response(msgspec.Struct, frozen=True, gc=False):
    """One answer; *body* is its beginning, at most as much as is kept.

    *reusable*: another request may follow on the connection. *idle*: for how many seconds the receiver
    says it keeps the connection, None if it does not say.
    """

    status: int
    body: bytes
    retry_after: str | None
    reusable: bool
    idle: int | None


class Reader:
    """Reads the answers of one connection, one at a time; *keep* bytes of each body are kept.

    An answer counts from its head on: what breaks its body off does not change what the status said.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._parser = HttpResponseParser(self)
        self.expect()

    def expect(self) -> None:
        """A request goes out: what comes now is the answer to it."""
        self._status = 0
        self._size = 0
        self._body = b""
        self._body_size = 0
        self._complete = False
        self._more = False
        self._keeps_alive = False
        self._retry_after: str | None = None
        self._idle: int | None = None

    @property
    def has_begun(self) -> bool:
        return self._size > 0

    def feed(self, data: bytes) -> Response | None:
        """The answer once it is whole, or as much of it as is wanted; raises AnswerError."""
        self._size += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            return self._response(reusable=False)
        except HttpParserError:
            if not self._status:
                raise AnswerError("what answers does not speak HTTP") from None
            return self._response(reusable=False)
        if self._complete:
            return self._response(reusable=self._keeps_alive and not self._more)
        if self._body_size > LONGEST_BODY:
            return self._response(reusable=False)
        if not self._status and self._size > LONGEST_HEAD:
            raise AnswerError("the head of the answer has no end")
        return None

    def end(self) -> Response | None:
        """The answer if nothing more comes: None before its head was whole."""
        return self._response(reusable=False) if self._status else None

    def _response(self, *, reusable: bool) -> Response:
        return Response(
            self._status or self._parser.get_status_code(),
            self._body,
            self._retry_after,
            reusable,
            self._idle,
        )

    # Called by the parser

    def on_message_begin(self) -> None:
        self._more = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._complete:
            return
        if len(name) == 11 and name.lower() == b"retry-after":
            self._retry_after = value.decode("latin-1")
        elif len(name) == 10 and name.lower() == b"keep-alive":
            found = KEEP_ALIVE.search(value.decode("latin-1"))
            self._idle = int(found[1]) if found else None

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 100:
            raise AnswerError("an answer without a status")
        if not self._complete and (status >= 200 or status == 101):
            self._status = status

    def on_body(self, body: bytes) -> None:
        if self._complete:
            return
        self._body_size += len(body)
        if len(self._body) < self._keep:
            self._body = self._body + body[: self._keep - len(self._body)]

    def on_message_complete(self) -> None:
        if not self._status:
            self._retry_after = self._idle = None
            return
        if not self._complete:
            self._complete = True
            self._keeps_alive = self._parser.should_keep_alive()
