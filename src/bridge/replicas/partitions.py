"""The alerts of this replica, where several share them: it owns some partitions, and shows all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import anyio
import msgspec
import structlog
from anyio.abc import TaskGroup

from bridge.alerts import Phase, Track
from bridge.alerts.engine import Current, Tally
from bridge.alerts.judging import Judge
from bridge.alerts.partition import PARTITIONS
from bridge.alerts.parts import SECOND
from bridge.alerts.sights import AlertSet
from bridge.alerts.silences import Silence
from bridge.errors import OutboxError
from bridge.ingest import Notification
from bridge.outbox.jetstream.judged import read_row, track_rows, unpacked
from bridge.outbox.jetstream.outbox import JetStreamOutbox
from bridge.replicas.owning import Owner
from bridge.sources.plan import shard

log = structlog.get_logger()

LOOK_EVERY = 30.0  # seconds between looks at what was not heard
AGAIN_AFTER = 1.0  # seconds after a look that failed
PATIENCE = 3.0  # seconds a reader may be silent at least, who says something every second
Announce = Callable[[Sequence[Notification]], Awaitable[None]]


def lease_of(number: int) -> str:
    """No source is named so."""
    return f"alerts {number}"


LEASES = tuple(map(lease_of, range(PARTITIONS)))


class Partitions:
    """To pages and metrics the alerts; `run` goes on beside the pipeline."""

    def __init__(self, outbox: JetStreamOutbox, announce: Announce) -> None:
        self.alerts = AlertSet(())
        self.silences: dict[str, Silence] = {}
        self._outbox = outbox
        self._announce = announce
        self._overlap = 0
        self._sources: Mapping[str, Sequence[str]] = {}
        self._owners: dict[int, tuple[Owner, anyio.CancelScope]] = {}
        self._wanted: frozenset[int] = frozenset()
        self._failing: set[int] = set()
        self._tasks: TaskGroup | None = None
        self._late: Counter[str] = Counter()
        self._flaps: Counter[str] = Counter()
        self._shown: dict[int, list[Current]] = {}
        """By partition, as its owner has told."""
        self._looked = -1
        """How often the connection had come back at the last whole look."""
        self._others: dict[str, dict[str, Track]] = {}
        """Tracks of alerts that inhibit others, whoever judges them."""
        self._known: list[anyio.Event] = []
        """Set when such tracks have been read: until then nobody may be told."""

    # What runs

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._follow, "judged.*.now", self._hear_now, self._look_at_now, anyio.Event())
            self._follow_inhibitors()
            self.own(self._wanted)
            await anyio.sleep_forever()

    def configure(self, alerts: AlertSet, overlap: int, sources: Mapping[str, Sequence[str]]) -> None:
        """*overlap* in ns; *sources* are the leases of each."""
        self.alerts, self._overlap, self._sources = alerts, overlap, sources
        for judge in self._judges():
            judge.configure(alerts, overlap, sources)
        self._follow_inhibitors()

    def _follow_inhibitors(self) -> None:
        """Those that keep others back are known everywhere."""
        if self._tasks is None:
            return
        names = {each.alert for alert in self.alerts.alerts for each in alert.inhibitors}
        for name in names - set(self._others):
            self._others[name] = {}
            self._known.append(anyio.Event())
            keys, look = f"judged.*.row{track_rows(name)}.*", partial(self._look_at_tracks, name)
            self._tasks.start_soon(self._follow, keys, self._hear_track, look, self._known[-1])

    def own(self, numbers: frozenset[int]) -> None:
        """Judge these partitions from now on, and no others."""
        self._wanted = numbers
        for number in set(self._owners) - numbers:
            self._owners.pop(number)[1].cancel()
            self._failing.discard(number)
        if self._tasks is not None:
            for number in sorted(numbers - set(self._owners)):
                owner, scope = self._owner(number), anyio.CancelScope()
                self._owners[number] = owner, scope
                self._tasks.start_soon(self._own, owner, scope)

    async def _own(self, owner: Owner, scope: anyio.CancelScope) -> None:
        with scope:
            for each in self._known:
                await each.wait()
            await owner.run()

    def _owner(self, number: int) -> Owner:
        store, leasing = self._outbox.judged(number), self._outbox.leasing

        return Owner(
            number,
            store,
            self._outbox.sight_log(number),
            judge=partial(self._judge, number),
            owns=partial(leasing.fence, lease_of(number)),
            announce=self._announce,
            pass_on=self._outbox.publish_sights,
            failing=self._tell,
        )

    def _tell(self, number: int, why: str) -> None:
        """When the first partition begins to wait, and when the last one has ended to."""
        before = bool(self._failing)
        (self._failing.add if why else self._failing.discard)(number)
        if why and not before:
            log.warning("alerts wait", partition=number, error=why)
        elif before and not self._failing:
            log.info("alerts are judged again")

    def _judge(self, number: int, rows: Mapping[tuple[str, str, str], bytes]) -> Judge:
        patience = int(max(PATIENCE, self._outbox.lease) * SECOND)
        judge = Judge(number, patience, shard, ((*row, state) for row, state in rows.items()))
        judge.alerting.silences |= self.silences
        judge.alerting.others = self._others
        judge.alerting.tally.late, judge.alerting.tally.flaps = self._late, self._flaps
        judge.configure(self.alerts, self._overlap, self._sources)
        return judge

    def _judges(self) -> list[Judge]:
        return [owner.judge for owner, _ in self._owners.values() if owner.judge is not None]

    # What is shown

    @property
    def tally(self) -> Tally:
        """Of the partitions of this replica: those of all replicas together are all."""
        phases: Counter[tuple[str, Phase]] = Counter()
        for judge in self._judges():
            for state, count in judge.alerting.tally.phases.items():
                phases[state] += count
        return Tally(phases, self._flaps, self._late)

    def silent(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for judge in self._judges():
            found += judge.alerting.silent()
        return found

    def anything(self) -> bool:
        """Is anything pending or firing, also of alerts that are in no file any more?"""
        return any(self._shown.values())

    def count(self, phase: str) -> int:
        """As many as `current` has, whoever judges them."""
        return sum(each.state == phase for those in self._shown.values() for each in those)

    def current(self) -> list[Current]:
        """What is pending or firing, whoever judges it, as of a moment ago."""
        found = [each for those in self._shown.values() for each in those]
        return sorted(found, key=lambda each: (each.alert, each.key))

    def firing(self) -> frozenset[tuple[str, str]] | None:
        """Alert and key; None as long as some partition has told nothing, or may have told it to nobody."""
        if len(self._shown) < PARTITIONS or self._outbox.reconnects != self._looked:
            return None
        return frozenset((each.alert, each.key) for each in self.current() if each.state == "firing")

    def silence(self, silence: Silence) -> None:
        self.silences[silence.id] = silence
        for judge in self._judges():
            judge.alerting.silence(silence)

    # What others tell

    async def _follow(
        self,
        keys: str,
        hear: Callable[[str, bytes], None],
        look: Callable[[], Awaitable[None]],
        known: anyio.Event,
    ) -> None:
        """Hear of each change, and look now and then, since no change is told twice."""

        async def looking() -> None:
            while True:
                try:
                    await look()
                except OutboxError as error:
                    log.debug("what others judge is not known now", error=str(error))
                    await anyio.sleep(AGAIN_AFTER)
                else:
                    known.set()
                    await anyio.sleep(LOOK_EVERY)

        async with anyio.create_task_group() as both:
            both.start_soon(looking)
            await self._outbox.follow(keys, hear)

    def _hear_now(self, key: str, value: bytes) -> None:
        self._shown[int(key.split(".")[1])] = _current.decode(unpacked(value))

    async def _look_at_now(self) -> None:
        before = self._outbox.reconnects
        for number in range(PARTITIONS):
            entry = await self._outbox.bucket.get(f"judged.{number}.now")
            if entry is not None:
                self._hear_now(entry.key, entry.value)
        self._looked = before

    def _hear_track(self, _key: str, value: bytes) -> None:
        if value:
            (_, alert, key), state = read_row(value)
            self._note(alert, key, _track.decode(state))

    async def _look_at_tracks(self, alert: str) -> None:
        async for (_, _, key), state in self._outbox.judged_rows(track_rows(alert)):
            self._note(alert, key, _track.decode(state))

    def _note(self, alert: str, key: str, track: Track) -> None:
        """A look may be overtaken by a change that was heard of."""
        known = self._others[alert].get(key)
        if known is None or known.clock <= track.clock:
            self._others[alert][key] = track


_current = msgspec.json.Decoder(list[Current])
_track = msgspec.json.Decoder(Track)
