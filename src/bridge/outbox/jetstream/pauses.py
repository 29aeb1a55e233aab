"""Pauses, shared: a sink that one replica has paused is paused for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

import msgspec

from bridge.outbox import PauseState
from bridge.outbox.jetstream.bucket import Bucket
from bridge.outbox.jetstream.wire import sink_token


class Paused(msgspec.Struct, frozen=True):
    """*before*: seconds of pauses that have ended; the rest is `PauseState`, with *reason* '' for none."""

    sink: str
    before: float = 0.0
    reason: str = ""
    error: str = ""
    since: float = 0.0
    until: float = 0.0
    probes: int = 0

    def state(self) -> PauseState | None:
        if not self.reason:
            return None
        return PauseState(self.reason, self.error, self.since, self.until, self.probes)  # type: ignore[arg-type]


def key(sink: str) -> str:
    return f"pauses.{sink_token(sink)}"


async def pauses(bucket: Bucket) -> dict[str, PauseState]:
    read = [msgspec.json.decode(entry.value, type=Paused) for entry in await bucket.all("pauses")]
    states = {each.sink: each.state() for each in read}
    return {sink: state for sink, state in states.items() if state is not None}


async def pause_of(bucket: Bucket, sink: str) -> PauseState | None:
    entry = await bucket.get(key(sink))
    return msgspec.json.decode(entry.value, type=Paused).state() if entry else None


async def set_pause(bucket: Bucket, sink: str, pause: PauseState | None, now: float) -> None:
    def change(found: Paused | None) -> Paused | None:
        before = found or Paused(sink)
        if pause is not None:
            return Paused(sink, before.before, **dataclasses.asdict(pause))
        if not before.reason:
            return None
        return Paused(sink, before.before + max(0.0, now - before.since))

    await bucket.update(key(sink), Paused, change)


class Probe(msgspec.Struct, frozen=True):
    """Who makes probe number *number* (from 0) of the pause that began at *since*."""

    since: float
    number: int
    by: str


async def claim_probe(
    bucket: Bucket, sink: str, pause: PauseState, me: str, lives: Callable[[str], Awaitable[bool]]
) -> bool:
    """Is the next probe of *pause* this replica's? The first that asks has it, while it *lives*."""
    place = f"probes.{sink_token(sink)}"
    entry = await bucket.get(place)
    mine = Probe(pause.since, pause.probes, me)
    if entry is not None:
        found = msgspec.json.decode(entry.value, type=Probe)
        if found == mine:
            return True
        if (found.since, found.number) == (mine.since, mine.number) and await lives(found.by):
            return False
    value, revision = msgspec.json.encode(mine), entry.revision if entry else 0
    return await bucket.put(place, value, revision) is not None


async def paused_seconds(bucket: Bucket, sink: str, now: float) -> float:
    entry = await bucket.get(key(sink))
    if entry is None:
        return 0.0
    found = msgspec.json.decode(entry.value, type=Paused)
    return found.before + (max(0.0, now - found.since) if found.reason else 0.0)
