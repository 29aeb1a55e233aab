"""Every template of the config tried against every event that rules can send to its sink.

No I/O, no clock, no logging in this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from bridge.alerts import Alert
from bridge.catalogue import Catalogue
from bridge.render import ALERTS, Template
from bridge.render.samples import Problem, problem
from bridge.rules import Rule

KEYS = ("text", "template", "topic")
"""The keys of sinks that hold a template of events."""

FIRING = f"{ALERTS}firing"
SHOWN = 3  # names of events in one message


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with the template at *sink* *key*, for what *sender*, a rule or an alert, sends there.

    *sometimes*: only where The Things Stack left out a zero, so it is a warning.
    """

    sink: str
    key: str
    sender: str
    """Such as `rule uplinks`."""
    problems: tuple[Problem, ...]
    sometimes: bool

    @property
    def advice(self) -> str:
        first = self.problems[0]
        names = ", ".join(each.name for each in self.problems[:SHOWN])
        more = f" and {len(self.problems) - SHOWN} more" if len(self.problems) > SHOWN else ""
        when = " when it is left out for being zero; add | default(0)" if self.sometimes else ""
        error = first.error.removeprefix("template: ")
        return f"{self.sender} sends {names}{more}, and there {error}{when}"


def findings(
    sinks: Mapping[str, BaseModel],
    rules: Sequence[Rule],
    catalogue: Catalogue,
    alerts: Iterable[Alert] = (),
) -> Iterator[Finding]:
    """What goes wrong with the templates that *sinks* set themselves; a sender and template at most once.

    A rule that allows `template` is passed over.
    """
    alerts = tuple(alerts)
    for sink, config in sinks.items():
        for key, template in templates(config):
            tried: dict[str, Problem | None] = {}
            for rule in rules:
                if sink in rule.send and "template" not in rule.allow:
                    found = _tried(template, rule, catalogue, tried)
                    for sometimes in (False, True):
                        some = tuple(each for each in found if each.sometimes is sometimes)
                        if some:
                            yield Finding(sink, key, f"rule {rule.name}", some, sometimes)
            yield from _told(sink, key, template, alerts, catalogue)


def _told(
    sink: str, key: str, template: Template, alerts: Iterable[Alert], catalogue: Catalogue
) -> Iterator[Finding]:
    """What goes wrong with notifications."""
    for alert in alerts:
        if "template" in alert.allow:
            continue
        found = problem(template, FIRING, catalogue, alert.label_names()) if sink in alert.send else None
        if found:
            yield Finding(sink, key, f"alert {alert.name}", (found,), found.sometimes)


def templates(config: BaseModel) -> Iterator[tuple[str, Template]]:
    for key in KEYS:
        text: Any = getattr(config, key, None)
        if key in config.model_fields_set and isinstance(text, str):
            yield key, Template(text, labels=None)


def _tried(
    template: Template, rule: Rule, catalogue: Catalogue, tried: dict[str, Problem | None]
) -> list[Problem]:
    """The problems of events that *rule* can match; with content patterns only if none of them is without."""
    names = list(possible(rule, catalogue))
    for name in names:
        if name not in tried:
            tried[name] = problem(template, name, catalogue)
    found = [each for name in names if (each := tried[name])]
    narrowed = any(block.content for block in rule.match.blocks())
    hard = [each for each in found if not each.sometimes]
    return found if not narrowed or len(hard) == len(names) else [each for each in found if each.sometimes]


def possible(rule: Rule, catalogue: Catalogue) -> Iterable[str]:
    """Names the sources of The Things Stack know and *rule* can match, and those it spells out itself."""
    exact = [pattern.text for pattern in rule.match.name_patterns() if pattern.exact]
    known = (name for name in catalogue.names if rule.match.may_be_named(name))
    return dict.fromkeys((*known, *exact))
