"""`bridge check`: everything loaded, every mistake printed, or what would run."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Annotated
from urllib.parse import urlsplit

import typer

from bridge.advice import warnings
from bridge.commands.check_online import asked
from bridge.commands.terminal import NOT_SO, WRONG, ConfigOption, fail, loaded, print_lines, run_async
from bridge.config import Config
from bridge.doctor import listing
from bridge.errors import ConfigError, Mistake
from bridge.event import KINDS
from bridge.sinks.guard import blocked, openable, policy
from bridge.sinks.registry import SinkConfig
from bridge.sinks.slack import SlackConfig
from bridge.sinks.webhook import WebhookConfig
from bridge.sources.models import ALL, TtsSourceConfig
from bridge.sources.plan import group_size, grouped


def check(
    config: ConfigOption = None,
    no_secrets: Annotated[
        bool, typer.Option("--no-secrets", help="Put a placeholder for every secret: for CI.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Take warnings for mistakes.")] = False,
    online: Annotated[
        bool, typer.Option("--online", help="Ask the servers too: does the key see what the rules need?")
    ] = False,
) -> None:
    """Print every mistake with its line, or what would run.

    Loads the config, the rules, the templates; warns of what is allowed and yet probably wrong.
    """
    if online and no_secrets:
        fail(["--online needs the keys that --no-secrets leaves out"], WRONG)
    found = loaded(config, no_secrets=no_secrets)
    doubtful = warnings(found)
    said, lacking = run_async(asked, found) if online else ([], [])
    doubtful += lacking
    if strict and doubtful:
        raise ConfigError(doubtful)
    print_lines([*summary(found), *said])
    print_lines(f"warning: {each}" for each in doubtful)
    refused = [] if no_secrets else list(refused_addresses(found))
    if refused:
        fail(refused, NOT_SO)


def summary(config: Config) -> Iterator[str]:
    """What `run` would run, a line each."""
    for name, source in config.sources.items():
        yield f"source {name}: {source.type}"
        if isinstance(source, TtsSourceConfig):
            yield from streams(source)
    for name, sink in config.sinks.items():
        yield f"sink {name}: {sink.type}{unconfirmed(sink)}"
    for rule in config.rule_set.rules:
        yield f"rule {rule.name}: to {', '.join(rule.send) or 'nothing'}"
    names = config.names()
    yield f"asked of the server: {', '.join(names) if names else 'every event name'}"


def streams(source: TtsSourceConfig) -> Iterator[str]:
    """The streams it will open, as far as no server has to be asked."""
    named = source.entities
    times = f", {source.redundancy} times" if source.redundancy > 1 else ""
    for each in grouped(named, group_size(len(named), None, source.recycle)):
        yield f"  stream of {listing(map(str, each))}{times}"
    kinds = [f"every {kind}" for kind in KINDS if kind in source.scope.kinds]
    devices = [
        "the devices of every application" if each == ALL else f"the devices of {each}"
        for each in sorted(source.scope.devices_of)
    ]
    if kinds or devices:
        yield f"  streams of what the server lists: {', '.join([*kinds, *devices])}{times}"


def unconfirmed(sink: SinkConfig) -> str:
    """A warning where a delivery counts as soon as its bytes are written (DESIGN.md §1.4)."""
    if sink.type == "mqtt" and sink.qos == 0:
        return ", qos 0: delivered means written, nothing confirms it"
    return ""


def refused_addresses(config: Config) -> Iterator[Mistake]:
    """What the guard would refuse today, with the line that opens it (DESIGN.md §2.6)."""
    for name, sink in config.sinks.items():
        if isinstance(sink, WebhookConfig) and sink.proxy is None:
            key, url = "url", sink.url
        elif isinstance(sink, SlackConfig) and sink.proxy is None and sink.api_url:
            key, url = "api_url", sink.api_url
        else:
            continue
        host = urlsplit(url).hostname or ""
        opened = policy(sink.allow_private_networks, sink.allow_networks)
        for address in sorted(addresses(host)):
            why = blocked(address, opened, host)
            if why:
                opens = f'"{host}"' if ":" in host else host
                line = f"add allow_networks: [{opens}]" if openable(why) else "no key opens it"
                advice = f"the guard refuses its address: {why}; {line}"
                yield config.mistake(("sinks", name, key), advice)


def addresses(host: str) -> set[str]:
    """What *host* resolves to now; nothing if it does not."""
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    except OSError:
        return set()
