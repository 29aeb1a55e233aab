"""MQTT packets without a socket."""

from __future__ import annotations

import struct
from collections import deque
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.sinks.mqtt import packets
from bridge.sinks.mqtt.message import Message, properties, variable_length
from bridge.sinks.mqtt.packets import Packet, Reader

kinds = st.integers(1, 15)
sent = st.lists(st.builds(Packet, kinds, st.integers(0, 15), st.binary(max_size=300)), max_size=6)


def on_the_wire(each: Packet) -> bytes:
    return packets.packet(each.kind, each.flags, each.body)


def read(*chunks: bytes) -> list[Packet]:
    reader = Reader()
    return [found for chunk in chunks for found in reader.feed(chunk)]


@given(sent=sent, cuts=st.lists(st.integers(0, 2000)))
def test_any_pieces_give_the_packets_that_were_sent(sent: list[Packet], cuts: list[int]) -> None:
    """TCP cuts where it likes, inside a length too."""
    wire = b"".join(map(on_the_wire, sent))
    places = sorted({0, len(wire), *(min(cut, len(wire)) for cut in cuts)})
    assert read(*(wire[a:b] for a, b in pairwise(places))) == sent
    assert read(*(wire[i : i + 1] for i in range(len(wire)))) == sent


@given(chunks=st.lists(st.binary(max_size=60), max_size=6), is_five=st.booleans())
@example(chunks=[b"\x30\xff\xff\xff\xff\x01"], is_five=True)
@example(chunks=[b"\x30\xff\xff\xff\x7f"], is_five=True)
def test_garbage_is_packets_or_a_value_error(chunks: list[bytes], is_five: bool) -> None:
    """Whatever is made of it afterwards, too."""
    try:
        for found in read(*chunks):
            packets.acknowledgement(found.body)
            packets.connack(found.body, is_five=is_five)
            packets.received(found.flags, found.body, is_five=is_five)
    except (ValueError, LookupError):
        pass


@given(
    numbers=st.dictionaries(st.sampled_from([0x13, 0x21, 0x22]), st.integers(0, 65535)),
    size=st.one_of(st.none(), st.integers(0, 2**32 - 1)),
    texts=st.lists(st.text(max_size=20), max_size=3),
    code=st.sampled_from([0, 0x84, 0x87, 0x97]),
)
def test_the_limits_in_a_connack_are_found_among_other_properties(
    numbers: dict[int, int], size: int | None, texts: list[str], code: int
) -> None:
    """Strings and pairs of strings are passed over."""
    parts = [bytes([kind]) + struct.pack("!H", value) for kind, value in numbers.items()]
    parts += [b"\x26" + packets.string(text) * 2 + b"\x1f" + packets.string(text) for text in texts]
    if size is not None:
        parts.append(b"\x27" + struct.pack("!I", size))
    body = b"".join(parts)
    found = packets.connack(b"\0" + bytes([code]) + variable_length(len(body)) + body, is_five=True)
    assert found.code == code
    assert found.limits == numbers | ({0x27: size} if size is not None else {})


@pytest.mark.parametrize(
    ("returned", "code"), [(0, 0), (1, 0x84), (2, 0x85), (3, 0x88), (4, 0x86), (5, 0x87), (9, 0x80)]
)
def test_return_codes_of_3_1_1_are_reason_codes(returned: int, code: int) -> None:
    """MQTT 3.1.1 §3.2.2.3 in the words of MQTT 5."""
    assert packets.connack(bytes([0, returned]), is_five=False).code == code


def test_a_publish_byte_by_byte() -> None:
    """MQTT 5 §3.3; 3.1.1 has no properties, QoS 0 no identifier."""
    message = Message("a/b", b"hi", 1, False, properties([("k", "v")]))
    assert packets.publish(message, 0x1234, is_five=True) == (
        b"\x32\x11\x00\x03a/b\x12\x34\x07\x26\x00\x01k\x00\x01vhi"
    )
    assert packets.publish(message, 0x1234, is_five=False) == b"\x32\x09\x00\x03a/b\x12\x34hi"
    assert packets.publish(Message("a", b"", 0, True), 7, is_five=True) == b"\x31\x04\x00\x01a\x00"


@given(
    topic=st.text(min_size=1, max_size=30),
    payload=st.binary(max_size=400),
    qos=st.integers(0, 2),
    retain=st.booleans(),
)
def test_a_publish_is_as_long_as_its_message_says(topic: str, payload: bytes, qos: int, retain: bool) -> None:
    """What is compared with the broker's maximum packet size."""
    message = Message(topic, payload, qos, retain, properties([]))
    assert len(packets.publish(message, 1, is_five=True)) == message.size


def test_a_connect_byte_by_byte() -> None:
    """MQTT 5 §3.1: clean start, will, user name and password, in this order."""
    will = Message("w", b"off", 1, True)
    five = packets.connect("id", is_five=True, keepalive=30, username="u", password="p", will=will)
    older = packets.connect("id", is_five=False, keepalive=30)
    payload = b"\x00\x02id" + b"\x00" + b"\x00\x01w" + b"\x00\x03off" + b"\x00\x01u" + b"\x00\x01p"
    assert five == b"\x10\x1e" + b"\x00\x04MQTT\x05\xee\x00\x1e" + b"\x00" + payload
    assert older == b"\x10\x0e" + b"\x00\x04MQTT\x04\x02\x00\x1e" + b"\x00\x02id"


def test_a_message_of_a_subscription_is_its_payload() -> None:
    """Topic and properties passed over."""
    assert packets.received(0, b"\0\1a\x02\x01\x01hello", is_five=True) == b"hello"
    assert packets.received(0, b"\0\1ahello", is_five=False) == b"hello"


@pytest.mark.parametrize("body", [b"", b"\0\1a\x09\x01", b"\0\xffa"])
def test_a_torn_message_is_a_value_error(body: bytes) -> None:
    """Lengths beyond the packet."""
    with pytest.raises(ValueError, match=r"without end|shorter"):
        packets.received(0, body, is_five=True)


def test_a_long_stream_of_acknowledgements_is_read_in_time() -> None:
    """100,000 in pieces of 64 KiB: what was read is not copied again and again."""
    wire = b"".join(
        packets.packet(packets.PUBACK, 0, struct.pack("!H", n % 65535 + 1)) for n in range(100_000)
    )
    found = deque(read(*(wire[i : i + 65536] for i in range(0, len(wire), 65536))), maxlen=1)
    assert found[0].body == struct.pack("!H", 99_999 % 65535 + 1)
