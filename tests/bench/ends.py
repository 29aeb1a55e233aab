"""The two ends of a measurement and what is measured between them: built, started, asked, ended."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

HERE = Path(__file__).parent
BUILT = HERE.parents[1] / ".cache" / "bench"
PATIENCE = 120.0  # seconds for one measurement
CALM = 3.0  # seconds without anything new after which a measurement is over
_direct = build_opener(ProxyHandler({}))


def go() -> str | None:
    """The Go tool, wherever it usually is."""
    return shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")


def built(source: Path, package: str, name: str) -> Path | None:
    """The program of *package* in *source*; None, with a word, where it cannot be built."""
    tool = go()
    if tool is None:
        print(f"{name}: left out, Go is not here", file=sys.stderr)
        return None
    program = BUILT / name
    BUILT.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        [tool, "build", "-o", str(program), package], cwd=source, capture_output=True, text=True, check=False
    )
    if made.returncode:
        print(f"{name}: left out, it does not build: {made.stderr.strip()[-200:]}", file=sys.stderr)
        return None
    return program


def ask(port: int, path: str) -> str:
    with _direct.open(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
        text: str = answer.read().decode()
        return text


@contextmanager
def end(program: Path, *arguments: str) -> Iterator[int]:
    """A running end; yields its port."""
    process = subprocess.Popen([str(program), *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True, slots=True)
class Measured:
    """*cpu*: seconds for 10,000 deliveries; *rss*: MB at the end; *p50*, *p99*: ms on the way."""

    rate: float
    cpu: float
    rss: float
    p50: float
    p99: float
    events: int


@contextmanager
def running(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(command: Sequence[str], folder: Path, source: int, receiver: int, expected: int) -> Measured:
    """One run of *command* between the ends at these ports, from the gate's opening to the last delivery."""
    ask(receiver, "reset")
    with running(command, folder) as process:
        until_connected(process, folder, source)
        time.sleep(1.0)  # what it still does after connecting is not what is measured
        cpu = cpu_seconds(process.pid)
        ask(source, "go")
        stats = settled(receiver, expected)
        events = int(stats["distinct"])
        used = cpu_seconds(process.pid) - cpu
        return Measured(
            events / max(stats["seconds"], 1e-9),
            used / max(events, 1) * 10_000,
            rss_mb(process.pid),
            stats["p50_ms"],
            stats["p99_ms"],
            events,
        )


def until_connected(process: subprocess.Popen[bytes], folder: Path, source: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while ask(source, "streams") == "0":
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"does not connect: {(folder / 'log').read_text()[-1000:]}")
        time.sleep(0.02)


def settled(receiver: int, expected: int) -> dict[str, Any]:
    """What the receiver counted once *expected* events came, or nothing more does."""
    began = moved = time.monotonic()
    before = -1
    while True:
        stats: dict[str, Any] = json.loads(ask(receiver, "stats"))
        now = time.monotonic()
        if stats["distinct"] != before:
            before, moved = stats["distinct"], now
        if stats["distinct"] >= expected or now - began > PATIENCE or (before and now - moved > CALM):
            return stats
        time.sleep(0.05)
