"""Which rules want an event: 10, 1,000 and 10,000 rules over the recorded streams.

The rules differ by name, by identifier, by an exact content value, or by two of them. Decoding the envelope
is not counted, decoding `data` is. Events a second of one core, by CPU time.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from typing import TypeVar

import msgspec

from bridge import decode
from bridge.event import Event
from bridge.rulefile import parse
from bridge.rules import Rule, RuleSet
from tests.recordings import STREAMS, documents, json_bytes

T = TypeVar("T")

COUNTS = (10, 1_000, 10_000)
EVENTS = 20_000


def by_name(number: int) -> str:
    kind = ("as.up.data.forward", "gs.up.receive", "ns.up.data.process")[number % 3] if number < 3 else ""
    return f"name: {kind or f'as.made.up{number}'}"


def by_identifier(number: int) -> str:
    device = "meter-01" if number == 0 else f"meter-x{number}"
    return f"device: plant-a/{device}"


def by_address(number: int) -> str:
    return f"dev_addr: {0x26000001 + number:08X}"


def by_value(number: int) -> str:
    return f"data: {{uplink_message: {{f_cnt: [{number + 18}]}}}}"


def by_value_of_one_name(number: int) -> str:
    return f"name: as.up.data.forward, {by_value(number)}"


def by_identifier_of_one_name(number: int) -> str:
    return f"name: as.up.data.forward, {by_identifier(number)}"


def by_name_and_prefix(number: int) -> str:
    return f"name: as.up.data.*, device: x{number}-*"


def by_regex(number: int) -> str:
    return f"name: '/^made{number}\\.up/'"


KINDS: tuple[Callable[[int], str], ...] = (
    by_name,
    by_identifier,
    by_address,
    by_value,
    by_value_of_one_name,
    by_identifier_of_one_name,
    by_name_and_prefix,
    by_regex,
)


def rules_of(kind: Callable[[int], str], count: int) -> tuple[Rule, ...]:
    rules = "\n".join(f"- {{name: r{i}, match: {{{kind(i)}}}, send: [crm]}}" for i in range(count))
    return parse(f"rules:\n{rules}\n", "rules.yaml", sinks=["crm"]).rules


def events() -> list[Event]:
    """Every recorded stream in turn, and again until there are enough."""
    found = [decode.event(json_bytes(event)) for name in STREAMS for event in documents(name)]
    return list(islice(cycle(found), EVENTS))


def measure(rules: RuleSet, stream: Sequence[Event]) -> float:
    """CPU seconds for *stream*, the best of three: wall time would measure who else uses the machine."""
    for event in stream[:2000]:
        rules.select(event)
    best = float("inf")
    for _ in range(3):
        gc.collect()
        began = time.process_time()
        for event in stream:
            rules.select(event)
        best = min(best, time.process_time() - began)
    return best


def traced(make: Callable[[], T]) -> tuple[T, int]:
    """What *make* gives, and the bytes it keeps."""
    gc.collect()
    tracemalloc.start()
    made = make()
    gc.collect()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return made, size


def main() -> None:
    stream = events()
    size = sum(len(event.body) for event in stream) / len(stream)
    print(f"{EVENTS:,} events of {size:,.0f} bytes; decoding one whole: {decoding(stream):.1f} µs")
    columns = "".join(f"{count:>10,} rules" for count in COUNTS)
    print(f"{'rules differ':28}{columns}   CPU s/10,000 events   memory of a rule, of its index")
    for kind in KINDS:
        rules, kept = traced(partial(rules_of, kind, COUNTS[-1]))
        indexed = traced(partial(RuleSet.of, rules))[1]
        figures = [measure(RuleSet.of(rules[:count]), stream) for count in COUNTS]
        rates = "".join(f"{len(stream) / spent:>14,.0f}/s" for spent in figures)
        of_a_rule = f"{kept / len(rules):8,.0f} B {indexed / len(rules):8,.0f} B"
        print(f"{kind.__name__:28}{rates}{figures[-1] / len(stream) * 10_000:23.3f}   {of_a_rule}")


def decoding(stream: Sequence[Event]) -> float:
    began = time.perf_counter()
    for event in stream:
        msgspec.json.decode(event.body)
    return (time.perf_counter() - began) / len(stream) * 1e6


if __name__ == "__main__":
    main()
