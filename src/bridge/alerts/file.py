"""The `alerts:` of rule files: YAML to alerts, every mistake at once with its line.  No I/O in this file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from bridge.alerts import ALL, BY, Alert, Grouping, Inhibitor, Spec
from bridge.alerts.absent import Absent
from bridge.alerts.mute import DAYS, Mute
from bridge.alerts.parts import SECOND
from bridge.alerts.sights import FOLD
from bridge.alerts.state import Flapping, State
from bridge.alerts.story import stories
from bridge.alerts.threshold import Threshold
from bridge.alerts.value import Value
from bridge.fields import seconds
from bridge.pattern.leaves import Field
from bridge.reading import Reading, did_you_mean
from bridge.render import ALERT_NAMES, NAMES, Template
from bridge.rules import LINTS
from bridge.rules.matchfile import block
from bridge.yamltext import Path

COMMON = (
    *("name", "description", "kind", "by", "send", "labels", "summary", "unless", "allow", "tests"),
    *("group_by", "group_wait", "group_interval", "repeat_interval"),
    *("escalate_after", "escalate_to", "inhibited_by", "mute"),
)
KINDS: Mapping[str, tuple[str, ...]] = {
    "state": ("down", "up", "silent", "flapping", "for"),
    "absent": ("match", "for"),
    "threshold": ("match", "count", "within", "distinct", "fold", "of", "ratio", "falls", "for"),
    "value": ("match", "field", "above", "below", "readings", "hysteresis", "pick", "for"),
}
"""The keys of each kind, besides the common ones."""
NEEDED: Mapping[str, tuple[str, ...]] = {
    "state": ("down",),
    "absent": ("match", "for"),
    "threshold": ("match", "within"),
    "value": ("match", "field"),
}
MOST = 10_000  # events a count may ask for: as many times are kept of each key
LABELS = 30
GROUPED = (
    30 * SECOND,
    300 * SECOND,
)  # group_wait and group_interval where there is a group_by, as Alertmanager


class AlertReader:
    """Reads the entries of `alerts`; *sinks* are the names `send` may hold, None if any will do."""

    def __init__(self, reading: Reading, sinks: Collection[str] | None) -> None:
        self.reading = reading
        self.sinks = sinks

    def wrong(self, path: Path, advice: str) -> None:
        self.reading.wrong(path, advice)

    def alert(self, value: Any, path: Path, number: int) -> Alert | None:
        if not isinstance(value, Mapping):
            self.wrong(path, "must be an alert: a map with name, kind, by and send")
            return None
        before = len(self.reading.mistakes)
        kind = str(value.get("kind", ""))
        if kind not in KINDS:
            self.wrong((*path, "kind"), "must be state, absent, threshold or value")
            return None
        known = (*COMMON, *KINDS[kind])
        other = f"; alerts of kind {kind} do not have it"
        foreign = {each for keys in KINDS.values() for each in keys} - set(known)
        for key in value:
            if key in foreign:
                self.wrong((*path, key), f"unknown key{other}")
        entry = self.reading.mapping(
            {key: each for key, each in value.items() if key not in foreign}, path, known, "an alert"
        )
        for key in ("name", "by", "send", *NEEDED[kind]):
            if key not in entry:
                self.wrong((*path, key), "is required")
        alert = self._alert(kind, entry, path, number)
        return alert if len(self.reading.mistakes) == before else None

    def _alert(self, kind: str, entry: Mapping[str, Any], path: Path, number: int) -> Alert:
        by = self.by(entry.get("by", ALL), (*path, "by"))
        labels = self.labels(entry.get("labels", {}), (*path, "labels"))
        hold = self.duration(entry, "for", path) if kind != "absent" else None
        matchers = {
            role: block(self.reading, entry[role], (*path, role))
            for role in ("match", "of", "down", "up")
            if role in entry
        }
        if kind == "state" and "up" not in entry and "silent" in entry:
            self.wrong((*path, "silent"), "needs up: which events say that it is there")
        names = {"alertname", *labels, by.rpartition(".")[2]} | ({"application"} if by == "device" else set())
        return Alert(
            name=str(entry.get("name", "")),
            spec=self.spec(kind, entry, path),
            matchers=matchers,
            by=by,
            send=self.sinks_of(entry, "send", path),
            unless=block(self.reading, entry["unless"], (*path, "unless")) if "unless" in entry else None,
            hold=hold or 0,
            field=self.field(entry, path),
            pick=self.pick(entry, path),
            distinct=self.distinct(entry, path),
            grouping=self.grouping(entry, names, path),
            labels=labels,
            summary=self.summary(entry, names, path),
            inhibitors=self.inhibitors(entry.get("inhibited_by", []), (*path, "inhibited_by")),
            mute=self.mute(entry.get("mute", []), (*path, "mute")),
            allow=self.allow(entry, path),
            tests=stories(self.reading, entry["tests"], (*path, "tests")) if "tests" in entry else (),
            file=self.reading.document.file,
            line=self.reading.document.line(path),
            number=number,
        )

    def allow(self, entry: Mapping[str, Any], path: Path) -> Mapping[str, str]:
        return self.reading.allowed(entry["allow"], (*path, "allow"), LINTS) if "allow" in entry else {}

    # What is watched

    def spec(self, kind: str, entry: Mapping[str, Any], path: Path) -> Spec:
        match kind:
            case "state":
                return State(self.duration(entry, "silent", path), self.flapping(entry, path))
            case "absent":
                return self.absent(entry, path)
            case "threshold":
                return self.threshold(entry, path)
            case _:
                return self.value(entry, path)

    def flapping(self, entry: Mapping[str, Any], path: Path) -> Flapping | None:
        if "flapping" not in entry:
            return None
        path = (*path, "flapping")
        found = self.reading.mapping(
            entry["flapping"], path, ("changes", "within"), "a map with changes and within"
        )
        changes = self.whole(found, "changes", path, least=2)
        within = self.duration(found, "within", path)
        if changes is None or not within:
            self.wrong(path, "needs changes and within: {changes: 5, within: 10m}")
            return None
        return Flapping(changes, within)

    def absent(self, entry: Mapping[str, Any], path: Path) -> Absent:
        text = entry.get("for")
        if isinstance(text, str) and text.endswith("x"):
            try:
                times = float(text[:-1])
            except ValueError:
                times = 0.0
            if not 1.0 < times <= 1000.0:
                self.wrong((*path, "for"), "must be a duration such as 2h, or a multiple of the interval: 3x")
            return Absent(times=times)
        span = self.duration(entry, "for", path)
        if span == 0:
            self.wrong((*path, "for"), "must be longer than nothing")
        return Absent(span=span)

    def threshold(self, entry: Mapping[str, Any], path: Path) -> Threshold:
        ratio = self.number(entry, "ratio", path)
        if ("ratio" in entry) != ("of" in entry):
            self.wrong(
                path, "ratio and of belong together: of what matches of, more than ratio matches match"
            )
        if ratio is not None and not 0 <= ratio < 1:
            self.wrong((*path, "ratio"), "must be a part of 1, such as 0.1")
        if "count" not in entry and "ratio" not in entry:
            self.wrong((*path, "count"), "is required")
        return Threshold(
            count=self.whole(entry, "count", path) or 1,
            within=self.duration(entry, "within", path) or SECOND,
            distinct="distinct" in entry or "fold" in entry,
            ratio=ratio,
            falls="falls" in entry,
        )

    def value(self, entry: Mapping[str, Any], path: Path) -> Value:
        if "above" not in entry and "below" not in entry:
            self.wrong(path, "needs above or below")
        hysteresis = self.number(entry, "hysteresis", path) or 0.0
        if hysteresis < 0:
            self.wrong((*path, "hysteresis"), "must not be negative")
        return Value(
            above=self.number(entry, "above", path),
            below=self.number(entry, "below", path),
            readings=self.whole(entry, "readings", path) or 1,
            hysteresis=hysteresis,
        )

    def field(self, entry: Mapping[str, Any], path: Path) -> Field | None:
        for key in ("field", "falls"):
            if key in entry:
                return Field(self.event_path(entry[key], (*path, key)))
        return None

    def pick(self, entry: Mapping[str, Any], path: Path) -> Literal["max", "min", "first"]:
        """Of several numbers the one that is least out of bounds, unless the file says which."""
        found = entry.get("pick")
        if found is None:
            return "first" if "above" in entry and "below" in entry else "min" if "above" in entry else "max"
        if found not in ("max", "min", "first"):
            self.wrong((*path, "pick"), "must be max, min or first")
            return "first"
        return cast(Literal["max", "min", "first"], found)

    def distinct(self, entry: Mapping[str, Any], path: Path) -> str:
        if "distinct" in entry and "fold" in entry:
            self.wrong((*path, "fold"), "and distinct exclude each other")
        if "fold" in entry:
            if not (isinstance(entry["fold"], str) and entry["fold"]):
                self.wrong((*path, "fold"), "must be the beginning of a correlation id, such as gs:uplink")
            return f"{FOLD}{entry['fold']}"
        if "distinct" not in entry:
            return ""
        found = entry["distinct"]
        return found if found in BY and found != ALL else self.event_path(found, (*path, "distinct"))

    def by(self, value: Any, path: Path) -> str:
        if isinstance(value, str) and (value in BY or value.startswith("data.")):
            return value
        hint = did_you_mean(str(value), BY) or f"; there is {', '.join(BY)}, and data.… for a field"
        self.wrong(path, f"is nothing alerts go by{hint}")
        return ALL

    def event_path(self, value: Any, path: Path) -> str:
        if not (isinstance(value, str) and "." in value and all(value.split("."))):
            self.wrong(path, "must be the path of a field: data.uplink_message.f_cnt")
            return "data.none"
        return value

    # Who is told

    def sinks_of(self, entry: Mapping[str, Any], key: str, path: Path) -> tuple[str, ...]:
        if key not in entry:
            return ()
        found = self.reading.texts(entry[key], (*path, key), "the name of a sink")
        if isinstance(entry[key], list) and not found:
            self.wrong((*path, key), "is empty; name the sinks it is sent to")
        for at, name in found:
            if self.sinks is not None and name not in self.sinks:
                there = f"; there is {', '.join(sorted(self.sinks)) or 'none'}"
                self.wrong(at, f"no sink has this name{did_you_mean(name, self.sinks) or there}")
        return tuple(dict.fromkeys(name for _, name in found))

    def labels(self, value: Any, path: Path) -> dict[str, str]:
        if not isinstance(value, Mapping) or len(value) > LABELS:
            self.wrong(path, f"must be a map of at most {LABELS} labels")
            return {}
        for key in value:
            if not (key.isidentifier() and key.isascii()) or key.startswith("_"):
                self.wrong((*path, key), "must be letters, digits and underscores")
            if key in NAMES | ALERT_NAMES | {"alertname"}:
                self.wrong((*path, key), "is a name templates have already; call the label otherwise")
        return {str(key): str(each) for key, each in value.items()}

    def summary(self, entry: Mapping[str, Any], names: Collection[str], path: Path) -> Template | None:
        if "summary" not in entry:
            return None
        try:
            return Template(str(entry["summary"]), labels=names)
        except ValueError as error:
            self.wrong((*path, "summary"), str(error).removeprefix("template: "))
            return None

    def grouping(self, entry: Mapping[str, Any], names: Collection[str], path: Path) -> Grouping:
        by: tuple[str, ...] | None = None
        if "group_by" in entry:
            found = self.reading.texts(entry["group_by"], (*path, "group_by"), "a label")
            by = tuple(name for _, name in found)
            for at, name in found:
                if name not in names:
                    self.wrong(at, f"is no label of this alert; there is {', '.join(sorted(names))}")
        wait, interval = (0, 0) if by is None else GROUPED
        repeat: int | None = Grouping().repeat
        if entry.get("repeat_interval") == "never":
            repeat = None
        elif (given := self.duration(entry, "repeat_interval", path)) is not None:
            repeat = given
            if given < SECOND:
                self.wrong((*path, "repeat_interval"), "must be at least 1s, or never")
        after = self.duration(entry, "escalate_after", path)
        if ("escalate_after" in entry) != ("escalate_to" in entry):
            self.wrong(path, "escalate_after and escalate_to belong together")
        given_wait = self.duration(entry, "group_wait", path)
        given_interval = self.duration(entry, "group_interval", path)
        return Grouping(
            by,
            wait if given_wait is None else given_wait,
            interval if given_interval is None else given_interval,
            repeat,
            after,
            self.sinks_of(entry, "escalate_to", path),
        )

    def inhibitors(self, value: Any, path: Path) -> tuple[Inhibitor, ...]:
        entries = value if isinstance(value, list) else [value]
        return tuple(
            self.inhibitor(each, (*path, number) if isinstance(value, list) else path)
            for number, each in enumerate(entries)
        )

    def inhibitor(self, value: Any, path: Path) -> Inhibitor:
        entry = self.reading.mapping(
            value, path, ("alert", "when", "equal"), "a map with alert, and when or equal"
        )
        if not (isinstance(entry.get("alert"), str) and entry["alert"]):
            self.wrong((*path, "alert"), "is required: the alert that keeps this one back")
        if "when" in entry and entry["when"] != "last_heard_by":
            self.wrong((*path, "when"), "must be last_heard_by; or write equal: [a label]")
        equal = self.reading.texts(entry.get("equal", []), (*path, "equal"), "a label")
        return Inhibitor(str(entry.get("alert", "")), "when" in entry, tuple(name for _, name in equal))

    def mute(self, value: Any, path: Path) -> tuple[Mute, ...]:
        if not isinstance(value, list):
            self.wrong(path, "must be a list, each with times, weekdays, location")
            return ()
        return tuple(self.interval(each, (*path, number)) for number, each in enumerate(value))

    def interval(self, value: Any, path: Path) -> Mute:
        keys = ("times", "weekdays", "location")
        entry = self.reading.mapping(value, path, keys, "a map with times, weekdays, location")
        times = [self.hours(text, at) for at, text in self._texts(entry, "times", path, "22:00-06:00")]
        days = [self.days(text, at) for at, text in self._texts(entry, "weekdays", path, "monday:friday")]
        zone = ZoneInfo("UTC")
        try:
            zone = ZoneInfo(str(entry.get("location", "UTC")))
        except (ZoneInfoNotFoundError, ValueError, OSError):
            self.wrong((*path, "location"), "is no time zone; write one such as Europe/Berlin")
        return Mute(
            tuple(each for both in times for each in both),
            frozenset().union(*days) if days else frozenset(),
            zone,
        )

    def _texts(self, entry: Mapping[str, Any], key: str, path: Path, what: str) -> list[tuple[Path, str]]:
        return self.reading.texts(entry[key], (*path, key), f"such as {what}") if key in entry else []

    def hours(self, text: str, path: Path) -> list[tuple[int, int]]:
        """`22:00-06:00` goes over midnight: two stretches."""
        try:
            begin, end = (_minutes(each) for each in text.split("-"))
        except ValueError:
            self.wrong(path, "must be hours such as 22:00-06:00")
            return []
        return [(begin, end)] if begin < end else [(begin, 24 * 60), (0, end)]

    def days(self, text: str, path: Path) -> frozenset[int]:
        first, _, last = text.lower().partition(":")
        last = last or first
        if first not in DAYS or last not in DAYS or DAYS.index(first) > DAYS.index(last):
            self.wrong(path, "must be a day such as monday, or days such as monday:friday")
            return frozenset()
        return frozenset(range(DAYS.index(first), DAYS.index(last) + 1))

    # Numbers

    def duration(self, entry: Mapping[str, Any], key: str, path: Path) -> int | None:
        """ns; None if it is not there, or noted as a mistake."""
        if key not in entry:
            return None
        try:
            if not isinstance(entry[key], str):
                raise ValueError("write a duration with its unit: 200ms, 10s, 5m, 2h or 7d")
            return int(seconds(entry[key]) * SECOND)
        except ValueError as error:
            self.wrong((*path, key), str(error))
            return None

    def number(self, entry: Mapping[str, Any], key: str, path: Path) -> float | None:
        found = entry.get(key)
        if key not in entry:
            return None
        if isinstance(found, bool) or not isinstance(found, int | float):
            self.wrong((*path, key), "must be a number")
            return None
        return float(found)

    def whole(self, entry: Mapping[str, Any], key: str, path: Path, least: int = 1) -> int | None:
        found = entry.get(key)
        if key not in entry:
            return None
        if isinstance(found, bool) or not isinstance(found, int) or not least <= found <= MOST:
            self.wrong((*path, key), f"must be a whole number, {least} to {MOST}")
            return None
        return found


def _minutes(text: str) -> int:
    hours, _, minutes = text.strip().partition(":")
    found = int(hours) * 60 + int(minutes)
    if not (0 <= found <= 24 * 60 and 0 <= int(minutes) < 60):
        raise ValueError(text)
    return found
