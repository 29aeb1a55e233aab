"""The nodes of a YAML text, one after the other.  No I/O in this file.

PyYAML composes a tree of all of them: of 10,000 rules that is 45 MB. It is gone after a second, and yet the
process stays as large, for what is kept was made between the nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeAlias

import yaml

DEEPEST = 200  # levels composed here: each is some calls deep

Pair: TypeAlias = tuple[yaml.Node, yaml.Node]
Tagged: TypeAlias = yaml.ScalarEvent | yaml.CollectionStartEvent


class Loader(yaml.SafeLoader):
    """Composes only; `yaml_implicit_resolvers` is the core schema of YAML 1.2.2 §10.3.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # as in PyYAML


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same in C, where PyYAML was built with libyaml: three times as fast."""

    yaml_implicit_resolvers = Loader.yaml_implicit_resolvers


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
    Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{tag}",
        re.compile(f"^(?:{pattern})$"),
        list(first),
    )


def is_merge(key: yaml.Node) -> bool:
    return key.tag.endswith(":merge")


def whole(text: str) -> yaml.Node | None:
    """The tree of *text*; raises YAMLError, in the words of PyYAML's own parser."""
    root: yaml.Node | None = yaml.compose(text, Loader)
    return root


class Composer:
    """Reads one text once.

    The `value` of a sequence or mapping can be iterated once, before what comes after it is asked for; what
    is left of it then is passed over. Keys, what `<<` merges and what has an anchor are whole instead.

    Raises YAMLError for all that `whole` may raise one for, and for what is nested deeper than DEEPEST.
    """

    def __init__(self, text: str) -> None:
        self._loader = _FastLoader(text)
        self._anchors: dict[str, yaml.Node] = {}

    def roots(self) -> Iterator[yaml.Node]:
        """The root; none in a text without any value."""
        event = self._loader.get_event
        event()
        if isinstance(event(), yaml.StreamEndEvent):
            return
        yield self._node(event(), 0, False)
        event()
        if not isinstance(event(), yaml.StreamEndEvent):
            raise yaml.YAMLError("a second document")

    def _node(self, event: yaml.AliasEvent | Tagged, depth: int, is_whole: bool) -> yaml.Node:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise yaml.YAMLError("an alias of nothing")
            return self._anchors[event.anchor]
        is_whole = is_whole or event.anchor is not None
        mark: Any = event.start_mark  # typeshed has nodes take the marks of the parser in Python alone
        node: yaml.Node
        if isinstance(event, yaml.ScalarEvent):
            tag = self._tag(event, yaml.ScalarNode, event.value)
            node = yaml.ScalarNode(tag, event.value, mark)
        elif depth >= DEEPEST:
            raise yaml.YAMLError("nested too deeply")
        elif isinstance(event, yaml.SequenceStartEvent):
            items = self._items(depth + 1, is_whole)
            tag = self._tag(event, yaml.SequenceNode, None)
            node = yaml.SequenceNode(tag, list(items) if is_whole else items, mark)
        else:
            pairs = self._pairs(depth + 1, is_whole)
            tag = self._tag(event, yaml.MappingNode, None)
            node = yaml.MappingNode(tag, list(pairs) if is_whole else pairs, mark)
        if event.anchor is not None:
            if event.anchor in self._anchors:
                raise yaml.YAMLError("a second anchor of this name")
            self._anchors[event.anchor] = node
        return node

    def _tag(self, event: Tagged, kind: type[yaml.Node], value: str | None) -> str:
        if event.tag not in (None, "!"):
            return str(event.tag)
        return str(self._loader.resolve(kind, value, event.implicit))

    def _items(self, depth: int, is_whole: bool) -> Iterator[yaml.Node]:
        event = self._loader.get_event
        while not isinstance(begin := event(), yaml.SequenceEndEvent):
            item = self._node(begin, depth, is_whole)
            yield item
            _pass_over(item)

    def _pairs(self, depth: int, is_whole: bool) -> Iterator[Pair]:
        event = self._loader.get_event
        while not isinstance(begin := event(), yaml.MappingEndEvent):
            key = self._node(begin, depth, True)
            value = self._node(event(), depth, is_whole or is_merge(key))
            yield key, value
            _pass_over(value)


def _pass_over(node: yaml.Node) -> None:
    """Read what is left of *node*."""
    if isinstance(node.value, Iterator):
        for _ in node.value:
            pass
