"""Everything bridge raises on purpose.

    BridgeError
    ├── ConfigError    the operator's mistake: says where and what to do; exit code 2
    ├── StartError     cannot start or reach something (port, lock, disk, server); exit code 3
    ├── SourceError    a stream broke or was refused: reconnect as `kind` says
    ├── FrameError     one frame is no event: count it, skip it, read on
    ├── RenderError    a template failed on one event: that delivery is a dead letter
    ├── AnswerError    an HTTP answer that is none: the attempt failed as if the connection broke
    └── OutboxError    the store did not take a transaction: nothing of it happened, try again

No message repeats a configured value: any of them may be a secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


class BridgeError(Exception):
    """Base of all errors raised on purpose."""


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """One thing to correct in a file, shown as `file:line: key: advice`; *line* from 1, 0 for none."""

    file: str
    line: int
    key: str
    advice: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.advice}" if self.key else f"{place}: {self.advice}"


class ConfigError(BridgeError):
    """Wrong config, rules or arguments; all the mistakes at once."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(sorted(set(mistakes)))
        super().__init__("\n".join(map(str, self.mistakes)))


class StartError(BridgeError):
    """Cannot start or reach: one line that names the object and says what to do."""


SourceErrorKind = Literal["transient", "rate_limited", "refused", "ended", "rejected"]
"""*transient*: reconnect with growing waits. *rate_limited*: after `retry_after`. *refused*: the key
or its rights are wrong: the source is unready, slow retry. *ended*: the server closed the stream,
which is normal. *rejected*: the request itself is wrong (names, identifiers): slow retry."""


class SourceError(BridgeError):
    """A stream broke or could not be opened.

    *retry_after* is in seconds, from `X-Rate-Limit-Retry`. *namespace*, *name* and *attributes* are
    those of TTS's `ErrorDetails` (pkg/ttnpb/errors.go in v3.32), empty where there was none.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: SourceErrorKind = "transient",
        retry_after: float | None = None,
        namespace: str = "",
        name: str = "",
        attributes: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.kind: SourceErrorKind = kind
        self.retry_after = retry_after
        self.namespace = namespace
        self.name = name
        self.attributes = attributes or {}


class FrameError(BridgeError):
    """Bytes on the stream that are no event."""


class RenderError(BridgeError):
    """A template or format failed on one event."""


class AnswerError(BridgeError):
    """What came instead of an HTTP answer, or that nothing did."""


class OutboxError(BridgeError):
    """The store did not take the transaction; nothing of it happened.

    *full* says that the disk (or its quota) is full.
    """

    def __init__(self, message: str, *, full: bool = False) -> None:
        super().__init__(message)
        self.full = full
