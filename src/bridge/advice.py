"""What a config may say and yet probably does not mean: the warnings of `check` and at every load."""

from __future__ import annotations

from collections.abc import Collection

from bridge.config import Config
from bridge.errors import Mistake
from bridge.lint import lint, unused_sinks
from bridge.shared import catalogue
from bridge.sinks.mqtt import MqttConfig
from bridge.sources.models import TtsSourceConfig
from bridge.tryout import findings


def warnings(config: Config) -> list[Mistake]:
    """All that needs no server, a line each; `check --strict` takes them for mistakes."""
    found = lint(config.rule_files, catalogue(), followed=followed(config))
    advice = "no rule sends to it; remove it, or name it in a rule's send"
    places = {name: config.mistake(("sinks", name), advice) for name in config.sinks}
    return [*found, *unused_sinks(config.rule_files, places), *untried(config), *contended(config)]


def contended(config: Config) -> list[Mistake]:
    """Client ids that all replicas would have."""
    if config.nats is None:
        return []
    advice = "replicas with one client id throw each other off the broker; leave it out"
    given = [name for name, each in config.sinks.items() if isinstance(each, MqttConfig) and each.client_id]
    return [config.mistake(("sinks", name, "client_id"), advice) for name in given]


def untried(config: Config) -> list[Mistake]:
    """Templates that fail on a sample of an event some rule sends to their sink."""
    alerts = [alert for each in config.rule_files for alert in each.alerts]
    return [
        config.mistake(("sinks", each.sink, each.key), f"{each.advice} (template)")
        for each in findings(config.sinks, config.rule_set.rules, catalogue(), alerts)
    ]


def followed(config: Config) -> Collection[str]:
    """The kinds of entities whose streams are followed; empty if other sources bring who knows what."""
    sources = config.sources.values()
    if not all(isinstance(source, TtsSourceConfig) for source in sources):
        return ()
    kinds: set[str] = set()
    for source in sources:
        for each in source.identifiers if isinstance(source, TtsSourceConfig) else ():
            kinds |= {each.kind, *(["device"] if each.devices else [])}
    return kinds
