"""What is hidden before anything is stored."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.event import Event
from bridge.redact import Redactor, parse_path


def redacted(document: dict[str, Any], *paths: str) -> Any:
    event = Event("x", "", 0, "01", (), msgspec.json.encode(document))
    return msgspec.json.decode(Redactor.of(paths).redact(event).body)


def test_a_value_at_a_path_is_hidden() -> None:
    """Its neighbours stay."""
    assert redacted({"data": {"key": "NNSXS.A", "id": "A"}}, "data.key") == {
        "data": {"key": "[redacted]", "id": "A"}
    }


def test_a_path_is_anchored_at_the_root() -> None:
    """`data.key` is not `data.data.key`: the notification has a path of its own."""
    assert redacted({"data": {"data": {"key": "x"}}}, "data.key") == {"data": {"data": {"key": "x"}}}


@pytest.mark.parametrize(
    "document",
    [
        {"data": {"app_s_key": 1}},
        {"data": {"a": {"b": {"app_s_key": {"key": "x"}}}}},
        {"data": [{"a": [{"app_s_key": "x"}]}]},
    ],
)
def test_two_stars_are_any_number_of_levels(document: dict[str, Any]) -> None:
    """Zero levels, several, and through arrays."""
    assert b"[redacted]" in msgspec.json.encode(redacted(document, "data.**.app_s_key"))


def test_every_place_is_hidden_not_only_the_first() -> None:
    """A session with two keys in two branches."""
    document = {"data": {"a": {"secret": 1}, "b": [{"secret": 2}, {"secret": 3}]}}
    assert redacted(document, "data.**.secret") == {
        "data": {"a": {"secret": "[redacted]"}, "b": [{"secret": "[redacted]"}] * 2}
    }


def test_an_event_without_the_name_is_the_very_same_bytes() -> None:
    """Most events pay one search of their bytes and nothing else."""
    event = Event("x", "", 0, "01", (), b'{ "data" : 1 }')
    assert Redactor.of(["data.key"]).redact(event) is event


def test_a_name_written_with_escapes_is_found() -> None:
    """JSON has many spellings of one name."""
    event = Event("x", "", 0, "01", (), b'{"data":{"k\\u0065y":"NNSXS.A"}}')
    assert b"NNSXS" not in Redactor.of(["data.key"]).redact(event).body


@pytest.mark.parametrize("path", ["", "data..key", ".data", "data.", "data.**"])
def test_a_path_without_a_field_is_a_mistake(path: str) -> None:
    """Told at load."""
    with pytest.raises(ValueError, match="path"):
        parse_path(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from("ab"), json_values))
def test_nothing_at_any_depth_escapes_two_stars(document: dict[str, Any]) -> None:
    """Property: after `**.a` no value below any `a` is left."""

    def values_of_a(value: Any) -> list[Any]:
        if isinstance(value, list):
            return [found for each in value for found in values_of_a(each)]
        if isinstance(value, dict):
            inner = [found for each in value.values() for found in values_of_a(each)]
            return inner + ([value["a"]] if "a" in value else [])
        return []

    assert set(values_of_a(redacted(document, "**.a"))) <= {"[redacted]"}


NAMES = ("key", "a+b", "sé", "x.y", "\\w", 'q"', "tab\t")


@given(
    before=st.binary(max_size=40),
    name=st.sampled_from(NAMES),
    after=st.binary(max_size=40),
    whole=st.booleans(),
)
def test_no_bytes_around_a_name_hide_it(before: bytes, name: str, after: bytes, whole: bool) -> None:
    """The one search finds what a search for each name finds: invalid UTF-8, NUL and newlines beside it."""
    redactor = Redactor.of([f"data.{each}" for each in NAMES if "." not in each] + ["data.x.y"])
    written = msgspec.json.encode(name) if whole else msgspec.json.encode(name)[:-1]
    body = before + written + after
    expected = b"\\u" in body or any(each in body for each in redactor.names)
    assert (redactor.mention.search(body) is not None) == expected
