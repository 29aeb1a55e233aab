"""Imports httpx and structlog without rich, which both take along where it is there; to be imported first.

httpx has a command line in colours, structlog tracebacks with local variables: bridge shows neither. typer
brings rich along, so it always is there, and in memory it and what it needs itself are 3.6 MB.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def left_out(*names: str) -> Iterator[None]:
    """Inside, nothing finds the modules *names*, as if they were not installed.

    "If the value is None, then a ModuleNotFoundError is raised" (The import system, in Python's reference, of
    `sys.modules`). Modules that are imported already stay as they are.
    """
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # typeshed knows modules alone
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


with left_out("pygments", "rich"):
    import httpx  # noqa: F401
    import structlog  # noqa: F401
