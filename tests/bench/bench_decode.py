"""Bytes of recorded streams to events: in pieces as a socket gives them, and against plain json.

Each figure is the median of five runs over the same bytes, in one process.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

from bridge.decode import Decoder
from bridge.event import Event
from tests.recordings import RECORDED

RUNS = 5
REPEAT = 10
FILES = ("apps.sse", "apps.ndjson", "devices.sse", "gateways.sse")


def decoded(body: bytes, chunk: int) -> int:
    decoder = Decoder()
    found = 0
    for at in range(0, len(body), chunk):
        found += sum(isinstance(frame, Event) for frame in decoder.feed(body[at : at + chunk]))
    return found


def plain(body: bytes) -> int:
    return sum(1 for line in body.split(b"\n") if line and json.loads(line)["result"])


def timed(run: Callable[[], int]) -> tuple[float, float]:
    """Events a second and CPU seconds per 10,000 events."""
    rates: list[float] = []
    costs: list[float] = []
    for _ in range(RUNS):
        began, cpu = time.perf_counter(), time.process_time()
        found = run()
        rates.append(found / (time.perf_counter() - began))
        costs.append((time.process_time() - cpu) / found * 10_000)
    return statistics.median(rates), statistics.median(costs)


def main() -> None:
    print(f"{'file':14} {'how':22} {'events/s':>10} {'CPU s / 10,000':>16}")
    for name in FILES:
        body = (RECORDED / name).read_bytes() * REPEAT
        for how, run in (
            ("64 KiB pieces", lambda body=body: decoded(body, 65_536)),
            ("1,400 byte pieces", lambda body=body: decoded(body, 1400)),
            ("json.loads, whole lines", lambda body=body: plain(body)),
        ):
            rate, cost = timed(run)
            print(f"{name:14} {how:22} {rate:10,.0f} {cost:16.3f}")


if __name__ == "__main__":
    main()
