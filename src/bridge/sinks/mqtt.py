"""The MQTT sink: one PUBLISH a delivery, counted when the broker has acknowledged it (DESIGN.md §1.4).

Under 3.1.1 a broker cannot refuse a message: what its access list denies is acknowledged and thrown away.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Literal, Protocol

import anyio
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from bridge.delivery import Delivered, Delivery, Failure, Outcome, Rejected
from bridge.errors import RenderError
from bridge.event import ApplicationIds, Event, Identifiers
from bridge.fields import Duration, Section
from bridge.render import CONTENT_TYPE, Format, Template, body, topic_level
from bridge.sinks import mqtt_address
from bridge.sinks.mqtt_client import Settings
from bridge.sinks.mqtt_connection import Connection
from bridge.sinks.mqtt_link import Link
from bridge.sinks.mqtt_message import LIMIT, Message, properties, topic_name
from bridge.sinks.settings import RetryConfig
from bridge.tls import TlsConfig, context

LATER = "is not available in this version"
ONLINE, OFFLINE = b"online", b"offline"
SAMPLE_SINK = "sink"  # what a status topic is tried with when the config is loaded
NOBODY = "\ue000"  # stands in a status topic for what there is no delivery to take from


def _broker_url(url: str) -> str:
    mqtt_address.parse(url)
    return url


def _topic(text: str) -> str:
    Template(text, topic_level)
    return text


def _status_topic(text: str) -> str:
    try:
        status_topic(text, SAMPLE_SINK)
    except RenderError as error:
        raise ValueError(f"{error}; a status topic knows only sink") from None
    return text


def _protocol(value: object) -> object:
    return 5 if value == "5" else value


class MqttConfig(Section):
    """Publishes to a broker, MQTT 5 or 3.1.1."""

    type: Literal["mqtt"]
    url: Annotated[str, AfterValidator(_broker_url)]
    """mqtt, mqtts, ws or wss."""
    username: str | None = None
    password: SecretStr | None = None
    protocol: Annotated[Literal[5, "3.1.1"], BeforeValidator(_protocol)] = 5
    client_id: Annotated[str, Field(min_length=1, max_length=LIMIT)] | None = None
    """Default: bridge-<hostname>-<sink>."""
    topic: Annotated[str, AfterValidator(_topic)] = "tts/{{ ids.path or 'none' }}/{{ event.name }}"
    status_topic: Annotated[str, AfterValidator(_status_topic)] | None = "bridge/{{ sink }}/status"
    """Retained online or offline, the latter by last will too; null for none."""
    qos: Literal[1, 0, 2] = 1
    retain: bool = False
    format: Literal[
        "event", "data", "cloudevents", "alertmanager", "tts-v3", "home-assistant", "template"
    ] = "event"
    message_expiry: Annotated[Duration, Field(ge=1, le=0xFFFFFFFF)] | None = None
    """MQTT 5: how long the broker keeps a message for those who are away."""
    max_in_flight: Annotated[int, Field(ge=1, le=1000)] = 100
    timeout: Annotated[Duration, Field(gt=0, le=600)] = 10.0
    """For one attempt: until the acknowledgement, waiting for the connection included."""
    tls: TlsConfig = TlsConfig()
    retry: RetryConfig = RetryConfig()

    @model_validator(mode="after")
    def _checked(self) -> MqttConfig:
        if self.format not in CONTENT_TYPE:
            raise ValueError(f"format: {self.format} {LATER}")
        if self.password is not None and self.username is None:
            raise ValueError("password needs a username")
        if self.message_expiry is not None and self.protocol != 5:
            raise ValueError("message_expiry needs protocol: 5")
        if self.tls != TlsConfig() and not mqtt_address.parse(self.url).is_secured:
            raise ValueError("tls needs an mqtts or wss URL")
        return self


def status_topic(text: str, sink: str) -> str:
    """*sink*'s status topic; raises RenderError, or ValueError if *text* asks for more than the sink."""
    ids = (Identifiers(application_ids=ApplicationIds(NOBODY)),)
    nothing = Delivery(0, NOBODY, Event("", "", 0, "", ids, b"{}"), NOBODY, NOBODY, sink, 1, 0.0)
    topic = topic_name(Template(text, topic_level).render(nothing))
    if NOBODY in topic:
        raise ValueError("a status topic knows only sink")
    return topic


class Composer(Protocol):
    """A format: what is published for one delivery, in this order; the last one acknowledged delivers it."""

    def __call__(self, delivery: Delivery) -> Sequence[Message]:
        """Raises RenderError."""
        ...


def one_message(config: MqttConfig) -> Composer:
    """The formats that make one message on the topic of the config."""
    template = Template(config.topic, topic_level)
    format: Format = "data" if config.format == "data" else "event"
    expiry = None if config.message_expiry is None else int(config.message_expiry)

    def compose(delivery: Delivery) -> Sequence[Message]:
        packed = b""
        if config.protocol == 5:
            packed = properties(tags(delivery), content_type=CONTENT_TYPE[format], message_expiry=expiry)
        topic = topic_name(template.render(delivery))
        return (Message(topic, body(delivery, format), config.qos, config.retain, packed),)

    return compose


def tags(delivery: Delivery) -> tuple[tuple[str, str], ...]:
    """The user properties of every PUBLISH: what a consumer needs to drop a repeat."""
    event = delivery.event
    return ("bridge-delivery", delivery.id), ("unique_id", event.unique_id), ("event", event.name)


class Mqtt:
    def __init__(self, name: str, config: MqttConfig, connection: Connection, compose: Composer) -> None:
        self.name = name
        self.max_in_flight = config.max_in_flight
        self._timeout = config.timeout
        self._connection = connection
        self.compose = compose

    async def send(self, delivery: Delivery) -> Outcome:
        try:
            messages = self.compose(delivery)
        except RenderError as error:
            return Rejected(Failure("template", str(error)))
        began = anyio.current_time()
        with anyio.move_on_after(self._timeout):
            return await self._published(messages)
        return self._connection.late(began)

    async def _published(self, messages: Sequence[Message]) -> Outcome:
        outcome: Outcome = Delivered()
        for message in messages:
            outcome = await self._acknowledged(message)
            if not isinstance(outcome, Delivered):
                break
        return outcome

    async def _acknowledged(self, message: Message) -> Outcome:
        while True:
            link = await self._connection.link()
            if not isinstance(link, Link):
                return link
            outcome = await link.publish(message)
            if outcome is not None:
                return outcome


def settings(name: str, config: MqttConfig, client_id: str, will: Message | None) -> Settings:
    """How to connect as *client_id*; raises StartError for a certificate that cannot be used."""
    address = mqtt_address.parse(config.url)
    return Settings(
        address=address,
        tls=context(config.tls) if address.is_secured else None,
        protocol=config.protocol,
        client_id=client_id,
        username=config.username,
        password=config.password.get_secret_value() if config.password else None,
        will=will,
        timeout=config.timeout,
        qos=config.qos,
        retain=config.retain,
    )


@asynccontextmanager
async def open_mqtt(
    name: str,
    config: MqttConfig,
    *,
    now: Callable[[], float],
    suffix: str = "",
    chance: Callable[[], float] = random.random,
) -> AsyncIterator[Mqtt]:
    """The sink of *config*; raises StartError for a certificate that cannot be used.

    A command that runs beside the bridge gives a random *suffix*: it must not take over the bridge's session,
    and leaves its status alone. *chance* is uniform in [0, 1). Needs asyncio.
    """
    client_id = config.client_id or f"bridge-{socket.gethostname()}-{name}"
    online = offline = None
    if config.status_topic and not suffix:
        topic = status_topic(config.status_topic, name)
        packed = properties(()) if config.protocol == 5 else b""
        online = Message(topic, ONLINE, config.qos, True, packed)
        offline = Message(topic, OFFLINE, config.qos, True, packed)
    connection = Connection(
        name,
        settings(name, config, f"{client_id}-{suffix}" if suffix else client_id, offline),
        online=online,
        offline=offline,
        chance=chance,
    )
    running = asyncio.create_task(connection.run())  # no task group: it would wrap what the caller raises
    try:
        yield Mqtt(name, config, connection, one_message(config))
    finally:
        with anyio.CancelScope(shield=True):
            await connection.close()
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
