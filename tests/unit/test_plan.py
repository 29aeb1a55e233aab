"""Which identifiers go into which stream, what came by which, whom an error means, what is asked for."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.decode import ErrorFrame, error, event
from bridge.errors import SourceError
from bridge.event import KINDS, Entity, Event
from bridge.own import identifier
from bridge.sources.evidence import INDEX, Break, Evidence, Gap, verdict
from bridge.sources.names import EVERYTHING, MANAGED, Asked, asked, without
from bridge.sources.pace import Pace
from bridge.sources.plan import (
    after,
    backfill_size,
    carriers,
    culprits,
    group_size,
    grouped,
    is_about_entities,
    mixes_levels,
    owner,
)
from bridge.sources.upstream import RateBudget, framed_error
from tests.recordings import RECORDED, json_bytes

APP, OTHER = Entity("application", "plant-a"), Entity("application", "plant-b")
DEVICE = Entity("device", "plant-a/meter-01")
GATEWAY = Entity("gateway", "gw-roof")
PROPAGATES = {"as.up.data.forward": True, "ns.up.data.drop": False}

ids = st.from_regex(r"[a-z0-9]{3,6}", fullmatch=True)
entities = st.one_of(
    st.builds(lambda a, b: Entity("device", f"{a}/{b}"), ids, ids),
    st.builds(Entity, st.sampled_from([kind for kind in KINDS if kind != "device"]), ids),
)


def about(name: str, *found: Entity) -> Event:
    return event(json_bytes({"name": name, "identifiers": [identifier(each) for each in found]}))


@given(st.lists(entities, max_size=60), st.integers(1, 20))
def test_groups_hold_everyone_once_and_no_more_than_their_size(found: list[Entity], size: int) -> None:
    """Evenly filled, and as few as possible."""
    groups = grouped(found, size)
    assert sorted(each for group in groups for each in group) == sorted(set(found))
    assert all(1 <= len(group) <= size for group in groups)
    assert len(groups) == -(-len(set(found)) // size)
    if groups:
        assert max(map(len, groups)) - min(map(len, groups)) <= 1


def test_what_belongs_to_one_owner_stands_together() -> None:
    """A forbidden application spoils one stream, not all of them."""
    found = [Entity("device", f"plant-{app}/meter-{n:02}") for n in range(10) for app in "abcd"]
    for group in grouped(found, 10):
        assert len({owner(each) for each in group}) == 1


def test_live_streams_are_as_large_as_the_rate_budget_asks() -> None:
    """500 without a limit; with 4 openings a minute and recycle 4m there is room for four streams."""
    assert group_size(10_000, None, 240) == 500
    assert group_size(10_000, 4, 240) == 2_500
    assert group_size(300, 4, 240) == 500
    assert group_size(10_000, 10_000, 240) == 500


@pytest.mark.parametrize(("largest", "size"), [(200, 5), (205, 4), (100, 5), (0, 5), (600, 1), (5_000, 1)])
def test_a_stream_of_history_holds_no_more_than_its_buffer(largest: int, size: int) -> None:
    """1,024 slots by the largest history seen, never more than five entities."""
    assert backfill_size(largest) == size


def test_an_application_brings_events_of_its_devices_that_propagate() -> None:
    """Those that do not come by the device alone; names of a newer server by whoever is there."""
    up, drop = about("as.up.data.forward", DEVICE), about("ns.up.data.drop", DEVICE)
    new = about("as.up.newer", DEVICE)
    assert carriers(up, {APP, DEVICE}, PROPAGATES) == [DEVICE, APP]
    assert carriers(up, {APP, OTHER}, PROPAGATES) == [APP]
    assert carriers(drop, {APP, DEVICE}, PROPAGATES) == [DEVICE]
    assert carriers(drop, {APP}, PROPAGATES) == []
    assert carriers(new, {APP, DEVICE}, PROPAGATES) == [DEVICE]
    assert carriers(new, {APP}, PROPAGATES) == [APP]
    assert carriers(about("x.y", GATEWAY, APP), {GATEWAY, APP}, PROPAGATES) == [GATEWAY, APP]


def test_levels_mix_where_an_application_stands_beside_its_own_device() -> None:
    """Beside another's they do not."""
    assert mixes_levels([APP, DEVICE])
    assert not mixes_levels([OTHER, DEVICE, GATEWAY])


def test_a_stream_starts_overlap_behind_its_oldest_cursor() -> None:
    """And nowhere without a cursor."""
    assert after([50, None, 30], 10) == 20
    assert after([5], 10) == 0
    assert after([None], 10) is None


# Whom an error means


def recorded_error(case: str) -> SourceError:
    import json

    for each in json.loads((RECORDED / "errors.json").read_text()):
        if each["case"] == case:
            body = json.loads(each["body"])
            return framed_error("HTTP", error(json_bytes(body.get("error", body))), "rejected")
    raise AssertionError(case)


def test_a_missing_right_names_the_application_and_so_all_its_devices() -> None:
    """`uid` of `no_application_rights`, with or without a tenant."""
    said = recorded_error("no credentials")
    assert culprits(said, [GATEWAY, DEVICE, APP, OTHER]) == (DEVICE, APP)
    said.attributes["uid"] = "plant-a@tenant"
    assert culprits(said, [GATEWAY, DEVICE, APP]) == (DEVICE, APP)


def test_an_unknown_gateway_is_named_by_its_id() -> None:
    """An application of the same name is not meant."""
    said = recorded_error("one good and one unknown")
    nope = Entity("gateway", "nope")
    assert culprits(said, [APP, nope, Entity("application", "nope")]) == (nope,)
    assert is_about_entities(said)


def test_a_malformed_identifier_is_named_by_its_position() -> None:
    """`identifiers[0]`; a field of something else names nobody."""
    assert culprits(recorded_error("invalid id"), [APP, OTHER]) == (APP,)
    assert culprits(recorded_error("related without id"), [APP, OTHER]) == ()


@pytest.mark.parametrize(
    "case", ["unknown api key", "malformed token", "unknown event name", "no identifiers"]
)
def test_errors_of_the_key_the_names_and_the_request_are_not_about_entities(case: str) -> None:
    """Leaving somebody out would not help."""
    said = recorded_error(case)
    said.kind = "refused"
    assert culprits(said, [APP, OTHER]) == ()
    assert not is_about_entities(said)


# Which names are asked for


def test_rules_that_match_everything_ask_for_everything() -> None:
    """`/./` and not nothing, because managed gateways come only to those who name them."""
    assert asked([]) == Asked((EVERYTHING,))
    assert not asked([]).is_filtered


def test_own_names_are_never_sent() -> None:
    """Exact ones, and expressions that find none of the catalogue."""
    known = ["user.notification.create", "as.up.data.forward"]
    wanted = ["bridge.source.gap", "notification.api_key_created", r"/^bridge\./", r"/^notification\./"]
    assert asked([*wanted, "as.up.data.forward"], known).names == ("as.up.data.forward",)
    assert asked(["/notification/"], known).names == ("/notification/",)
    assert asked(["/bridge/x"], known).names == ("/bridge/x",)


def refused(name: str, /, **attributes: object) -> SourceError:
    return SourceError("HTTP 400", kind="rejected", namespace="pkg/events", name=name, attributes=attributes)


def test_a_refused_name_is_left_out_and_the_others_stay() -> None:
    """Named by the error's attribute, an expression without its slashes."""
    current = asked(["as.up.x", "/^zz/", "as.up.y"])
    left = without(current, refused("unknown_event_name", name="as.up.x"))
    assert left == Asked(("/^zz/", "as.up.y"), refused=("as.up.x",))
    left = without(current, refused("no_matching_events", regexp="^zz"))
    assert left == Asked(("as.up.x", "as.up.y"), refused=("/^zz/",))


def test_an_expression_the_server_cannot_read_is_not_named_so_all_of_them_go() -> None:
    """`invalid_regexp` has no attributes."""
    left = without(asked(["/a(?=b)/", "/^as/", "as.up.y"]), refused("invalid_regexp"))
    assert left == Asked(("as.up.y",), refused=("/^as/", "/a(?=b)/"))


def test_everything_refused_is_asked_for_without_names_and_managed_gateways_apart() -> None:
    """DESIGN: `[]` and the gcs names on a stream of their own."""
    left = without(asked([]), refused("no_matching_events", regexp="."))
    assert left == Asked((), (MANAGED,), (EVERYTHING,))


def test_other_errors_change_no_names() -> None:
    """And a name error without names is somebody else's."""
    assert without(asked(["a.b"]), SourceError("x", name="validation")) is None
    assert without(Asked(), refused("unknown_event_name", name="x")) is None


# What history proves


def shown(
    *ids: str, known: tuple[str, ...] = ("seen",), already: tuple[str, ...] = (), is_break: bool = True
) -> Evidence:
    found = Evidence(APP, frozenset(known), 1_000, is_break)
    for number, each in enumerate(ids):
        found.saw(each, 2_000 + number, already=each in already)
    return found


def test_a_replay_with_an_id_seen_before_proves_that_nothing_is_missing() -> None:
    """Wherever it stands; and so does one that begins with something already received."""
    assert verdict(shown("a", "seen", "b"), 3_000, filtered=True) == "proven"
    assert verdict(shown("a", "b", already=("a",)), 3_000, filtered=True) == "proven"


def test_a_replay_without_it_is_a_gap() -> None:
    """Unless the last event is older than the server's index: then nobody knows."""
    assert verdict(shown("a", "b"), 3_000, filtered=False) == "gap"
    assert verdict(shown("a", "b", already=("b",)), 3_000, filtered=False) == "gap"
    assert verdict(shown("a"), INDEX + 1_001, filtered=False) == "unproven"


def test_history_read_in_turn_is_a_gap_if_it_was_trimmed_and_the_live_stream_drops_events() -> None:
    """Trimmed alone is no loss: a busy entity overtakes its history, and the live stream brought it all."""
    trimmed = shown("a", "b", already=("a", "b"), is_break=False)
    assert verdict(trimmed, 3_000, filtered=False) == "proven"
    dropped = shown("a", "b", already=("a",), is_break=False)
    assert verdict(dropped, 3_000, filtered=False) == "gap"
    anchored = shown("seen", "b", already=("seen",), is_break=False)
    assert verdict(anchored, 3_000, filtered=False) == "proven"


def test_no_gap_is_claimed_for_an_empty_history() -> None:
    """Somebody nothing was ever seen of has lost nothing."""
    assert verdict(shown(), 3_000, filtered=False) == "unproven"
    assert verdict(shown(known=()), 3_000, filtered=False) == "proven"


def test_a_new_entity_has_lost_something_only_if_its_history_is_full() -> None:
    """With a filter on names nobody can say."""
    few, many = map(str, range(99)), map(str, range(100))
    assert verdict(shown(*few, known=()), 3_000, filtered=False) == "proven"
    assert verdict(shown("a", known=()), 3_000, filtered=True) == "unproven"
    assert verdict(shown(*many, known=()), 3_000, filtered=True) == "gap"


def test_a_break_is_told_once_when_everything_has_been_read() -> None:
    """Not before, and not again."""
    found = Break({APP, OTHER})
    found.settle(APP, Gap(APP, 1, 2))
    assert found.told() == []
    found.settle(OTHER, None)
    assert found.told() == [Gap(APP, 1, 2)]
    assert found.told() == []


# The rate budget


@pytest.mark.anyio
@pytest.mark.usefixtures("virtual_time")
async def test_openings_stay_within_the_budget_and_leave_a_reserve() -> None:
    """Live streams may use it up, history keeps off the last quarter."""
    pace = Pace()
    pace.told(RateBudget(limit=60, available=20, reset=40))
    for _ in range(4):
        await pace.turn(urgent=False)
    assert anyio.current_time() < 0.01
    await pace.turn(urgent=False)
    assert 0 <= anyio.current_time() < 2
    for _ in range(15):
        await pace.turn(urgent=True)
    spent = anyio.current_time()
    await pace.turn(urgent=False)
    assert anyio.current_time() - spent > 14


@pytest.mark.anyio
@pytest.mark.usefixtures("virtual_time")
async def test_a_refusal_shuts_the_gate_for_everybody() -> None:
    """Until what the server said has passed; its seconds are truncated."""
    pace = Pace()
    pace.refused(6.0)
    await pace.turn(urgent=True)
    assert anyio.current_time() >= 7.0


@pytest.mark.anyio
@pytest.mark.usefixtures("virtual_time")
async def test_a_limit_of_one_a_minute_still_lets_history_through() -> None:
    """The reserve is never all there is."""
    pace = Pace()
    pace.told(RateBudget(limit=1, available=0, reset=60))
    await pace.turn(urgent=False)
    assert 59 < anyio.current_time() < 61


def test_an_error_frame_without_details_means_nobody() -> None:
    """`{"code":5,"message":"Not Found"}` of a proxy or a wrong path."""
    said = framed_error("HTTP 404", ErrorFrame(5, "Not Found"), "rejected")
    assert culprits(said, [APP]) == ()
    assert not is_about_entities(said)
