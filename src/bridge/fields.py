"""What config and rule models are made of, and how their mistakes read.  No I/O in this file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from bridge.errors import Mistake
from bridge.yamltext import Document


class Section(BaseModel):
    """Base of every model that stands for a part of a file."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        regex_engine="rust-regex",
    )


_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\Z")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+)\s*(B|kB|KB|MB|GB|KiB|MiB|GiB|TiB)?\Z")
_BYTES = {
    "B": 1,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}


def seconds(value: object) -> float:
    """Seconds in `200ms`, `10s`, `5m`, `2h`, `7d`; raises ValueError."""
    found = _DURATION.match(value) if isinstance(value, str) else None
    if not found:
        if isinstance(value, float) and not isinstance(value, bool):
            return value  # a default, already in seconds
        raise ValueError("write a duration with its unit: 200ms, 10s, 5m, 2h or 7d")
    return float(found[1]) * _SECONDS[found[2]]


def size(value: object) -> int:
    """Bytes in `512MiB`, `4GiB`, `1MB` or a plain number; raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = _SIZE.match(value) if isinstance(value, str) else None
    if not found:
        raise ValueError("write a size with its unit, such as 512MiB or 4GiB")
    return int(found[1]) * _BYTES[found[2] or "B"]


DurationText: TypeAlias = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?\s*(ms|s|m|h|d)$")]
SizeText: TypeAlias = Annotated[str, Field(pattern=r"^[0-9]+\s*(B|kB|KB|MB|GB|KiB|MiB|GiB|TiB)?$")]

Duration: TypeAlias = Annotated[float, BeforeValidator(seconds, json_schema_input_type=DurationText)]
"""Seconds, written with a unit."""

Size: TypeAlias = Annotated[int, BeforeValidator(size, json_schema_input_type=SizeText | int)]
"""Bytes, written with a unit."""


_folder: ContextVar[Path] = ContextVar("folder", default=Path())


@contextmanager
def relative_to(folder: Path) -> Iterator[None]:
    """While inside, a `File` of a model is relative to *folder*: that of the file it stands in."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


File: TypeAlias = Annotated[Path, AfterValidator(lambda path: _folder.get() / path)]
"""A path, relative to the file it stands in."""


def mistakes(
    error: ValidationError, document: Document, model: type[BaseModel], at: Sequence[str | int] = ()
) -> list[Mistake]:
    """Every mistake pydantic found in *document* below the path *at*, with its line and what to do."""
    known = frozenset(_keys(model, set()))
    found = error.errors(include_url=False, include_input=False)
    return [
        _mistake(document, (*at, *details["loc"]), details, known)
        for details in found
        if details["type"] != "too_short" or not _has_others(details, found)
    ]


def _mistake(
    document: Document, loc: Sequence[str | int], details: ErrorDetails, known: frozenset[str]
) -> Mistake:
    """What a model says of its keys together may begin with the one that is meant: `batch: is JSON`."""
    path, advice = _written(document, loc, details), _advice(details, known)
    word, colon, rest = advice.partition(": ")
    if details["type"] == "value_error" and colon and word in known and _is_section(document.value, path):
        return document.mistake((*path, word), rest)
    return document.mistake(path, advice)


def _is_section(value: Any, path: Sequence[str | int]) -> bool:
    for step in path:
        value = value[step] if step in _steps(value) else None
    return isinstance(value, Mapping)


def _has_others(details: ErrorDetails, found: Sequence[ErrorDetails]) -> bool:
    """Is anything in the list that *details* calls too short wrong by itself? Then it is not counted."""
    at = details["loc"]
    return any(len(each["loc"]) > len(at) and each["loc"][: len(at)] == at for each in found)


def _written(document: Document, loc: Sequence[str | int], details: ErrorDetails) -> tuple[str | int, ...]:
    """*loc* without what the file does not have: the tags of tagged unions, validator names."""
    path: list[str | int] = []
    value = document.value
    for step in loc:
        if step in _steps(value):
            value = value[step]
            path.append(step)
    if details["type"] == "missing" and loc[-1] not in path[-1:]:
        path.append(loc[-1])
    if details["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append("type")
    return tuple(path)


def _steps(value: Any) -> Collection[str | int]:
    """The keys or places *value* has."""
    if isinstance(value, Mapping):
        return value.keys()
    return range(len(value)) if isinstance(value, list) else ()


def _advice(details: ErrorDetails, known: frozenset[str]) -> str:
    kind = details["type"]
    if kind == "extra_forbidden":
        word = str(details["loc"][-1])
        if word in known:
            return "is no key of this section; remove it, or move it to where it belongs"
        close = difflib.get_close_matches(word, known, n=1)
        return "unknown key" + (f"; did you mean {close[0]}?" if close else "")
    if kind == "missing":
        return "is required"
    if kind in ("literal_error", "union_tag_invalid"):
        context = details.get("ctx", {})
        expected = context.get("expected") or context.get("expected_tags")
        return f"must be one of {expected}"
    if kind == "union_tag_not_found":
        return "is required"
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in ("greater_than_equal", "greater_than"):
        context = details.get("ctx", {})
        least = context.get("ge", context.get("gt"))
        return f"must be {'at least' if 'ge' in context else 'more than'} {least}"
    if kind == "string_type":
        return "must be text; put it in quotes"
    message = details["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:] if kind != "value_error" else message


_PLAIN = {
    "too_short": "must not be empty",
    "dict_type": "must be a map",
    "model_type": "must be a map",
    "model_attributes_type": "must be a map",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
}
"""What pydantic says in words of Python."""


def _keys(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[str]:
    """Every key that may stand in *model* or below it: what a suggestion is taken from."""
    if model in seen:
        return
    seen.add(model)
    for name, info in model.model_fields.items():
        yield info.alias or name
        for inner in _models(info.annotation):
            yield from _keys(inner, seen)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models(argument)
