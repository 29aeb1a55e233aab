"""Reading again what the server still keeps, and telling what it no longer has; on virtual time."""

from __future__ import annotations

from dataclasses import dataclass

import anyio
import pytest

from bridge.errors import SourceError
from bridge.event import Entity, rfc3339
from bridge.standin import ALL
from bridge.standin.history import History, Record
from tests.unit.following import APP, UP, Rig, rig, until
from tests.upstreams import EPOCH, Opening, happened

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]

S = 1_000_000_000  # ns
STATUS = "gs.status.receive"
GATEWAYS = [Entity("gateway", f"gw-{number:03}") for number in range(12)]


def named(entities: list[Entity]) -> list[dict[str, str]]:
    return [{each.kind: each.id} for each in entities]


def histories(it: Rig, since: float = 0.0) -> list[Opening]:
    """The streams of history that were opened after *since*: those with few of the entities."""
    return [each for each in it.upstream.openings if each.at >= since and len(each.entities) <= 5]


@dataclass(slots=True)
class Sized(History):
    """The history of a server with another `store.entity-count`."""

    count: int = 600

    def add(self, each: Record) -> None:
        for entity in each.entities:
            self.lists.setdefault(entity, []).append(each)
            del self.lists[entity][: -self.count]


async def settled(it: Rig, seconds: float = 20.0) -> None:
    await until(lambda: it.source.status().connected)
    await anyio.sleep(seconds)


async def broken(it: Rig, seconds: float = 1.0) -> None:
    it.upstream.stop()
    await anyio.sleep(seconds)
    it.upstream.start()
    await until(lambda: it.source.status().connected)


async def test_many_entities_share_a_live_stream_and_their_history_comes_by_five() -> None:
    """After a break: the live stream goes back `overlap` only, history is read beside it, all of it."""
    it = rig(*GATEWAYS)
    async with it.following(named(GATEWAYS)):
        await settled(it)
        for each in GATEWAYS:
            happened(it.world, STATUS, each)
        await anyio.sleep(1)
        began = anyio.current_time()
        it.upstream.stop()
        missed = {happened(it.world, STATUS, each) for each in GATEWAYS for _ in range(40)}
        await anyio.sleep(120)
        it.upstream.start()
        await until(lambda: missed <= set(it.store.ids))
        await anyio.sleep(15)
    live = [each for each in it.upstream.openings if each.at > began and len(each.entities) == 12]
    assert abs((live[-1].after or 0) - int((EPOCH + live[-1].at - 10) * S)) < S
    read = histories(it, began + 120)
    assert {e for each in read for e in each.entities} == set(GATEWAYS)
    assert max(len(each.entities) for each in read) == 5
    assert it.store.gaps() == []


async def test_the_busiest_and_latest_are_read_first() -> None:
    """They lose first what history trims."""
    it = rig(*GATEWAYS)
    async with it.following(named(GATEWAYS)):
        await settled(it)
        for each in GATEWAYS[7:]:
            for _ in range(20):
                happened(it.world, STATUS, each)
        await anyio.sleep(1)
        began = anyio.current_time()
        await broken(it)
        await until(lambda: bool(histories(it, began)))
    assert set(histories(it, began)[0].entities) == set(GATEWAYS[7:])


async def test_everything_is_read_again_every_recycle() -> None:
    """From the start of the reading before less `overlap`; the ratio says that all of it was in time."""
    it = rig(*GATEWAYS)
    async with it.following(named(GATEWAYS)):
        await settled(it, 260)
        first = histories(it, 200)
        assert {e for each in first for e in each.entities} == set(GATEWAYS)
        await anyio.sleep(240)
        second = [each for each in histories(it) if each.at > 440]
        assert {e for each in second for e in each.entities} == set(GATEWAYS)
        assert it.metric("bridge_source_reread_ratio") == 1
        before = {e: each.at for each in first for e in each.entities}
    for each in second:
        started = min(before[e] for e in each.entities)
        assert abs((each.after or 0) / S - (EPOCH + started - 10)) < 0.5


async def test_an_entity_that_fills_its_history_is_read_before_its_turn() -> None:
    """After fifty events, half of what the server keeps for certain."""
    it = rig(*GATEWAYS)
    async with it.following(named(GATEWAYS)):
        await settled(it)
        for _ in range(49):
            happened(it.world, STATUS, GATEWAYS[3])
        await anyio.sleep(5)
        assert histories(it) == []
        happened(it.world, STATUS, GATEWAYS[3])
        await anyio.sleep(1)
        assert [each.entities for each in histories(it)] == [(GATEWAYS[3],)]


async def test_what_the_server_dropped_is_recovered() -> None:
    """A lossy stream: nothing is missing after the next reading, and it is counted."""
    it = rig(*GATEWAYS)
    async with it.following(named(GATEWAYS)):
        await settled(it)
        for stream in it.upstream.streams:
            stream.lossy = 0.3
        sent = set()
        for number in range(200):
            sent.add(happened(it.world, STATUS, GATEWAYS[number % 12]))
            await anyio.sleep(0.5)
        missing = len(sent - set(it.store.ids))
        assert missing > 20
        await anyio.sleep(300)
        assert sent <= set(it.store.ids)
        assert it.metric("bridge_source_recovered_events_total") >= missing
    assert it.store.gaps() == []


async def test_readings_stay_within_the_rate_budget() -> None:
    """Four openings a minute: never refused, the live stream first, and the ratio says what it costs."""
    it = rig(*GATEWAYS, rate_limit=4)
    async with it.following(named(GATEWAYS), recycle="60s"):
        await settled(it)
        for _ in range(6):
            for each in GATEWAYS:
                for _ in range(90):
                    happened(it.world, STATUS, each)
            await anyio.sleep(30)
        assert it.metric("bridge_source_reconnects_total", reason="rate_limited") == 0
        assert it.metric("bridge_source_reread_ratio") < 1
        assert it.metric("bridge_source_reconnects_total", reason="recycle") >= 2
    assert len(it.upstream.openings) <= 4 + 4 * anyio.current_time() / 60


async def test_a_break_that_history_does_not_bridge_is_told_once() -> None:
    """One event for all of its entities: the first hundred by name, their number, from and to."""
    many = [Entity("gateway", f"gw-{number:03}") for number in range(130)]
    it = rig(*many)
    it.world.history = Sized(count=5)
    async with it.following(named(many)):
        await settled(it)
        for each in many:
            happened(it.world, STATUS, each)
        await anyio.sleep(1)
        last = it.world.now
        it.upstream.stop()
        await anyio.sleep(60)
        for each in many[:120]:
            for _ in range(6):
                happened(it.world, STATUS, each)
        first_kept = it.world.now
        it.upstream.start()
        await until(lambda: bool(it.store.gaps()))
        await anyio.sleep(60)
        [gap] = it.store.gaps()
        [told] = it.store.own("bridge.source.gap")
    assert gap["source"] == "eu1"
    assert gap["cause"] == "trimmed"
    assert gap["count"] == 120
    assert len(gap["entities"]) == len(told.identifiers) == 100
    assert gap["entities"][0] == "gateway:gw-000"
    assert gap["from"] < rfc3339(last) < gap["to"]
    assert rfc3339(first_kept) <= gap["to"]
    assert it.metric("bridge_source_gaps_total", cause="trimmed") == 1
    assert it.metric("bridge_source_unproven") == 0


async def test_no_gap_is_claimed_where_history_came_back_empty() -> None:
    """The server's store was emptied: nobody can say, and that is counted."""
    it = rig(*GATEWAYS)
    async with it.following(named(GATEWAYS)):
        await settled(it)
        for each in GATEWAYS:
            happened(it.world, STATUS, each)
        await anyio.sleep(1)
        it.upstream.stop()
        await anyio.sleep(1)
        it.world.history.lists.clear()
        it.upstream.start()
        await anyio.sleep(60)
        assert it.metric("bridge_source_unproven") == 12
        assert it.store.gaps() == []
        for each in GATEWAYS:
            happened(it.world, STATUS, each)
        await anyio.sleep(15)
        await broken(it)
        await anyio.sleep(30)
        assert it.metric("bridge_source_unproven") == 0


async def test_no_gap_is_claimed_beyond_the_servers_index() -> None:
    """An entity last heard of more than a day ago: its list was forgotten, not trimmed."""
    it = rig(*GATEWAYS)
    async with it.following(named(GATEWAYS), recycle="2h"):
        await settled(it)
        for each in GATEWAYS:
            happened(it.world, STATUS, each)
        await anyio.sleep(25 * 3600)
        it.upstream.stop()
        await anyio.sleep(1)
        it.world.history.lists.clear()
        happened(it.world, STATUS, GATEWAYS[0])
        it.upstream.start()
        await anyio.sleep(60)
        assert it.store.gaps() == []
        assert it.metric("bridge_source_unproven") == 12


async def test_without_a_store_a_break_of_many_is_one_gap() -> None:
    """Every break, once, with all entities; history is not asked for."""
    it = rig(*GATEWAYS, storage=False)
    async with it.following(named(GATEWAYS)):
        await settled(it)
        for _ in range(2):
            await broken(it)
            await anyio.sleep(20)
        assert [each["count"] for each in it.store.gaps()] == [12, 12]
        assert histories(it) == []
        assert it.metric("bridge_source_reread_ratio") == 0


async def test_events_whose_payload_has_expired_are_marked() -> None:
    """Ten minutes after they happened the server keeps only who and when."""
    it = rig(APP)
    async with it.following(named([APP])):
        await settled(it)
        happened(it.world, UP, APP)
        await anyio.sleep(1)
        it.upstream.stop()
        missed = happened(it.world, UP, APP, f_port=1)
        await anyio.sleep(700)
        it.upstream.start()
        await until(lambda: missed in it.store.ids)
    [arrival] = [each for each in it.store.arrivals if each.event.unique_id == missed]
    assert arrival.sparse
    assert "data" not in arrival.event.document()
    assert it.metric("bridge_source_sparse_events_total") >= 1


async def test_an_application_and_its_devices_are_read_by_different_streams() -> None:
    """The server replays one after the other and does not say where the second begins."""
    devices = [Entity("device", f"plant-a/meter-{number}") for number in range(3)]
    it = rig(APP, *devices)
    async with it.following(named([APP, *devices])):
        await settled(it)
        for each in devices:
            happened(it.world, UP, each)
            happened(it.world, "ns.up.data.drop", each)
        await anyio.sleep(1)
        began = anyio.current_time()
        await broken(it)
        await anyio.sleep(30)
        read = [set(each.entities) for each in it.upstream.openings if each.at > began + 1]
        assert {APP} in read
        assert set(devices) in read
    assert it.store.gaps() == []


async def test_streams_of_history_shrink_on_a_server_that_keeps_more() -> None:
    """`entity-count: 600`: one entity a stream, once that was seen."""
    it = rig(*GATEWAYS)
    it.world.history = Sized(count=600)
    async with it.following(named(GATEWAYS)):
        await settled(it)
        for each in GATEWAYS[:3]:
            for _ in range(40):
                happened(it.world, STATUS, each)
            await anyio.sleep(3)
        it.upstream.stop()
        missed = set()
        for each in GATEWAYS[:3]:
            missed |= {happened(it.world, STATUS, each) for _ in range(590)}
        await anyio.sleep(1)
        it.upstream.start()
        await until(lambda: missed <= set(it.store.ids), 600)
        began = anyio.current_time()
        await broken(it)
        await anyio.sleep(60)
        assert {len(each.entities) for each in histories(it, began + 1)} == {1}


async def test_cursors_stand_still_until_history_has_been_read() -> None:
    """A crash before that must not skip it."""
    it = rig(*GATEWAYS)
    async with it.following(named(GATEWAYS)):
        await settled(it)
        for each in GATEWAYS:
            happened(it.world, STATUS, each)
        await anyio.sleep(1)
        cursors = dict(it.store.cursors)
        it.upstream.refusing = lambda entities: SourceError("HTTP 503") if len(entities) <= 5 else None
        await broken(it)
        for _ in range(30):
            for each in GATEWAYS:
                happened(it.world, STATUS, each)
            await anyio.sleep(1)
        assert it.store.cursors == cursors
        it.upstream.refusing = lambda entities: None
        await anyio.sleep(60)
        happened(it.world, STATUS, GATEWAYS[0])
        await anyio.sleep(1)
        assert it.store.cursors["gateway:gw-000"] > cursors["gateway:gw-000"]


async def test_what_was_dropped_before_a_crash_is_read_after_it() -> None:
    """The process that starts again reads back one `recycle` behind its cursors as well."""
    it = rig(*GATEWAYS)
    async with it.following(named(GATEWAYS)):
        await settled(it)
        for stream in it.upstream.streams:
            stream.silent = True
        lost = {happened(it.world, STATUS, each) for each in GATEWAYS}
        await anyio.sleep(60)
        for stream in it.upstream.streams:
            stream.silent = False
        for each in GATEWAYS:
            happened(it.world, STATUS, each)
        await anyio.sleep(1)
        assert not lost & set(it.store.ids)
    async with it.following(named(GATEWAYS)):
        await until(lambda: lost <= set(it.store.ids))


# Those the server refuses


async def test_forbidden_entities_are_left_out_and_tried_again_slowly() -> None:
    """The others go on; each try waits twice as long; once allowed, history is read from where it was."""
    allowed = frozenset(GATEWAYS[:10])
    it = rig(*GATEWAYS, rights=allowed)
    async with it.following(named(GATEWAYS)):
        await settled(it)
        assert it.source.status().ready
        assert [who for who, _ in it.source.status().excluded] == ["gateway gw-010", "gateway gw-011"]
        assert it.metric("bridge_source_excluded") == 2
        assert it.upstream.carrying() == allowed
        await anyio.sleep(3600)
        tries = [each.at for each in it.upstream.openings if set(each.entities) <= set(GATEWAYS[10:])]
        assert 4 <= len(tries) <= 12
        mine = happened(it.world, STATUS, GATEWAYS[3])
        await anyio.sleep(1)
        assert mine in it.store.ids
        it.world.keys[it.upstream.token] = ALL
        await until(lambda: it.upstream.carrying() == set(GATEWAYS), 3600)
        assert it.source.status().excluded == ()
        assert it.metric("bridge_source_excluded") == 0


async def test_a_refusal_that_names_nobody_is_narrowed_down_by_halves() -> None:
    """One bad entity of twelve is found with few openings, and the rest is followed."""
    bad = GATEWAYS[7]
    said = SourceError("HTTP 403", kind="refused", namespace="pkg/auth/rights", name="unspecific")
    it = rig(*GATEWAYS)
    it.upstream.refusing = lambda entities: said if bad in entities else None
    async with it.following(named(GATEWAYS)):
        await settled(it)
        assert it.upstream.carrying() == set(GATEWAYS) - {bad}
        assert [who for who, _ in it.source.status().excluded] == [str(bad)]
        assert len(it.upstream.openings) <= 12


async def test_an_entity_deleted_while_its_stream_is_open_leaves_the_others_alone() -> None:
    """At the next renewal the server names it; never a moment without a stream for the rest."""
    it = rig(*GATEWAYS)
    async with it.following(named(GATEWAYS)):
        await settled(it)
        it.world.keys[it.upstream.token] = frozenset(GATEWAYS[1:])
        gone = []
        for _ in range(2_500):
            await anyio.sleep(0.1)
            gone.append(not set(GATEWAYS[1:]) <= it.upstream.carrying())
        assert not any(gone)
        assert [who for who, _ in it.source.status().excluded] == ["gateway gw-000"]


async def test_everything_is_asked_for_without_names_where_the_expression_is_refused() -> None:
    """And the managed gateways' events on a stream of their own."""
    it = rig(*GATEWAYS)
    refused = SourceError(
        "HTTP 400",
        kind="rejected",
        namespace="pkg/events",
        name="no_matching_events",
        attributes={"regexp": "."},
    )
    refusals = [refused]
    it.upstream.refusing = lambda entities: refusals.pop() if refusals else None
    async with it.following(named(GATEWAYS)):
        await settled(it)
        managed = happened(it.world, "gcs.managed.wifi.up", GATEWAYS[0])
        plain = happened(it.world, STATUS, GATEWAYS[0])
        await anyio.sleep(1)
        assert plain in it.store.ids
        assert len([each for each in it.store.arrivals if each.event.name == "gcs.managed.wifi.up"]) == 1
        assert managed not in it.store.ids
    asked = {each.names for each in it.upstream.openings}
    assert asked == {("/./",), (), (r"/^gcs\.managed\./",)}
