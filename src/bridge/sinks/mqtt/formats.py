"""From a delivery to what is published: topics, payloads, properties by the sink's format.  No I/O here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bridge.delivery import Delivery
from bridge.render import Template, home_assistant
from bridge.render import tts_v3 as tts
from bridge.render.formats import JSON, Encoder, cloudevent_attributes
from bridge.sinks.mqtt.message import Message, properties, topic_name

REMEMBERED = 20_000  # discovery messages and states, to send again when Home Assistant starts; some 15 MB

Compose: TypeAlias = Callable[[Delivery], Sequence[Message]]
"""The messages for a delivery in their order, all to be acknowledged. Raises RenderError."""


@dataclass(frozen=True, slots=True)
class Availability:
    """Of devices and gateways (`availability`)."""

    told: Callable[[Delivery], Sequence[Message]]
    """What a notification says of it; nothing for other events."""
    online: Callable[[Delivery], Message]
    """That what the delivery is about is there."""
    topic: Callable[[Delivery], str]


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a sink's messages have in common."""

    qos: int
    retain: bool
    has_properties: bool
    """MQTT 5."""
    expiry: int | None
    """Seconds."""

    def put(
        self,
        delivery: Delivery,
        topic: str,
        payload: bytes,
        content_type: str = JSON,
        *,
        also: Iterable[tuple[str, str]] = (),
        retain: bool | None = None,
    ) -> Message:
        """A message of *delivery*; *also* are further user properties. Raises RenderError for the topic."""
        packed = b""
        if self.has_properties:
            packed = properties(
                (*tags(delivery), *also), content_type=content_type, message_expiry=self.expiry
            )
        return Message(
            topic_name(topic), payload, self.qos, self.retain if retain is None else retain, packed
        )


def tags(delivery: Delivery) -> tuple[tuple[str, str], ...]:
    """The user properties of every PUBLISH: what a consumer needs to drop a repeat."""
    event = delivery.event
    return ("bridge-delivery", delivery.id), ("unique_id", event.unique_id), ("event", event.name)


def encoded(template: Template, encoder: Encoder, envelope: Envelope) -> Compose:
    """One message on the topic of the config."""

    def compose(delivery: Delivery) -> Sequence[Message]:
        payload = encoder.one(delivery)
        topic = template.render(delivery)
        return (envelope.put(delivery, topic, payload.body, payload.content_type),)

    return compose


def binary_cloudevents(template: Template, encoder: Encoder, envelope: Envelope) -> Compose:
    """The event, with the attributes as user properties (CloudEvents, MQTT protocol binding 1.0.2, §3.1)."""

    def compose(delivery: Delivery) -> Sequence[Message]:
        host = encoder.hosts.get(delivery.source, delivery.source)
        also = cloudevent_attributes(delivery, host).items()
        return (envelope.put(delivery, template.render(delivery), delivery.event.body, also=also),)

    return compose


def tts_v3(tenant: str | None, envelope: Envelope) -> Compose:
    """What The Things Stack's MQTT server publishes, on its topics."""

    def compose(delivery: Delivery) -> Sequence[Message]:
        topic, payload = tts.message(delivery.event, tenant)
        return (envelope.put(delivery, topic, payload),)

    return compose


class HomeAssistant:
    """Discovery messages where they are news, then the state; remembers both, the newest REMEMBERED.

    After a restart of bridge everything is news once; the broker has kept the discovery messages meanwhile.
    """

    def __init__(
        self,
        template: Template,
        site: home_assistant.Site,
        envelope: Envelope,
        availability: Availability | None = None,
    ) -> None:
        self._template = template
        self._availability = availability
        self._site = site
        self._envelope = envelope
        self._discovered: OrderedDict[str, Message] = OrderedDict()
        self._states: OrderedDict[str, Message] = OrderedDict()

    def __call__(self, delivery: Delivery) -> Sequence[Message]:
        about = home_assistant.report(delivery.event)
        topic = self._template.render(delivery) + (f"/{about.part}" if about.part else "")
        available = self._available(delivery, about)
        found = [self._discovery(delivery, about, entity, topic) for entity in about.entities]
        news = [message for message in (*available, *found) if not self._is_known(message)]
        return (*news, self._envelope.put(delivery, topic, home_assistant.state(about)))

    def _available(self, delivery: Delivery, about: home_assistant.Report) -> Sequence[Message]:
        """A device that is heard is there: without a first word Home Assistant would not show it."""
        if self._availability is None:
            return ()
        if about.is_uplink:
            return (self._availability.online(delivery),)
        return self._availability.told(delivery)

    def acknowledged(self, messages: Sequence[Message]) -> None:
        """Remember *messages*, which one call made."""
        *discovered, state = messages
        for message in discovered:
            _remember(self._discovered, message)
        _remember(self._states, state)

    def again(self) -> list[Message]:
        """What a Home Assistant that has just started needs to be told: all that is remembered."""
        return [*self._discovered.values(), *self._states.values()]

    def _discovery(
        self,
        delivery: Delivery,
        about: home_assistant.Report,
        entity: home_assistant.Entity,
        state_topic: str,
    ) -> Message:
        available = self._availability.topic(delivery) if self._availability and about.is_uplink else None
        topic, payload = home_assistant.discovery(about, entity, state_topic, self._site, available)
        return self._envelope.put(delivery, topic, payload, retain=True)

    def _is_known(self, message: Message) -> bool:
        known = self._discovered.get(message.topic)
        return known is not None and known.payload == message.payload


def _remember(kept: OrderedDict[str, Message], message: Message) -> None:
    kept[message.topic] = message
    kept.move_to_end(message.topic)
    if len(kept) > REMEMBERED:
        kept.popitem(last=False)
