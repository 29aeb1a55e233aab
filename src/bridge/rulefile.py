"""Rule files: YAML text to rules, every mistake at once with its line.  No I/O in this file."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from bridge import pattern
from bridge.errors import ConfigError, Mistake
from bridge.matcher import HEX_BITS, IDENTIFIERS, Identity, Matcher, MatchError, NamePattern, identities
from bridge.pattern import Pattern, PatternError
from bridge.rules import Rule, Sample, Test
from bridge.yamltext import Document, Path
from bridge.yamltext import parse as parse_yaml

CONTENT = (
    "data",
    "origin",
    "correlation_ids",
    "authentication",
    "visibility",
    "remote_ip",
    "user_agent",
    "context",
)
"""Event fields a content pattern may stand in."""
FILE_KEYS = ("rules",)
RULE_KEYS = ("name", "match", "unless", "attach", "sample", "send", "allow", "tests", "description")
MATCH_KEYS = ("name", *IDENTIFIERS, *HEX_BITS, *CONTENT, "any")
TEST_KEYS = ("event", "event_file", "sends", "description")
MAX_NAME = 200  # characters of a rule's name, which is a metric label
MAX_DEPTH = 20  # blocks of `any` inside each other
_FRACTION = re.compile(r"([0-9]{1,9})/([0-9]{1,9})\Z")


@dataclass(frozen=True, slots=True)
class RuleFile:
    document: Document
    rules: tuple[Rule, ...]

    @property
    def file(self) -> str:
        return self.document.file


def parse(text: str, file: str, *, sinks: Collection[str]) -> RuleFile:
    """The rules of *text*; raises ConfigError with all its mistakes.

    *sinks* are the names that `send` may hold.
    """
    return read(parse_yaml(text, file, as_written), sinks=sinks)


def read(document: Document, *, sinks: Collection[str]) -> RuleFile:
    """The same of a *document* that was read with `as_written`."""
    reader = _Reader(document, sinks)
    rules = reader.file()
    if reader.mistakes:
        raise ConfigError(reader.mistakes)
    return RuleFile(document, rules)


def clashes(files: Iterable[RuleFile]) -> list[Mistake]:
    """Rules of different files that have the same name: delivery ids and metrics go by it."""
    first: dict[str, str] = {}
    found: list[Mistake] = []
    for each in files:
        for rule in each.rules:
            if first.setdefault(rule.name, each.file) != each.file:
                advice = f"this name is used in {first[rule.name]} too; rule names are unique"
                found.append(each.document.mistake(("rules", rule.number, "name"), advice))
    return found


def as_written(path: Path) -> bool:
    """Is the scalar at *path* a name, an identifier or an address, which YAML must not reinterpret?"""
    match path:
        case ("rules" | "alerts", int(), "name" | "send", *_):
            return True
        case ("rules" | "alerts", int(), "match" | "unless" | "down" | "up", *rest):
            return _in_block(rest)
        case ("rules", int(), "tests", int(), "sends" | "event_file", *_):
            return True
        case ("rules", int(), "tests", int(), "event", "name" | "time" | "unique_id" | "identifiers", *_):
            return True
    return False


def _in_block(path: Sequence[str | int]) -> bool:
    """The same inside a block, below which come more blocks of `any`."""
    while len(path) > 1 and path[0] == "any" and isinstance(path[1], int):
        path = path[2:]
    return bool(path) and (path[0] == "name" or path[0] in IDENTIFIERS or path[0] in HEX_BITS)


Values: TypeAlias = list[tuple[Path, str]]


class _Reader:
    """Reads on after a mistake, so that all of them are told."""

    def __init__(self, document: Document, sinks: Collection[str]) -> None:
        self.document = document
        self.sinks = sinks
        self.mistakes: list[Mistake] = []

    def wrong(self, path: Path, advice: str) -> None:
        self.mistakes.append(self.document.mistake(path, advice))

    def mapping(self, value: Any, path: Path, known: Sequence[str], what: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            self.wrong(path, f"must be {what}")
            return {}
        for key in value:
            if key not in known:
                self.wrong((*path, key), f"unknown key{did_you_mean(key, known)}")
        return value

    def file(self) -> tuple[Rule, ...]:
        top = self.mapping(self.document.value, (), FILE_KEYS, "a map with rules: [...]")
        entries = top.get("rules") if top else []
        if entries is None or not isinstance(entries, list):
            self.wrong(("rules",), "must be a list of rules, each beginning with - name:")
            return ()
        rules = [self.rule(entry, ("rules", number), number) for number, entry in enumerate(entries)]
        self.unique_names(rules)
        return tuple(rules)

    def unique_names(self, rules: Sequence[Rule]) -> None:
        seen: dict[str, Rule] = {}
        for rule in rules:
            first = seen.setdefault(rule.name, rule)
            if first is not rule and rule.name:
                advice = f"this name is used in line {first.line} already; rule names are unique"
                self.wrong(("rules", rule.number, "name"), advice)

    def rule(self, value: Any, path: Path, number: int) -> Rule:
        entry = self.mapping(value, path, RULE_KEYS, "a rule: a map with name, match and send")
        if isinstance(value, Mapping):
            for key in ("name", "match", "send"):
                if key not in entry:
                    advice = "is required; {} takes every event" if key == "match" else "is required"
                    self.wrong((*path, key), advice)
        unless = self.block(entry["unless"], (*path, "unless")) if "unless" in entry else None
        return Rule(
            name=self.name(entry, path),
            send=self.send(entry.get("send", ()), (*path, "send")) if "send" in entry else (),
            match=self.block(entry["match"], (*path, "match")) if "match" in entry else Matcher(),
            unless=unless,
            sample=self.sample(entry["sample"], (*path, "sample")) if "sample" in entry else None,
            attach_related=self.attach(entry["attach"], (*path, "attach")) if "attach" in entry else False,
            allow=self.allow(entry["allow"], (*path, "allow")) if "allow" in entry else {},
            tests=self.tests(entry["tests"], (*path, "tests")) if "tests" in entry else (),
            file=self.document.file,
            line=self.document.line(path),
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
        names = self.texts(value, path, "the name of a sink")
        if isinstance(value, list) and not value:
            self.wrong(path, "is empty; name the sinks this rule sends to")
        seen: Counter[str] = Counter()
        for at, name in names:
            seen[name] += 1
            if name not in self.sinks:
                self.wrong(at, f"no sink has this name{did_you_mean(name, self.sinks, list_all=True)}")
            elif seen[name] == 2:
                self.wrong(at, "this sink is listed twice; keep one")
        return tuple(name for _, name in names)

    def texts(self, value: Any, path: Path, what: str) -> Values:
        """A text, or a list of them, each with its place."""
        items = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
        found: Values = []
        for number, item in items:
            at = path if number is None else (*path, number)
            if isinstance(item, str) and item:
                found.append((at, item))
            else:
                self.wrong(at, f"must be {what}, or a list of them")
        return found

    def sample(self, value: Any, path: Path) -> Sample | None:
        found = _FRACTION.match(value) if isinstance(value, str) else None
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            self.wrong(path, "must be a fraction such as 1/10")
            return None
        return Sample(int(found[1]), int(found[2]))

    def attach(self, value: Any, path: Path) -> bool:
        if value != "related":
            self.wrong(path, "must be related")
        return True

    def allow(self, value: Any, path: Path) -> Mapping[str, str]:
        if not isinstance(value, Mapping):
            self.wrong(path, "must be a map of a warning's name to the reason it does not apply")
            return {}
        for key, reason in value.items():
            if not (isinstance(reason, str) and reason.strip()):
                self.wrong((*path, key), "needs the reason why this warning does not apply")
        return {key: str(reason) for key, reason in value.items()}

    def block(self, value: Any, path: Path, depth: int = 0) -> Matcher:
        entry = self.mapping(value, path, MATCH_KEYS, "a map such as {name: as.up.data.forward}")
        if depth > MAX_DEPTH:
            self.wrong(path, f"has any inside any more than {MAX_DEPTH} times")
            return Matcher()
        found = [self.identity(field, entry[field], (*path, field)) for field in entry if field in _IDENTITY]
        return Matcher(
            names=self.names(entry["name"], (*path, "name")) if "name" in entry else (),
            identities=tuple(field for field in found if field),
            content=self.content({key: entry[key] for key in CONTENT if key in entry}, path),
            any=self.any(entry["any"], (*path, "any"), depth + 1) if "any" in entry else (),
        )

    def any(self, value: Any, path: Path, depth: int) -> tuple[Matcher, ...]:
        if not isinstance(value, list) or not value:
            self.wrong(path, "must be a list of blocks, of which one has to match: [{...}, {...}]")
            return ()
        return tuple(self.block(each, (*path, number), depth) for number, each in enumerate(value))

    def names(self, value: Any, path: Path) -> tuple[NamePattern, ...]:
        if isinstance(value, list) and not value:
            self.wrong(path, "is empty; write the names to match, or leave the field out")
        found: list[NamePattern] = []
        for at, text in self.texts(value, path, "an event name"):
            try:
                found.append(NamePattern.compile(text))
            except MatchError as error:
                self.wrong(at, str(error))
        return tuple(found)

    def identity(self, field: str, value: Any, path: Path) -> tuple[Identity, ...]:
        if isinstance(value, list) and not value:
            self.wrong(path, "is empty; write the values to match, or leave the field out")
        texts = self.texts(value, path, "an address" if field in HEX_BITS else f"the id of a {field}")
        for at, text in texts:
            try:
                identities(field, [text])
            except MatchError as error:
                self.wrong(at, str(error))
                return ()
        return identities(field, [text for _, text in texts])

    def content(self, value: Mapping[str, Any], path: Path) -> Pattern | None:
        """Each field is compiled alone for its mistakes, and all together to be matched."""
        wrong = False
        for key in value:
            try:
                pattern.compile({key: value[key]})
            except PatternError as error:
                self.wrong((*path, *error.path), error.advice)
                wrong = True
        return pattern.compile(value) if value and not wrong else None

    def tests(self, value: Any, path: Path) -> tuple[Test, ...]:
        if not isinstance(value, list):
            self.wrong(path, "must be a list, each with event or event_file, and sends")
            return ()
        found = [self.test(each, (*path, number)) for number, each in enumerate(value)]
        return tuple(test for test in found if test is not None)

    def test(self, value: Any, path: Path) -> Test | None:
        entry = self.mapping(value, path, TEST_KEYS, "a map with event or event_file, and sends")
        if not isinstance(value, Mapping):
            return None
        before = len(self.mistakes)
        sends = self.texts(entry.get("sends"), (*path, "sends"), "the name of a sink")
        for at, name in sends:
            if name not in self.sinks:
                self.wrong(at, f"no sink has this name{did_you_mean(name, self.sinks, list_all=True)}")
        if ("event" in entry) == ("event_file" in entry):
            self.wrong(path, "needs exactly one of event and event_file")
        event = entry.get("event")
        if "event" in entry and not (isinstance(event, Mapping) and isinstance(event.get("name"), str)):
            self.wrong((*path, "event"), "must be an event: a map with at least a name")
        file, hash_, unique_id = str(entry.get("event_file", "#-")).rpartition("#")
        if "event_file" in entry and not (file and hash_ and unique_id):
            self.wrong((*path, "event_file"), "must be a file and a unique_id: recorded.sse#01M853Q2...")
        if len(self.mistakes) > before:
            return None
        names = tuple(name for _, name in sends)
        if "event" in entry:
            return Test(self.document.line(path), names, event=event)
        return Test(self.document.line(path), names, file=file, unique_id=unique_id)


_IDENTITY = {*IDENTIFIERS, *HEX_BITS}


def did_you_mean(word: str, known: Collection[str], *, list_all: bool = False) -> str:
    """The end of a message: what *word* probably was, or else all there is."""
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there is {', '.join(sorted(known)) or 'none'}" if list_all else ""
