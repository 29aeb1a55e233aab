"""Content patterns against event-ruler's own verdicts, and against anything."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.pattern import Clause, PatternError, compile
from bridge.pattern.leaves import Leaves

DATA = Path(__file__).parents[1] / "data"


def lines(name: str) -> list[dict[str, Any]]:
    decode: list[dict[str, Any]] = [
        msgspec.json.decode(line) for line in (DATA / name).read_bytes().splitlines()
    ]
    return decode


def matches(pattern: Any, event: Any) -> bool:
    why = compile(pattern).mismatch(Leaves(event))
    assert why is None or str(why)
    return why is None


def refusal(pattern: Any) -> str:
    with pytest.raises(PatternError) as refused:
        compile(pattern)
    return f"{'.'.join(map(str, refused.value.path))}: {refused.value.advice}"


def test_every_verdict_of_event_ruler_is_ours() -> None:
    """3,000 pairs; the pattern stands for the whole event."""
    wrong = [
        each
        for each in lines("eventbridge_cases.jsonl")
        if matches(each["pattern"], each["event"]) is not each["matches"]
    ]
    assert wrong == []


def test_what_event_ruler_refuses_is_refused() -> None:
    """And what it accepts is accepted."""

    def accepted(pattern: Any) -> bool:
        try:
            compile(pattern)
        except PatternError:
            return False
        return True

    wrong = [
        each
        for each in lines("eventbridge_patterns.jsonl")
        if accepted(each["pattern"]) is not each["accepted"]
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("pattern", "event", "near_miss"),
    [
        ({"a": ["x"]}, {"a": "x"}, {"a": "X"}),
        ({"a": [5]}, {"a": 5.0}, {"a": "5"}),
        ({"a": [1]}, {"a": 1}, {"a": True}),
        ({"a": [None]}, {"a": None}, {}),
        ({"a": [""]}, {"a": ""}, {"a": []}),
        ({"a": [9007199254740993]}, {"a": 9007199254740993}, {"a": 9007199254740992}),
        ({"a": [1e20]}, {"a": 100000000000000000000}, {"a": 100000000000000000001}),
        ({"a": [{"numeric": [">", 0]}]}, {"a": 9007199254740992}, {"a": 9007199254740993}),
        ({"a": [{"numeric": ["=", 0]}]}, {"a": -0.0}, {"a": "0"}),
        ({"a": [{"numeric": [">", 5, "<=", 6]}]}, {"a": 6}, {"a": 5}),
        ({"a": [{"anything-but": [5]}]}, {"a": "5"}, {"a": 5.0}),
        ({"a": [{"anything-but": "x"}]}, {"a": None}, {}),
        ({"a": [{"anything-but": {"prefix": ["x", "y"]}}]}, {"a": 5}, {"a": "yes"}),
        ({"a": [{"anything-but": {"wildcard": ["x*", "*y"]}}]}, {"a": "axyb"}, {"a": "ay"}),
        ({"a": [{"anything-but": {"equals-ignore-case": ["x"]}}]}, {"a": "xx"}, {"a": "X"}),
        ({"a": [{"prefix": ""}]}, {"a": ""}, {"a": 5}),
        ({"a": [{"prefix": {"equals-ignore-case": "Ab"}}]}, {"a": "aBc"}, {"a": "cab"}),
        ({"a": [{"suffix": {"equals-ignore-case": "Bc"}}]}, {"a": "abC"}, {"a": "bcd"}),
        ({"a": [{"equals-ignore-case": "straße"}]}, {"a": "STRASSE"}, {"a": "strasse"}),
        ({"a": [{"equals-ignore-case": "k"}]}, {"a": "K"}, {"a": "\u212a"}),
        ({"a": [{"suffix": {"equals-ignore-case": "ß"}}]}, {"a": "KUSS"}, {"a": "Kus"}),
        ({"a": [{"wildcard": "x*y*z"}]}, {"a": "xyz"}, {"a": "xzy"}),
        ({"a": [{"wildcard": r"x\*y"}]}, {"a": "x*y"}, {"a": "xay"}),
        ({"a": [{"wildcard": r"x\\*"}]}, {"a": "x\\a"}, {"a": "x*a"}),
        ({"a": [{"wildcard": "ab*ba"}]}, {"a": "abba"}, {"a": "aba"}),
        ({"a": [{"exactly": "10.0.0.1"}]}, {"a": "10.0.0.1"}, {"a": "010.0.0.1"}),
        ({"a": ["10.0.0.1"]}, {"a": "010.000.0.01"}, {"a": "10.0.0.11"}),
        ({"a": ["2001:db8::5"]}, {"a": "2001:0DB8:0:0:0:0:0:5"}, {"a": "2001:db8::6"}),
        ({"a": [{"anything-but": "10.0.0.1"}]}, {"a": "010.0.0.1"}, {"a": "10.0.0.1"}),
        ({"a": [{"cidr": "10.0.0.7/24"}]}, {"a": "10.0.0.0"}, {"a": "10.0.1.0"}),
        ({"a": [{"cidr": "10.0.0.0/8"}]}, {"a": "::ffff:a00:1"}, {"a": "2001:db8::1"}),
        ({"a": [{"cidr": "2001:db8::/32"}]}, {"a": "2001:db8:1::"}, {"a": "2001:db9::"}),
        ({"a": [{"cidr": "0.0.0.0/0"}]}, {"a": "255.255.255.255"}, {"a": "256.0.0.1"}),
        ({"a": [{"exists": True}]}, {"a": [[None]]}, {"a": {"b": 1}}),
        ({"a": [{"exists": False}]}, {"a": {"b": 1}}, {"a": ""}),
        ({"a": [{"exists": False}]}, {"a": []}, {"a": [0]}),
        ({"a": [{"exists": False}, "x"]}, {"b": "x"}, {"a": "y"}),
        ({"a": [{"exists": False}, "x"]}, {"a": "x"}, {"a": ["y"]}),
        ({"a": {"b": [1]}}, {"a": [{"b": 0}, {"b": [2, 1]}]}, {"a": {"b": {"c": 1}}}),
        ({"a.b": [1]}, {"a": {"b": 1}}, {"a": 1}),
        ({"a": {"b": [1]}}, {"a.b": 1}, {"a.c": 1}),
        (
            {"rx": {"gw": ["a"], "rssi": [{"numeric": ["<", -110]}]}},
            {"rx": [{"gw": "a", "rssi": -120}, {"gw": "b", "rssi": -50}]},
            {"rx": [{"gw": "a", "rssi": -50}, {"gw": "b", "rssi": -120}]},
        ),
        (
            {"rx": {"gw": ["a"], "snr": [{"exists": False}]}},
            {"rx": [{"gw": "a"}, {"gw": "b", "snr": 5}]},
            {"rx": [{"gw": "a", "snr": 5}, {"gw": "b"}]},
        ),
        ({"$or": [{"a": [1]}, {"b": [2]}]}, {"b": 2}, {"a": 2, "b": 1}),
        ({"c": [3], "$or": [{"a": [1]}, {"$or": [{"b": [2]}, {"d": [4]}]}]}, {"c": 3, "d": 4}, {"c": 3}),
        ({"a": {"$or": [{"b": [1]}, {"c": [2]}]}}, {"a": {"c": 2}}, {"c": 2}),
        ({"$or": {"a": [1]}}, {"$or": {"a": 1}}, {"a": 1}),
        ({"$or": [{"prefix": "x"}, {"suffix": "y"}]}, {"$or": "xx"}, {"$or": "yx"}),
    ],
)
def test_an_operator_matches_and_just_does_not(pattern: Any, event: Any, near_miss: Any) -> None:
    """What the guide and event-ruler's sources say of each."""
    assert matches(pattern, event)
    assert not matches(pattern, near_miss)


DOCUMENTED = {
    "version": "0",
    "detail-type": "EC2 Instance State-change Notification",
    "source": "aws.ec2",
    "account": "012345679012",
    "time": "2017-10-02T16:24:49Z",
    "region": "us-east-1",
    "resources": ["arn:aws:ec2:us-east-1:123456789012:instance/i-000000aaaaaa00000"],
    "detail": {
        "c-count": 5,
        "d-count": 3,
        "x-limit": 301.8,
        "source-ip": "10.0.0.33",
        "FilePath": "/usr/share/lib/file.png",
        "state": "running",
        "eventVersion": "",
        "responseElements": None,
    },
}
"""The event the guide explains its operators with, and a few of its further fields."""


@pytest.mark.parametrize(
    ("pattern", "matching"),
    [
        ({"source": ["aws.ec2"], "detail": {"state": ["initializing", "running"]}}, True),
        ({"resources": ["arn:aws:ec2:us-east-1:123456789012:instance/i-000000aaaaaa00000"]}, True),
        ({"detail": {"eventVersion": [""], "responseElements": [None]}}, True),
        ({"time": [{"prefix": "2017-10-02"}], "detail": {"FilePath": [{"suffix": ".png"}]}}, True),
        ({"source": [{"prefix": {"equals-ignore-case": "AWS."}}]}, True),
        ({"source": [{"suffix": {"equals-ignore-case": "EC2"}}]}, True),
        ({"source": [{"suffix": "EC2"}]}, False),
        ({"detail": {"state": [{"anything-but": "initializing"}], "x-limit": [{"anything-but": 123}]}}, True),
        ({"detail": {"state": [{"anything-but": ["stopped", "overloaded"]}]}}, True),
        ({"detail": {"x-limit": [{"anything-but": [100, 200, 301.8]}]}}, False),
        ({"detail": {"state": [{"anything-but": {"prefix": "init"}}]}}, True),
        ({"detail": {"FilePath": [{"anything-but": {"suffix": [".txt", ".rtf"]}}]}}, True),
        ({"detail": {"FilePath": [{"anything-but": {"wildcard": "*/lib/*"}}]}}, False),
        ({"detail": {"FilePath": [{"anything-but": {"wildcard": ["*/bin/*", "*/dir/*"]}}]}}, True),
        (
            {"detail": {"state": [{"anything-but": {"equals-ignore-case": ["initializing", "RUNNING"]}}]}},
            False,
        ),
        ({"detail-type": [{"equals-ignore-case": "ec2 instance state-change notification"}]}, True),
        (
            {"detail": {"c-count": [{"numeric": [">", 0, "<=", 5]}], "d-count": [{"numeric": ["<", 10]}]}},
            True,
        ),
        ({"detail": {"x-limit": [{"numeric": ["=", 3.018e2]}]}}, True),
        ({"detail": {"source-ip": [{"cidr": "10.0.0.0/24"}]}}, True),
        ({"detail": {"source-ip": [{"cidr": "10.0.1.0/24"}]}}, False),
        ({"detail": {"state": [{"exists": True}], "nothing": [{"exists": False}]}}, True),
        ({"detail": [{"exists": True}]}, False),
        ({"detail": {"FilePath": [{"wildcard": "/usr/*/*.png"}]}}, True),
        (
            {
                "detail": {
                    "$or": [{"c-count": [{"numeric": [">", 5]}]}, {"d-count": [{"numeric": ["<", 10]}]}]
                }
            },
            True,
        ),
        ({"source": ["aws.s3"], "$or": [{"region": ["us-east-1"]}, {"account": ["1"]}]}, False),
        (
            {
                "time": [{"prefix": "2017-10-02"}],
                "detail": {
                    "state": [{"anything-but": "initializing"}],
                    "c-count": [{"numeric": [">", 0, "<=", 5]}],
                    "d-count": [{"numeric": ["<", 10]}],
                    "x-limit": [{"anything-but": [100, 200, 300]}],
                },
            },
            True,
        ),
    ],
)
def test_the_examples_of_the_guide_behave_as_documented(pattern: Any, matching: bool) -> None:
    """Amazon EventBridge User Guide, "Comparison operators for use in event patterns"."""
    assert matches(pattern, DOCUMENTED) is matching


def test_a_path_given_again_in_an_or_replaces_the_first() -> None:
    """As event-ruler's compiler overrides a field that comes twice, in the order of the text."""
    assert matches({"a": ["x"], "$or": [{"a": ["y"]}, {"b": ["z"]}]}, {"a": "y"})
    assert not matches({"$or": [{"a": ["y"]}, {"b": ["z"]}], "a": ["x"]}, {"a": "y"})


def test_scalars_of_one_array_do_not_exclude_each_other() -> None:
    """Only objects and arrays in an array are places of their own."""
    assert matches({"a": [5], "a.b": [6]}, {"a": [5, {"b": 6}]})


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ({"a": {"b": "secret"}}, "a.b: a value stands in brackets: [...]"),
        ({"a": 5}, "a: a value stands in brackets: [5]"),
        ({"a": True}, "a: a value stands in brackets: [true]"),
        ({"a": []}, "a: is an empty list; write the values to match"),
        ({"a": {}}, "a: is empty; write field: [values]"),
        ({"a": [{"prefx": "x"}]}, "a: an object in the list is no operator; did you mean prefix?"),
        (
            {"a": [{"cidr": "10.0.0.1/32"}]},
            "a: cidr needs a prefix below 32; an address alone is a plain value",
        ),
        ({"a": [{"numeric": [">", "5"]}]}, "a: numeric takes numbers without quotes"),
        (
            {"a": [{"numeric": ["=", 9007199254740993]}]},
            "a: numeric takes numbers that a double can stand for",
        ),
        ({"a": [{"wildcard": "a**b"}]}, "a: wildcard takes no two * in a row"),
        ({"a": [["x"]]}, "a: has a list inside a list; write one list of values"),
        ({"a": [float("inf")]}, "a: takes finite numbers"),
        ({"$or": [{"a": [1]}]}, "$or: takes a list of at least two patterns"),
        ({"$or": [{"a": [1]}, {"regex": ["x"]}]}, "$or.1.regex: is no field that $or can have"),
        ([1], ": write a pattern as field: [values]"),
    ],
)
def test_a_refusal_says_where_and_what_to_write(pattern: Any, said: str) -> None:
    """And never repeats a value."""
    assert refusal(pattern) == said


def test_a_pattern_that_multiplies_without_end_is_refused() -> None:
    """Twelve `$or` of three are half a million patterns."""
    pattern = {f"f{i}": {"$or": [{"a": [1]}, {"b": [1]}, {"c": [1]}]} for i in range(12)}
    assert "multiplies" in refusal(pattern)


def test_a_pattern_nested_without_end_is_refused() -> None:
    """Without a RecursionError."""
    pattern: Any = [1]
    for _ in range(5000):
        pattern = {"a": pattern}
    assert "nested too deeply" in refusal(pattern)


def test_the_clause_that_failed_is_named_with_what_was_there() -> None:
    """The first one, and the array element if that is the reason."""
    pattern = compile(
        {"rx": {"gw": ["a"], "rssi": [{"numeric": ["<", -110]}]}, "zz": [1, "x", {"exists": False}]}
    )
    assert str(pattern.mismatch(Leaves({}))) == 'no rx.gw, which must be "a"'
    assert (
        str(pattern.mismatch(Leaves({"rx": {"gw": "a", "rssi": -50}})))
        == 'rx.rssi is -50, not numeric ["<", -110]'
    )
    split = {"rx": [{"gw": "a", "rssi": -50}, {"gw": "b", "rssi": -120}]}
    assert (
        str(pattern.mismatch(Leaves(split)))
        == 'rx.rssi is numeric ["<", -110] only in another array element than the fields before it'
    )
    last = {"rx": {"gw": "a", "rssi": -120}, "zz": "y"}
    assert str(pattern.mismatch(Leaves(last))) == 'zz is "y", not 1 or "x" or absent'


def test_a_string_of_digits_is_a_number_where_the_wire_says_so() -> None:
    """`numeric` alone: a plain 868100000 stays a number, and the string a string."""
    event = {"frequency": "868100000", "name": "868100000"}

    def holds(pattern: Any) -> bool:
        return compile(pattern).mismatch(Leaves(event, lambda path: path == "frequency")) is None

    assert holds({"frequency": [{"numeric": [">=", 868000000]}]})
    assert not holds({"frequency": [{"numeric": [">", 868100000]}]})
    assert not holds({"name": [{"numeric": [">=", 868000000]}]})
    assert not holds({"frequency": [868100000]})
    assert holds({"frequency": ["868100000"]})
    assert holds({"frequency": [{"prefix": "868"}]})


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(-2, 2)
    | st.sampled_from(["", "x", "X", "10.0.0.1", "a*"])
)
names = st.sampled_from(["a", "b", "c", "a.b", "$or", "prefix"])
operands = st.recursive(
    scalars | st.sampled_from([">", "<=", "=", "10.0.0.0/8"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["prefix", "equals-ignore-case", "wildcard"]), inner, max_size=2)
    ),
    max_leaves=4,
)
operators = st.sampled_from(
    [
        "prefix",
        "suffix",
        "equals-ignore-case",
        "wildcard",
        "anything-but",
        "numeric",
        "exists",
        "cidr",
        "exactly",
        "nonsense",
    ]
)
items = scalars | st.dictionaries(operators, operands, max_size=2)
garbage = st.recursive(
    st.lists(items | st.lists(scalars), max_size=3) | scalars,
    lambda inner: st.dictionaries(names, inner, max_size=3) | st.lists(inner, max_size=3),
    max_leaves=8,
)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)


@given(pattern=garbage, document=documents)
def test_garbage_is_refused_and_never_crashes(pattern: Any, document: Any) -> None:
    """A pattern is compiled or refused; a compiled one judges any document."""
    try:
        compiled = compile(pattern)
    except PatternError:
        return
    str(compiled.mismatch(Leaves(document)))


def test_a_document_nested_without_end_is_judged() -> None:
    """Arrays in arrays, as deep as JSON can be read."""
    document: Any = 5
    for _ in range(900):
        document = [document]
    assert matches({"a": [5]}, {"a": document})


values = st.sampled_from([1, 2]) | st.lists(st.sampled_from([1, 2]), max_size=2)
leaf_objects = st.fixed_dictionaries({}, optional={"b": values, "c": values})
inner_objects = st.fixed_dictionaries(
    {},
    optional={
        "b": values,
        "c": values,
        "d": st.lists(leaf_objects | st.lists(leaf_objects, max_size=2), max_size=3),
    },
)
tests = st.lists(st.sampled_from([1, 2, {"exists": False}]), min_size=1, max_size=2, unique_by=str)
paths = st.sampled_from(["a.b", "a.c", "a.d.b", "a.d.c", "e.b", "e.c"])
shapes = st.dictionaries(paths, tests, min_size=2, max_size=5)
arrays = st.fixed_dictionaries(
    {"a": st.lists(inner_objects, max_size=3)}, optional={"e": st.lists(leaf_objects, max_size=3)}
)


def exhaustive(clauses: tuple[Clause, ...], leaves: Leaves) -> bool:
    """Every choice of a leaf for every clause, in the order of the clauses."""

    def consistent(chosen: dict[int, int], where: Any) -> bool:
        return all(chosen.get(array, element) == element for array, element in where.items())

    options = [[*clause.leaves(leaves), *([None] if clause.absent else [])] for clause in clauses]
    for choice in product(*options):
        chosen: dict[int, int] = {}
        for clause, leaf in zip(clauses, choice, strict=True):
            if leaf is None:
                if any(consistent(chosen, where) for _, where in clause.leaves(leaves)):
                    break
            elif clause.holds(leaf[0]) and consistent(chosen, leaf[1]):
                chosen.update(leaf[1])
            else:
                break
        else:
            return True
    return False


@settings(max_examples=1000)  # a wrong search differs in one of a hundred
@given(pattern=shapes, document=arrays)
def test_the_search_agrees_with_trying_everything(pattern: Any, document: Any) -> None:
    """Array consistency, whatever the nesting."""
    compiled, leaves = compile(pattern), Leaves(document)
    assert (compiled.mismatch(leaves) is None) is any(
        exhaustive(each, leaves) for each in compiled.alternatives
    )
