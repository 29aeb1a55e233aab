"""bridge beside Redpanda Connect's engine: the same events, the same receiver, by turns in one run.

    python -m tests.bench.bench_peers [webhook] [batch] [mqtt] [rules] [steady] [start] [backlog]

The source and the receiver are Go programs of this folder. bridge stores every event with
`durability: power` before it sends it, and signs it; its peer keeps nothing on disk and signs nothing.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from tests.bench.ends import (
    HERE,
    Measured,
    ask,
    built,
    end,
    measure,
    peak_mb,
    rss_mb,
    running,
    settled,
    until_connected,
)
from tests.recordings import RECORDED, documents
from tests.servers import free_port, mosquitto

RUNS = 5
MANY = 1_000_000
ACCEPTED = "SELECT value FROM totals WHERE kind = 'source' AND what = 'accepted'"
FRAMES = RECORDED / "devices.sse"
MATCHED = "as.up.data.forward"
"""What one rule of many wants: 11 % of the events."""
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BLANK_LINE = {"custom_delimiter": "\n\n"}
"""Between events; as an empty message it would cost the peer 100 ms."""
UNWRAPPED = 'root = if this.result.name == "events.stream.start" { deleted() } else { this.result }'
DEVICE = 'this.identifiers.0.device_ids.device_id.or("")'
SIGNED = """
let text = content().string()
let id = "d_" + $text.hash("sha256").encode("hex").slice(0, 26)
let at = now().ts_unix().string()
let signed = $id + "." + $at + "." + $text
meta id = $id
meta timestamp = $at
meta signature = "v1," + $signed.hash("hmac_sha256", "MfKQ9r8GKYqrTwj").encode("base64")
"""


def devices() -> list[str]:
    found = {
        f"{ids['application_ids']['application_id']}/{ids['device_id']}"
        for event in documents(FRAMES.name)
        for each in event["identifiers"]
        if (ids := each.get("device_ids"))
    }
    return sorted(found)


def share(name: str) -> float:
    """The part of the recorded events that have *name*."""
    names = [event["name"] for event in documents(FRAMES.name)]
    return names.count(name) / len(names)


@dataclass(frozen=True, slots=True)
class Work:
    """*rules* beside the one that matters; with any, that one wants only MATCHED."""

    events: int
    sink: str = "webhook"
    batch: int = 1
    rules: int = 0
    rate: int = 0

    @property
    def expected(self) -> int:
        recorded = [event["name"] for event in documents(FRAMES.name)]
        if not self.rules:
            return self.events
        whole, rest = divmod(self.events, len(recorded))
        return whole * recorded.count(MATCHED) + recorded[:rest].count(MATCHED)


@dataclass(slots=True)
class Ends:
    """The programs and where they listen."""

    load: Path
    receiver: int
    broker: str = ""
    folder: Path = field(default_factory=Path)


def bridge(work: Work, ends: Ends, source: int) -> list[str]:
    """The command, its files written."""
    sink: dict[str, object] = {
        "type": "webhook",
        "url": f"http://127.0.0.1:{ends.receiver}/",
        "secret": SECRET,
        "allow_private_networks": True,
        "batch": {"max_events": work.batch},
    }
    if work.sink == "mqtt":
        sink = {"type": "mqtt", "url": ends.broker, "topic": "tts/{{ event.name }}"}
    config = {
        "sources": {
            "tts": {
                "type": "tts",
                "url": f"http://127.0.0.1:{source}",
                "api_key": "NNSXS.BENCH.SECRET",
                "identifiers": [{"device": each} for each in devices()],
            }
        },
        "sinks": {"crm": sink},
        "rules": ["rules.yaml"],
        "admin": {"listen": "127.0.0.1:0"},
        "log": {"level": "warning"},
    }
    wanted = {"name": MATCHED} if work.rules else {}
    rules = [{"name": "all", "match": wanted, "send": ["crm"]}] + [
        {"name": f"rule-{n}", "match": {"name": MATCHED, "device": f"plant-a/other-{n}"}, "send": ["crm"]}
        for n in range(work.rules - 1)
    ]
    (ends.folder / "bridge.yaml").write_text(json.dumps(config))
    (ends.folder / "rules.yaml").write_text(json.dumps({"rules": rules}))
    return [sys.executable, "-m", "bridge", "run", "-c", "bridge.yaml"]


Make: TypeAlias = Callable[[Work, Ends, int], list[str]]


def peer(program: Path, in_flight: int, *, bare: bool = False) -> Make:
    """Redpanda Connect's engine with *in_flight* requests at once.

    It knows events again by id (in memory) and signs, as bridge does; *bare*: neither.
    """

    def command(work: Work, ends: Ends, source: int) -> list[str]:
        out = (
            mqtt_output(ends, in_flight) if work.sink == "mqtt" else http_output(work, ends, in_flight, bare)
        )
        config = {
            "http": {"enabled": False},
            "logger": {"level": "ERROR"},
            "input": {
                "http_client": {
                    "url": f"http://127.0.0.1:{source}/api/v3/events",
                    "verb": "POST",
                    "payload": "{}",
                    "timeout": "600s",
                    "stream": {"enabled": True, "reconnect": True, "scanner": {"lines": BLANK_LINE}},
                }
            },
            "pipeline": {
                "processors": [
                    {"mapping": UNWRAPPED},
                    *([] if bare else [{"dedupe": {"cache": "seen", "key": '${! json("unique_id") }'}}]),
                ]
            },
            "output": switch(work.rules, out) if work.rules else out,
            "cache_resources": [{"label": "seen", "memory": {"default_ttl": "48h"}}],
        }
        (ends.folder / "peer.yaml").write_text(json.dumps(config))
        return [str(program), "-c", "peer.yaml"]

    return command


def http_output(work: Work, ends: Ends, in_flight: int, bare: bool) -> dict[str, object]:
    archive: list[dict[str, object]] = [{"archive": {"format": "json_array"}}] if work.batch > 1 else []
    signed: list[dict[str, object]] = [] if bare else [{"mapping": SIGNED}]
    headers = (
        {}
        if bare
        else {f"webhook-{each}": f'${{! meta("{each}") }}' for each in ("id", "timestamp", "signature")}
    )
    client: dict[str, object] = {
        "url": f"http://127.0.0.1:{ends.receiver}/",
        "verb": "POST",
        "headers": {"Content-Type": "application/json", **headers},
        "max_in_flight": in_flight,
    }
    if work.batch > 1:
        client["batching"] = {"count": work.batch, "period": "200ms", "processors": [*archive, *signed]}
        return {"http_client": client}
    return {"http_client": client, **({"processors": signed} if signed else {})}


def mqtt_output(ends: Ends, in_flight: int) -> dict[str, object]:
    return {
        "mqtt": {
            "urls": [ends.broker.replace("mqtt://", "tcp://")],
            "topic": 'tts/${! json("name") }',
            "client_id": "peer",
            "qos": 1,
            "max_in_flight": in_flight,
        }
    }


def switch(rules: int, out: dict[str, object]) -> dict[str, object]:
    """As many cases as bridge has rules; the last but one is met by what *out* gets."""
    cases: list[dict[str, object]] = [
        {"check": f'this.name == "{MATCHED}" && {DEVICE} == "other-{n}"', "output": {"drop": {}}}
        for n in range(rules - 1)
    ]
    cases += [{"check": f'this.name == "{MATCHED}"', "output": out}, {"output": {"drop": {}}}]
    return {"switch": {"cases": cases}}


def once(make: Make, work: Work, ends: Ends) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        here = Ends(ends.load, ends.receiver, ends.broker, Path(folder))
        numbers = ["-frames", str(FRAMES), "-count", str(work.events), "-rate", str(work.rate)]
        with end(ends.load, "source", *numbers) as source:
            found = measure(make(work, here, source), here.folder, source, here.receiver, work.expected)
    if found.events < work.expected:
        print(f"   only {found.events} of {work.expected} arrived")
    return found


def best_in_flight(program: Path, work: Work, ends: Ends, *, bare: bool) -> int:
    """Of 1, 2, 8 and 64, which the peer is fastest with."""
    rates = {n: once(peer(program, n, bare=bare), work, ends).rate for n in (1, 2, 8, 64)}
    print("   peer, in flight: " + ", ".join(f"{n}: {rate:,.0f}/s" for n, rate in rates.items()))
    return max(rates, key=lambda n: rates[n])


def compare(
    title: str, work: Work, ends: Ends, program: Path | None, *, peers: Work | None = None, bare: bool = True
) -> float:
    """Prints a row for each, and the ratios; *peers* where the peer gets less to do, *bare* for it so too.

    Returns bridge's deliveries/s.
    """
    theirs = peers or work
    contenders: dict[str, tuple[Make, Work]] = {"bridge": (bridge, work)}
    if program is not None:
        for name, is_bare in (("peer, same work", False), ("peer, bare", True)):
            if is_bare and not bare:
                continue
            in_flight = best_in_flight(program, theirs, ends, bare=is_bare)
            contenders[f"{name}, {in_flight} in flight"] = peer(program, in_flight, bare=is_bare), theirs
    runs: dict[str, list[Measured]] = {name: [] for name in contenders}
    for _ in range(RUNS):
        for name, (make, what) in contenders.items():
            runs[name].append(once(make, what, ends))
    for name, found in runs.items():
        row(f"{title}: {name}", found)
    for name, found in list(runs.items())[1:]:
        rate = median([each.rate for each in runs["bridge"]]) / median([each.rate for each in found])
        cpu = median([each.cpu for each in runs["bridge"]]) / median([each.cpu for each in found])
        print(f"   {rate:.2f} times the rate of {name}, at {cpu:.2f} times its CPU a delivery", flush=True)
    return median([each.rate for each in runs["bridge"]])


def by_itself(kind: str, url: str, whole: float) -> None:
    """The sink alone, beside *whole*, the deliveries/s of the whole bridge."""
    command = [sys.executable, "-m", "tests.bench.alone", kind, url, "20000"]
    rates: list[float] = []
    cpu: list[float] = []
    for _ in range(RUNS):
        made = (
            subprocess.run(command, check=True, capture_output=True, text=True)
            .stdout.splitlines()[-1]
            .split()
        )
        rates.append(float(made[0]))
        cpu.append(float(made[1]))
    print(
        f"   the {kind} sink alone {median(rates):,.0f}/s at {median(cpu):.2f} CPU s/10,000:"
        f" bridge has {whole / median(rates):.2f} of its rate",
        flush=True,
    )


def start(rules: int, ends: Ends) -> None:
    """From the process's start to its first delivery, an event waiting; and what it then holds in memory."""
    seconds: list[float] = []
    memory: list[float] = []
    for _ in range(RUNS):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            here = Ends(ends.load, ends.receiver, folder=folder)
            source = stack.enter_context(end(ends.load, "source", "-frames", str(FRAMES), "-count", "1000"))
            command = bridge(Work(1000, rules=rules), here, source)
            ask(ends.receiver, "reset")
            ask(source, "go")
            began = time.perf_counter()
            process = stack.enter_context(running(command, folder))
            while '"distinct":0' in ask(ends.receiver, "stats"):
                time.sleep(0.005)
            seconds.append(time.perf_counter() - began)
            settled(ends.receiver, Work(1000, rules=rules).expected)
            memory.append(rss_mb(process.pid))
    print(
        f"start, {rules:,} rules: first delivery after {median(seconds):.2f} s"
        f" ({min(seconds):.2f} – {max(seconds):.2f}), then {median(memory):.0f} MB in memory"
    )


def backlog(count: int, ends: Ends) -> None:
    """*count* events come while the receiver is away; then `kill -9`, and a receiver that is there."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=Path.cwd())))
        here = Ends(ends.load, free_port(), folder=folder)
        source = stack.enter_context(end(ends.load, "source", "-frames", str(FRAMES), "-count", str(count)))
        with running(bridge(Work(count), here, source), folder) as process:
            until_connected(process, folder, source)
            ask(source, "go")
            took = until_stored(folder / "bridge.db", count)
            peak = peak_mb(process.pid)
            process.kill()
        print(f"backlog of {count:,}: taken in at {count / took:,.0f}/s, the receiver away, {peak:.0f} MB")
        waited, rate, peak = resumed(ends, folder, count)
        print(f"   after kill -9 the first delivery after {waited:.2f} s, then {rate:,.0f}/s, {peak:.0f} MB")


def resumed(ends: Ends, folder: Path, count: int) -> tuple[float, float, float]:
    """Seconds to the first delivery, deliveries/s of the first fifth, peak MB; nothing new comes."""
    with end(ends.load, "source", "-frames", str(FRAMES), "-count", "0") as quiet:
        ask(ends.receiver, "reset")
        began = time.perf_counter()
        command = bridge(Work(count), Ends(ends.load, ends.receiver, folder=folder), quiet)
        with running(command, folder) as process:
            while not (found := json.loads(ask(ends.receiver, "stats"))["distinct"]):
                time.sleep(0.005)
            waited = time.perf_counter() - began
            while found < count // 5:
                time.sleep(0.05)
                found = json.loads(ask(ends.receiver, "stats"))["distinct"]
            return waited, found / (time.perf_counter() - began - waited), peak_mb(process.pid)


def until_stored(path: Path, count: int) -> float:
    """Seconds until the store at *path* has taken in *count* events."""
    began = time.perf_counter()
    while True:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            found = db.execute(ACCEPTED).fetchone()
        if found and found[0] >= count:
            return time.perf_counter() - began
        time.sleep(0.1)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def row(title: str, runs: Sequence[Measured]) -> None:
    rates = sorted(each.rate for each in runs)
    print(
        f"{title:58} {median(rates):9,.0f}/s ({rates[0]:,.0f} – {rates[-1]:,.0f})"
        f"  {median([r.cpu for r in runs]):5.2f} CPU s/10,000"
        f"  p50 {median([r.p50 for r in runs]):8.2f} ms  p99 {median([r.p99 for r in runs]):8.2f} ms"
        f"  {median([r.rss for r in runs]):4.0f} MB"
    )


@contextmanager
def programs() -> Iterator[tuple[Path | None, Path | None, Path | None]]:
    """The load, the peer, and the peer that speaks MQTT."""
    peers = HERE / "peers"
    yield (
        built(HERE / "load", ".", "load"),
        built(peers / "connect", ".", "connect"),
        built(peers / "mqtt", ".", "mqtt"),
    )


def main(parts: Sequence[str] = ()) -> None:
    wanted = tuple(parts) or ("webhook", "batch", "mqtt", "rules", "steady", "start", "backlog")
    with programs() as (load, connect, mqtt), ExitStack() as stack:
        if load is None:
            return
        ends = Ends(load, stack.enter_context(end(load, "receive")))
        if "webhook" in wanted:
            whole = compare("webhook, one a request", Work(6_000), ends, connect)
            by_itself("webhook", f"http://127.0.0.1:{ends.receiver}/", whole)
        if "batch" in wanted:
            compare("webhook, 50 a request", Work(30_000, batch=50), ends, connect)
        if "mqtt" in wanted:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            broker = stack.enter_context(mosquitto(folder))
            host = broker.url().removeprefix("mqtt://")
            counting = stack.enter_context(end(load, "receive", "-mqtt", host))
            there = Ends(load, counting, broker.url())
            whole = compare("MQTT, QoS 1", Work(10_000, "mqtt"), there, mqtt, bare=False)
            by_itself("mqtt", broker.url(), whole)
        if "rules" in wanted:
            compare("10 rules", Work(20_000, rules=10), ends, connect, bare=False)
            compare(
                "1,000 rules",
                Work(20_000, rules=1_000),
                ends,
                connect,
                peers=Work(2_000, rules=1_000),
                bare=False,
            )
            compare("10,000 rules", Work(20_000, rules=10_000), ends, None)
        if "steady" in wanted:
            compare("500 events/s", Work(5_000, rate=500), ends, connect)
        if "start" in wanted:
            for rules in (10, 10_000):
                start(rules, ends)
        if "backlog" in wanted:
            backlog(MANY, ends)


if __name__ == "__main__":
    main(sys.argv[1:])
