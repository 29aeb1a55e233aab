"""YAML text to values with their lines, read node by node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import ConfigError
from bridge.yamlnodes import DEEPEST, Composer, whole
from bridge.yamltext import anew, parse

leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)
texts = st.builds(
    lambda value, other, flow: yaml.safe_dump(
        [value, {"a": value, "b": other}, value], default_flow_style=flow
    ),
    values,
    values,
    st.sampled_from([True, False, None]),
)
"""What comes twice is an alias, if it is a list or a map."""


def seen(node: yaml.Node, reads: Callable[[], bool] = lambda: True) -> Any:
    """All of *node*, or ... where *reads* says so."""
    about = node.tag, node.start_mark.line
    if isinstance(node, yaml.MappingNode):
        return about, [(seen(key), seen(child, reads) if reads() else ...) for key, child in node.value]
    if isinstance(node, yaml.SequenceNode):
        return about, [seen(child, reads) if reads() else ... for child in node.value]
    return about, node.value


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse(text, "f.yaml")
    return [str(each) for each in error.value.mistakes]


@given(texts)
def test_node_by_node_a_text_is_what_its_tree_is(text: str) -> None:
    """Tags, lines, values and aliases."""
    tree = whole(text)
    assert tree is not None
    assert [seen(root) for root in Composer(text).roots()] == [seen(tree)]


@given(texts, st.lists(st.booleans(), min_size=1))
def test_a_node_that_is_not_read_is_passed_over(text: str, choices: list[bool]) -> None:
    """What comes after it is the same."""

    def choosing() -> Callable[[], bool]:
        turns = iter(choices * len(text))
        return lambda: next(turns)

    tree = whole(text)
    assert tree is not None
    assert [seen(root, choosing()) for root in Composer(text).roots()] == [seen(tree, choosing())]


@given(values)
def test_a_value_made_anew_is_equal(value: Any) -> None:
    """And equal texts in it are one."""
    kept: dict[str, str] = {}
    made = anew([value, value], kept)
    assert made == [value, value]
    assert all(key is text for key, text in kept.items())


def test_an_empty_text_has_no_value() -> None:
    """Nor has one of comments alone."""
    assert parse("", "f.yaml").value is None
    assert parse("# nothing\n", "f.yaml").value is None


def test_the_keys_of_a_map_win_over_what_it_merges() -> None:
    """With their lines, before `<<` as after it; of several merged maps the first."""
    text = "one: &one {a: 1, b: 1}\ntwo: &two {b: 2, c: 2}\nall:\n  c: 3\n  <<: [*one, *two]\n  a: 4\n"
    document = parse(text, "f.yaml")
    assert document.value["all"] == {"a": 4, "b": 1, "c": 3}
    assert [document.line(("all", key)) for key in "abc"] == [6, 1, 4]


def test_a_key_that_comes_twice_is_told_and_what_comes_after_it_is_read() -> None:
    """Each with its line."""
    assert mistakes("a: 1\na: {b: [1, {c: 2}]}\nd:\n  e: 1\n  e: 2\n") == [
        "f.yaml:2: a: key appears twice; keep one",
        "f.yaml:5: d.e: key appears twice; keep one",
    ]


def test_a_key_that_is_no_word_is_told() -> None:
    """A list or a map cannot be one."""
    assert mistakes("? [a, b]\n: 1\n? {c: d}\n: 2\n") == [
        "f.yaml:1: a key must be a word",
        "f.yaml:3: a key must be a word",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: *secret", "f.yaml:1: not valid YAML: undefined alias; quote a text that begins with *"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: not valid YAML: but found another document"),
        ("a: [1, 2", "f.yaml:1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: &a [*a]", "f.yaml: nested too deeply"),
    ],
)
def test_what_is_not_yaml_is_told_once(text: str, told: str) -> None:
    """In the words of PyYAML, or ours where those would repeat what stands in the file."""
    assert mistakes(text) == [told]


@pytest.mark.parametrize("depth", [DEEPEST - 1, DEEPEST, DEEPEST + 20])
def test_what_is_nested_deeply_is_read(depth: int) -> None:
    """As list, as map, and under a key that comes twice."""
    assert parse("[" * depth + "]" * depth, "f.yaml").value is not None
    assert parse("{a: " * depth + "1" + "}" * depth, "f.yaml").value is not None
    assert "twice" in mistakes("a: 1\na: " + "[" * (depth - 1) + "]" * (depth - 1))[0]


def test_what_is_nested_too_deeply_is_told() -> None:
    """A million brackets end no process."""
    assert mistakes("[" * 100_000) == ["f.yaml: nested too deeply"]
