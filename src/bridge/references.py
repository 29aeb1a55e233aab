"""`${env:NAME}` and `${file:path}` in a parsed file: found, resolved, never shown (DESIGN.md §2.2).

They are ordinary strings, and each must be the whole value: nothing is expanded inside a text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import Any

from bridge.errors import ConfigError, Mistake
from bridge.yamltext import Document, Path

REFERENCE = re.compile(r"\$\{(env|file):([^{}]+)\}\Z")
PARTIAL = re.compile(r"\$\{(env|file):")

Resolve = Callable[[str, str, Path], str]
"""From kind (env or file), name and the place in the document to the value; raises ValueError."""


def resolved(document: Document, resolve: Resolve) -> Any:
    """The values of *document* with references replaced; raises ConfigError with all that are missing."""
    mistakes: list[Mistake] = []

    def walk(value: Any, path: Path) -> Any:
        if isinstance(value, dict):
            return {key: walk(each, (*path, key)) for key, each in value.items()}
        if isinstance(value, list):
            return [walk(each, (*path, number)) for number, each in enumerate(value)]
        if not isinstance(value, str) or not PARTIAL.search(value):
            return value
        found = REFERENCE.match(value)
        try:
            if not found:
                raise ValueError("${env:...} and ${file:...} must be the whole value")
            return resolve(found[1], found[2], path)
        except ValueError as error:
            mistakes.append(document.mistake(path, str(error)))
            return value

    value = walk(document.value, ())
    if mistakes:
        raise ConfigError(mistakes)
    return value


def files(value: Any, folder: FilePath) -> list[FilePath]:
    """The files that references anywhere in *value* name."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [path for each in inner for path in files(each, folder)]
    found = REFERENCE.match(value) if isinstance(value, str) else None
    return [folder / found[2]] if found and found[1] == "file" else []


def from_environment(environ: Mapping[str, str], folder: FilePath) -> Resolve:
    """Reads variables from *environ*, and files relative to *folder* without their last line end."""

    def resolve(kind: str, name: str, _path: Path) -> str:
        if kind == "env":
            if not environ.get(name):
                raise ValueError(f"environment variable {name} is not set; set it or use ${{file:...}}")
            return environ[name]
        try:
            text = (folder / name).read_text().rstrip("\r\n")
        except OSError as error:
            raise ValueError(f"the secret file cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError("the secret file is not text") from None
        if not text:
            raise ValueError("the secret file is empty")
        return text

    return resolve


def placeholders(value: Any) -> Resolve:
    """For `check --no-secrets`: something of the right form for every place in the document *value*."""

    def resolve(_kind: str, _name: str, path: Path) -> str:
        if not str(path[-1]).endswith("url"):
            return "whsec_cGxhY2Vob2xkZXI="
        section = value
        for step in path[:-1]:
            section = section[step]
        scheme = "mqtts" if isinstance(section, dict) and section.get("type") == "mqtt" else "https"
        return f"{scheme}://placeholder.invalid"

    return resolve
