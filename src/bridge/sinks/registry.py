"""From a sink's config to the sink."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Annotated, TypeAlias, assert_never

from pydantic import Field

from bridge.sinks import Sink
from bridge.sinks.alertmanager import EVERY, AlertmanagerConfig, open_alertmanager
from bridge.sinks.memory import Firing, Memory, unknown
from bridge.sinks.mqtt import MqttConfig, open_mqtt
from bridge.sinks.slack import SlackConfig, open_slack
from bridge.sinks.webhook import WebhookConfig, open_webhook

SinkConfig: TypeAlias = Annotated[
    WebhookConfig | MqttConfig | SlackConfig | AlertmanagerConfig, Field(discriminator="type")
]


def open_sink(
    name: str,
    config: SinkConfig,
    *,
    now: Callable[[], float],
    hosts: Mapping[str, str] | None = None,
    suffix: str = "",
    memory: Memory | None = None,
    firing: Firing = unknown,
) -> AbstractAsyncContextManager[Sink]:
    """The sink of *config*; *now* is unix seconds. Raises StartError for files it cannot use.

    *hosts* maps each source to the host of its TTS, which CloudEvents name as their source.
    A command gives a random *suffix*, for what a receiver knows the running bridge by (MQTT's client id),
    and no *memory*: what the sink has to know after a restart. *firing* says what alerts fire now.
    """
    match config:
        case WebhookConfig():
            return open_webhook(name, config, now=now, hosts=hosts)
        case MqttConfig():
            return open_mqtt(name, config, now=now, hosts=hosts, suffix=suffix)
        case SlackConfig():
            return open_slack(name, config, now=now, memory=memory)
        case AlertmanagerConfig():
            every = None if suffix else EVERY
            return open_alertmanager(name, config, now=now, memory=memory, firing=firing, every=every)
    assert_never(config)
