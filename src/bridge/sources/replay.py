"""A recorded stream, happening again."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable

import anyio
import msgspec
import structlog
from anyio.streams.memory import MemoryObjectSendStream

from bridge.decode import Decoder, Frame, Malformed
from bridge.event import Event, rfc3339
from bridge.ids import ulid
from bridge.metrics import Metrics
from bridge.sources import Arrival, Reading, SourceStatus
from bridge.sources.models import ReplaySourceConfig

log = structlog.get_logger()

CHUNK = 1 << 18  # bytes read at a time


class ReplaySource:
    """Plays *config*'s file once; *now* is unix seconds, *rng* makes the fresh ids."""

    def __init__(
        self,
        name: str,
        config: ReplaySourceConfig,
        metrics: Metrics,
        *,
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.name = name
        self._config = config
        self._metrics = metrics
        self._now = now
        self._rng = rng
        self._fresh: dict[str, str] = {}
        self._playing = False
        self._finished = False
        self._error = ""
        self._garbled = False

    def status(self) -> SourceStatus:
        return SourceStatus(
            connected=self._playing,
            ready=self._playing or self._finished,
            error=self._error,
            streams=int(self._playing),
            finished=self._finished,
        )

    async def run(self, into: MemoryObjectSendStream[Reading]) -> None:
        """Play the file to its end, which is no reason to stop: what it brought is still to be delivered."""
        try:
            async with await anyio.open_file(self._config.path, "rb") as file:
                self._set_playing(True)
                await self._play(frames(file), into)
                self._finished = True
                log.info("recording ended", source=self.name)
        except OSError as error:
            self._error = f"recording cannot be read: {error.strerror}"
            log.error("recording cannot be read", source=self.name, error=error.strerror)
        finally:
            self._set_playing(False)

    async def _play(self, recorded: AsyncIterator[Frame], into: MemoryObjectSendStream[Reading]) -> None:
        began, began_ns = anyio.current_time(), int(self._now() * 1e9)
        first = latest = 0
        async for frame in recorded:
            if isinstance(frame, Malformed):
                self._malformed(frame)
            if not isinstance(frame, Event):
                continue
            first = first or frame.time_ns
            latest = max(latest, frame.time_ns)
            await self._wait_for(began, (latest - first) / 1e9)
            event = frame if self._config.verbatim else self._renew(frame, frame.time_ns - first + began_ns)
            received = self._now()
            self._metrics.source_last_event.of[self.name] = received
            await into.send(Arrival(self.name, event, received))

    def _malformed(self, frame: Malformed) -> None:
        self._metrics.source_frame_errors.labels(self.name).inc()
        if not self._garbled:
            log.warning("frames that are no event are skipped and counted", source=self.name, why=frame.why)
        self._garbled = True

    async def _wait_for(self, began: float, elapsed: float) -> None:
        """Until *elapsed* seconds of the recording have passed at the speed asked for."""
        if self._config.speed != "max":
            await anyio.sleep_until(began + elapsed / float(self._config.speed))

    def _renew(self, event: Event, at: int) -> Event:
        """*event* at *at* ns under an id of this run; repeats in the recording stay repeats."""
        unique_id = self._fresh.setdefault(event.unique_id, ulid(at, self._rng))
        document = event.document() | {"time": rfc3339(at), "unique_id": unique_id}
        return msgspec.structs.replace(
            event, time=document["time"], time_ns=at, unique_id=unique_id, body=msgspec.json.encode(document)
        )

    def _set_playing(self, playing: bool) -> None:
        self._playing = playing
        self._metrics.source_connected.labels(self.name).set(playing)


async def frames(file: anyio.AsyncFile[bytes]) -> AsyncIterator[Frame]:
    """The frames of a recorded file, in either framing."""
    decoder = Decoder()
    while chunk := await file.read(CHUNK):
        for frame in decoder.feed(chunk):
            yield frame
    for frame in decoder.close():
        yield frame
