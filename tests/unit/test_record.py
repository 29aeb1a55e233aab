"""What `bridge record --mask` hides, and that a masked recording still tells the same story."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.decode import event
from bridge.masking import Mask
from tests.recordings import STREAMS, documents

mask = Mask(b"secret of one file")
EUI = re.compile(r"\b[0-9A-Fa-f]{16}\b")
PRIVATE = ("dev_eui", "join_eui", "eui", "dev_addr", "frm_payload", "raw_payload", "token_id")
euis = st.from_regex(r"[0-9A-F]{16}", fullmatch=True)


def masked(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(mask.event(msgspec.json.encode(document)))
    return found


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for each, inner in value.items():
            yield from leaves(inner, each)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, name)
    else:
        yield name, value


@pytest.mark.parametrize("recording", STREAMS)
def test_nothing_private_of_a_recording_is_left(recording: str) -> None:
    """EUIs, addresses, keys, payloads and people; the same ones get the same mask, others another."""
    masks: dict[tuple[str, Any], Any] = {}
    for document in documents(recording):
        after = masked(document)
        text = msgspec.json.encode(after).decode().upper()
        for (name, before), (_, now) in zip(leaves(document), leaves(after), strict=True):
            private = name in (
                "dev_eui",
                "join_eui",
                "eui",
                "dev_addr",
                "frm_payload",
                "raw_payload",
                "token_id",
            )
            if private and before:
                assert now != before
                assert len(now) == len(before) or name == "token_id"
                assert masks.setdefault((name, before), now) == now
                if EUI.fullmatch(before):
                    assert before not in text
    assert len(set(masks.values())) == len({value for _, value in masks})


@pytest.mark.parametrize("recording", STREAMS)
def test_a_masked_event_is_the_same_event(recording: str) -> None:
    """Name, time, entities and id stay, and everything that has a shape keeps it."""
    for document in documents(recording):
        before, after = event(msgspec.json.encode(document)), event(msgspec.json.encode(masked(document)))
        assert (before.name, before.time, before.unique_id) == (after.name, after.time, after.unique_id)
        assert [name for name, _ in leaves(document)] == [name for name, _ in leaves(masked(document))]
        assert after.document()["correlation_ids"] if "correlation_ids" in document else True


@given(euis, euis)
def test_an_eui_has_one_mask_wherever_and_however_it_is_written(one: str, other: str) -> None:
    """`eui-70b3d57ed0000001` is what The Things Stack itself calls a device."""
    document = {
        "device_id": f"eui-{one.lower()}",
        "dev_eui": one,
        "message": f"device {one} rejected",
        "x": other,
    }
    after = masked(document)
    assert after["device_id"] == f"eui-{after['dev_eui'].lower()}"
    assert after["message"].upper() == f"device {after['dev_eui']} rejected".upper()
    assert (after["x"] == after["dev_eui"]) == (one == other)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_a_decoded_payload_keeps_its_shape_and_nothing_else(payload: Any) -> None:
    document = {"decoded_payload": payload, "frm_payload": "aGVsbG8="}
    after = masked(document)
    assert [name for name, _ in leaves(after)] == [name for name, _ in leaves(document)]
    strings = [value for _, value in leaves(payload) if isinstance(value, str) and len(value) > 12]
    assert not [value for value in strings if value in str(after)]


def test_secrets_of_another_file_mask_otherwise() -> None:
    body = b'{"name":"x","dev_eui":"70B3D57ED0000001"}'
    assert Mask(b"a").event(body) != Mask(b"b").event(body)
    assert Mask(b"a").event(body) == Mask(b"a").event(body)


def test_keys_are_hidden_by_their_names_and_by_their_looks() -> None:
    document = {
        "app_key": {"key": "0123456789ABCDEF0123456789ABCDEF"},
        "claim_authentication_code": "1234",
        "api": "Bearer NNSXS.KEYID.SECRETSECRET",
        "remote_ip": "203.0.113.9",
        "nested": [{"password": "hunter2", "latitude": 52.37}],
    }
    text = str(masked(document))
    for secret in ("0123456789ABCDEF", "1234'", "SECRETSECRET", "203.0.113.9", "hunter2", "52.37"):
        assert secret not in text
