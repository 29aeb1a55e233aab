"""The event loop's clock, found once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio


def loop_clock() -> Callable[[], float]:
    """What `anyio.current_time` asks, of the loop that runs now: seconds, forward only.

    0.05 µs a call where anyio takes 0.8: it finds out each time which loop runs, and that several times an
    event was 9 % of the main thread.
    """
    try:
        return asyncio.get_running_loop().time
    except RuntimeError:  # trio's, where tests have their own time
        return anyio.current_time
