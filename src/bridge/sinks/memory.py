"""What a sink has to know after a restart: small rows of JSON, under keys of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

Firing: TypeAlias = Callable[[], Collection[tuple[str, str]] | None]
"""Alert and key of all that fires now; None while that is not known."""


class Memory(Protocol):
    """The rows of one sink. Both methods raise OutboxError when the store cannot."""

    async def recall(self) -> Mapping[str, bytes]:
        """All of them."""
        ...

    async def keep(self, rows: Mapping[str, bytes | None]) -> None:
        """Put *rows* in the place of those with their keys; None forgets one."""
        ...


class Store(Protocol):
    """Where the rows of all sinks are: an outbox."""

    async def recall(self, sink: str) -> Mapping[str, bytes]: ...

    async def keep(self, sink: str, rows: Mapping[str, bytes | None]) -> None: ...


@dataclass(frozen=True, slots=True)
class Kept:
    """The memory of *sink* in *store*."""

    store: Store
    sink: str

    async def recall(self) -> Mapping[str, bytes]:
        return await self.store.recall(self.sink)

    async def keep(self, rows: Mapping[str, bytes | None]) -> None:
        await self.store.keep(self.sink, rows)


class Fleeting:
    """A memory as long as the process, for commands."""

    def __init__(self) -> None:
        self._rows: dict[str, bytes] = {}

    async def recall(self) -> Mapping[str, bytes]:
        return dict(self._rows)

    async def keep(self, rows: Mapping[str, bytes | None]) -> None:
        for key, row in rows.items():
            self._rows.pop(key, None)
            if row is not None:
                self._rows[key] = row


def unknown() -> None:
    """The `Firing` of whoever has no alerts."""
