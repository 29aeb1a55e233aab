"""What a sink would send, without sending it: for `explain` and the page.  No I/O in this file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from bridge.delivery import Delivery
from bridge.errors import RenderError
from bridge.render import Template, slack_escape
from bridge.sinks.alertmanager import AlertmanagerConfig
from bridge.sinks.alertmanager.state import notified, posted, posted_once
from bridge.sinks.mqtt import MqttConfig, composer, status_topic
from bridge.sinks.registry import SinkConfig
from bridge.sinks.slack import SlackConfig
from bridge.sinks.webhook import WebhookConfig


@dataclass(frozen=True, slots=True)
class Preview:
    """One message as it would go out; *to* is where inside the sink: a topic, a channel, ''."""

    sink: str
    delivery_id: str
    to: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    error: str = ""
    """Why it could not be rendered: it would become a dead letter."""


def previews(config: SinkConfig, delivery: Delivery, hosts: Mapping[str, str]) -> Iterator[Preview]:
    """The messages that *delivery* would become at the sink of *config*."""
    try:
        yield from _rendered(config, delivery, hosts)
    except RenderError as error:
        yield Preview(delivery.sink, delivery.id, error=str(error))


def _rendered(config: SinkConfig, delivery: Delivery, hosts: Mapping[str, str]) -> Iterator[Preview]:
    sink, identifier = delivery.sink, delivery.id
    match config:
        case WebhookConfig():
            payload = config.encoder(hosts).one(delivery)
            headers = {"Content-Type": payload.content_type, **payload.headers}
            yield Preview(sink, identifier, "", headers, _text(payload.body))
        case MqttConfig():
            status = status_topic(config.status_topic, sink) if config.status_topic else None
            for message in composer(config, status, hosts)(delivery):
                yield Preview(sink, identifier, message.topic, {}, _text(message.payload))
        case SlackConfig():
            text = Template(config.text, slack_escape, labels=None).render(delivery)
            yield Preview(sink, identifier, config.channel or "", {}, text)
        case AlertmanagerConfig():
            at = int(delivery.received * 1e9)
            alerts = [posted(each, at) for each in notified(delivery)] or [posted_once(delivery, at)]
            yield Preview(sink, identifier, "", {}, _text(msgspec.json.encode(alerts)))


def _text(body: bytes) -> str:
    return body.decode(errors="replace")
