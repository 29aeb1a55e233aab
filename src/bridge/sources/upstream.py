"""The server as a source uses it: what every transport offers.

Streams come from `Upstream`, single questions are answered by `Api` (api.py). Both raise SourceError with
the same kinds, so that nobody above has to know the transport.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from bridge.decode import ErrorFrame, Frame
from bridge.errors import SourceError, SourceErrorKind
from bridge.event import Entity

TAIL = 1024  # the server's largest channel; anything less loses events silently (UPSTREAM.md §2.5)


@dataclass(frozen=True, slots=True)
class RateBudget:
    """What `X-Rate-Limit-*` said with an answer: openings a minute, how many are left, in how many seconds
    all are there again (pkg/ratelimit in v3.32; seconds are truncated)."""

    limit: int
    available: int
    reset: int


class Stream(Protocol):
    """An open stream."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """The values of `X-Warning`."""
        ...

    @property
    def budget(self) -> RateBudget | None:
        """None where the server has no rate limit, or the transport cannot tell."""
        ...

    def frames(self) -> AsyncIterator[Frame]:
        """Everything but error frames. Ends, or raises SourceError, when the stream does."""
        ...


class Upstream(Protocol):
    """Event streams of one server with one key."""

    def open(
        self, entities: Sequence[Entity], after: int | None, names: Sequence[str]
    ) -> AbstractAsyncContextManager[Stream]:
        """A stream from *after* (ns of server time, exclusive) on, with `tail: TAIL`; raises SourceError.

        *names* as `StreamEventsRequest.names`, empty for all. Without *after* the whole history comes.
        Leaving the context closes the stream at once.
        """
        ...


STREAM_KINDS: dict[int, SourceErrorKind] = {
    1: "ended",
    3: "rejected",
    4: "ended",
    5: "rejected",
    7: "refused",
    8: "rate_limited",
    16: "refused",
}
"""gRPC codes of an error inside a stream: 1 is a server that stops, 4 a deadline, 16 a key that expired."""


def stream_error(frame: ErrorFrame) -> SourceError:
    """Why an open stream ended with an error frame."""
    return framed_error("stream ended", frame, STREAM_KINDS.get(frame.code, "transient"))


def framed_error(
    what: str, frame: ErrorFrame, kind: SourceErrorKind, retry_after: float | None = None
) -> SourceError:
    """The error of TTS in *frame* as one of ours; *what* begins its message."""
    return SourceError(
        f"{what}: {frame.message}" if frame.message else what,
        kind=kind,
        retry_after=retry_after,
        namespace=frame.namespace,
        name=frame.name,
        attributes=dict(frame.attributes),
    )
