"""Names, identifiers, addresses, blocks; the index against asking every rule."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import decode
from bridge.event import Event
from bridge.rulefile import parse, read
from bridge.rules import Rule, RuleSet, Sample
from bridge.rules.identity import identities
from bridge.rules.matcher import Matcher, Subject
from bridge.rules.names import MatchError, NamePattern
from bridge.yamltext import Document


def event(name: str = "as.up.data.forward", **fields: Any) -> Event:
    return decode.event(msgspec.json.encode({"name": name, "unique_id": "01M853Q2", **fields}))


def device(device_id: str, application: str = "plant-a", **more: str) -> dict[str, Any]:
    return {
        "device_ids": {"device_id": device_id, "application_ids": {"application_id": application}, **more}
    }


def rules(text: str) -> tuple[Rule, ...]:
    return parse(text, "rules.yaml", sinks=["crm", "ops"]).rules


def rule(match: str, more: str = "") -> Rule:
    return rules(f"rules: [{{name: r, send: crm, match: {match}{more}}}]")[0]


def wants(match: str, subject: Event) -> bool:
    """Through the engine and through `mismatch`."""
    one = rule(match)
    selected = RuleSet.of([one]).select(subject) == (one,)
    assert selected is (one.mismatch(Subject(subject)) is None)
    return selected


@pytest.mark.parametrize(
    ("pattern", "name", "near_miss"),
    [
        ("as.up.data.forward", "as.up.data.forward", "as.up.data.forwarded"),
        ("as.up.*.forward", "as.up.data.forward", "as.up.forward"),
        ("*.up.*.forward", "ns.up.data.forward", "ns.up.data.x.forward"),
        ("as.**", "as", "ass.up"),
        ("as.**", "as.up.data.forward", "ns.as"),
        ("**.fail", "fail", "failed"),
        ("**.fail", "ns.up.join.fail", "ns.fail.join"),
        ("as.**.fail", "as.fail", "as.failure"),
        ("as.**.data.**.fail", "as.up.data.decode.fail", "as.up.data"),
        ("**", "anything.at.all", ""),
        ("/fail/", "as.failed", "as.fai"),
        (r"/^as\.up\./", "as.up.data", "has.up.data"),
        ("/a$/", "b.a", "a.b"),
        ("//fail//", "fail", "pass"),
        (r"/\.(fail|drop)\z/", "ns.up.join.drop", "ns.up.drop.x"),
    ],
)
def test_a_name_pattern_fits_and_just_does_not(pattern: str, name: str, near_miss: str) -> None:
    """Exact, segments, and RE2 without the slashes around it."""
    compiled = NamePattern.compile(pattern)
    assert compiled.holds(name)
    assert not compiled.holds(near_miss)


def test_a_single_slash_matches_everything_as_in_the_things_stack() -> None:
    """`strings.Trim("/", "/")` is empty, and an empty expression is found anywhere."""
    assert NamePattern.compile("/").holds("as.up")


segments = st.lists(st.sampled_from(["as", "up", "data", "forward", "x-1"]), min_size=1, max_size=5)


@given(segments=segments, position=st.integers(0, 4))
def test_a_star_stands_for_exactly_one_segment(segments: list[str], position: int) -> None:
    """Replacing any one segment by * still fits; adding a segment no longer does."""
    name = ".".join(segments)
    segments[position % len(segments)] = "*"
    pattern = NamePattern.compile(".".join(segments))
    assert pattern.holds(name)
    assert not pattern.holds(f"{name}.x")


@given(segments=segments, begin=st.integers(0, 5), count=st.integers(0, 5))
def test_two_stars_stand_for_any_number_of_segments(segments: list[str], begin: int, count: int) -> None:
    """Replacing any run of segments, an empty one too, by ** still fits; the server's expression agrees."""
    name = ".".join(segments)
    segments[begin : begin + count] = ["**"]
    pattern = NamePattern.compile(".".join(segments))
    assert pattern.holds(name)
    upstream = NamePattern.compile(pattern.upstream)
    assert upstream.holds(name)
    assert upstream.holds(f"y.{name}") is pattern.holds(f"y.{name}")


@pytest.mark.parametrize(
    ("match", "subject", "near_miss"),
    [
        ("{application: plant-a}", [device("m1")], [device("m1", "plant-b")]),
        ("{application: plant-a}", [{"application_ids": {"application_id": "plant-a"}}], []),
        ("{application: [x, 'plant-*']}", [device("m1", "plant-")], [device("m1", "aplant-a")]),
        ("{application: '*'}", [device("m1")], [{"gateway_ids": {"gateway_id": "gw"}}]),
        ("{device: m1}", [device("m1", "other")], [device("m10")]),
        ("{device: plant-a/m1}", [device("m1")], [device("m1", "plant-b")]),
        ("{device: 'plant-a/*'}", [device("m1")], [device("m1", "plant-ab")]),
        ("{device: 'm*'}", [device("m1")], [device("xm1")]),
        ("{device: '*/m1'}", [device("m1")], [device("m2")]),
        ("{device: 0123}", [device("0123")], [device("83")]),
        ("{application: off}", [device("m1", "off")], [device("m1", "false")]),
        ("{gateway: gw}", [{"gateway_ids": {"gateway_id": "gw"}}], [{"gateway_ids": {"gateway_id": "gw2"}}]),
        ("{organization: acme}", [{"organization_ids": {"organization_id": "acme"}}], [device("acme")]),
        ("{user: admin}", [{"user_ids": {"user_id": "admin"}}], [{"user_ids": {"user_id": "admin2"}}]),
        (
            "{client: acme-portal}",
            [{"client_ids": {"client_id": "acme-portal"}}],
            [{"user_ids": {"user_id": "acme-portal"}}],
        ),
        (
            "{dev_eui: 70-b3-d5-7e-d0-00-00-02}",
            [device("m", dev_eui="70B3D57ED0000002")],
            [device("m", dev_eui="70B3D57ED0000003")],
        ),
        (
            "{dev_eui: '0x70B3d57ed0000002'}",
            [device("m", dev_eui="70b3d57ed0000002")],
            [device("m", join_eui="70B3D57ED0000002")],
        ),
        (
            "{dev_eui: 70:b3:d5/24}",
            [device("m", dev_eui="70B3D5FFFFFFFFFF")],
            [device("m", dev_eui="70B3D4FFFFFFFFFF")],
        ),
        (
            "{dev_eui: 70B3D5*}",
            [device("m", dev_eui="70B3D5FFFFFFFFFF")],
            [device("m", dev_eui="70B3D4FFFFFFFFFF")],
        ),
        ("{join_eui: 0000000000000000}", [device("m", join_eui="0000000000000000")], [device("m")]),
        (
            "{eui: B827EBFFFE000001}",
            [{"gateway_ids": {"gateway_id": "g", "eui": "B827EBFFFE000001"}}],
            [device("m", dev_eui="B827EBFFFE000001")],
        ),
        ("{dev_addr: 26000000/7}", [device("m", dev_addr="27FFFFFF")], [device("m", dev_addr="28000000")]),
        ("{dev_addr: 26000001}", [device("m", dev_addr="26000001")], [device("m", dev_addr="26000002")]),
        ("{dev_addr: 00000000/0}", [device("m", dev_addr="FFFFFFFF")], [device("m")]),
        ("{device: m1, gateway: gw}", [device("m1"), {"gateway_ids": {"gateway_id": "gw"}}], [device("m1")]),
        ("{application: plant-b, device: m1}", [device("m1"), device("m2", "plant-b")], [device("m1")]),
    ],
)
def test_an_identifier_matches_and_just_does_not(
    match: str, subject: list[Any], near_miss: list[Any]
) -> None:
    """Fields are ANDed, and different identifiers of one event may satisfy them."""
    assert wants(match, event(identifiers=subject))
    assert not wants(match, event(identifiers=near_miss))


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("application", "a/b"),
        ("device", "a/b/c"),
        ("device", "/b"),
        ("dev_addr", "2611"),
        ("dev_addr", "26000000/33"),
        ("dev_addr", "26000000/"),
        ("dev_addr", "/7"),
        ("dev_addr", "2600000g"),
        ("dev_eui", "70B3D57ED00000021"),
    ],
)
def test_what_is_no_identifier_is_refused(field: str, text: str) -> None:
    """With what to write instead, which does not repeat it."""
    with pytest.raises(MatchError) as refused:
        identities(field, [text])
    assert text not in str(refused.value)


def test_fields_are_anded_and_their_lists_ored() -> None:
    """`any` ORs whole blocks, and is itself one more field."""
    match = "{name: [as.up.data.forward, x], any: [{application: plant-b}, {gateway: gw, data: {v: [1]}}]}"
    gateway = {"gateway_ids": {"gateway_id": "gw"}}
    assert wants(match, event(identifiers=[device("m", "plant-b")]))
    assert wants(match, event(identifiers=[gateway], data={"v": 1}))
    assert not wants(match, event(identifiers=[gateway], data={"v": 2}))
    assert not wants(match, event("y", identifiers=[device("m", "plant-b")]))


def test_content_patterns_reach_every_event_field() -> None:
    """And `data` is one of them."""
    content = "origin: [{prefix: gs-}], visibility: {rights: [R]}, remote_ip: [{cidr: 10.0.0.0/8}]"
    match = f"{{{content}, data: {{a: [1]}}}}"
    rights = {"rights": ["Q", "R"]}
    fields: dict[str, Any] = {
        "origin": "gs-0",
        "visibility": rights,
        "remote_ip": "10.1.2.3",
        "data": {"a": 1},
    }
    assert wants(match, event(**fields))
    assert not wants(match, event(**fields | {"origin": "ns-0"}))
    assert not wants(match, event(**fields | {"remote_ip": "11.1.2.3"}))


def test_unless_takes_out_what_it_matches() -> None:
    """And only that."""
    one = rule("{}", ", unless: {data: {simulated: [true]}}")
    assert one.mismatch(Subject(event(data={}))) is None
    assert str(one.mismatch(Subject(event(data={"simulated": True})))) == "unless matches"


def test_the_first_clause_that_failed_is_told() -> None:
    """In words that show what was there."""

    def why(match: str, subject: Event) -> str:
        return str(rule(match).mismatch(Subject(subject)))

    one = event(identifiers=[device("m1")], data={"f_port": 3})
    assert why("{name: [a, b.*]}", one) == "name is as.up.data.forward, not a or b.*"
    assert why("{application: plant-b}", one) == "application is plant-a, not plant-b"
    assert why("{gateway: gw}", one) == "no gateway, which must be gw"
    assert why("{device: plant-a/m2}", one) == "device is plant-a/m1, not plant-a/m2"
    assert (
        why("{data: {f_port: [1, {numeric: ['>', 80]}]}}", one)
        == 'data.f_port is 3, not 1 or numeric [">", 80]'
    )
    assert (
        why("{any: [{name: x}, {gateway: g}]}", one)
        == "any[0]: name is as.up.data.forward, not x; any[1]: no gateway, which must be g"
    )


def test_a_sample_is_of_the_size_asked_for_and_always_the_same() -> None:
    """By the unique_id alone."""
    sample = Sample(1, 10)
    taken = [number for number in range(10_000) if sample.takes(f"01M853Q{number:019d}")]
    assert 900 < len(taken) < 1100
    assert taken == [number for number in range(10_000) if Sample(1, 10).takes(f"01M853Q{number:019d}")]
    assert all(Sample(10, 10).takes(f"{number}") for number in range(100))


def test_a_sampled_out_event_is_wanted_by_nobody() -> None:
    """And told so."""
    one = rule("{}", ", sample: 1/999999999")
    assert RuleSet.of([one]).select(event()) == ()
    assert str(one.mismatch(Subject(event()))) == "sample 1/999999999 leaves it out"


def test_what_is_known_of_an_envelope_says_nothing_of_content() -> None:
    """Of two events with one name and the same identifiers, each is judged by what it holds."""
    texts = ["{name: a.b}", "{data: {v: [{numeric: ['>', 30]}]}}", "{name: a.*}"]
    found = tuple(rule(each) for each in texts)
    asked = RuleSet.of(found)
    for _ in range(2):
        assert asked.select(event("a.b", data={"v": 20})) == (found[0], found[2])
        assert asked.select(event("a.b", data={"v": 40})) == found


def test_what_is_asked_of_the_server_covers_every_rule() -> None:
    """Own events are not asked for; a rule without a name needs everything."""

    def names(*matches: str) -> list[str]:
        text = ", ".join(f"{{name: r{i}, send: crm, match: {match}}}" for i, match in enumerate(matches))
        return RuleSet.of(rules(f"rules: [{text}]")).names()

    assert names("{name: [as.up.data.forward, gs.up.*]}") == [r"/^gs\.up\.[^.]+$/", "as.up.data.forward"]
    assert names("{name: '/fail$/'}", "{name: bridge.source.gap}") == ["/fail$/"]
    assert names("{any: [{name: a}, {name: b}]}") == ["a", "b"]
    assert names("{name: a}", "{any: [{name: b}, {application: c}]}") == []
    assert names("{name: a}", "{}") == []


NAMES = ["a", "a.b", "a.*", "**.b", "/b/", "/^a/", "c.d.e"]
IDS = ["x", "y", "x*", "*", "xy"]
DEVICES = ["x", "p/x", "p/*", "*/y", "*", "x*"]
ADDRESSES = ["26000001", "26000000/7", "00000000/0", "26*", "FF000000/8"]
OPERATORS = [{"prefix": "x"}, {"exists": False}, {"numeric": [">", 1]}, {"anything-but": [1]}]
VALUES = [1, 2, "x", True, None, "10.0.0.1", *OPERATORS]
LEAVES = [1, 1.0, 2, "x", "xx", True, None, "10.0.0.01", [1, "x"], [{"a": 1}]]

texts = st.sampled_from
name_lists = st.lists(texts(NAMES), min_size=1, max_size=3)
ids = st.lists(texts(IDS), min_size=1, max_size=3, unique=True)
devices = st.lists(texts(DEVICES), min_size=1, max_size=2, unique=True)
addresses = st.lists(texts(ADDRESSES), min_size=1, max_size=2)
contents = st.dictionaries(
    texts(["u", "v", "w"]), st.lists(texts(VALUES), min_size=1, max_size=3), min_size=1, max_size=2
)
patterns = contents | st.fixed_dictionaries({"$or": st.lists(contents, min_size=2, max_size=3)})
plain_blocks = st.fixed_dictionaries(
    {},
    optional={
        "name": name_lists,
        "application": ids,
        "device": devices,
        "gateway": ids,
        "dev_addr": addresses,
        "data": patterns,
        "origin": st.lists(texts(["h1", "h2"]), min_size=1, max_size=2),
    },
)
blocks = plain_blocks | st.builds(
    lambda block, inner: {**block, "any": inner}, plain_blocks, st.lists(plain_blocks, min_size=1, max_size=3)
)
optional_id = st.none() | texts(["x", "y", "xy", "z"])
event_data = st.fixed_dictionaries({}, optional=dict.fromkeys(["u", "v", "w"], texts(LEAVES)))


@st.composite
def subjects(draw: st.DrawFn) -> Event:
    found: list[dict[str, Any]] = []
    if one := draw(optional_id):
        address = draw(texts(["26000001", "27000000", "FF123456", "", "junk"]))
        found.append(device(one, draw(texts(["p", "x", "y"])), dev_addr=address))
    if one := draw(optional_id):
        found.append({"gateway_ids": {"gateway_id": one}})
    if one := draw(optional_id):
        found.append({"application_ids": {"application_id": one}})
    name = draw(texts(["a", "a.b", "a.b.c", "c.d.e", "b"]))
    return event(name, identifiers=found, data=draw(event_data), origin=draw(texts(["h1", "h2", "h3"])))


def compiled(documents: list[dict[str, Any]]) -> tuple[Rule, ...]:
    entries = [{"name": f"r{i}", "send": ["crm"], "match": each} for i, each in enumerate(documents)]
    return read(Document("rules.yaml", {"rules": entries}, {}), sinks=["crm"]).rules


def agrees(found: tuple[Rule, ...], asked: list[Event]) -> bool:
    """Is what the index selects what each rule says by itself, in the order of the rules?"""
    rule_set = RuleSet.of(found)
    return all(
        rule_set.select(one) == tuple(each for each in found if each.mismatch(Subject(one)) is None)
        for one in asked
    )


@settings(max_examples=30)
@given(
    documents=st.lists(blocks, min_size=9, max_size=24), asked=st.lists(subjects(), min_size=3, max_size=5)
)
def test_the_index_agrees_with_asking_every_rule(documents: list[dict[str, Any]], asked: list[Event]) -> None:
    """What was asked before changes nothing. From nine rules on there is an index."""
    assert agrees(compiled(documents), [*asked, *asked])


def some(rng: random.Random, pool: Sequence[Any], most: int) -> list[Any]:
    return rng.sample(pool, rng.randint(1, most))


def random_block(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    fields: dict[str, Callable[[], Any]] = {
        "name": lambda: some(rng, NAMES, 3),
        "application": lambda: some(rng, IDS, 2),
        "device": lambda: some(rng, DEVICES, 2),
        "gateway": lambda: some(rng, IDS, 2),
        "dev_addr": lambda: some(rng, ADDRESSES, 2),
        "origin": lambda: some(rng, ["h1", "h2"], 2),
        "data": lambda: random_pattern(rng),
    }
    block = {name: fields[name]() for name in rng.sample(sorted(fields), rng.randint(0, 3))}
    if depth < 2 and rng.random() < 0.25:
        block["any"] = [random_block(rng, depth + 1) for _ in range(rng.randint(1, 3))]
    return block


def random_pattern(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.2:
        return {"$or": [random_pattern(rng), random_pattern(rng)]}
    return {name: some(rng, VALUES, 3) for name in some(rng, ["u", "v", "w"], 2)}


def random_event(rng: random.Random) -> Event:
    found: list[dict[str, Any]] = []
    if rng.random() < 0.7:
        address = rng.choice(["26000001", "27000000", "FF123456", "", "junk"])
        found.append(device(rng.choice(["x", "y", "xy"]), rng.choice(["p", "x", "y"]), dev_addr=address))
    if rng.random() < 0.4:
        found.append({"gateway_ids": {"gateway_id": rng.choice(["x", "y", "xy"])}})
    data = {name: rng.choice(LEAVES) for name in ("u", "v", "w") if rng.random() < 0.7}
    name = rng.choice(["a", "a.b", "a.b.c", "c.d.e", "b"])
    return event(name, identifiers=found, data=data, origin=rng.choice(["h1", "h2", "h3"]))


@given(seed=st.integers(0, 2**64))
def test_the_index_agrees_for_larger_rule_sets(seed: int) -> None:
    """Five events for each of a hundred rule sets of 9 to 60 rules."""
    rng = random.Random(seed)
    found = compiled([random_block(rng) for _ in range(rng.randint(9, 60))])
    assert agrees(found, [random_event(rng) for _ in range(5)])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=20_000)
@given(seed=st.integers(0, 2**64))
def test_the_index_agrees_in_a_hundred_thousand_cases(seed: int) -> None:
    """Five events for each of 20,000 rule sets of 9 to 60 rules."""
    rng = random.Random(seed)
    found = compiled([random_block(rng) for _ in range(rng.randint(9, 60))])
    assert agrees(found, [random_event(rng) for _ in range(5)])


@given(documents=st.lists(blocks, min_size=1, max_size=10), one=subjects())
def test_a_name_the_rules_want_is_asked_of_the_server(documents: list[dict[str, Any]], one: Event) -> None:
    """Whatever matches is covered by `names`, unless everything is."""
    rule_set = RuleSet.of(compiled(documents))
    names = rule_set.names()
    if rule_set.select(one):
        assert not names or any(NamePattern.compile(name).holds(one.name) for name in names)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1e400}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\xff\xfe"}',
        b"[" * 900 + b"]" * 900,
    ],
)
def test_an_event_that_msgspec_does_not_read_whole_is_judged(data: bytes) -> None:
    """JSON that `decode` let through, from a server gone wrong: no rule falls over it."""
    one = decode.event(b'{"name": "a", "data": ' + data + b', "origin": "gs-0"}')
    assert wants("{origin: [gs-0]}", one) or data.startswith(b"[")
    assert not wants("{data: {a: [1]}}", one)
    assert not wants("{data: {a: [{numeric: ['<', 1]}]}}", one)


def test_a_matcher_without_fields_matches_everything() -> None:
    """`match: {}`."""
    assert Matcher().mismatch(Subject(event())) is None
