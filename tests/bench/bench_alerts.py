"""100,000 devices followed by an absence alert: memory, CPU an event, the store's part, restart, timers.

Run alone: `python -m tests.bench.bench_alerts`. CPU time of one core; decoding the envelope is not counted.
"""

from __future__ import annotations

import gc
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from bridge.alerts.engine import Alerting
from bridge.alerts.parts import SECOND
from bridge.alerts.sights import AlertSet
from bridge.event import Event, nanoseconds
from bridge.outbox import Batch
from bridge.outbox.sqlite import open_outbox, threads
from tests.alerting import START, alert_set, device, event

DEVICES = 100_000
BATCH = 512
SPREAD = 600.0  # seconds
ABSENT = """
alerts:
  - name: device-silent
    kind: absent
    match: {name: as.up.data.forward}
    by: device
    for: 2h
    send: [ops]
"""
OTHERS = """
alerts:
  - name: joins
    kind: threshold
    match: {name: ns.up.join.drop}
    by: application
    count: 5
    within: 10m
    send: [ops]
"""


def uplinks(count: int, at: float, part: int | None = None) -> list[Event]:
    """One of each device, within ten minutes; *part* is one of ten parts of them."""
    data = {
        "uplink_message": {
            "f_port": 1,
            "frm_payload": "ikV4pQ==",
            "rx_metadata": [{"gateway_ids": {"gateway_id": f"gw-{each}"}, "rssi": -100} for each in range(3)],
        }
    }
    return [
        event(
            "as.up.data.forward",
            at + SPREAD * each / count,
            device(f"dev-{each:06}", dev_eui="70B3D57ED0000002"),
            data,
        )
        for each in (range(count) if part is None else range(part, count, 10))
    ]


def cpu(call: Callable[[], object], count: int) -> float:
    """Microseconds of CPU an event."""
    gc.collect()
    began = time.process_time()
    call()
    return (time.process_time() - began) / count * 1e6


def engine(alerts: AlertSet) -> Alerting:
    made = Alerting()
    made.configure(alerts, 10 * SECOND)
    return made


def seen(alerting: Alerting, events: list[Event], at: float) -> None:
    now = START + round(at * SECOND)
    for each in events:
        alerting.observe("eu1", alerting.look(each), now)


def memory(alerts: AlertSet) -> float:
    """Bytes a device."""
    gc.collect()
    tracemalloc.start()
    alerting = engine(alerts)
    for part in range(10):
        seen(alerting, uplinks(DEVICES, 0.0, part), SPREAD)
    alerting.rows()
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / DEVICES


async def stored(path: Path, alerting: Alerting, events: list[Event]) -> float:
    """Seconds of wall time to write the states of *events*, in batches as `ingest` does."""
    async with threads() as write, threads() as read, opened(path, write, read) as outbox:
        began = time.perf_counter()
        for first in range(0, len(events), BATCH):
            seen(alerting, events[first : first + BATCH], SPREAD)
            await outbox.accept(Batch(alerts=alerting.rows()))
        return time.perf_counter() - began


async def loaded(path: Path, alerts: AlertSet) -> tuple[float, Alerting]:
    """Seconds until a new process knows all of it."""
    async with threads() as write, threads() as read, opened(path, write, read) as outbox:
        began = time.perf_counter()
        made = Alerting()
        made.load(await outbox.alert_states())
        made.configure(alerts, 10 * SECOND)
        return time.perf_counter() - began, made


def opened(path: Path, write: object, read: object):  # type: ignore[no-untyped-def]  # a context manager
    return open_outbox(
        path,
        durability="power",
        dedup_window=1e6,
        dead_letter_retention=1e6,
        trace_retention=1e6,
        offload_write=write,  # type: ignore[arg-type]
        offload_read=read,  # type: ignore[arg-type]
    )


def timers(alerting: Alerting) -> tuple[float, float, float]:
    """Everybody falls silent within ten minutes, with a tick every half second.

    The worst lateness, the longest tick and the CPU of all, in seconds.
    """
    worst = longest = 0.0
    began = time.process_time()
    now = 7200.0
    while now < 7200.0 + SPREAD + 20.0:
        now += 0.5
        before = time.perf_counter()
        notices = alerting.tick(START + round(now * SECOND), {})
        longest = max(longest, time.perf_counter() - before)
        for each in notices:
            since = (nanoseconds(each.document["data"]["since"]) - START) / SECOND
            worst = max(worst, now - since - 7210.0)
    return worst, longest, time.process_time() - began


def main() -> None:
    alerts = alert_set(ABSENT)
    print(f"memory         {memory(alerts):8.0f} bytes a device")
    events, again = uplinks(DEVICES, 0.0), uplinks(DEVICES, 660.0)
    random.Random(1).shuffle(again)
    alerting = engine(alerts)
    print(f"first uplink   {cpu(lambda: seen(alerting, events, SPREAD), DEVICES):8.1f} µs an event")
    alerting.tick(START + 615 * SECOND, {})
    print(f"next uplink    {cpu(lambda: seen(alerting, again, 1300.0), DEVICES):8.1f} µs an event")
    print(f"its row        {cpu(alerting.rows, DEVICES):8.1f} µs an event")
    nobody = engine(alert_set(OTHERS))
    print(f"not looked at  {cpu(lambda: seen(nobody, again, 21.0), DEVICES):8.2f} µs an event")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "bridge.db"
        wrote = anyio.run(stored, path, engine(alerts), events)
        print(f"store          {DEVICES / wrote:8.0f} events/s with their states, {BATCH} a transaction")
        took, restarted = anyio.run(loaded, path, alerts)
        print(f"restart        {took:8.2f} s")
        print(f"on disk        {path.stat().st_size / DEVICES:8.0f} bytes a device")
    worst, longest, total = timers(restarted)
    print(
        f"timers         {worst:8.2f} s late at most; longest tick {longest:.2f} s; all {total:.1f} s of CPU"
    )


if __name__ == "__main__":
    main()
