"""Bytes of an event stream to frames, sans I/O.  No I/O, no clock, no logging in this file.

What comes over the wire is one of two framings, told apart by content and not by header: The Things Stack's
bare `{"result":…}` lines, whose `text/event-stream` has no `data:` (pkg/jsonpb/ttn.go in v3.32), and true
server-sent events from servers or proxies that do write `data:`. Lines end at byte 0x0A and nowhere else:
strings may hold U+0085, U+2028 and U+2029 as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec
from httpx_sse._decoders import SSEDecoder  # the grammar alone; the public API wants a whole response

from bridge.errors import FrameError
from bridge.event import Event, Identifiers, nanoseconds

MAX_LINE = 16 << 20  # bytes; the server's own limit of a message (pkg/rpcserver/rpcserver.go in v3.32)
START = "events.stream.start"
MANAGED = "gcs.managed."
WRAPPED = b'{"result":'
COARSE = 10_000_000_000  # ns; within it the same managed-gateway event is one (DESIGN.md §3)


@dataclass(frozen=True, slots=True)
class StreamStart:
    """The stream is open; *time_ns* is the server's clock, 0 if it was not readable."""

    time_ns: int


@dataclass(frozen=True, slots=True)
class ErrorFrame:
    """An error of the server, before or inside a stream; *code* is gRPC's.

    *namespace* and *name* are what to judge it by (pkg/ttnpb/errors.go in v3.32); '' where there were none.
    """

    code: int
    message: str
    namespace: str = ""
    name: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Malformed:
    """A line that is no frame; *why* does not quote it."""

    why: str


Frame: TypeAlias = Event | StreamStart | ErrorFrame | Malformed


class _Line(msgspec.Struct, gc=False):
    """Everything a line may be: wrapped result or error, a flat error, a bare event."""

    result: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    code: int | None = None
    name: str | None = None


class _Envelope(msgspec.Struct, gc=False):
    name: str
    time: str = ""
    identifiers: msgspec.Raw = msgspec.Raw(b"[]")
    unique_id: str = ""


class _Managed(msgspec.Struct):
    identifiers: msgspec.Raw = msgspec.Raw(b"[]")
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Details(msgspec.Struct):
    namespace: str = ""
    name: str = ""
    attributes: dict[str, Any] = {}


class _Error(msgspec.Struct):
    code: int = 2
    message: str = ""
    details: list[msgspec.Raw] = []


_line = msgspec.json.Decoder(_Line)
_envelope = msgspec.json.Decoder(_Envelope)
_identifiers = msgspec.json.Decoder(tuple[Identifiers, ...])
_error = msgspec.json.Decoder(_Error)
_details = msgspec.json.Decoder(_Details)


class Decoder:
    """Feed it the body as it comes, in any chunks; it gives the frames that are complete."""

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._max_line = max_line
        self._partial: list[bytes] = []
        self._size = 0
        self._skipping = False
        self._sse = SSEDecoder()
        self._is_sse = False

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that end in *chunk*, in order."""
        frames: list[Frame] = []
        begin = 0
        while (end := chunk.find(b"\n", begin)) >= 0:
            is_whole = not (self._partial or self._skipping) and end - begin <= self._max_line
            found = wrapped(chunk, begin, end) if is_whole else None
            if found is not None:
                frames.append(found)
            elif end > begin or not is_whole or self._is_sse:
                frames.extend(self._line(chunk[begin:end]))
            begin = end + 1
        if begin < len(chunk):
            frames.extend(self._keep(chunk[begin:] if begin else chunk))
        return frames

    def _line(self, line: bytes) -> Iterator[Frame]:
        """What *line* says, which ends what was kept before it."""
        if self._skipping:
            self._skipping = False
            return
        if self._partial:
            line = b"".join((*self._partial, line))
            self._partial, self._size = [], 0
        if len(line) > self._max_line:
            yield Malformed(f"line longer than {self._max_line} bytes")
        elif line or self._is_sse:
            yield from self._frames(line)

    def close(self) -> list[Frame]:
        """The frame of a last line without its end; a torn one is no error, the stream was cut."""
        rest = b"".join(self._partial)
        self._partial, self._size = [], 0
        frames = [] if self._skipping else list(self._frames(rest)) + list(self._frames(b""))
        return [frame for frame in frames if not isinstance(frame, Malformed)]

    def _keep(self, rest: bytes) -> Iterator[Frame]:
        """Hold on to the beginning of a line, up to the limit; then skip to its end."""
        if self._skipping:
            return
        self._partial.append(rest)
        self._size += len(rest)
        if self._size > self._max_line:
            self._partial, self._size, self._skipping = [], 0, True
            yield Malformed(f"line longer than {self._max_line} bytes")

    def _frames(self, line: bytes) -> Iterator[Frame]:
        if line[:1] == b"{":
            yield frame(line)
            return
        self._is_sse = self._is_sse or bool(line)
        try:
            found = self._sse.decode(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError:
            yield Malformed("not UTF-8")
            return
        if found is not None and found.data:
            yield frame(found.data.encode())
        elif line.strip() and not is_sse(line):
            yield Malformed("neither JSON nor a field of server-sent events")


def is_sse(line: bytes) -> bool:
    """Is *line* a comment or one of the four fields of server-sent events (WHATWG HTML §9.2.6)?"""
    return line.partition(b":")[0] in (b"", b"event", b"data", b"id", b"retry")


def wrapped(chunk: bytes, begin: int, end: int) -> Event | StreamStart | None:
    """The frame that `chunk[begin:end]` is, if it is one as The Things Stack writes them.

    It is cut out without being read: if what is inside the braces is one object and nothing else, the line
    was that object as `result`. So an event is copied once and decoded once.
    """
    if not (chunk.startswith(WRAPPED, begin) and chunk.endswith(b"}}", begin, end)):
        return None
    try:
        return result(chunk[begin + len(WRAPPED) : end - 1])
    except FrameError:
        return None


def frame(line: bytes) -> Frame:
    """What one JSON object on the stream says."""
    found = wrapped(line, 0, len(line))
    if found is not None:
        return found
    try:
        read = _line.decode(line)
        if bytes(read.result):
            return result(bytes(read.result))
        if bytes(read.error):
            return error(bytes(read.error))
        if read.code is not None and read.name is None:
            return error(line)
        return result(line)
    except FrameError as wrong:
        return Malformed(str(wrong))
    except msgspec.DecodeError:
        return Malformed("not an event")


def result(body: bytes) -> Event | StreamStart:
    found = event(body)
    return StreamStart(found.time_ns) if found.name == START else found


def event(body: bytes) -> Event:
    """The event that the JSON object *body* is; raises FrameError."""
    try:
        read = _envelope.decode(body)
        identifiers = identified(bytes(read.identifiers))
    except (msgspec.DecodeError, RecursionError):
        raise FrameError("not an event") from None
    try:
        time_ns = nanoseconds(read.time)
    except (ValueError, OverflowError):
        time_ns = 0
    unique_id = read.unique_id
    if read.name.startswith(MANAGED):
        unique_id = managed_id(read.name, time_ns, body)
    elif not unique_id:
        unique_id = "sha256-" + hashlib.sha256(body).hexdigest()
    return Event(read.name, read.time, time_ns, unique_id, identifiers, body)


@lru_cache(4096)
def identified(raw: bytes) -> tuple[Identifiers, ...]:
    """The very same object for the same *raw* JSON: what is known of it is then found by identity."""
    return _identifiers.decode(raw)


def managed_id(name: str, time_ns: int, body: bytes) -> str:
    """An id for an event of a managed gateway, whose own differs in each stream that carries it."""
    read = msgspec.json.decode(body, type=_Managed)
    parts = (name.encode(), bytes(read.identifiers), bytes(read.data), str(time_ns // COARSE).encode())
    return "sha256-" + hashlib.sha256(b"\0".join(parts)).hexdigest()


def error(body: bytes) -> ErrorFrame:
    """The error object *body*, wrapped or flat (UPSTREAM.md §1.5)."""
    read = _error.decode(body)
    for raw in read.details:
        try:
            details = _details.decode(raw)
        except msgspec.DecodeError:
            continue
        if details.namespace or details.name:
            return ErrorFrame(read.code, read.message, details.namespace, details.name, details.attributes)
    return ErrorFrame(read.code, read.message)


class _Origin(msgspec.Struct):
    origin: msgspec.Raw = msgspec.Raw()


def is_sparse(event: Event) -> bool:
    """Was the body gone when the server replayed it? Then `origin` is missing (pkg/events/redis/codec.go)."""
    return not bytes(msgspec.json.decode(event.body, type=_Origin).origin)
