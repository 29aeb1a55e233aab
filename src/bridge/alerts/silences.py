"""Silences, as Alertmanager has them: who is not told, until when, why.  No I/O, no clock in this file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec
import re2

from bridge.rules.names import MatchError, regex

Operator = Literal["=", "!=", "=~", "!~"]
OPERATORS: tuple[Operator, ...] = ("=~", "!~", "!=", "=")

KEEP = 5 * 86_400.0  # seconds a silence is listed after its end, as Alertmanager keeps them
MATCHERS = 20
TEXT = 1000  # characters of a matcher, an author, a comment


class LabelMatcher(msgspec.Struct, frozen=True):
    """Over the labels of an alert, `alertname` and its entity among them; a label that is not there is ''."""

    label: str
    operator: Operator
    value: str

    def holds(self, labels: Mapping[str, str]) -> bool:
        have = labels.get(self.label, "")
        if self.operator in ("=", "!="):
            return (have == self.value) == (self.operator == "=")
        return bool(re2.fullmatch(self.value, have)) == (self.operator == "=~")

    def __str__(self) -> str:
        return f"{self.label}{self.operator}{msgspec.json.encode(self.value).decode()}"


class Silence(msgspec.Struct, frozen=True):
    """Times in unix seconds."""

    id: str
    matchers: tuple[LabelMatcher, ...]
    starts: float
    ends: float
    author: str = ""
    comment: str = ""

    def holds(self, labels: Mapping[str, str], now: float) -> bool:
        return self.starts <= now < self.ends and all(each.holds(labels) for each in self.matchers)

    def state(self, now: float) -> Literal["pending", "active", "expired"]:
        if now >= self.ends:
            return "expired"
        return "active" if now >= self.starts else "pending"


def matcher(text: str) -> LabelMatcher:
    """`gateway=gw-yard`, `severity!=page`, `device=~plant-a/.*`; raises ValueError that says what to write.

    A word alone is the name of an alert.
    """
    found = [(text.find(each), -len(each), each) for each in OPERATORS if each in text]
    if not found:
        return LabelMatcher("alertname", "=", _short(text))
    at, _, operator = min(found)
    label, value = text[:at].strip(), text[at + len(operator) :].strip()
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1]
    if not label:
        raise ValueError("write a label and a value, such as gateway=gw-yard")
    if operator in ("=~", "!~"):
        try:
            regex(value)
        except MatchError as error:
            raise ValueError(f"the value of {label} {error}") from None
    return LabelMatcher("alertname" if label == "alert" else label, operator, _short(value))


def _short(text: str) -> str:
    if len(text) > TEXT:
        raise ValueError(f"a value has at most {TEXT} characters")
    return text


def checked(silence: Silence) -> Silence:
    """*silence* as it may be stored; raises ValueError that says what is wrong."""
    if not 0 < len(silence.matchers) <= MATCHERS:
        raise ValueError(f"a silence needs matchers: 1 to {MATCHERS}")
    if not silence.starts < silence.ends:
        raise ValueError("a silence has to end after it starts")
    if not (silence.starts > 0 and silence.ends < 253_402_300_800):
        raise ValueError("times are unix seconds")
    if len(silence.author) > TEXT or len(silence.comment) > TEXT or len(silence.id) > TEXT:
        raise ValueError(f"author and comment have at most {TEXT} characters")
    for each in silence.matchers:
        matcher(f"{each.label}{each.operator}{each.value}")
    return silence


def silenced_until(silences: Iterable[Silence], labels: Mapping[str, str], now: float) -> float | None:
    """When the silence that holds longest ends; None if none holds."""
    return max((each.ends for each in silences if each.holds(labels, now)), default=None)
