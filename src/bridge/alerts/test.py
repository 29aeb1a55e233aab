"""Alerts on virtual time: the `tests:` of alerts, and what a rule file would have sent on a recorded day.

No I/O, no clock, no randomness in this file. Time jumps from one thing to do to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from bridge import decode
from bridge.alerts import Alert, Expected, Story
from bridge.alerts.engine import GAP, Alerting
from bridge.alerts.groups import Notice
from bridge.alerts.parts import SECOND
from bridge.alerts.sights import AlertSet
from bridge.errors import FrameError
from bridge.event import Event, rfc3339
from bridge.rules.matcher import Wide, never

START = int(datetime(2026, 11, 23, 21, 0, tzinfo=UTC).timestamp()) * SECOND
"""When tests begin: their times are offsets from it, so that mute times have a day and an hour."""
SOURCE = "test"
EXACT = SECOND  # ns by which a notification may miss the time a test says


@dataclass(frozen=True, slots=True)
class Result:
    """One test that was run; *number* from 1."""

    alert: Alert
    test: Story
    number: int
    told: tuple[tuple[int, Notice], ...] = ()
    """What the alert sends, other alerts aside, each with its ns after the start."""
    differences: tuple[str, ...] = ()
    error: str | None = None

    @property
    def passed(self) -> bool:
        return self.error is None and not self.differences

    @property
    def file(self) -> str:
        return self.alert.file

    @property
    def line(self) -> int:
        return self.test.line

    def lines(self) -> Iterator[str]:
        return difference(self)

    @property
    def title(self) -> str:
        about = f" ({self.test.description})" if self.test.description else ""
        return f"{self.alert.name}, test {self.number}{about}"


Recorded = Callable[[Alert, Story], Sequence[Event]]
"""The events of the recorded file a test names; raises FrameError."""


def run(alerts: Sequence[Alert], recorded: Recorded, wide: Wide = never) -> Iterator[Result]:
    """The result of each test of *alerts*; all of them run, since one may keep another back."""
    for alert in alerts:
        for number, test in enumerate(alert.tests, 1):
            try:
                events = [*timed(test.events), *([] if test.file is None else recorded(alert, test))]
            except FrameError as error:
                yield Result(alert, test, number, error=str(error))
                continue
            start = START if test.file is None else min((each.time_ns for each in events), default=START)
            last = max((each.time_ns for each in events), default=start)
            ends = [each.at for each in test.expected] + [last - start]
            until = start + (test.until if test.until is not None else max(ends) + SECOND)
            found = played(AlertSet(alerts, wide), events, until)
            told = tuple((at - start, notice) for at, notice in found if notice.alert is alert)
            yield Result(alert, test, number, told, tuple(differences(test.expected, told)))


def timed(events: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[Event]:
    """Test events at their offsets, in order, each with an id of its own."""
    for number, (at, document) in enumerate(sorted(events, key=lambda each: each[0])):
        made = {"time": rfc3339(START + at), "unique_id": f"test-{number}", **document}
        yield decode.event(msgspec.json.encode(made))


def played(
    alerts: AlertSet, events: Iterable[Event], until: int | None = None, *, overlap: int = 0
) -> Iterator[tuple[int, Notice]]:
    """What *alerts* tell of *events*, which come in the order of their times, and when, in ns.

    Time goes on until *until*; None: until the last event.
    """
    engine = Alerting()
    engine.configure(alerts, overlap)
    ordered = sorted({each.unique_id: each for each in events}.values(), key=lambda each: each.time_ns)
    now = ordered[0].time_ns if ordered else 0
    for event in ordered:
        yield from _until(engine, event.time_ns - 1)
        now = max(now, event.time_ns)
        if event.name == GAP:
            engine.gap(SOURCE, event)
        engine.observe(SOURCE, engine.look(event), now)
    yield from _until(engine, now if until is None else until)


def _until(engine: Alerting, end: int) -> Iterator[tuple[int, Notice]]:
    while (due := engine.next_tick()) is not None and due <= end:
        now = max(due, engine.now)
        for notice in engine.tick(now, {}):
            yield now, notice


def differences(expected: Sequence[Expected], told: Sequence[tuple[int, Notice]]) -> Iterator[str]:
    """As a diff: what was expected and did not come, what came and was not expected."""
    rest = list(told)
    for each in expected:
        found = next((one for one in rest if _fits(each, *one)), None)
        if found is None:
            yield f"- {_words(each.at, each.status, each.key, each.sends, each.summary)}"
        else:
            rest.remove(found)
    for at, notice in rest:
        yield f"+ {_words(at, notice.status, notice.key, notice.sinks, notice.document['data']['summary'])}"


def _fits(expected: Expected, at: int, notice: Notice) -> bool:
    return (
        abs(at - expected.at) <= EXACT
        and notice.status == expected.status
        and expected.key in ("", notice.key)
        and (expected.sends is None or sorted(expected.sends) == sorted(notice.sinks))
        and expected.summary in (None, notice.document["data"]["summary"])
    )


def _words(at: int, status: str, key: str, sends: Sequence[str] | None, summary: str | None) -> str:
    parts = [f"{offset(at)} {status}", key, f"to {', '.join(sends)}" if sends else "", summary or ""]
    return "  ".join(each for each in parts if each)


def offset(ns: int) -> str:
    """*ns* after the start, as tests write it: 5m, 1h0m10s."""
    total = round(ns / SECOND, 3)
    hours, rest = divmod(total, 3600)
    minutes, left = divmod(rest, 60)
    text = f"{int(hours)}h" if hours else ""
    text += f"{int(minutes)}m" if minutes else ""
    return text + (f"{left:g}s" if left or not text else "")


def difference(result: Result) -> Iterator[str]:
    """The lines that tell of a failure."""
    yield f"{result.alert.file}:{result.test.line}: {result.title}"
    if result.error is not None:
        yield f"  {result.error}"
    yield from (f"  {each}" for each in result.differences)
