"""What the contract suite of sinks needs to know of one kind of sink: its receiver, and how to vex it.

`*_harness.py` beside this file hold one or more harnesses each, in a tuple `HARNESSES`; `test_sinks.py`
runs all of its tests with every one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, TypeAlias

from bridge.sinks import Sink

SHORT = 0.5  # seconds: the sink's timeout in tests that wait for it


class Harness(Protocol):
    """A receiver on loopback, healthy at first, and how to open the sink that delivers to it.

    The methods that change the receiver return when the change is in force; each replaces the one before.
    """

    @property
    def secrets(self) -> Sequence[str]:
        """What of the sink's config must never show: passwords, tokens, secret URLs."""
        ...

    def open(self, *, timeout: float = 5.0, max_in_flight: int = 4) -> AbstractAsyncContextManager[Sink]:
        """The sink named `sut`, its attempts limited to *timeout* seconds, without a rate limit."""
        ...

    def arrived(self) -> list[str]:
        """The delivery ids of the messages that reached the receiver, in order; repeats repeated."""
        ...

    async def heal(self) -> None:
        """Acknowledge everything again, at the same address; ends `go_down` too."""
        ...

    async def go_down(self) -> None:
        """Nobody listens at the address; open connections are broken."""
        ...

    async def hang(self) -> None:
        """Take messages and never acknowledge them."""
        ...

    async def reset(self) -> None:
        """Break the connection when a message comes, without an acknowledgement."""
        ...

    async def fail(self) -> None:
        """Answer that the receiver is in trouble: a server's error, not ours."""
        ...

    async def deny(self) -> None:
        """Answer that we are not authorised."""
        ...

    async def refuse(self) -> None:
        """Answer that this message is wrong and always will be: too large, malformed."""
        ...

    async def limit(self, seconds: float) -> bool:
        """Answer that we are too fast, and should come again in *seconds*.

        False: this receiver can say the first and not the second.
        """
        ...


Make: TypeAlias = Callable[[Path], AbstractAsyncContextManager[Harness]]
"""Starts a harness with its files in a directory; its `__name__` is the name of the tests' parameter."""
