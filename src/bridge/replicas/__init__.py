"""This replica's share of what all of them do on one JetStream: sources, alerts, pauses, rate limits.

Each source is leased in SHARDS parts, an application with all its devices to one of them, and the alerts in
PARTITIONS. Who reads does not judge: what alerts see goes through a log to the owner of its partition.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import anyio
import msgspec
import structlog

from bridge.alerts.sights import AlertSet
from bridge.alerts.silences import KEEP, Silence
from bridge.config import Config
from bridge.errors import BridgeError, OutboxError, StartError
from bridge.event import Entity, Event
from bridge.ingest import Ingest, Notification
from bridge.outbox import Batch, PauseState
from bridge.outbox.jetstream.outbox import JetStreamOutbox
from bridge.replicas.partitions import LEASES, Partitions
from bridge.replicas.passing import Passing
from bridge.roster import Dispatchers
from bridge.sinks.registry import SinkConfig
from bridge.sources.plan import shard
from bridge.sources.registry import SourceConfig

log = structlog.get_logger()

NOT_YET = 0.05  # seconds between two looks whether there is a config already
SHARDS = 12  # parts of a source: evenly shared by 2, 3, 4, 6 or 12 replicas


class Runs(Protocol):
    """The app, as far as shares change it."""

    config: Config
    ingest: Ingest
    dispatchers: Dispatchers

    async def take_over(self) -> None: ...

    async def restart_sinks(self, wanted: Callable[[SinkConfig], bool]) -> None: ...

    async def load_again(self) -> None: ...


def lease_names(config: Config, *, alerts: bool = False) -> tuple[list[str], list[str]]:
    """Those of sources and those of alerts: of each kind every replica has as many as the others.

    *alerts*: some fire, also if they are in no file any more.
    """
    beside = followed_beside(config)
    sources = [
        part for name in sorted(config.sources) for part in parts_of(name, config) if part not in beside
    ]
    return sources, list(LEASES) if alerts or has_alerts(config.alert_set) else []


def followed_beside(config: Config) -> dict[str, int]:
    """Parts of sources with `redundancy`: each is followed by so many replicas at once, and not leased."""
    return {
        part: source.redundancy
        for name, source in config.sources.items()
        if source.type == "tts" and source.redundancy > 1
        for part in parts_of(name, config)
    }


def parts_of(source: str, config: Config) -> list[str]:
    """The leases of one source, in the order of what `shard` says."""
    if config.sources[source].type != "tts":
        return [source]
    return [part_of(source, number) for number in range(SHARDS)]


def read_once(source: SourceConfig) -> SourceConfig:
    """*source* with one stream an identifier: the others of its `redundancy` are other replicas'."""
    return source.model_copy(update={"redundancy": 1}) if source.type == "tts" else source


def part_of(source: str, number: int) -> str:
    return f"{source}/{number}"


def has_alerts(alerts: AlertSet) -> bool:
    return bool(alerts.alerts)


def of_replica(sink: SinkConfig, replicas: int) -> SinkConfig:
    """*sink* as one of *replicas* has it: with its part of a `rate_limit`, which is all replicas' together.

    And no `status_topic` unless it is asked for: the one retained message would be that of whichever replica
    came or went last.
    """
    changed: dict[str, object] = {}
    rate = getattr(sink, "rate_limit", None)
    if rate is not None and replicas > 1:
        changed["rate_limit"] = rate / replicas
    if sink.type == "mqtt" and "status_topic" not in sink.model_fields_set:
        changed["status_topic"] = None
    return sink.model_copy(update=changed) if changed else sink


class Shares:
    """`run` goes on beside the pipeline; `begin` comes before it."""

    def __init__(self, outbox: JetStreamOutbox, redact: Callable[[Event], Event]) -> None:
        self._outbox = outbox
        self._app: Runs
        self._owned: frozenset[str] = frozenset()
        self._reads: frozenset[str] = frozenset()
        self._replicas = 1
        self._silences: dict[str, bytes] | None = None
        """As they are stored; None until they have been read, and nobody is judged so long."""
        self.passing = Passing(outbox.name, outbox.boot, outbox.publish_sights, outbox.leasing.sure, redact)
        self.partitions = Partitions(outbox, self._announce)

    async def _announce(self, notices: Sequence[Notification]) -> None:
        await self._app.ingest.announce(notices)

    def begin(self, app: Runs) -> None:
        self._app = app
        self._outbox.arrived = app.dispatchers.wake
        self._outbox.paused = self._paused
        self._outbox.leaving = self._leave

    async def _leave(self) -> None:
        if has_alerts(self._app.config.alert_set):
            await self.passing.leave()

    def configure(self, config: Config, overlap: int) -> None:
        """*overlap* in ns."""
        self.passing.configure(config.alert_set)
        parts = {name: parts_of(name, config) for name in config.sources}
        self.partitions.configure(config.alert_set, overlap, parts)

    def reads(self) -> frozenset[str]:
        """By which leases this replica reads: it follows already whoever belongs to them."""
        return self._reads

    def _paused(self, sink: str, pause: PauseState | None) -> None:
        dispatcher = self._app.dispatchers.running.get(sink)
        if dispatcher is not None:
            dispatcher.learn(pause)

    def owns(self, source: str, config: Config) -> bool:
        return not self._owned.isdisjoint(parts_of(source, config))

    def owns_entity(self, source: str, entity: Entity, config: Config) -> bool:
        parts = parts_of(source, config)
        return (parts[shard(entity, len(parts))]) in self._owned

    def share_of(self, sink: SinkConfig) -> SinkConfig:
        return of_replica(sink, self._replicas)

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.partitions.run)
            tasks.start_soon(self._listen)
            await self._rounds()

    async def reloaded(self) -> None:
        """What one replica was told is meant for all: the others load their files, too."""
        try:
            await self._outbox.tell_replicas(f"reload {self._outbox.name} {self._app.config.hash}")
        except OutboxError as error:
            log.warning("only this replica has loaded its config again", error=str(error))

    async def _listen(self) -> None:
        async for what in self._outbox.told():
            word, by, loaded = (*what.split(" "), "", "")[:3]
            if word == "reload" and by != self._outbox.name and loaded != self._app.config.hash:
                with suppress(BridgeError):  # logged and counted
                    await self._app.load_again()

    async def _rounds(self) -> None:
        failing = False
        while True:
            try:
                await self._round()
            except (OutboxError, StartError) as error:
                if not failing:
                    log.warning("leases cannot be renewed", error=str(error))
                failing = True
                await self._lose()
            else:
                failing = False
            await anyio.sleep(self._outbox.lease / 4 if self._app.config.hash else NOT_YET)

    async def _round(self) -> None:
        app, leasing = self._app, self._outbox.leasing
        if app.config.hash:
            names = lease_names(app.config, alerts=self.partitions.anything())
            await leasing.round(*names, beside=followed_beside(app.config))
            if names[1]:
                await self._share_silences()  # before anything is judged
        await self._own(leasing.sure())
        alive = max(1, len(self._outbox.replicas.alive))
        if alive != self._replicas:
            self._replicas = alive
            await app.restart_sinks(lambda sink: getattr(sink, "rate_limit", None) is not None)

    async def _lose(self) -> None:
        """What is not sure any more is not read any more; the lease may be another's soon."""
        try:
            await self._own(self._outbox.leasing.sure())
        except (OutboxError, StartError) as error:
            log.warning("what runs could not be changed", error=str(error))

    async def _own(self, owned: frozenset[str]) -> None:
        """Who is new is claimed as read only when it is followed, and who is left no more from now on."""
        before, self._owned = self._owned, owned
        if self._silences is not None:
            self.partitions.own(frozenset(number for number, name in enumerate(LEASES) if name in owned))
        if owned == before:
            return
        self._reads &= owned
        if owned.difference(LEASES) != before.difference(LEASES):
            await self._app.take_over()
        self._reads = owned.difference(LEASES)
        log.info("leases", held=sorted(owned))

    async def _share_silences(self) -> None:
        """Those that another replica, or a command, has stored; those long over are let go."""
        now, known = time.time(), self._silences or {}
        for _, _, key, state in await self._outbox.alert_states("silence"):
            silence = msgspec.json.decode(state, type=Silence)
            if silence.ends + KEEP < now:
                await self._outbox.accept(Batch(alerts={("silence", "", key): None}))
                known.pop(key, None)
                self.partitions.silences.pop(key, None)
            elif known.get(key) != state:
                known[key] = state
                self.partitions.silence(silence)
        self._silences = known
