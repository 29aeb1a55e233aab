"""`BRIDGE_SINKS__CRM__TIMEOUT=5s`: environment variables over the file.  No I/O in this file.

A variable counts only if its first part names a top-level key; below the maps an operator fills (sources,
sinks, headers) the entry must exist. With `__` and no such entry it is a mistake. Anything else is not for
us: Kubernetes sets `BRIDGE_PORT=tcp://…` by itself (DESIGN.md §2.2).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from bridge.errors import ConfigError, Mistake
from bridge.yamltext import Document, Path, parse

PREFIX = "BRIDGE_"
MAPS = frozenset({"sources", "sinks", "headers"})
"""Keys whose entries have names of the operator's own."""


def overridden(document: Document, environ: Mapping[str, str], keys: Collection[str]) -> Document:
    """*document* with the variables of *environ* laid over it; *keys* are the top-level keys there are.

    Raises ConfigError with every variable that does not fit.
    """
    value = copy.deepcopy(document.value) if isinstance(document.value, dict) else {}
    origins = dict(document.origins)
    mistakes: list[Mistake] = []
    for variable in sorted(environ):
        steps = variable.removeprefix(PREFIX).split("__")
        if not variable.startswith(PREFIX) or (len(steps) == 1 and steps[0].lower() not in keys):
            continue
        try:
            path = place(value, steps, keys)
            put(value, path, parse(environ[variable], f"${variable}").value)
            origins[path] = f"${variable}"
        except ValueError as error:
            mistakes.append(Mistake(f"${variable}", 0, "", str(error)))
        except ConfigError:
            mistakes.append(Mistake(f"${variable}", 0, "", "its value is not YAML"))
    if mistakes:
        raise ConfigError(mistakes)
    return replace(document, value=value, origins=origins)


def place(value: Any, steps: list[str], keys: Collection[str]) -> Path:
    """The path in *value* that the parts of a variable's name mean; raises ValueError."""
    path: list[str | int] = []
    inside = value
    for step in steps:
        if not isinstance(inside, dict):
            raise ValueError(f"{path[-1]} has no keys below it; override it as a whole")
        found = next((key for key in inside if written(key) == step.upper()), None)
        if found is None:
            if path and path[-1] in MAPS:
                raise ValueError(f"{path[-1]} has no entry {step.lower()}; add it to the file first")
            found = step.lower()
            if not path and found not in keys:
                raise ValueError(f"{found} is no key of the config")
        path.append(found)
        inside = inside.get(found, {})
        inside = {} if inside is None else inside
    return tuple(path)


def written(key: str) -> str:
    """*key* as a part of a variable's name."""
    return key.replace("-", "_").upper()


def put(value: dict[str, Any], path: Path, new: Any) -> None:
    for step in path[:-1]:
        if not isinstance(value.get(str(step)), dict):
            value[str(step)] = {}
        value = value[str(step)]
    value[str(path[-1])] = new
