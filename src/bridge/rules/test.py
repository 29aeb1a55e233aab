"""The `tests:` of rule files: run, and told as lines or JUnit XML.  No I/O, no clock in this file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol
from xml.etree import ElementTree  # only ever written

from bridge.errors import FrameError
from bridge.event import Event
from bridge.rules import Example, Rule
from bridge.rules.explain import event_of
from bridge.rules.matcher import Subject, Wide, never


@dataclass(frozen=True, slots=True)
class Result:
    """One test that was run; *number* from 1."""

    rule: Rule
    test: Example
    number: int
    sent: tuple[str, ...] = ()
    """What the rule sends, other rules aside."""
    why: str | None = None
    """Why it sends nothing."""
    error: str | None = None
    """Why there was no event to judge."""

    @property
    def passed(self) -> bool:
        return self.error is None and sorted(self.sent) == sorted(self.test.sends)

    @property
    def file(self) -> str:
        return self.rule.file

    @property
    def line(self) -> int:
        return self.test.line

    def lines(self) -> Iterator[str]:
        return difference(self)

    @property
    def title(self) -> str:
        about = f" ({self.test.description})" if self.test.description else ""
        return f"{self.rule.name}, test {self.number}{about}"


class Tested(Protocol):
    """The result of a test, of a rule or an alert: what a report needs of it."""

    @property
    def file(self) -> str: ...

    @property
    def line(self) -> int: ...

    @property
    def title(self) -> str: ...

    @property
    def passed(self) -> bool: ...

    @property
    def error(self) -> str | None: ...

    def lines(self) -> Iterator[str]:
        """The lines that tell of a failure."""
        ...


Recorded = Callable[[Rule, Example], Event]
"""The event a test names by file and unique_id; raises FrameError that says what is missing."""


def run(rules: Iterable[Rule], recorded: Recorded, wide: Wide = never) -> Iterator[Result]:
    """The result of each test of *rules*."""
    for rule in rules:
        for number, test in enumerate(rule.tests, 1):
            try:
                event = event_of(test.event) if test.event is not None else recorded(rule, test)
            except FrameError as error:
                yield Result(rule, test, number, error=str(error))
                continue
            why = rule.mismatch(Subject(event, wide=wide))
            sent = rule.send if why is None else ()
            yield Result(rule, test, number, sent, None if why is None else str(why))


def difference(result: Result) -> Iterator[str]:
    """The lines that tell of a failure, as a diff of what was expected and what is sent."""
    yield f"{result.rule.file}:{result.test.line}: {result.title}"
    if result.error is not None:
        yield f"  {result.error}"
        return
    for sink in dict.fromkeys([*result.test.sends, *result.sent]):
        sign = (
            " " if sink in result.sent and sink in result.test.sends else "+" if sink in result.sent else "-"
        )
        yield f"  {sign} {sink}"
    if result.why is not None:
        yield f"  because {result.why}"
    elif not result.test.sends:
        yield "  because all of it matches"


def summary(results: Sequence[Tested]) -> str:
    failed = sum(not result.passed for result in results)
    return f"{len(results) - failed} passed, {failed} failed"


def junit(results: Sequence[Tested]) -> str:
    """*results* as JUnit XML, one suite a rule file."""
    root = ElementTree.Element("testsuites", _counts(results))
    for file in dict.fromkeys(result.file for result in results):
        of_file = [result for result in results if result.file == file]
        suite = ElementTree.SubElement(root, "testsuite", {"name": file, **_counts(of_file)})
        for result in of_file:
            place = {"file": file, "line": str(result.line)}
            case = ElementTree.SubElement(
                suite, "testcase", {"classname": file, "name": _clean(result.title), **place}
            )
            if not result.passed:
                first, *rest = result.lines()
                kind = "failure" if result.error is None else "error"
                ElementTree.SubElement(case, kind, {"message": _clean(first)}).text = _clean("\n".join(rest))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _counts(results: Sequence[Tested]) -> dict[str, str]:
    errors = sum(result.error is not None for result in results)
    failures = sum(not result.passed for result in results) - errors
    return {"tests": str(len(results)), "failures": str(failures), "errors": str(errors)}


def _clean(text: str) -> str:
    """*text* without what XML cannot hold (XML 1.0 §2.2)."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
