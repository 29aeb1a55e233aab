"""The files that come with the package."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from bridge.catalogue import Catalogue


@cache
def catalogue() -> Catalogue:
    """The event names and wire facts of The Things Stack v3.32."""
    share = files("bridge") / "share"
    return Catalogue.of(
        (share / "tts_event_names.json").read_bytes(), (share / "tts_wire_fields.json").read_bytes()
    )
