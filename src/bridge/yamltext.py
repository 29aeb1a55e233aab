"""YAML text to values, knowing the line of each, and scalars as they are written.  No I/O in this file.

YAML 1.2's core schema, not PyYAML's 1.1: `off` and `2026-01-01` are strings, `1:30` is no number.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from bridge.errors import ConfigError, Mistake

Path: TypeAlias = tuple[str | int, ...]

MAX_NODES = 1_000_000  # aliases of aliases grow without end; no file of ours comes near


DEEPEST = 200  # levels that libyaml's composer gets: it calls itself for each, on the C stack


class _Loader(yaml.SafeLoader):
    """Composes only; `yaml_implicit_resolvers` is the core schema of YAML 1.2.2 §10.3.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # as in PyYAML


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same in C, where PyYAML was built with libyaml: 10,000 rules in 0.9 s instead of 2.9."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


for tag, pattern, first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{tag}",
        re.compile(f"^(?:{pattern})$"),
        list(first),
    )


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file."""

    file: str
    value: Any
    lines: dict[Path, int]
    """Where each key and list item stands, from 1."""
    origins: Mapping[Path, str] = field(default_factory=dict)
    """What came from elsewhere than the file, such as `$BRIDGE_LOG__LEVEL`; it has no line."""

    def line(self, path: Sequence[str | int]) -> int:
        """The line of *path*, or of the nearest thing above it that the file has."""
        steps = tuple(path)
        while steps and steps not in self.lines:
            steps = steps[:-1]
        return self.lines.get(steps, 1)

    def mistake(self, path: Sequence[str | int], advice: str) -> Mistake:
        steps = tuple(path)
        for length in range(len(steps), 0, -1):
            if steps[:length] in self.origins:
                return Mistake(self.origins[steps[:length]], 0, dotted(path), advice)
        return Mistake(self.file, self.line(path), dotted(path), advice)


def dotted(path: Sequence[str | int]) -> str:
    """`sinks.ops.url`, `rules[2].match` (items from 0, as in JSON paths)."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{_shown(step)}" if text else _shown(step)
    return text


def _shown(key: str) -> str:
    """*key*, unless it may be more than a key: `{api_key:NNSXS.…}` without a space is one long word."""
    return key if len(key) <= 64 and key.isprintable() and ":" not in key else "(not a key)"


def parse(text: str, file: str, as_written: Callable[[Path], bool] = lambda _path: False) -> Document:
    """The values of *text*; raises ConfigError.

    A scalar (also one in a list) at a path for which *as_written* holds stays the text it is in the
    file: an application may be called `off`, `0123` or `26000000`. So do all mapping keys. A null
    stays null everywhere.
    """
    reader = _Reader(file, as_written)
    try:
        root = composed(text)
        value = reader.read(root, ()) if root is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        raise ConfigError([Mistake(file, line, "", f"not valid YAML: {_problem(error)}")]) from None
    except yaml.YAMLError:
        advice = "not valid YAML: it has characters that are not allowed in a text file"
        raise ConfigError([Mistake(file, 0, "", advice)]) from None
    except RecursionError:
        raise ConfigError([Mistake(file, 0, "", "nested too deeply")]) from None
    if reader.mistakes:
        raise ConfigError(reader.mistakes)
    return Document(file, value, reader.lines)


def composed(text: str) -> yaml.Node | None:
    """The nodes of *text*; raises YAMLError, always PyYAML's own, whose texts `_NAMING` knows."""
    try:
        if is_shallow(text):
            return yaml.compose(text, _FastLoader)
    except yaml.YAMLError:
        pass  # said again below, in the words of one parser
    return yaml.compose(text, _Loader)


def is_shallow(text: str) -> bool:
    """Is nothing nested deeper than DEEPEST? A million brackets would end the process; raises YAMLError."""
    depth = 0
    for event in yaml.parse(text, _FastLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                return False
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return True


_NAMING = (
    ("found undefined alias", "undefined alias; quote a text that begins with *"),
    ("found duplicate anchor", "an anchor is defined twice; quote a text that begins with &"),
    ("found undefined tag", "undefined tag; quote a text that begins with !"),
)
"""Problems of PyYAML that repeat what stands in the file: `password: *hunter2` is an alias to it."""


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or ""
    for begins, advice in _NAMING:
        if problem.startswith(begins):
            return advice
    return problem


class _Reader:
    def __init__(self, file: str, as_written: Callable[[Path], bool]) -> None:
        self.file = file
        self.as_written = as_written
        self.lines: dict[Path, int] = {}
        self.mistakes: list[Mistake] = []
        self.nodes = 0

    def read(self, node: yaml.Node, path: Path) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise ConfigError([Mistake(self.file, 0, "", "too large; look for nested aliases")])
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.item(child, (*path, i)) for i, child in enumerate(node.value)]
        return self.scalar(node, path)

    def item(self, node: yaml.Node, path: Path) -> Any:
        self.lines[path] = node.start_mark.line + 1
        return self.read(node, path)

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        """Merged keys first, so that the lines of the mapping's own keys win as their values do."""
        values: dict[str, Any] = {}
        for key, child in node.value:
            if key.tag.endswith(":merge"):
                values = self.merged(child, path) | values
        own: set[str] = set()
        for key, child in node.value:
            if key.tag.endswith(":merge"):
                continue
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self.mistakes.append(Mistake(self.file, line, dotted(path), "a key must be a word"))
                continue
            name = copied(key.value)
            if name in own:
                advice = "key appears twice; keep one"
                self.mistakes.append(Mistake(self.file, line, dotted((*path, name)), advice))
                continue
            own.add(name)
            self.lines[(*path, name)] = line
            values[name] = self.read(child, (*path, name))
        return values

    def merged(self, node: yaml.Node, path: Path) -> dict[str, Any]:
        """What `<<:` brings: of several mappings the first that has a key wins (yaml.org/type/merge.html)."""
        values: dict[str, Any] = {}
        for part in reversed(node.value if isinstance(node, yaml.SequenceNode) else [node]):
            if isinstance(part, yaml.MappingNode):
                values |= self.mapping(part, path)
            else:
                advice = "<< takes an alias of a map, or a list of them"
                self.mistakes.append(Mistake(self.file, node.start_mark.line + 1, dotted(path), advice))
        return values

    def scalar(self, node: yaml.Node, path: Path) -> Any:
        text = copied(node.value)
        kind = node.tag.rpartition(":")[2]
        if kind == "null":
            return None
        if kind == "str" or self.as_written(path):
            return text
        try:
            return _CONSTRUCT[kind](text)
        except (KeyError, ValueError):
            advice = "this tag or number is not used here; quote it if it is text"
            self.mistakes.append(Mistake(self.file, node.start_mark.line + 1, dotted(path), advice))
            return None


def copied(text: str) -> str:
    """*text* as an object of its own, one for all that are equal: the node's would keep its tree's memory."""
    return sys.intern(text.encode(errors="surrogatepass").decode(errors="surrogatepass"))


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_CONSTRUCT: dict[str, Callable[[str], Any]] = {
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text, 0) if text[:2] in ("0x", "0o") else int(text),
    "float": _float,
}
