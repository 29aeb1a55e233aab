"""Rule files: YAML text to rules, every mistake at once with its line.  No I/O in this file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bridge.alerts import Alert
from bridge.alerts.file import AlertReader
from bridge.errors import ConfigError, Mistake
from bridge.reading import Reading, did_you_mean
from bridge.rules import LINTS, Example, Rule, Sample
from bridge.rules.matcher import Matcher
from bridge.rules.matchfile import block, is_as_written
from bridge.yamltext import Document, Path, anew
from bridge.yamltext import parse as parse_yaml

FILE_KEYS = ("rules", "alerts")
RULE_KEYS = ("name", "match", "unless", "attach", "sample", "send", "allow", "tests", "description")
TEST_KEYS = ("event", "event_file", "sends", "description")
MAX_NAME = 200  # characters of a rule's name, which is a metric label
ALL_APPLY: Mapping[str, str] = {}
_FRACTION = re.compile(r"([0-9]{1,9})/([0-9]{1,9})\Z")


@dataclass(frozen=True, slots=True)
class RuleFile:
    document: Document
    rules: tuple[Rule, ...]
    alerts: tuple[Alert, ...] = ()

    @property
    def file(self) -> str:
        return self.document.file


def parse(text: str, file: str, *, sinks: Collection[str] | None) -> RuleFile:
    """The rules of *text*; raises ConfigError with all its mistakes.

    *sinks* are the names that `send` may hold; None if any will do.
    """
    return read(parse_yaml(text, file, as_written), sinks=sinks)


def read(document: Document, *, sinks: Collection[str] | None) -> RuleFile:
    """The same of a *document* that was read with `as_written`."""
    reader = _Reader(Reading(document), sinks)
    rules, alerts = reader.file()
    if reader.reading.mistakes:
        raise ConfigError(reader.reading.mistakes)
    return RuleFile(document, rules, alerts)


def clashes(files: Iterable[RuleFile]) -> list[Mistake]:
    """Rules and alerts of different files with the same name: delivery ids and metrics go by it.

    And alerts that are kept back by one that is in no file.
    """
    first: dict[str, str] = {}
    found: list[Mistake] = []
    files = list(files)
    for each in files:
        for section, entry in _entries(each):
            if first.setdefault(entry.name, each.file) != each.file:
                kind = "rule names" if section == "rules" else "names of rules and alerts"
                advice = f"this name is used in {first[entry.name]} too; {kind} are unique"
                found.append(each.document.mistake((section, entry.number, "name"), advice))
    alerts = {alert.name for each in files for alert in each.alerts}
    for each in files:
        for alert in each.alerts:
            if any(inhibitor.alert not in alerts for inhibitor in alert.inhibitors):
                advice = f"no alert has this name; there is {', '.join(sorted(alerts))}"
                found.append(each.document.mistake(("alerts", alert.number, "inhibited_by"), advice))
    return found


def _entries(file: RuleFile) -> Iterator[tuple[str, Rule | Alert]]:
    for rule in file.rules:
        yield "rules", rule
    for alert in file.alerts:
        yield "alerts", alert


def as_written(path: Path) -> bool:
    """Is the scalar at *path* a name, an identifier or an address, which YAML must not reinterpret?"""
    match path:
        case ("rules" | "alerts", int(), "name" | "send", *_):
            return True
        case ("rules" | "alerts", int(), "match" | "unless" | "down" | "up" | "of", *rest):
            return is_as_written(rest)
        case ("alerts", int(), "by" | "labels" | "group_by" | "escalate_to" | "inhibited_by" | "summary", *_):
            return True
        case ("alerts", int(), "tests", int(), "notifies", int(), "key" | "sends" | "status", *_):
            return True
        case ("alerts", int(), "tests", int(), "events", int(), "event", *rest):
            return rest[:1] in (["name"], ["time"], ["unique_id"], ["identifiers"])
        case ("rules", int(), "tests", int(), "sends" | "event_file", *_):
            return True
        case ("rules", int(), "tests", int(), "event", "name" | "time" | "unique_id" | "identifiers", *_):
            return True
    return False


class _Reader:
    def __init__(self, reading: Reading, sinks: Collection[str] | None) -> None:
        self.reading = reading
        self.sinks = sinks
        self.texts: dict[str, str] = {}

    def wrong(self, path: Path, advice: str) -> None:
        self.reading.wrong(path, advice)

    def file(self) -> tuple[tuple[Rule, ...], tuple[Alert, ...]]:
        top = self.reading.mapping(self.reading.document.value, (), FILE_KEYS, "a map with rules: [...]")
        reader = AlertReader(self.reading, self.sinks)
        rules = [self.rule(each, ("rules", number), number) for number, each in self.entries(top, "rules")]
        alerts = [
            reader.alert(each, ("alerts", number), number) for number, each in self.entries(top, "alerts")
        ]
        for number, each in self.entries(top, "alerts"):
            if isinstance(each, Mapping) and "name" in each:
                self.name(each, ("alerts", number))
        self.unique_names(top)
        return tuple(rules), tuple(each for each in alerts if each is not None)

    def entries(self, top: Mapping[str, Any], section: str) -> Iterator[tuple[int, Any]]:
        may_lack = section == "alerts" or "alerts" in top or not top
        found = top.get(section, [] if may_lack else None)
        if not isinstance(found, list):
            self.wrong((section,), f"must be a list of {section}, each beginning with - name:")
            return iter(())
        return ((number, anew(each, self.texts)) for number, each in enumerate(found))

    def unique_names(self, top: Mapping[str, Any]) -> None:
        """Of rules and alerts together."""
        seen: dict[str, int] = {}
        for section in ("rules", "alerts"):
            found = top.get(section)
            for number, entry in enumerate(found if isinstance(found, list) else []):
                name = entry.get("name") if isinstance(entry, Mapping) else None
                if not (isinstance(name, str) and name):
                    continue
                line = self.reading.document.line((section, number))
                if seen.setdefault(name, line) != line:
                    kind = "rule names" if section == "rules" else "names of rules and alerts"
                    self.wrong(
                        (section, number, "name"),
                        f"this name is used in line {seen[name]} already; {kind} are unique",
                    )

    def rule(self, value: Any, path: Path, number: int) -> Rule:
        entry = self.reading.mapping(value, path, RULE_KEYS, "a rule: a map with name, match and send")
        if isinstance(value, Mapping):
            for key in ("name", "match", "send"):
                if key not in entry:
                    advice = "is required; {} takes every event" if key == "match" else "is required"
                    self.wrong((*path, key), advice)
        unless = block(self.reading, entry["unless"], (*path, "unless")) if "unless" in entry else None
        return Rule(
            name=self.name(entry, path),
            send=self.send(entry.get("send", ()), (*path, "send")) if "send" in entry else (),
            match=block(self.reading, entry["match"], (*path, "match")) if "match" in entry else Matcher(),
            unless=unless,
            sample=self.sample(entry["sample"], (*path, "sample")) if "sample" in entry else None,
            attach_related=self.attach(entry["attach"], (*path, "attach")) if "attach" in entry else False,
            allow=self.reading.allowed(entry["allow"], (*path, "allow"), LINTS)
            if "allow" in entry
            else ALL_APPLY,
            tests=self.tests(entry["tests"], (*path, "tests")) if "tests" in entry else (),
            file=self.reading.document.file,
            line=self.reading.document.line(path),
            number=number,
        )

    def name(self, entry: Mapping[str, Any], path: Path) -> str:
        name = entry.get("name", "")
        if "name" in entry and not (isinstance(name, str) and name.strip() == name and name):
            self.wrong((*path, "name"), "must be a word, such as uplinks-to-broker")
            return ""
        if len(name) > MAX_NAME or not name.isprintable():
            self.wrong((*path, "name"), f"must be printable and at most {MAX_NAME} characters long")
        return str(name)

    def send(self, value: Any, path: Path) -> tuple[str, ...]:
        names = self.reading.texts(value, path, "the name of a sink")
        if isinstance(value, list) and not value:
            self.wrong(path, "is empty; name the sinks this rule sends to")
        seen: Counter[str] = Counter()
        for at, name in names:
            seen[name] += 1
            if self.is_sink(at, name) and seen[name] == 2:
                self.wrong(at, "this sink is listed twice; keep one")
        return tuple(name for _, name in names)

    def is_sink(self, path: Path, name: str) -> bool:
        if self.sinks is None or name in self.sinks:
            return True
        hint = did_you_mean(name, self.sinks) or f"; there is {', '.join(sorted(self.sinks)) or 'none'}"
        self.wrong(path, f"no sink has this name{hint}")
        return False

    def sample(self, value: Any, path: Path) -> Sample | None:
        found = _FRACTION.match(value) if isinstance(value, str) else None
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            self.wrong(path, "must be a fraction such as 1/10")
            return None
        return Sample(int(found[1]), int(found[2]))

    def allow(self, value: Any, path: Path) -> Mapping[str, str]:
        return self.reading.allowed(value, path, LINTS)

    def attach(self, value: Any, path: Path) -> bool:
        if value != "related":
            self.wrong(path, "must be related")
        return True

    def tests(self, value: Any, path: Path) -> tuple[Example, ...]:
        if not isinstance(value, list):
            self.wrong(path, "must be a list, each with event or event_file, and sends")
            return ()
        found = [self.test(each, (*path, number)) for number, each in enumerate(value)]
        return tuple(test for test in found if test is not None)

    def test(self, value: Any, path: Path) -> Example | None:
        entry = self.reading.mapping(value, path, TEST_KEYS, "a map with event or event_file, and sends")
        if not isinstance(value, Mapping):
            return None
        before = len(self.reading.mistakes)
        if "sends" not in entry:
            self.wrong((*path, "sends"), "is required; [] if the rule must not match")
        sends = self.reading.texts(entry.get("sends", []), (*path, "sends"), "the name of a sink")
        for at, name in sends:
            self.is_sink(at, name)
        if ("event" in entry) == ("event_file" in entry):
            self.wrong(path, "needs exactly one of event and event_file")
        event = entry.get("event")
        if "event" in entry and not (isinstance(event, Mapping) and isinstance(event.get("name"), str)):
            self.wrong((*path, "event"), "must be an event: a map with at least a name")
        file, hash_, unique_id = str(entry.get("event_file", "#-")).rpartition("#")
        if "event_file" in entry and not (file and hash_ and unique_id):
            self.wrong((*path, "event_file"), "must be a file and a unique_id: recorded.sse#01M853Q2...")
        if len(self.reading.mistakes) > before:
            return None
        names, line = tuple(name for _, name in sends), self.reading.document.line(path)
        about = str(entry.get("description") or "")
        if "event" in entry:
            return Example(line, names, about, event=event)
        return Example(line, names, about, file=file, unique_id=unique_id)
