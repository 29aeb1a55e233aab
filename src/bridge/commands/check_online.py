"""`bridge check --online`: what the rules need against what the key may see, each lack with its line."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from bridge.commands.doctor_sources import auth, carried, rights_on, wants_of
from bridge.config import Config
from bridge.doctor import Finding, Want, strangers
from bridge.doctor import reach as reached
from bridge.doctor import rights as judged
from bridge.errors import Mistake, StartError
from bridge.event import Entity
from bridge.rulefile import RuleFile
from bridge.sources.discovery import discover
from bridge.sources.models import TtsSourceConfig
from bridge.sources.registry import connected
from bridge.yamltext import Path

LINT = "rights"


async def asked(config: Config, now: float | None = None) -> tuple[list[str], list[Mistake]]:
    """What the servers say of the sources, a line each, and the warnings; raises StartError.

    *now* in unix seconds.
    """
    shown: list[str] = []
    found: list[Mistake] = []
    for name, source in config.sources.items():
        if isinstance(source, TtsSourceConfig):
            await _source(config, name, source, int((now or time.time()) * 1e9), shown, found)
    return shown, found


async def _source(
    config: Config, name: str, source: TtsSourceConfig, now_ns: int, shown: list[str], found: list[Mistake]
) -> None:
    about, at = f"source {name}", ("sources", name)
    async with connected(source) as (_, api):
        key = await auth(about, api)
        if isinstance(key, Finding):
            if key.check != "key":
                raise StartError(f"{about}: {key.says}; {key.do}")
            found.append(config.mistake((*at, "api_key"), f"{key.says}; {key.do}"))
            return
        listed = await discover(api, source.scope)
        followed = sorted(listed.entities)
        for what, failed in listed.failed.items():
            found.append(config.mistake((*at, "identifiers"), f"{what} cannot be listed: {failed}"))
        granted = await rights_on(api, followed)
    shown.append(f"online: {about}: {len(followed)} entities that the key can see")
    for each in strangers(about, key.owner, followed):
        found.append(config.mistake((*at, "api_key"), f"{each.says}; {each.do}"))
    for each in judged(about, (), carried(), granted):
        if each.check == "scope":
            found.append(config.mistake((*at, "identifiers"), f"{each.says}; {each.do}"))
    kinds = {entity.kind for entity in followed}
    for file, path, want in senders(config.rule_files):
        advice = list(_lacks(about, want, granted))
        advice += [f"{each.says}; {each.do}" for each in reached(about, [want], carried(), kinds)]
        found += [file.document.mistake(path, f"{about}: {each} ({LINT})") for each in advice]


def _lacks(about: str, want: Want, granted: dict[Entity, frozenset[str]]) -> Iterator[str]:
    for each in judged(about, [want], carried(), granted):
        if each.check == "rights" and each.verdict != "ok":
            yield f"{each.says}; {each.do}"


def senders(files: Iterable[RuleFile]) -> Iterator[tuple[RuleFile, Path, Want]]:
    """Every rule and alert that does not allow the warning, with its place in its file."""
    for file in files:
        for rule in file.rules:
            if LINT not in rule.allow:
                yield file, ("rules", rule.number, "match"), _only(wants_of([rule], ()))
        for alert in file.alerts:
            yield file, ("alerts", alert.number), _only(wants_of((), [alert]))


def _only(wants: Sequence[Want]) -> Want:
    (found,) = wants
    return found
