"""Recorded traffic, happening again."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import msgspec

from bridge.event import Entity, Identifiers, entity_of, nanoseconds, rfc3339
from bridge.standin.history import renamed
from bridge.standin.world import World

START = "events.stream.start"


class _Frame(msgspec.Struct):
    result: msgspec.Raw = msgspec.Raw()


class _Stamp(msgspec.Struct):
    name: str
    time: str
    unique_id: str = ""


class _About(msgspec.Struct):
    identifiers: tuple[Identifiers, ...] = ()


@dataclass(frozen=True, slots=True)
class Recorded:
    """One recorded event; *due* in ns after the first one, *time* as it is written in *body*."""

    due: int
    time: str
    unique_id: str
    body: bytes


def recorded(content: bytes) -> Iterator[tuple[int, _Stamp, bytes]]:
    """The events of a recorded stream in either framing, each with the latest time (ns) seen so far.

    Start events, error frames and repeats of a `unique_id` are left out: the server makes its own.
    """
    latest, seen = 0, set()
    for line in content.split(b"\n"):
        frame = msgspec.json.decode(line, type=_Frame) if line.strip() else _Frame()
        if not bytes(frame.result):
            continue
        stamp = msgspec.json.decode(frame.result, type=_Stamp)
        if stamp.name != START and stamp.unique_id not in seen:
            seen.add(stamp.unique_id)
            latest = max(latest, nanoseconds(stamp.time))
            yield latest, stamp, bytes(frame.result)


def merged(contents: Iterable[bytes]) -> list[Recorded]:
    """Several recordings as one, each in its own order; an event that is in two of them happens once."""
    streams = (recorded(content) for content in contents)
    found: dict[str, Recorded] = {}
    first: int | None = None
    for at, stamp, body in heapq.merge(*streams, key=lambda each: each[0]):
        first = at if first is None else first
        found.setdefault(stamp.unique_id, Recorded(at - first, stamp.time, stamp.unique_id, body))
    return list(found.values())


def entities_in(contents: Iterable[bytes]) -> list[Entity]:
    """What the events of these recordings are about: it has to exist before anybody can subscribe to it."""
    found: dict[Entity, None] = {}
    for each in merged(contents):
        ids = msgspec.json.decode(each.body, type=_About).identifiers
        found |= dict.fromkeys(filter(None, map(entity_of, ids)))
    return list(found)


def shifted(each: Recorded, by: int) -> bytes:
    """The event *by* ns later: its own `time` only, what its data says stays."""
    time = rfc3339(nanoseconds(each.time) + by)
    return each.body.replace(f'"time":"{each.time}"'.encode(), f'"time":"{time}"'.encode(), 1)


async def play(
    world: World,
    paths: Path | Sequence[Path],
    speed: float = 1.0,
    *,
    shift: bool = True,
    fresh_ids: bool = False,
) -> int:
    """Publish recorded events at their own spacing, *speed* times as fast; how many there were.

    `math.inf` publishes them at once. *shift* moves times to now (the server's clock, after acceleration),
    keeping who was late; *fresh_ids* gives every event an id of its own for this run.
    """
    files = [paths] if isinstance(paths, Path) else paths
    events = merged(path.read_bytes() for path in files)
    started, clock = anyio.current_time(), world.now
    first = nanoseconds(events[0].time) if events else 0
    for number, each in enumerate(events):
        if not math.isinf(speed):
            await anyio.sleep_until(started + each.due / 1e9 / speed)
        body = each.body
        if shift:
            offset = number * 1_000 if math.isinf(speed) else int((nanoseconds(each.time) - first) / speed)
            body = shifted(each, clock + offset - nanoseconds(each.time))
        world.publish(renamed(body, each.unique_id, world.new_id()) if fresh_ids else body)
        if number % 100 == 99:
            await anyio.sleep(0)
    return len(events)
