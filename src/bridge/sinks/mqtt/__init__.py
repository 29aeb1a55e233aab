"""The MQTT sink: a delivery is done when the broker has acknowledged what was published (DESIGN.md §1.4).

Under 3.1.1 a broker cannot refuse a message: what its access list denies is acknowledged and thrown away.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Annotated, Literal

import anyio
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from bridge.delivery import Delivered, Delivery, Failure, Outcome, Pause, Rejected
from bridge.errors import RenderError
from bridge.event import ApplicationIds, Event, Identifiers
from bridge.fields import Duration, Section
from bridge.render import Template
from bridge.render.filters import topic_level
from bridge.render.formats import Encoder
from bridge.render.home_assistant import Site
from bridge.sinks.mqtt import address, formats
from bridge.sinks.mqtt.availability import OFFLINE, ONLINE, availability, beside
from bridge.sinks.mqtt.client import Settings
from bridge.sinks.mqtt.connection import Connection
from bridge.sinks.mqtt.formats import Availability, Compose, Envelope, HomeAssistant
from bridge.sinks.mqtt.link import Link
from bridge.sinks.mqtt.message import LIMIT, Message, properties, topic_name
from bridge.sinks.mqtt.overdue import Overdue
from bridge.sinks.settings import RetryConfig
from bridge.tls import TlsConfig, context

HOME_TOPIC = "tts/{{ ids.path or 'none' }}/state"
"""Default for Home Assistant: its entities have one topic, whatever the event was."""
BIRTH_SPREAD = 3.0  # seconds at most before everything is told again: Home Assistant asks for a random delay
AGAIN_AT_ONCE = 10  # messages, so that deliveries go on between them
SAMPLE_SINK = "sink"  # what a status topic is tried with when the config is loaded
NOBODY = "\ue000"  # stands in a status topic for what there is no delivery to take from
OWN_TOPICS = frozenset({"tts-v3"})


def _broker_url(url: str) -> str:
    address.parse(url)
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


def _availability_topic(text: str) -> str:
    if "ids" not in Template(text, topic_level).uses:
        raise ValueError("name the device or gateway: such as bridge/availability/{{ ids.path }}")
    return text


def _protocol(value: object) -> object:
    return 5 if value == "5" else value


def _prefix(text: str) -> str:
    try:
        return topic_name(text)
    except RenderError as error:
        raise ValueError(str(error)) from None


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
    availability_topic: Annotated[str, AfterValidator(_availability_topic)] | None = None
    """Retained online or offline for each device and gateway, by the alerts of kind state and absent that are
    sent here; such as bridge/availability/{{ ids.path }}. null for none."""
    qos: Literal[1, 0, 2] = 1
    retain: bool = False
    format: Literal[
        "event", "data", "cloudevents", "alertmanager", "tts-v3", "home-assistant", "template"
    ] = "event"
    cloudevents: Literal["structured", "binary"] = "structured"
    """With format: cloudevents."""
    template: str | None = None
    """With format: template."""
    content_type: str | None = None
    """MQTT 5; instead of the format's own."""
    tenant: str | None = None
    """With format: tts-v3: topics have application@tenant, as on The Things Stack Cloud."""
    discovery_prefix: Annotated[str, AfterValidator(_prefix)] = "homeassistant"
    """With format: home-assistant."""
    message_expiry: Annotated[Duration, Field(ge=1, le=0xFFFFFFFF)] | None = None
    """MQTT 5: how long the broker keeps a message for those who are away."""
    max_in_flight: Annotated[int, Field(ge=1, le=1000)] = 100
    timeout: Annotated[Duration, Field(gt=0, le=600)] = 10.0
    """For one attempt: until the acknowledgement, waiting for the connection included."""
    order: Literal["none", "entity"] = "none"
    """entity: one at a time for each device or gateway, in the order received; retries do not overtake."""
    tls: TlsConfig = TlsConfig()
    retry: RetryConfig = RetryConfig()

    @model_validator(mode="after")
    def _checked(self) -> MqttConfig:
        if self.password is not None and self.username is None:
            raise ValueError("password needs a username")
        if self.message_expiry is not None and self.protocol != 5:
            raise ValueError("message_expiry needs protocol: 5")
        if self.tls != TlsConfig() and not address.parse(self.url).is_secured:
            raise ValueError("tls needs an mqtts or wss URL")
        self._check_format()
        return self

    def _check_format(self) -> None:
        if (self.format == "template") != (self.template is not None):
            raise ValueError("template: goes with format: template, and that with it")
        if self.cloudevents == "binary" and (self.format != "cloudevents" or self.protocol != 5):
            raise ValueError("cloudevents: binary goes with format: cloudevents and protocol: 5")
        if self.tenant is not None and self.format != "tts-v3":
            raise ValueError("tenant goes with format: tts-v3")
        if self.format in OWN_TOPICS and "topic" in self.model_fields_set:
            raise ValueError(f"topic: format: {self.format} has topics of its own; leave it out")
        if self.template is not None:
            Template(self.template)

    def encoder(self, hosts: Mapping[str, str]) -> Encoder:
        """How bodies are made; *hosts* maps a source to its TTS host."""
        template = None if self.template is None else Template(self.template, labels=None)
        format = "event" if self.format == "home-assistant" else self.format
        return Encoder(format, self.cloudevents == "binary", template, self.content_type, hosts)


def status_topic(text: str, sink: str) -> str:
    """*sink*'s status topic; raises RenderError, or ValueError if *text* asks for more than the sink."""
    ids = (Identifiers(application_ids=ApplicationIds(NOBODY)),)
    nothing = Delivery(0, NOBODY, Event(NOBODY, "", 0, "", ids, b"{}"), NOBODY, NOBODY, sink, 1, 0.0)
    topic = topic_name(Template(text, topic_level).render(nothing))
    if NOBODY in topic:
        raise ValueError("a status topic knows only sink")
    return topic


def composer(config: MqttConfig, status: str | None, hosts: Mapping[str, str]) -> Compose:
    """How *config* makes messages of deliveries; *status* is the topic of the bridge's status."""
    expiry = None if config.message_expiry is None else int(config.message_expiry)
    envelope = Envelope(config.qos, config.retain, config.protocol == 5, expiry)
    if config.availability_topic is None:
        return _composer(config, status, hosts, envelope, None)
    also = availability(Template(config.availability_topic, topic_level, labels=None), envelope)
    compose = _composer(config, status, hosts, envelope, also)
    is_told = isinstance(compose, HomeAssistant)
    return compose if is_told else beside(compose, also, alone=config.format in OWN_TOPICS)


def _composer(
    config: MqttConfig,
    status: str | None,
    hosts: Mapping[str, str],
    envelope: Envelope,
    also: Availability | None,
) -> Compose:
    if config.format == "tts-v3":
        return formats.tts_v3(config.tenant, envelope)
    if config.format == "home-assistant":
        text = config.topic if "topic" in config.model_fields_set else HOME_TOPIC
        site = Site(config.discovery_prefix, status, version("tts-event-bridge"))
        return HomeAssistant(Template(text, topic_level, labels=None), site, envelope, also)
    template = Template(config.topic, topic_level, labels=None)
    if config.cloudevents == "binary":
        return formats.binary_cloudevents(template, config.encoder(hosts), envelope)
    return formats.encoded(template, config.encoder(hosts), envelope)


class Mqtt:
    def __init__(self, name: str, config: MqttConfig, connection: Connection, compose: Compose) -> None:
        self.name = name
        self.max_in_flight = config.max_in_flight
        self.compose = compose
        self._timeout = config.timeout
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._overdue = Overdue()

    async def send(self, delivery: Delivery) -> Outcome:
        try:
            messages = self.compose(delivery)
        except RenderError as error:
            return Rejected(Failure("template", str(error)))
        began = self._loop.time()
        try:
            outcome = await self._published(messages, began + self._timeout)
        except TimeoutError:
            return self._connection.late(began)
        if isinstance(outcome, Delivered) and isinstance(self.compose, HomeAssistant):
            self.compose.acknowledged(messages)
        return outcome

    async def _published(self, messages: Sequence[Message], deadline: float) -> Outcome:
        outcome: Outcome = Delivered()
        for message in messages:
            outcome = await self._acknowledged(message, deadline)
            if not isinstance(outcome, Delivered):
                break
        return outcome

    async def _acknowledged(self, message: Message, deadline: float) -> Outcome:
        """Raises TimeoutError at *deadline*, in the loop's time."""
        while True:
            link = self._connection.open_link or await self._linked(deadline)
            if not isinstance(link, Link):
                return link
            answer = link.publish(message)
            self._overdue.watch(answer, deadline)
            outcome = await answer
            if outcome is not None:
                return outcome

    async def _linked(self, deadline: float) -> Link | Pause:
        with anyio.fail_after(max(0.0, deadline - self._loop.time())):
            return await self._connection.link()


class Births:
    """Tells everything again whenever Home Assistant says that it has started."""

    def __init__(self, home: HomeAssistant, chance: Callable[[], float]) -> None:
        self._home = home
        self._chance = chance
        self._born = anyio.Event()

    def heard(self, payload: bytes) -> None:
        """A message on Home Assistant's status topic."""
        if payload == ONLINE:
            self._born.set()

    async def run(self, connection: Connection) -> None:
        """Until cancelled."""
        while True:
            await self._born.wait()
            await anyio.sleep(BIRTH_SPREAD * self._chance())
            self._born = anyio.Event()
            messages = self._home.again()
            for at in range(0, len(messages), AGAIN_AT_ONCE):
                link = await connection.link()
                if isinstance(link, Link):
                    await asyncio.gather(*map(link.publish, messages[at : at + AGAIN_AT_ONCE]))


def settings(
    name: str, config: MqttConfig, suffix: str, will: Message | None, births: Births | None
) -> Settings:
    """How to connect; raises StartError for a certificate that cannot be used."""
    to = address.parse(config.url)
    client_id = config.client_id or f"bridge-{socket.gethostname()}-{name}"
    return Settings(
        address=to,
        tls=context(config.tls) if to.is_secured else None,
        protocol=config.protocol,
        client_id=f"{client_id}-{suffix}" if suffix else client_id,
        username=config.username,
        password=config.password.get_secret_value() if config.password else None,
        will=will,
        timeout=config.timeout,
        qos=config.qos,
        retain=config.retain or births is not None or config.availability_topic is not None,
        subscribe=f"{config.discovery_prefix}/status" if births else None,
        heard=births.heard if births else None,
    )


@asynccontextmanager
async def open_mqtt(
    name: str,
    config: MqttConfig,
    *,
    now: Callable[[], float],
    hosts: Mapping[str, str] | None = None,
    suffix: str = "",
    chance: Callable[[], float] = random.random,
) -> AsyncIterator[Mqtt]:
    """The sink of *config*; raises StartError for a certificate that cannot be used. Needs asyncio.

    *hosts* maps each source to the host of its TTS: what CloudEvents name as their source. A command that
    runs beside the bridge gives a random *suffix*: it must not take over the bridge's session, and leaves its
    status alone. *chance* is uniform in [0, 1).
    """
    status = status_topic(config.status_topic, name) if config.status_topic else None
    compose = composer(config, status, {} if hosts is None else hosts)
    births = Births(compose, chance) if isinstance(compose, HomeAssistant) and not suffix else None
    packed = properties(()) if config.protocol == 5 else b""
    online, offline = (
        Message(status, payload, config.qos, True, packed) if status and not suffix else None
        for payload in (ONLINE, OFFLINE)
    )
    connection = Connection(
        name, settings(name, config, suffix, offline, births), online=online, offline=offline, chance=chance
    )
    # no task group: it would wrap what the caller raises
    running = [asyncio.create_task(connection.run())]
    if births:
        running.append(asyncio.create_task(births.run(connection)))
    try:
        yield Mqtt(name, config, connection, compose)
    finally:
        with anyio.CancelScope(shield=True):
            await connection.close()
            for task in running:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
