"""Noticing that the config has changed on disk: `bridge run --watch`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import anyio

EVERY = 2.0  # seconds between two looks

Print: TypeAlias = tuple[tuple[str, int, int, int], ...]


def fingerprint(paths: Iterable[Path]) -> Print:
    """What tells one state of the files from another.

    Links are followed: Kubernetes swaps a whole mounted volume by one link, `..data`, and the files
    themselves keep their names.
    """
    found: list[tuple[str, int, int, int]] = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            found.append((str(path), 0, 0, 0))
        else:
            found.append((str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


async def watch(files: Callable[[], Iterable[Path]], changed: Callable[[], Awaitable[None]]) -> None:
    """Call *changed* whenever one of *files* is another, until cancelled.

    It waits for two looks in a row that agree: an editor writes a file in several steps.
    """
    before = fingerprint(files())
    while True:
        await anyio.sleep(EVERY)
        now = fingerprint(files())
        if now == before:
            continue
        await anyio.sleep(EVERY / 4)
        if fingerprint(files()) == now:
            before = now
            await changed()
