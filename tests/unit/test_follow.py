"""Staying on the stream: opening, cursors, reconnecting, recycling; on virtual time."""

from __future__ import annotations

from itertools import pairwise

import anyio
import pytest

from bridge.errors import SourceError
from bridge.event import Entity
from tests.unit.following import APP, UP, Rig, rig, until
from tests.upstreams import EPOCH, TOKEN, happened, virtual_clock

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]

S = 1_000_000_000  # ns
PLANT_A = [{"application": "plant-a"}]


async def started(it: Rig) -> None:
    await until(lambda: it.source.status().connected)


async def test_the_first_stream_starts_at_the_servers_clock() -> None:
    """`from: now` asks from one second before the server's Date, never from local time, with everything."""
    it = rig()
    async with it.following(PLANT_A):
        await started(it)
    first = it.upstream.openings[0]
    assert first.entities == (APP,)
    assert first.names == ("/./",)
    assert first.after is not None
    assert int(EPOCH) * S - S <= first.after <= int((EPOCH + 1) * S)


async def test_a_stream_opens_although_no_side_call_is_answered() -> None:
    """Without the server's clock nothing is asked for by time, and what is older than the start is left."""
    it = rig()
    it.api.failing = SourceError("HTTP 503")
    old = happened(it.world, UP, APP, at=EPOCH - 300)
    async with it.following(PLANT_A):
        await started(it)
        fresh = happened(it.world, UP, APP)
        await until(lambda: fresh in it.store.ids)
    assert it.upstream.openings[0].after is None
    assert old not in it.store.ids


async def test_the_start_of_a_new_identifier_is_stored_at_once() -> None:
    """So that a crash before the first event does not lose what came in between."""
    it = rig()
    async with it.following(PLANT_A):
        await until(lambda: bool(it.store.cursors))
    assert abs(it.store.cursors["application:plant-a"] - int(EPOCH * S)) < S


async def test_from_goes_back_for_a_new_identifier() -> None:
    """`from: 6h` brings what the server keeps of six hours, `oldest` all of it, `now` nothing."""
    for start, expected in (("now", 0), ("6h", 1), ("oldest", 2)):
        it = rig()
        happened(it.world, UP, APP, at=virtual_clock() - 7 * 3600)
        happened(it.world, UP, APP, at=virtual_clock() - 5 * 3600)
        async with it.following(PLANT_A, **{"from": start}):  # type: ignore[arg-type]  # a keyword
            await started(it)
            await anyio.sleep(5)
        assert len(it.store.ids) == expected, start


async def test_cursors_stand_still_until_overlap_has_passed_without_old_events() -> None:
    """An event within `overlap` of the opening does not move the cursor, one after it does."""
    it = rig()
    async with it.following(PLANT_A):
        await started(it)
        begin = it.store.cursors["application:plant-a"]
        await anyio.sleep(5)
        happened(it.world, UP, APP)
        await anyio.sleep(1)
        assert it.store.cursors["application:plant-a"] == begin
        await anyio.sleep(5)
        happened(it.world, UP, APP)
        at = it.world.now
        await anyio.sleep(1)
        assert it.store.cursors["application:plant-a"] == at


async def test_an_event_of_the_future_moves_the_cursor_to_the_servers_clock_only() -> None:
    """A device whose clock is a day ahead must not silence the stream after the next reconnect."""
    it = rig()
    async with it.following(PLANT_A):
        await started(it)
        await anyio.sleep(11)
        happened(it.world, UP, APP, at=virtual_clock() + 86_400)
        now = it.world.now
        await anyio.sleep(0.1)
        assert abs(it.store.cursors["application:plant-a"] - now) < S
        it.upstream.cut()
        await until(lambda: len(it.upstream.openings) > 1)
        after = it.upstream.openings[-1].after
        assert after is not None
        assert after < it.world.now


async def test_a_late_event_does_not_move_the_cursor_back() -> None:
    """A third of real device events arrive late."""
    it = rig()
    async with it.following(PLANT_A):
        await started(it)
        await anyio.sleep(30)
        happened(it.world, UP, APP)
        at = it.world.now
        await anyio.sleep(0.1)
        happened(it.world, UP, APP, at=virtual_clock() - 8)
        await anyio.sleep(0.1)
        assert it.store.cursors["application:plant-a"] == at


async def test_reconnecting_goes_back_overlap_behind_the_cursor() -> None:
    """What happened while the connection was gone comes, and the stream starts at cursor − overlap."""
    it = rig()
    async with it.following(PLANT_A):
        await started(it)
        await anyio.sleep(20)
        happened(it.world, UP, APP)
        await anyio.sleep(5)
        cursor = it.store.cursors["application:plant-a"]
        it.upstream.stop()
        missed = [happened(it.world, UP, APP) for _ in range(20)]
        await anyio.sleep(1)
        assert not it.source.status().connected
        assert it.source.status().ready
        it.upstream.start()
        await until(lambda: it.source.status().connected)
        await until(lambda: set(missed) <= set(it.store.ids))
        assert it.upstream.openings[-1].after == cursor - 10 * S
        await anyio.sleep(60)
    assert it.store.gaps() == []
    assert it.metric("bridge_source_recovered_events_total") == 20


async def test_a_process_that_starts_again_resumes_at_the_stored_cursor() -> None:
    """The first stream goes back to cursor − overlap, and nothing in between is lost or called a gap."""
    it = rig()
    async with it.following(PLANT_A):
        await started(it)
        await anyio.sleep(20)
        happened(it.world, UP, APP)
        await anyio.sleep(5)
    cursor = it.store.cursors["application:plant-a"]
    opened = len(it.upstream.openings)
    missed = [happened(it.world, UP, APP) for _ in range(30)]
    await anyio.sleep(300)
    async with it.following(PLANT_A):
        await until(lambda: set(missed) <= set(it.store.ids))
        await anyio.sleep(30)
    assert it.upstream.openings[opened].after == cursor - 10 * S
    assert it.store.gaps() == []


async def test_recycling_opens_the_new_stream_before_the_old_one_ends() -> None:
    """Within `recycle`, from the start of the reading before less `overlap`; never a moment without."""
    it = rig()
    async with it.following(PLANT_A):
        await started(it)
        begin = it.store.cursors["application:plant-a"]
        connected = []
        for _ in range(2_450):
            await anyio.sleep(0.1)
            connected.append(bool(it.upstream.streams))
        assert all(connected)
    renewed = it.upstream.openings[1]
    assert 0.8 * 240 < renewed.at <= 241
    assert renewed.after == begin - 10 * S
    assert it.metric("bridge_source_reconnects_total", reason="recycle") == 1


async def test_a_stream_that_is_connected_but_silent_heals_by_recycling() -> None:
    """What the silence swallowed comes out of history."""
    it = rig()
    async with it.following(PLANT_A):
        await started(it)
        await anyio.sleep(20)
        it.upstream.silence()
        lost = [happened(it.world, UP, APP) for _ in range(10)]
        await anyio.sleep(30)
        assert not set(lost) & set(it.store.ids)
        await until(lambda: set(lost) <= set(it.store.ids), 240)
    assert it.metric("bridge_source_recovered_events_total") == 10


async def test_a_recycle_that_fails_keeps_the_old_stream() -> None:
    """And is tried again."""
    it = rig()
    async with it.following(PLANT_A):
        await started(it)
        it.upstream.down = True
        await anyio.sleep(300)
        kept = happened(it.world, UP, APP)
        await anyio.sleep(1)
        assert kept in it.store.ids
        it.upstream.start()
        await anyio.sleep(300)
        assert it.source.status().connected
    assert it.metric("bridge_source_reconnects_total", reason="recycle") >= 1


async def test_a_stream_whose_start_lies_in_the_servers_future_is_opened_again() -> None:
    """The server's clock went back: a stream from the stored cursor would say nothing until it caught up."""
    it = rig()
    it.store.cursors["application:plant-a"] = int((EPOCH + 3600) * S)
    async with it.following(PLANT_A):
        await started(it)
        await anyio.sleep(1)
        fresh = happened(it.world, UP, APP)
        await until(lambda: fresh in it.store.ids, 5)


async def test_waits_grow_while_the_server_is_away_and_begin_anew_after_a_steady_stream() -> None:
    """Each failure is counted by its kind; the state is a known backoff."""
    it = rig()
    it.upstream.down = True
    async with it.following(PLANT_A):
        await anyio.sleep(60)
        times = [each.at for each in it.upstream.openings]
        waits = [b - a for a, b in pairwise(times)]
        assert waits == sorted(waits)
        assert it.source.status().ready
        assert "cannot reach the server" in it.source.status().error
        it.upstream.start()
        await started(it)
        await anyio.sleep(40)
        it.upstream.cut()
        await until(lambda: not it.source.status().connected)
        await until(lambda: it.source.status().connected, 3)
    assert it.metric("bridge_source_reconnects_total", reason="transient") == len(times) + 1


async def test_a_refused_key_makes_the_source_unready_and_is_tried_every_two_minutes() -> None:
    """Noticed at start; with the key accepted again the source recovers by itself."""
    it = rig()
    key = it.world.keys.pop(TOKEN)
    async with it.following(PLANT_A):
        await anyio.sleep(250)
        assert not it.source.status().ready
        assert "api_key_not_found" in it.source.status().error
        assert [round(each.at) for each in it.upstream.openings] == [0, 120, 240]
        it.world.keys[TOKEN] = key
        await until(lambda: it.source.status().ready, 241)
        assert it.source.status().connected
        assert it.source.status().error == ""


async def test_a_rate_limit_is_waited_for_as_long_as_the_server_says() -> None:
    """Nothing is opened before `X-Rate-Limit-Retry` has passed."""
    it = rig()
    refusals = [SourceError("HTTP 429", kind="rate_limited", retry_after=45.0)]
    it.upstream.refusing = lambda entities: refusals.pop() if refusals else None
    async with it.following(PLANT_A):
        await until(lambda: it.source.status().connected)
    first, second = (each.at for each in it.upstream.openings)
    assert second - first >= 45
    assert it.metric("bridge_source_reconnects_total", reason="rate_limited") == 1


async def test_the_error_frame_of_a_stopping_server_is_a_normal_end() -> None:
    """Counted as ended, in backoff and ready."""
    it = rig()
    async with it.following(PLANT_A):
        await started(it)
        it.upstream.stop()
        await anyio.sleep(0.5)
        assert it.source.status().ready
        it.upstream.start()
        await started(it)
    assert it.metric("bridge_source_reconnects_total", reason="ended") == 1


async def test_an_event_name_the_server_does_not_know_is_left_out() -> None:
    """Counted and shown, and the others are still asked for."""
    it = rig()
    async with it.following(PLANT_A, names=["as.up.data.forward", "as.up.newer", r"/^zz\./"]):
        await started(it)
        assert set(it.source.status().names_refused) == {"as.up.newer", r"/^zz\./"}
        assert it.upstream.openings[-1].names == ("as.up.data.forward",)
    assert it.metric("bridge_source_names_refused_total") == 2


async def test_redundant_streams_carry_everything_twice() -> None:
    """The outbox merges them; when one breaks, nothing is called a break."""
    it = rig()
    async with it.following(PLANT_A, redundancy=2):
        await until(lambda: it.source.status().streams == 2)
        await anyio.sleep(20)
        once = happened(it.world, UP, APP)
        await anyio.sleep(1)
        assert it.store.ids.count(once) == 2
        next(iter(it.upstream.streams)).end(SourceError("connection lost: ReadError"))
        await anyio.sleep(0.1)
        opened = len(it.upstream.openings)
        cursor = happened(it.world, UP, APP)
        await anyio.sleep(0.1)
        assert it.store.recent["application:plant-a"][-1] == cursor
        await until(lambda: it.source.status().streams == 2)
        assert len(it.upstream.openings) == opened + 1
    assert it.store.gaps() == []


async def test_a_server_without_a_store_is_told_by_its_warning() -> None:
    """Streams are live only, the warning is shown, and a break is one gap."""
    it = rig(storage=False)
    async with it.following(PLANT_A):
        await started(it)
        await anyio.sleep(20)
        assert it.source.status().warnings == ("Events storage is not enabled",)
        last = happened(it.world, UP, APP)
        await anyio.sleep(1)
        it.upstream.cut()
        await started(it)
        await anyio.sleep(15)
        assert last in it.store.ids
        [gap] = it.store.gaps()
    assert gap["cause"] == "no_store"
    assert gap["entities"] == ["application:plant-a"]
    assert gap["count"] == 1
    assert it.metric("bridge_source_gaps_total", cause="no_store") == 1


async def test_a_device_stream_is_asked_for_by_both_its_ids() -> None:
    """`device: plant-a/meter-01` is followed as such, and its cursor has that name."""
    device = Entity("device", "plant-a/meter-01")
    it = rig(APP, device)
    async with it.following([{"device": "plant-a/meter-01"}]):
        await started(it)
        await anyio.sleep(11)
        mine = happened(it.world, "ns.up.data.drop", device)
        await until(lambda: mine in it.store.ids)
    assert it.upstream.openings[0].entities == (device,)
    assert "device:plant-a/meter-01" in it.store.cursors


async def test_other_names_than_before_are_no_gap() -> None:
    """What proved continuity is not asked for any more: the ids beside the cursors prove nothing."""
    it = rig()
    async with it.following(PLANT_A):
        await started(it)
        await anyio.sleep(20)
        for _ in range(20):
            happened(it.world, "application.update", APP)
        await anyio.sleep(1)
    happened(it.world, UP, APP)
    for _ in range(2):
        async with it.following(PLANT_A, names=[UP]):
            await started(it)
            await anyio.sleep(60)
            happened(it.world, UP, APP)
            await anyio.sleep(20)
    assert it.store.gaps() == []
