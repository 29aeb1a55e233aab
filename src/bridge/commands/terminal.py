"""What the commands share: options, output, running on an event loop."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Coroutine, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

import anyio
import typer

from bridge.config import Config, load, path_from
from bridge.errors import BridgeError, ConfigError

NOT_SO, WRONG, CANNOT = 1, 2, 3
"""Exit codes: the thing asked for is not so; wrong config or arguments; cannot start or reach."""

ConfigOption = Annotated[
    Path | None,
    typer.Option("-c", "--config", help="Config file [default: $BRIDGE_CONFIG or ./bridge.yaml]."),
]
NoConfigOption = Annotated[
    Path | None, typer.Option("-c", "--config", hidden=True, help="Taken as every command takes it.")
]
"""For commands that need no config."""
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


def fail(lines: Iterable[object], code: int) -> NoReturn:
    """Say *lines* on standard error and end."""
    for line in lines:
        print(line, file=sys.stderr)
    sys.exit(code)


def print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, default=str))


def print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def loaded(path: Path | None, *, no_secrets: bool = False) -> Config:
    """The config a command was given; raises ConfigError."""
    return load(path_from(path), os.environ, no_secrets=no_secrets)


def to_read(path: Path | None) -> Config:
    """The config for a command that only looks: secrets need not be there, unless the outbox is one."""
    try:
        return loaded(path, no_secrets=True)
    except ConfigError:
        return loaded(path)


def run_async(call: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
    """Run *call* to its end, on uvloop where that is installed; of several errors the first of ours."""
    options = {"use_uvloop": find_spec("uvloop") is not None}
    try:
        return anyio.run(call, *arguments, backend_options=options)
    except BaseExceptionGroup as group:
        ours = first(group)
        if ours is None:
            raise
        raise ours from None


def first(group: BaseExceptionGroup[BaseException]) -> BridgeError | BrokenPipeError | None:
    """One of our own errors inside *group*, or a reader that has gone, if there is nothing else in it."""
    ours, others = group.split((BridgeError, BrokenPipeError))
    if ours is None or others is not None:
        return None
    error: BaseException = ours
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, BridgeError | BrokenPipeError) else None
