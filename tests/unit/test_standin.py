"""The stand-in without a wire: what it keeps, what it refuses, what faults do."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.abc
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.event import Entity, Identifiers, nanoseconds
from bridge.ids import ulid
from bridge.receiver import sentence
from bridge.standin import ALL, Cut, CutAt, Drip, Drop, Duplicate, End, Garbage, Reorder, Silence, World
from bridge.standin.history import History, Record, record, renamed, sparse, window
from bridge.standin.peer import Peer
from bridge.standin.player import entities_in, merged, shifted
from bridge.standin.problems import RefusedError
from bridge.standin.request import Asked, StreamRequest, event_names, expand, read, resolve
from bridge.standin.shaper import Close, Finish, Shaper, Write, chunks
from bridge.standin.stream import Ending, Gate, Stream
from bridge.standin.wire import head, spend
from bridge.standin.world import Subscription
from tests.recordings import RECORDED, documents, json_bytes

METER = Entity("device", "plant-a/meter-01")
PLANT_A = Entity("application", "plant-a")
NAMES = event_names()
SECOND = 1_000_000_000  # ns


def entry(number: int, *, time: int, inserted: int | None = None, name: str = "as.up.data.forward") -> Record:
    return Record(name, time, str(number), (METER,), (), b"{}", time if inserted is None else inserted)


def event(name: str = "as.up.data.forward", **more: object) -> bytes:
    ids = {"device_ids": {"device_id": "meter-01", "application_ids": {"application_id": "plant-a"}}}
    whole = {"name": name, "time": "2026-11-23T21:09:10.5Z", "identifiers": [ids], **more}
    return msgspec.json.encode({"unique_id": "01M853Q23ZE14NE1EN25S8HE1X"} | whole)


def request(*entities: str, tail: int = 0, after: int | None = None) -> StreamRequest:
    ids = msgspec.convert(
        [{"application_ids": {"application_id": each}} for each in entities], tuple[Identifiers, ...]
    )
    return StreamRequest(ids, tail, after, None)


entries = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(-500, 500), st.sampled_from(("a.b", "c.d"))), max_size=40
).map(
    lambda drawn: [
        entry(number, time=(at + skew) * 1_000_000, inserted=at * 1_000_000, name=name)
        for number, (at, skew, name) in enumerate(sorted(drawn))
    ]
)
afters = st.none() | st.integers(0, 6000).map(lambda ms: ms * 1_000_000 + 999_999)


@given(entries=entries, tail=st.integers(0, 50), after=afters)
def test_the_tail_is_counted_before_names_are_filtered(
    entries: list[Record], tail: int, after: int | None
) -> None:
    """Filtering afterwards what comes without a filter gives the same events, never more."""

    def wanted(name: str) -> bool:
        return name == "a.b"

    filtered = window(entries, tail=tail, after=after, wants=wanted).entries
    everything = window(entries, tail=tail, after=after).entries

    assert filtered == tuple(each for each in everything if wanted(each.name))


@given(entries=entries, tail=st.integers(1, 50))
def test_a_tail_is_the_end_of_the_list(entries: list[Record], tail: int) -> None:
    """Without `after` it is exactly the last so many, in the order in which they happened."""
    assert window(entries, tail=tail, after=None).entries == tuple(entries[-tail:])


@given(entries=entries, after=st.integers(0, 6000))
def test_after_is_exclusive_by_the_millisecond(entries: list[Record], after: int) -> None:
    """Nothing of that millisecond or before comes; everything later does, up to a second of skew."""
    given_ = window(entries, tail=0, after=after * 1_000_000 + 123_456).entries

    assert all(each.time // 1_000_000 > after for each in given_)
    assert set(given_) >= {each for each in entries if each.time // 1_000_000 > after}


def test_an_event_in_the_millisecond_of_after_is_lost() -> None:
    """A cursor sent back unchanged loses its neighbours; one millisecond earlier has them (§2.3)."""
    neighbour = entry(1, time=5_000_900_000)
    assert window([neighbour], tail=0, after=5_000_100_000).entries == ()
    assert window([neighbour], tail=0, after=4_999_999_999).entries == (neighbour,)


def test_an_after_in_the_future_silences_the_live_stream() -> None:
    """The server goes on reading there; with something found it goes on behind that."""
    kept = [entry(1, time=10 * SECOND)]
    assert window(kept, tail=1024, after=20 * SECOND).silent_until == 19_000
    assert window(kept, tail=1024, after=9 * SECOND).silent_until == 0


@given(count=st.integers(0, 450))
def test_between_100_and_199_entries_are_kept(count: int) -> None:
    """`MAXLEN ~ 100`: never fewer than the last hundred, never two hundred, always the newest."""
    history = History()
    for number in range(count):
        history.add(entry(number, time=number * SECOND))

    kept = [int(each.unique_id) for each in history.of(METER, count * SECOND)]

    assert kept == list(range(count))[-len(kept) :] if kept else count == 0
    assert min(count, 100) <= len(kept) < 200


def test_a_list_is_forgotten_a_day_after_its_last_event() -> None:
    history = History()
    history.add(entry(1, time=0))
    assert len(history.of(METER, 86_399 * SECOND)) == 1
    assert history.of(METER, 86_400 * SECOND) == ()


def test_an_application_carries_only_what_propagates() -> None:
    """`as.up.data.forward` does, `ns.up.data.drop` does not (tts_event_names.json)."""
    assert record(event(), 0, NAMES).entities == (METER, PLANT_A)
    assert record(event("ns.up.data.drop"), 0, NAMES).entities == (METER,)


@pytest.mark.parametrize("name", ["devices.sse", "gateways.sse"])
def test_an_expired_body_looks_like_the_recorded_ones(name: str) -> None:
    """Bodies recorded live and the same events recorded 45 minutes later, byte for byte."""
    later = {
        each["unique_id"]: line
        for line in (RECORDED / "sparse.sse").read_bytes().split(b"\n\n")
        if line and "origin" not in (each := msgspec.json.decode(line)["result"])
    }
    compared = 0
    for each in merged([(RECORDED / name).read_bytes()]):
        if each.unique_id in later:
            kept = record(each.body, 0, NAMES)
            shown = b'{"result":%s}' % sparse(kept, kept.entities[0])
            assert shown == later[each.unique_id]
            compared += 1
    assert compared > 20


def test_related_events_come_newest_first_while_their_bodies_last() -> None:
    history = History()
    for at, name in enumerate(("ns.up.data.receive", "as.up.data.forward")):
        history.add(record(event(name, unique_id=str(at), correlation_ids=["x"]), at * SECOND, NAMES))
    history.add(record(event(unique_id="other", correlation_ids=["y"]), 0, NAMES))

    assert [each.unique_id for each in history.related("x", 0)] == ["1", "0"]
    assert [each.unique_id for each in history.related("x", 600 * SECOND)] == ["1"]


def collected(subscription: Subscription) -> list[bytes]:
    found: list[bytes] = []
    while subscription.receive.statistics().current_buffer_used:
        found.append(subscription.receive.receive_nowait())
    return found


@pytest.mark.anyio
async def test_a_channel_that_is_full_drops_the_newest_silently() -> None:
    """Eight slots without a tail (grpc.go): the ninth event is gone, and only the server knows."""
    world = World({}, clock=lambda: 0.0)
    stream = world.subscribe(request("plant-a"))
    await world.replay(stream)
    for number in range(12):
        world.publish(event(unique_id=str(number)))

    assert [msgspec.json.decode(each)["unique_id"] for each in collected(stream)] == list("01234567")
    assert world.dropped == stream.dropped == 4
    world.unsubscribe(stream)


@pytest.mark.anyio
async def test_history_goes_over_into_the_live_part_without_gap_or_repeat() -> None:
    """What happens between subscribing and the end of the replay comes once, behind the history."""
    world = World({}, clock=lambda: 0.0)
    world.publish(event(unique_id="old"))
    stream = world.subscribe(request("plant-a", tail=100))
    world.publish(event(unique_id="meanwhile"))
    await world.replay(stream)
    world.publish(event(unique_id="live"))

    ids = [msgspec.json.decode(each)["unique_id"] for each in collected(stream)]

    assert ids == ["old", "meanwhile", "live"]
    world.unsubscribe(stream)


@pytest.mark.anyio
async def test_one_entity_never_gives_an_event_twice_and_two_of_them_do() -> None:
    """An application and its device are two streams of the store (36 of 253 in overlap.sse)."""
    world = World({}, clock=lambda: 0.0)
    twice = resolve(read(json_bytes({"identifiers": [APPLICATION, DEVICE, APPLICATION]})), NAMES)
    stream = world.subscribe(twice)
    await world.replay(stream)
    world.publish(event())
    world.publish(event("ns.up.data.drop"))

    names = [msgspec.json.decode(each)["name"] for each in collected(stream)]

    assert names == ["as.up.data.forward", "as.up.data.forward", "ns.up.data.drop"]
    world.unsubscribe(stream)


APPLICATION = {"application_ids": {"application_id": "plant-a"}}
DEVICE = {"device_ids": {"device_id": "meter-01", "application_ids": {"application_id": "plant-a"}}}


@pytest.mark.anyio
async def test_a_future_after_hears_nothing_until_the_servers_clock_gets_there() -> None:
    now = 100.0
    world = World({}, clock=lambda: now)
    stream = world.subscribe(request("plant-a", tail=100, after=200 * SECOND))
    await world.replay(stream)
    world.publish(event())
    assert collected(stream) == []
    now = 199.5
    world.publish(event())
    assert len(collected(stream)) == 1
    world.unsubscribe(stream)


class Reset(anyio.abc.ByteStream):
    """A connection whose other end is gone, which only writing notices."""

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        await anyio.sleep_forever()
        return b""

    async def send(self, item: bytes) -> None:
        raise anyio.BrokenResourceError

    async def send_eof(self) -> None: ...

    async def aclose(self) -> None: ...


@pytest.mark.anyio
async def test_a_stream_that_cannot_be_written_ends_and_raises_nothing() -> None:
    """Otherwise one client's reset would end the server of all of them."""
    world = World({})
    subscription = world.subscribe(request("plant-a"))
    stream = Stream(world, Peer(Reset()), subscription, faults=(), delimiter=b"\n", gate=Gate())
    assert await stream.run(b"HTTP/1.1 200 OK\r\n\r\n", b"{}") is Ending.CLOSED
    world.unsubscribe(subscription)


@pytest.mark.anyio
async def test_managed_gateways_come_only_when_named() -> None:
    """`matchingStreams` of no names matches no extra stream (pkg/events/mux/mux.go)."""
    assert not request("plant-a").wants("gcs.managed.wifi.fail")
    named = StreamRequest((), 0, None, ("gcs.managed.wifi.fail",))
    assert named.wants("gcs.managed.wifi.fail")


@pytest.mark.parametrize(
    "body",
    [
        b'{"identifiers":[{"deviceIds":{"deviceId":"meter-01","applicationIds":{"applicationId":"plant-a"}}}],"tail":"5"}',
        b'{"identifiers":[{"device_ids":{"device_id":"meter-01","application_ids":{"application_id":"plant-a"}}}],"tail":5,"x":1}',
    ],
)
def test_both_spellings_of_a_request_are_taken(body: bytes) -> None:
    """camelCase and snake_case, a number as a string, fields nobody knows."""
    asked = read(body)
    assert (asked.tail, resolve(asked, NAMES).entities) == (5, (METER,))


@pytest.mark.parametrize("after", ["2026-11-23T21:09:10+00:00", "2026-11-23 21:09", "yesterday", ""])
def test_a_time_without_a_z_is_refused(after: str) -> None:
    """The layout of the server ends in a literal Z."""
    with pytest.raises(RefusedError, match="invalid time"):
        read(json_bytes({"after": after}))


@given(
    body=st.binary(max_size=60)
    | st.from_regex(r'\{"(identifiers|tail|after|names)":.{0,20}\}').map(str.encode)
)
def test_garbage_as_a_request_is_refused_and_nothing_else(body: bytes) -> None:
    assert answered(body) in {200, 400}


def answered(body: bytes) -> int:
    try:
        resolve(read(body), NAMES)
    except RefusedError as refused:
        return refused.status
    return 200


def test_names_expand_as_the_recorded_stream_says() -> None:
    """The start event of failures_regex.sse lists what `/\\.(fail|drop|disconnect)$/` became."""
    first = (RECORDED / "failures_regex.sse").read_bytes().partition(b"\n")[0]
    value = msgspec.json.decode(first)["result"]["data"]["value"]
    assert expand((r"/\.(fail|drop|disconnect)$/",), NAMES) == tuple(value)


def test_a_regex_is_unanchored_and_a_name_is_not() -> None:
    assert expand(("/./",), NAMES) == tuple(sorted(NAMES))
    assert expand(("///",), NAMES) == tuple(sorted(NAMES))
    with pytest.raises(RefusedError, match="unknown_event_name"):
        expand(("as.up.data",), NAMES)


def test_a_resolved_request_without_names_takes_all() -> None:
    assert resolve(Asked(identifiers=request("plant-a").identifiers), NAMES).names is None


def test_a_key_sees_its_application_and_the_devices_of_it() -> None:
    """Anything else is 403 for it; an admin is told 404 of what does not exist."""
    world = World({"narrow": frozenset({PLANT_A}), "admin": ALL}, entities=[PLANT_A])
    world.require_any("narrow", [PLANT_A, METER])
    with pytest.raises(RefusedError, match="no_application_rights"):
        world.require_any("narrow", [PLANT_A, Entity("device", "plant-b/meter-01")])
    with pytest.raises(RefusedError, match="gateway_not_found"):
        world.require_any("admin", [PLANT_A, Entity("gateway", "nope")])
    World({"admin": ALL}).require_any("admin", [Entity("gateway", "nope")])


def test_the_fifth_opening_of_four_a_minute_waits_as_recorded() -> None:
    """storage_disabled.http and rate_limited.http: 15 s of budget each, 6 s to go nine seconds later."""
    paid, first = spend(4, 0.0, 1000.0)
    for _ in range(3):
        paid, _ = spend(4, paid, 1000.0)
    refused_paid, refused = spend(4, paid, 1009.0)

    assert (first.available, first.reset, first.retry) == (3, 15, 0)
    assert (refused.allowed, refused.available, refused.reset, refused.retry) == (False, 0, 51, 6)
    assert spend(4, refused_paid, 1015.0)[1].allowed


def test_headers_are_those_of_the_recording() -> None:
    """Names, order and casing of apps.sse.headers."""
    fields = {"Content-Type": "text/event-stream", "X-Request-Id": "01M853VDYT7MFZS9CKB6CR2VY7"}
    at = nanoseconds("2026-11-23T21:09:06Z") / 1e9
    assert head(200, fields, at) == (RECORDED / "apps.sse.headers").read_bytes()


def run(shaper: Shaper, bodies: Sequence[bytes]) -> bytes:
    """Everything *shaper* writes for *bodies*, the last held ones included."""
    actions = [*shaper.events(bodies), *shaper.flush()]
    return b"".join(each.data for each in actions if isinstance(each, Write))


def payload(wire: bytes) -> bytes:
    """The body that *wire* carries in chunks, as far as they are complete."""
    found = b""
    while b"\r\n" in wire:
        size, _, rest = wire.partition(b"\r\n")
        found, wire = found + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return found


def shaper(*faults: Any, seed: int = 0) -> Shaper:
    return Shaper(faults, random.Random(seed), b"\n")


BODIES = [b'{"n":%d}' % number for number in range(20)]


@given(size=st.integers(0, 5000), delimiter=st.sampled_from((b"\n", b"\n\n")))
def test_chunking_loses_nothing(size: int, delimiter: bytes) -> None:
    """Whatever the length of a message, its chunks hold it and its delimiter."""
    assert payload(chunks(b"x" * size, delimiter)) == b"x" * size + delimiter


def test_a_long_message_is_a_chunk_of_its_own() -> None:
    """Go's 2 KiB buffer is bypassed by a larger write; the delimiter follows by itself."""
    assert chunks(b"x" * 2048, b"\n").startswith(b"800\r\n")
    assert chunks(b"x" * 2049, b"\n") == b"801\r\n" + b"x" * 2049 + b"\r\n1\r\n\n\r\n"


def test_a_cut_stops_in_the_middle_of_the_next_event() -> None:
    actions = shaper(Cut(2, 0.5)).events(BODIES)
    assert actions[-1] == Close()
    assert actions[-2] == Write(b'12\r\n{"result"')
    assert len(actions) == 4


def test_a_cut_between_events_writes_nothing_more() -> None:
    assert shaper(Cut(2, 0.0)).events(BODIES)[2:] == [Close()]


@given(size=st.integers(0, 400))
def test_a_cut_at_a_size_sends_exactly_so_many_bytes(size: int) -> None:
    """Of the body; what the last chunk announced is never completed."""
    whole = b"".join(b'{"result":%s}\n' % body for body in BODIES)
    sent = b"".join(each.data for each in shaper(CutAt(size)).events(BODIES) if isinstance(each, Write))
    assert payload(sent) == whole[:size]


@given(seed=st.integers(0, 50), size=st.integers(1, 8))
def test_reordering_loses_and_repeats_nothing(seed: int, size: int) -> None:
    lines = payload(run(shaper(Reorder(size), seed=seed), BODIES)).split(b"\n")[:-1]
    assert sorted(lines) == sorted(b'{"result":%s}' % body for body in BODIES)


def test_the_same_seed_gives_the_same_disorder() -> None:
    faults = (Reorder(5), Duplicate(0.3), Drop(0.3))
    assert run(shaper(*faults, seed=7), BODIES) == run(shaper(*faults, seed=7), BODIES)
    assert run(shaper(*faults, seed=7), BODIES) != run(shaper(*faults, seed=8), BODIES)


@pytest.mark.parametrize(
    ("fault", "lines", "dropped"),
    [
        (Duplicate(1.0), 40, 0),
        (Drop(1.0), 0, 20),
        (Silence(3), 3, 17),
        (Garbage(3), 21, 0),
        (Drip(4), 20, 0),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else None,
)
def test_a_fault_changes_what_arrives(fault: Any, lines: int, dropped: int) -> None:
    made = shaper(fault)
    assert payload(run(made, BODIES)).count(b"\n") == lines
    assert made.dropped == dropped


def test_dripping_cuts_messages_into_small_chunks() -> None:
    assert run(shaper(Drip(8)), [b"{}"]) == b'8\r\n{"result\r\n6\r\n":{}}\n\r\n'


def test_recordings_merge_in_time_and_an_event_in_two_of_them_happens_once() -> None:
    """apps.sse and overlap.sse share plant-a; nothing is lost, nothing is doubled."""
    names = ("apps.sse", "overlap.sse")
    expected = {each["unique_id"] for name in names for each in documents(name)}
    found = merged((RECORDED / name).read_bytes() for name in names)
    assert len(found) == len(expected)
    assert {each.unique_id for each in found} == expected
    assert [each.due for each in found] == sorted(each.due for each in found)


def test_a_shifted_event_keeps_everything_but_its_time() -> None:
    """Byte for byte, to the nanosecond."""
    each = merged([(RECORDED / "apps.sse").read_bytes()])[0]
    again = shifted(each, 1)
    assert again == each.body.replace(b"07.830942627Z", b"07.830942628Z", 1)
    assert shifted(merged([b'{"result":%s}' % again])[0], -1) == each.body


def test_a_renamed_event_keeps_everything_but_its_id() -> None:
    each = merged([(RECORDED / "apps.sse").read_bytes()])[0]
    before, after = (
        msgspec.json.decode(each.body),
        msgspec.json.decode(renamed(each.body, each.unique_id, "NEW")),
    )
    assert after == before | {"unique_id": "NEW"}


def test_the_entities_of_a_recording_are_found() -> None:
    found = entities_in([(RECORDED / "gateway_flap.sse").read_bytes()])
    assert set(found) >= {Entity("gateway", "gw-yard"), Entity("gateway", "gw-roof")}


@given(ns=st.integers(0, 2**47 * 1_000_000), seed=st.integers(0, 10))
def test_a_ulid_sorts_by_its_millisecond(ns: int, seed: int) -> None:
    """26 characters; a later millisecond is a larger text, whatever the random bits."""
    earlier, later = ulid(ns, random.Random(seed)), ulid(ns + 1_000_000, random.Random(seed + 1))
    assert len(earlier) == 26
    assert earlier < later


def test_a_finished_stream_does_nothing_more() -> None:
    assert shaper(End(1)).events(BODIES) == [Write(chunks(b'{"result":{"n":0}}', b"\n")), Finish()]


def test_the_demo_line_names_rule_path_and_what_happened() -> None:
    """Columns: time of day, rule, path, sentence."""
    uplink = next(each for each in documents("apps.sse") if each["name"] == "as.up.data.forward")
    line = sentence(json_bytes(uplink), "uplinks")
    assert line.startswith(f"{uplink['time'][11:19]}  uplinks     plant-")
    assert "port" in line
