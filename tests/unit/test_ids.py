"""Ids of our own: letters that stand for texts."""

from __future__ import annotations

import base64
import hashlib

from hypothesis import given
from hypothesis import strategies as st

from bridge.ids import digest


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_a_digest_is_the_beginning_of_base32(parts: list[str]) -> None:
    """RFC 4648 as the library writes it: stores and receivers know ids that earlier versions made."""
    whole = hashlib.sha256("\0".join(parts).encode()).digest()
    assert digest(*parts) == base64.b32encode(whole[:20]).decode()[:26].lower()
