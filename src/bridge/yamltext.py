"""YAML text to values, knowing the line of each, and scalars as they are written.  No I/O in this file.

YAML 1.2's core schema, not PyYAML's 1.1: `off` and `2026-01-01` are strings, `1:30` is no number.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from bridge.errors import ConfigError, Mistake
from bridge.yamlnodes import Composer, is_merge, whole

Path: TypeAlias = tuple[str | int, ...]

MAX_NODES = 1_000_000  # aliases of aliases grow without end; no file of ours comes near


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
    try:
        reader = _read(text, file, as_written)
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
    return Document(file, reader.value, reader.lines)


def _read(text: str, file: str, as_written: Callable[[Path], bool]) -> _Reader:
    """What has read *text*; raises YAMLError, always PyYAML's own, whose texts `_NAMING` knows."""
    try:
        reader = _Reader(file, as_written)
        for root in Composer(text).roots():
            reader.value = reader.read(root, ())
    except yaml.YAMLError:  # said again, in the words of one parser
        reader = _Reader(file, as_written)
        if (tree := whole(text)) is not None:
            reader.value = reader.read(tree, ())
    return reader


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
        self.value: Any = None
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
        values: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key, child in node.value:
            line = key.start_mark.line + 1
            if is_merge(key):
                merged.append(child)
            elif not isinstance(key, yaml.ScalarNode):
                self.mistakes.append(Mistake(self.file, line, dotted(path), "a key must be a word"))
            elif key.value in values:
                advice = "key appears twice; keep one"
                self.mistakes.append(Mistake(self.file, line, dotted((*path, key.value)), advice))
            else:
                name = sys.intern(key.value)
                at = (*path, name)
                self.lines[at] = line
                values[name] = self.read(child, at)
        return self.below(merged, path, values) if merged else values

    def below(self, merged: Sequence[yaml.Node], path: Path, values: dict[str, Any]) -> dict[str, Any]:
        """*values* over what is *merged*; so with their lines."""
        lines, self.lines = self.lines, {}
        for child in merged:
            values = self.merged(child, path) | values
            for at, line in self.lines.items():
                lines.setdefault(at, line)
        self.lines = lines
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
        text: str = node.value
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


def anew(value: Any, texts: dict[str, str]) -> Any:
    """*value* of a document as objects of its own, of equal *texts* one.

    What is kept of a document that is not would lie all over its memory, and none of that would go back to
    the system: 10 MB for 10,000 rules.
    """
    if isinstance(value, str):
        if value not in texts:
            copy = value.encode(errors="surrogatepass").decode(errors="surrogatepass")
            texts[copy] = copy
        return texts[value]
    if isinstance(value, dict):
        return {anew(key, texts): anew(each, texts) for key, each in value.items()}
    if isinstance(value, list):
        return [anew(each, texts) for each in value]
    return value


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_CONSTRUCT: dict[str, Callable[[str], Any]] = {
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text, 0) if text[:2] in ("0x", "0o") else int(text),
    "float": _float,
}
