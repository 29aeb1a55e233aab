"""The recorded events as values, for tests that feed or compare them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

RECORDED = Path(__file__).parent / "data" / "recorded"
STREAMS = sorted(path.name for path in RECORDED.iterdir() if path.suffix in {".sse", ".ndjson"})
START = "events.stream.start"


def documents(name: str) -> Iterator[dict[str, Any]]:
    """Each event of a recorded stream, the start event left out."""
    for line in (RECORDED / name).read_bytes().split(b"\n"):
        if line:
            event: dict[str, Any] = msgspec.json.decode(line)["result"]
            if event["name"] != START:
                yield event


def unique_ids(name: str) -> list[str]:
    """In the order of the recording, repeats included."""
    return [event["unique_id"] for event in documents(name)]


def json_bytes(event: dict[str, Any]) -> bytes:
    return msgspec.json.encode(event)
