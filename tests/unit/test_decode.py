"""The stream's bytes, in both framings and any chunks."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.decode import Decoder, ErrorFrame, Frame, Malformed, StreamStart, event, is_sparse
from bridge.errors import FrameError
from bridge.event import Event
from tests.recordings import RECORDED, STREAMS, documents


def decode(*chunks: bytes, max_line: int = 16 << 20) -> list[Frame]:
    decoder = Decoder(max_line)
    return [frame for chunk in chunks for frame in decoder.feed(chunk)] + decoder.close()


def sse(name: str) -> bytes:
    """A recording as a true server-sent event stream would carry it."""
    lines = [line for line in (RECORDED / name).read_bytes().split(b"\n") if line]
    return b"".join(b"event: message\ndata: " + line + b"\r\n\r\n" for line in lines)


@pytest.mark.parametrize("name", STREAMS)
def test_every_recorded_event_is_decoded_as_it_is(name: str) -> None:
    """In JSON value terms: order, unknown fields, nanoseconds."""
    frames = decode((RECORDED / name).read_bytes())
    assert isinstance(frames[0], StreamStart)
    events = [frame for frame in frames[1:] if isinstance(frame, Event)]
    assert [each.document() for each in events] == list(documents(name))
    assert len(events) == len(frames) - 1


@pytest.mark.parametrize("name", STREAMS)
def test_true_sse_gives_the_same_frames(name: str) -> None:
    """What a proxy that writes `data:` makes of it; the header does not matter."""
    assert decode(sse(name)) == decode((RECORDED / name).read_bytes())


def pieces(content: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(content) + 1) for cut in cuts), len(content)]
    return [content[a:b] for a, b in pairwise(edges)]


@settings(max_examples=30)
@given(
    name=st.sampled_from(STREAMS), cuts=st.lists(st.integers(0, 2_000_000), max_size=50), true=st.booleans()
)
def test_chunks_do_not_matter(name: str, cuts: list[int], true: bool) -> None:
    """Any chunking of any recorded file gives the same frames."""
    content = sse(name) if true else (RECORDED / name).read_bytes()
    assert decode(*pieces(content, cuts)) == decode(content)


def test_byte_by_byte_gives_the_same_frames() -> None:
    """The smallest chunks there are."""
    content = (RECORDED / "gateway_flap.sse").read_bytes()
    assert decode(*(content[i : i + 1] for i in range(len(content)))) == decode(content)


@given(
    st.lists(st.binary(max_size=200) | st.sampled_from([b"\n", b"data:", b'{"result":', b"{}", b"\r\n\n"]))
)
def test_garbage_never_raises(chunks: list[bytes]) -> None:
    """And an event after it is found."""
    decoder = Decoder()
    for chunk in chunks:
        decoder.feed(chunk)
    good = b'\n\n\n{"result":{"name":"a.b","unique_id":"01"}}\n\n'
    assert Event("a.b", "", 0, "01", (), b'{"name":"a.b","unique_id":"01"}') in decoder.feed(good)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_only_0x0a_ends_a_line(separator: str) -> None:
    """TTS writes U+2028 raw inside strings; `splitlines` would break the object in two."""
    text = json.dumps({"name": "a.b", "unique_id": "01", "data": f"x{separator}y"}, ensure_ascii=False)
    if separator < " ":
        text = json.dumps({"name": "a.b", "unique_id": "01", "data": f"x{separator}y"})
    (only,) = decode(b'{"result":' + text.encode() + b"}\n")
    assert isinstance(only, Event)
    assert only.document()["data"] == f"x{separator}y"


def test_a_line_over_the_limit_is_skipped_and_memory_is_bounded() -> None:
    """The next line is read again."""
    good = b'{"result":{"name":"a.b","unique_id":"01"}}\n'
    decoder = Decoder(max_line=100)
    frames = decoder.feed(b"{" + b"x" * 60)
    for _ in range(50):
        frames += decoder.feed(b"x" * 60)
    frames += decoder.feed(b"x\n" + good)
    assert [type(each) for each in frames] == [Malformed, Event]


def test_a_line_of_the_limit_is_read() -> None:
    """Near miss."""
    line = b'{"result":{"name":"a.b","unique_id":"01"}}'
    assert isinstance(decode(line + b"\n", max_line=len(line))[0], Event)
    assert isinstance(decode(line + b"\n", max_line=len(line) - 1)[0], Malformed)


def test_a_torn_last_line_is_no_error() -> None:
    """A cut connection is told as such, once."""
    assert decode(b'{"result":{"name":"a.b"') == []


def recorded_errors() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((RECORDED / "errors.json").read_text())
    return [each for each in found if each["status"] >= 400]


@pytest.mark.parametrize("case", recorded_errors(), ids=lambda case: case["case"])
def test_recorded_errors_become_error_frames(case: dict[str, Any]) -> None:
    """Flat and wrapped; keyed by namespace and name where the server gave them."""
    body = json.loads(case["body"])
    body = body.get("error", body)
    details: dict[str, Any] = next(iter(body.get("details", [])), {})
    (frame,) = decode(case["body"].encode())
    assert isinstance(frame, ErrorFrame)
    assert (frame.code, frame.namespace, frame.name) == (
        body["code"],
        details.get("namespace", ""),
        details.get("name", ""),
    )
    assert frame.attributes == details.get("attributes", {})


def test_the_start_event_is_the_servers_clock() -> None:
    """And no event."""
    (frame,) = decode(b'{"result":{"name":"events.stream.start","time":"1970-01-01T00:00:02Z"}}\n')
    assert frame == StreamStart(2_000_000_000)


def test_an_event_without_an_id_gets_the_hash_of_its_json() -> None:
    """The same bytes again are the same event."""
    first, second, other = (
        event(body).unique_id for body in (b'{"name":"a"}', b'{"name":"a"}', b'{"name":"b"}')
    )
    assert first == second != other


def test_managed_gateway_events_are_known_by_their_content() -> None:
    """Their unique_id differs in each stream: name, gateway, data and time in 10 s steps tell them apart."""

    def managed(time: str, unique_id: str) -> str:
        body = {"name": "gcs.managed.gateway.down", "time": time, "unique_id": unique_id}
        return event(msgspec.json.encode(body)).unique_id

    assert managed("1970-01-01T00:00:11Z", "01A") == managed("1970-01-01T00:00:19Z", "01B")
    assert managed("1970-01-01T00:00:11Z", "01A") != managed("1970-01-01T00:00:20Z", "01A")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"name":5}', b'{"name":"a","identifiers":[5]}', b"\xff"]
)
def test_what_is_no_event_is_a_frame_error(body: bytes) -> None:
    """Ours, and nothing else."""
    with pytest.raises(FrameError):
        event(body)


EVENT = b'{"name":"a.b","time":"2026-11-23T21:09:06.5Z","unique_id":"01","data":{"x":[1]}}'


@pytest.mark.parametrize(
    "line",
    [
        b'{"result":%b}',
        b'{ "result":%b}',
        b'{"result": %b }',
        b'{"result":%b}\r',
        b'{"other":{},"result":%b}',
        b'{"result":%b,"other":{}}',
        b'{"result":%b,"error":{"code":5}}',
    ],
)
def test_a_result_is_found_however_it_is_wrapped(line: bytes) -> None:
    """The usual wrapping is cut off unread; nothing else is taken for it."""
    (found,) = decode(line % EVENT + b"\n")
    assert isinstance(found, Event)
    assert (found.body, found.time_ns) == (EVENT, 1795468146500000000)


@pytest.mark.parametrize("line", [b'{"result":{}{}}', b'{"result":{"name":"a"}}}', b'{"result":5}}'])
def test_what_only_looks_wrapped_is_malformed(line: bytes) -> None:
    """As many braces are no object."""
    assert decode(line + b"\n") == [Malformed("not an event")]


def test_a_bare_event_a_line_is_read_too() -> None:
    """Files people make themselves."""
    assert isinstance(decode(b'{"name":"a.b","unique_id":"01"}\n')[0], Event)


def test_a_replayed_event_without_its_body_is_sparse() -> None:
    """As recorded 45 minutes later; a live one is not."""

    def first(path: Path) -> Event:
        return next(frame for frame in decode(path.read_bytes()) if isinstance(frame, Event))

    assert is_sparse(first(RECORDED / "sparse.sse"))
    assert not is_sparse(first(RECORDED / "gateways.sse"))
