"""The running bridge: everything real put together, changed by a reload, and taken down in order."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import structlog

from bridge.alerts.engine import Alerting
from bridge.alerts.parts import SECOND
from bridge.config import Config
from bridge.control import opened_store
from bridge.dispatch import Dispatcher
from bridge.errors import BridgeError, OutboxError, StartError
from bridge.event import Entity, Event
from bridge.ingest import Ingest, Notification, nowhere
from bridge.metrics import Metrics
from bridge.ops import StoreCollector, admin_app, metrics_app
from bridge.ops.parts import Access, Parts
from bridge.ops.web import http, listen, url_of
from bridge.outbox import Accepted, Outbox
from bridge.outbox.jetstream.outbox import JetStreamOutbox
from bridge.pipeline import flow
from bridge.redact import Redactor
from bridge.related import Finder, Related, attaching
from bridge.replicas import Shares, read_once
from bridge.report import SelfReport
from bridge.retry import RetryPolicy
from bridge.roster import Dispatchers, Sources
from bridge.rules import RuleSet
from bridge.sinks.memory import Kept
from bridge.sinks.registry import SinkConfig, open_sink
from bridge.sources import Divisible, Source
from bridge.sources.registry import SourceConfig, open_source
from bridge.ticking import Ticks
from bridge.tls import context
from bridge.tracing import Tracer, tracing, untraced

log = structlog.get_logger()

TIDY_EVERY = 30.0  # seconds between rounds of letting go of what is no longer kept
FIRST_OPEN = 10.0  # seconds in which some source has to open, or `run` exits with 3
CONNECT_WITHIN = 30.0  # seconds a reloaded source gets to connect before the old one ends
VERSION = version("tts-event-bridge")
OVERLAP = 10.0  # seconds by which events of a source may be late that has no `overlap`
AT_START = ("outbox", "durability", "dedup_window", "max_size", "overflow", "shutdown_timeout", "tracing")
"""Keys that a reload does not change, besides the addresses of `admin`."""

Load = Callable[[], Config]


@dataclass(frozen=True, slots=True)
class Running:
    """What `serve` announces once everything is up: where the admin address really is."""

    url: str
    app: App


async def serve(
    config: Config,
    stop: anyio.Event,
    announce: Callable[[Running], None] = lambda _running: None,
    *,
    load: Load | None = None,
) -> None:
    """Run *config* until *stop* is set; *load* reads it anew for a reload.

    Raises StartError if the address is taken, the store cannot be opened, or no source opens and
    nothing waits to be delivered (DESIGN.md §2.2).
    """
    async with AsyncExitStack() as stack:
        tracer = stack.enter_context(tracing(config.tracing, VERSION))
        listening = stack.enter_context(listen(config.admin.listen, "admin.listen"))
        scraping = None
        if config.admin.metrics_listen:
            scraping = stack.enter_context(listen(config.admin.metrics_listen, "admin.metrics_listen"))
        outbox = await stack.enter_async_context(opened_store(config, serving=True))
        app = App(outbox, load, tracer)
        url = url_of(listening)
        if not isinstance(outbox, JetStreamOutbox):
            Path(f"{config.outbox_path}.lock").write_text(url)
        await stack.enter_async_context(http(admin_app(app.parts, lambda: app.access), listening))
        if scraping:
            await stack.enter_async_context(http(metrics_app(app.parts), scraping))
        await app.run(config, stop, lambda: announce(Running(url, app)))


class App:
    """The parts of a running bridge. Only `start` and `reload` change what runs, one at a time."""

    def __init__(self, outbox: Outbox, load: Load | None = None, tracer: Tracer | None = None) -> None:
        self.access = Access()
        self.config = Config()
        self.metrics = Metrics()
        self.sources = Sources()
        self.dispatchers = Dispatchers()
        self._outbox = outbox
        self._load = load
        self._trace = tracer.settled if tracer else untraced
        self._rules = RuleSet.of(())
        self._changing = anyio.Lock()
        redactor = Redactor.of(())
        self._shares = Shares(outbox, self._redact) if isinstance(outbox, JetStreamOutbox) else None
        self._engine = Alerting(self._redact)
        """Judges all alerts, where this process does not share them."""
        self.report = SelfReport(time.time, random.Random())  # noqa: S311  # ids, no secrets
        self.ingest = Ingest(
            outbox,
            lambda: self._rules,
            redactor,
            self.metrics,
            self.dispatchers.wake,
            eager=self.dispatchers.eager,
            tell=self.report.tell,
            alerting=self._shares.passing if self._shares else self._engine,
            hand_over=self._shares.passing.hand_over if self._shares else nowhere,
            alerted=self._alerted,
            stored=tracer.stored if tracer else None,
        )
        self._attaching: frozenset[str] = frozenset()
        self._hosts: dict[str, str] = {}
        """Of each source; sinks keep this very dict, so a reload reaches them."""
        self._related = Related(
            self._find_related,
            attaches=lambda rule: rule in self._attaching,
            redact=self._redact,
        )
        self.parts = Parts(
            version=VERSION,
            started=time.time(),
            now=time.time,
            metrics=self.metrics,
            outbox=outbox,
            ingest=self.ingest,
            alerts=self._shares.partitions if self._shares else self._engine,
            sources=self.sources.running,
            dispatchers=self.dispatchers.running,
            config=lambda: self.config,
            reload=self.reload,
        )
        names = (self.sources.running.keys, self.dispatchers.running.keys)
        self.metrics.registry.register(StoreCollector(outbox, *names))
        self.metrics.build_info.labels(self.parts.version).set(1)

    async def run(self, config: Config, stop: anyio.Event, ready: Callable[[], None]) -> None:
        """Run *config* until *stop* is set; *ready* is called once everything is up."""
        failures: list[StartError] = []
        if self._shares is None:
            self._engine.load(await self._outbox.alert_states())
        waits = any(totals.waiting for totals in self._outbox.sink_totals().values())

        async def start() -> None:
            await self.sources.ready.wait()
            await self.dispatchers.ready.wait()
            try:
                await self.apply(config)
            except StartError as error:
                failures.append(error)
                stop.set()
                return
            ready()
            failures.extend([] if waits else await self._first_open())
            if failures:
                stop.set()

        async with anyio.create_task_group() as beside:
            beside.start_soon(start)
            beside.start_soon(self._tidy)
            if self._shares is not None:
                self._shares.begin(self)
                beside.start_soon(self._shares.run)
            await flow(
                [self.sources, self.report, self._ticks()],
                self.ingest,
                [self.dispatchers],
                stop,
                drain=config.shutdown_timeout,
            )
            beside.cancel_scope.cancel()
        if failures:
            raise failures[0]

    def _ticks(self) -> Ticks:
        reads = self._shares.reads if self._shares else frozenset
        return Ticks(self.sources.running, time.time, parts=reads)

    async def reload(self) -> None:
        """Take the config as it is on disk now; raises ConfigError or StartError, and nothing has changed."""
        await self.load_again()
        if self._shares is not None:
            await self._shares.reloaded()

    async def load_again(self) -> None:
        """`reload` of this replica alone."""
        if self._load is None:
            raise StartError("this bridge has no config file to load again")
        try:
            config = await anyio.to_thread.run_sync(self._load)
            await self.apply(config)
        except BridgeError as error:
            self.metrics.reload_successful.set(0)
            log.error("reload failed, the config that runs goes on", error=str(error))
            self.report.tell("bridge.reload.failed", "config", {"error": str(error)})
            raise
        log.info("config loaded", rules=len(self._rules.rules), hash=config.hash[:12])

    async def apply(self, new: Config) -> None:
        """Make *new* what runs. What can fail comes first; the rules change between two batches."""
        async with self._changing:
            old, rules = self.config, new.rule_set
            check_files(new)
            self._tell_unchangeable(old, new)
            names = [rule.name for rule in rules.rules]
            alerts = {each.name: each.tells for each in new.alert_set.alerts}
            self.metrics.prepare(sources=new.sources, sinks=new.sinks, rules=names, alerts=alerts)
            self._hosts.clear()
            self._hosts |= tts_hosts(new)
            added = [name for name in new.sinks if name not in self.dispatchers.running]
            for name in added:
                await self._start_sink(name, new.sinks[name])
            self._rules = rules
            self._attaching = frozenset(rule.name for rule in rules.rules if rule.attach_related)
            self.ingest.redactor = Redactor.of(new.redact)
            self.ingest.ordered = ordered(new)
            self.ingest.appending = appending(new)
            self._watch(new)
            self.access = Access(new.admin.token_value, new.admin.hosts)
            self.config = new
            await self._change_sinks(old, new)
            await self._change_sources(old, new, new.names())
            self.metrics.config_hash.set(int(new.hash[:12] or "0", 16))
            self.metrics.reload_successful.set(1)
            self.metrics.reload_time.set(time.time())

    def _watch(self, new: Config) -> None:
        """Its alerts from now on."""
        late = int(overlap(new) * SECOND)
        if self._shares is None:
            self._engine.configure(new.alert_set, late)
        else:
            self._shares.configure(new, late)

    async def _change_sinks(self, old: Config, new: Config) -> None:
        for name in list(self.dispatchers.running):
            if name in new.sinks and old.sinks.get(name, new.sinks[name]) == new.sinks[name]:
                continue
            await self.dispatchers.retire(name, new.shutdown_timeout)
            if name in new.sinks:
                await self._start_sink(name, new.sinks[name])

    async def _change_sources(self, old: Config, new: Config, names: list[str]) -> None:
        """Sources whose config or pushed-down names are others; the new stream opens before the old ends."""
        same_names = old.names() == names
        mine = {name: each for name, each in new.sources.items() if self._owns(name)}
        for name, source in mine.items():
            if name in self.sources.running and old.sources.get(name) == source and same_names:
                continue
            await self.sources.replace(name, partial(self._open_source, name, source, names), CONNECT_WITHIN)
        for name in set(self.sources.running) - set(mine):
            await self.sources.stop(name)

    def _owns(self, source: str) -> bool:
        """Does this process read *source*, or another replica?"""
        return self._shares is None or self._shares.owns(source, self.config)

    def _owns_entity(self, source: str, entity: Entity) -> bool:
        return self._shares is None or self._shares.owns_entity(source, entity, self.config)

    async def take_over(self) -> None:
        """Read what is this replica's now."""
        async with self._changing:
            before = dict(self.sources.running)
            await self._change_sources(self.config, self.config, self.config.names())
            for name, source in self.sources.running.items():
                if before.get(name) is source and isinstance(source, Divisible):
                    await source.rebalance()

    async def restart_sinks(self, wanted: Callable[[SinkConfig], bool]) -> None:
        """Those of *wanted*, because their share of something has changed."""
        async with self._changing:
            for name, sink in self.config.sinks.items():
                if name in self.dispatchers.running and wanted(sink):
                    await self.dispatchers.retire(name, self.config.shutdown_timeout)
                    await self._start_sink(name, sink)

    def _open_source(
        self, name: str, config: SourceConfig, names: list[str]
    ) -> AbstractAsyncContextManager[Source]:
        if self._shares is not None:
            config = read_once(config)
        return open_source(
            name,
            config,
            metrics=self.metrics,
            outbox=self._outbox,
            names=names,
            now=time.time,
            owns=partial(self._owns_entity, name),
        )

    async def _start_sink(self, name: str, config: SinkConfig) -> None:
        await self.dispatchers.start(name, lambda: self._open_dispatcher(name, config))

    @asynccontextmanager
    async def _open_dispatcher(self, name: str, config: SinkConfig) -> AsyncIterator[Dispatcher]:
        if self._shares is not None:
            config = self._shares.share_of(config)
        policy = RetryPolicy(config.retry.initial, config.retry.max, config.retry.give_up_after)
        memory = Kept(self._outbox, name)
        async with open_sink(
            name, config, now=time.time, hosts=self._hosts, memory=memory, firing=self._firing
        ) as sink:
            yield Dispatcher(
                attaching(sink, self._related),
                self._outbox,
                policy,
                self.metrics,
                now=time.time,
                chance=random.random,
                tell=self.report.tell,
                adaptive=config.type == "webhook",
                trace=self._trace,
            )

    def _alerted(self, notices: Sequence[Notification], accepted: Accepted) -> None:
        for notice in notices:
            log.info("alert", alert=notice.alert, key=notice.key, status=notice.event.name.rpartition(".")[2])
            for sink in notice.sinks:
                self.metrics.notified(notice.alert, sink, "queued")
        for (alert, sink), count in accepted.superseded.items():
            self.metrics.notified(alert, sink, "superseded", count)

    def _firing(self) -> frozenset[tuple[str, str]] | None:
        if self._shares is not None:
            return self._shares.partitions.firing()
        return frozenset((each.alert, each.key) for each in self._engine.current() if each.state == "firing")

    def _redact(self, event: Event) -> Event:
        return self.ingest.redactor.redact(event)

    async def _find_related(self, source: str, correlation_id: str) -> Sequence[bytes]:
        found: object = self.sources.running.get(source)
        return await found.related(correlation_id) if isinstance(found, Finder) else ()

    def _tell_unchangeable(self, old: Config, new: Config) -> None:
        if not old.hash:
            return
        keys = [key for key in AT_START if getattr(old, key) != getattr(new, key)]
        keys += [
            f"admin.{key}"
            for key in ("listen", "metrics_listen")
            if getattr(old.admin, key) != getattr(new.admin, key)
        ]
        if keys:
            log.warning("these keys take effect at the next start", keys=keys)

    async def _first_open(self) -> list[StartError]:
        """Why no source has opened at the start; asked where nothing waited to be delivered then.

        (What waits by now may be bridge's own events about it.)

        A refused key is known at once; a network that is not there yet gets FIRST_OPEN seconds.
        """
        began = anyio.current_time()
        while sources := self.sources.running.values():
            states = {source.name: source.status() for source in sources}
            if any(state.connected or state.finished for state in states.values()):
                return []
            failed = all(state.error for state in states.values())
            refused = failed and not any(state.ready for state in states.values())
            if refused or (failed and anyio.current_time() - began > FIRST_OPEN):
                reasons = "; ".join(f"source {name}: {state.error}" for name, state in states.items())
                return [StartError(f"no source opens and nothing waits to be delivered: {reasons}")]
            await anyio.sleep(0.1)
        return []

    async def _tidy(self) -> None:
        while True:
            await anyio.sleep(TIDY_EVERY)
            try:
                await self._outbox.tidy(time.time())
            except OutboxError as error:
                log.warning("store not tidied", error=str(error))


def check_files(config: Config) -> None:
    """Raise StartError for a certificate file that cannot be used, before anything is stopped for it."""
    for each in (*config.sources.values(), *config.sinks.values()):
        tls = getattr(each, "tls", None)
        if tls is not None:
            context(tls)


def tts_hosts(config: Config) -> dict[str, str]:
    """The host of each source's server; a replay has none."""
    urls = {name: getattr(source, "url", "") for name, source in config.sources.items()}
    return {name: urlsplit(url).hostname or "" for name, url in urls.items() if url}


def ordered(config: Config) -> frozenset[str]:
    """The sinks that deliver one at a time per entity."""
    return frozenset(name for name, sink in config.sinks.items() if getattr(sink, "order", "") == "entity")


def appending(config: Config) -> frozenset[str]:
    """The sinks that want every notification, not only the newest: Alertmanager keeps the state itself."""
    kinds: dict[str, str] = {name: sink.type for name, sink in config.sinks.items()}
    return frozenset(name for name, kind in kinds.items() if kind == "alertmanager")


def overlap(config: Config) -> float:
    """Seconds by which events may be late."""
    found = [getattr(source, "overlap", None) for source in config.sources.values()]
    return max((each for each in found if each is not None), default=OVERLAP)
