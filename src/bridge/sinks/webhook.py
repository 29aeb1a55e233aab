"""The webhook sink: one signed POST a delivery, or a batch of them (Standard Webhooks 1.0).

The client is our own, on httptools (`http1`). CPU seconds for 10,000 requests of 1.35 kB at 8 and at
64 in flight, uvloop, one run, interleaved: own 0.28 and 0.27, aiohttp 0.62 and 0.61; httpx made 150 requests
a second where aiohttp made 5,000 (its pool is quadratic).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from bridge.delivery import Delivery, Failure, Outcome, Pause, Rejected
from bridge.errors import RenderError
from bridge.fields import Duration, Section, Size
from bridge.render import Template
from bridge.render.formats import Encoder, Payload, is_json
from bridge.retry import http_outcome, retry_after
from bridge.sinks import BatchLimits, guard, signing
from bridge.sinks.batch import batch_id, by_halves, chunks, in_turn
from bridge.sinks.http import Answer, HttpUrl, SecretUrl, Target, post, target
from bridge.sinks.http1 import fields
from bridge.sinks.pace import Pace, Rate
from bridge.sinks.settings import RetryConfig
from bridge.tls import TlsConfig, context

OURS = frozenset(
    {
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
        "content-length",
        "content-type",
        "host",
        "transfer-encoding",
    }
)
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110 §5.6.2


def _usable(secret: SecretStr) -> SecretStr:
    signing.key(secret.get_secret_value())
    return secret


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _header_value(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().isprintable():
        raise ValueError("a header's value is one line of printable characters")
    return value


def _header_name(name: str) -> str:
    if not TOKEN.match(name):
        raise ValueError("a header's name is made of letters, digits and - _ .")
    if name.lower() in OURS:
        other = "; use content_type" if name.lower() == "content-type" else "; leave it out"
        raise ValueError(f"{name.lower()} is set by bridge{other}")
    return name


def _media_type(text: str) -> str:
    kind, _, rest = text.partition("/")
    if not (TOKEN.match(kind) and rest.isprintable() and TOKEN.match(rest.partition(";")[0].strip())):
        raise ValueError("write a media type such as application/json")
    return text


Secrets = Annotated[
    tuple[Annotated[SecretStr, AfterValidator(_usable)], ...],
    BeforeValidator(_listed, json_schema_input_type=str | list[str]),
]
Headers = dict[
    Annotated[str, AfterValidator(_header_name)], Annotated[SecretStr, AfterValidator(_header_value)]
]


class BatchConfig(Section):
    """Several deliveries in one request, as a JSON array."""

    max_events: Annotated[int, Field(ge=1, le=10_000)] = 1
    """1: no batches."""
    max_wait: Annotated[Duration, Field(ge=0, le=60)] = 0.2
    """How long the first of a batch waits for others."""
    max_bytes: Annotated[Size, Field(ge=1)] = 1 << 20
    """Of a request's body; one delivery that is larger goes alone."""


class WebhookConfig(Section):
    """HTTP POST to one URL."""

    type: Literal["webhook"]
    url: HttpUrl
    secret: Secrets = ()
    """Signs each request (Standard Webhooks; whsec_...). A list while rotating: all sign."""
    headers: Annotated[Headers, Field(default_factory=dict)]
    format: Literal[
        "event", "data", "cloudevents", "alertmanager", "tts-v3", "home-assistant", "template"
    ] = "event"
    """tts-v3: what TTS's MQTT server publishes; home-assistant: an object of states."""
    cloudevents: Literal["structured", "binary"] = "structured"
    """With format: cloudevents."""
    template: str | None = None
    """With format: template."""
    content_type: Annotated[str, AfterValidator(_media_type)] | None = None
    """Instead of the format's own; for a template by default JSON or text, by what it makes."""
    batch: BatchConfig = BatchConfig()
    max_in_flight: Annotated[int, Field(ge=1, le=1000)] = 64
    """Requests at once."""
    timeout: Annotated[Duration, Field(gt=0, le=600)] = 10.0
    """For one attempt, connecting included."""
    rate_limit: Rate | None = None
    """Requests a second, such as 50/s; evenly, without bursts."""
    order: Literal["none", "entity"] = "none"
    """entity: one at a time for each device or gateway, in the order received."""
    allow_private_networks: bool = False
    """Lets private and loopback addresses be reached; link-local and cloud metadata stay shut."""
    allow_networks: tuple[str, ...] = ()
    """CIDRs or host names that may be reached although they are not public."""
    proxy: SecretUrl | None = None
    """URL of an HTTP proxy, with user and password if it wants them; none comes from the environment."""
    tls: TlsConfig = TlsConfig()
    retry: RetryConfig = RetryConfig()

    @model_validator(mode="after")
    def _checked(self) -> WebhookConfig:
        guard.policy(self.allow_private_networks, self.allow_networks)
        self._fits_together()
        return self

    def _fits_together(self) -> None:
        if (self.format == "template") != (self.template is not None):
            raise ValueError("template: goes with format: template, and that with it")
        if self.cloudevents == "binary" and self.format != "cloudevents":
            raise ValueError("cloudevents: binary goes with format: cloudevents")
        if self.format == "cloudevents" and self.content_type:
            raise ValueError("content_type: CloudEvents have their own; leave it out")
        if self.batch.max_events > 1:
            if self.cloudevents == "binary":
                raise ValueError(
                    "batch: there are no batches of binary CloudEvents; use cloudevents: structured"
                )
            if self.content_type and not is_json(self.content_type):
                raise ValueError("batch: a batch is JSON, and content_type says something else")
        if self.template is not None:
            Template(self.template)

    def encoder(self, hosts: Mapping[str, str]) -> Encoder:
        """How bodies are made; *hosts* maps a source to its TTS host."""
        template = None if self.template is None else Template(self.template, labels=None)
        binary = self.cloudevents == "binary"
        return Encoder(self.format, binary, template, self.content_type, hosts)

    def hidden(self) -> list[str]:
        """What must not come back in an answer that is kept."""
        parts = urlsplit(self.url)
        secrets = [value.get_secret_value() for value in (*self.secret, *self.headers.values())]
        return [
            each for each in (*secrets, parts.password, parts.query if len(parts.query) > 7 else None) if each
        ]


@dataclass(frozen=True, slots=True)
class _Element:
    delivery: Delivery
    body: bytes


class Webhook:
    def __init__(
        self,
        name: str,
        config: WebhookConfig,
        to: Target,
        now: Callable[[], float],
        hosts: Mapping[str, str],
    ) -> None:
        self.name = name
        self.max_in_flight = config.max_in_flight
        batch = config.batch
        self.batch_limits = BatchLimits(batch.max_events, batch.max_wait, batch.max_bytes)
        self._encoder = config.encoder(hosts)
        self._keys = [signing.key(secret.get_secret_value()) for secret in config.secret]
        self._headers = {name: value.get_secret_value() for name, value in config.headers.items()}
        self._heads: dict[str, bytes] = {}
        self._to = to
        self._now = now
        self._pace = Pace(config.rate_limit)
        self._paused = Pause(Failure("rate_limited", "the receiver wants a pause"))
        """The last answer that pauses the sink; it is also that of those who waited for their turn then."""

    async def send(self, delivery: Delivery) -> Outcome:
        if self.batch_limits.max_events > 1:
            return (await self.send_batch([delivery]))[0]
        try:
            payload = self._encoder.one(delivery)
        except RenderError as error:
            return _unrendered(error)
        return await self._post(payload, delivery.id)

    async def send_batch(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        """A receiver that takes batches gets an array always, of one element too."""
        outcomes: dict[int, Outcome] = {}
        elements: list[_Element] = []
        for delivery in deliveries:
            try:
                elements.append(_Element(delivery, self._encoder.element(delivery)))
            except RenderError as error:
                outcomes[delivery.row] = _unrendered(error)
        most = self.batch_limits.max_bytes - 2
        parts = list(chunks(elements, lambda each: len(each.body) + 1, most))
        sent = await in_turn(parts, lambda part: by_halves(part, self._together))
        outcomes |= {each.delivery.row: outcome for each, outcome in zip(elements, sent, strict=True)}
        return [outcomes[delivery.row] for delivery in deliveries]

    async def _together(self, elements: Sequence[_Element]) -> Outcome:
        payload = self._encoder.many([each.body for each in elements], self.name)
        return await self._post(payload, batch_id([each.delivery.id for each in elements]))

    async def _post(self, payload: Payload, message_id: str) -> Outcome:
        if self._pace.is_limited and not await self._pace.turn():
            return self._paused
        signed = signing.headers(self._keys, message_id, int(self._now()), payload.body)
        head = self._head(payload.content_type)
        answer = await post(self._to, payload.body, {**payload.headers, **signed}, head)
        outcome = self._judged(answer) if isinstance(answer, Answer) else answer
        if isinstance(outcome, Pause):
            self._paused = outcome
            self._pace.release()
        return outcome

    def _head(self, content_type: str) -> bytes:
        """The headers that are the same for all of *content_type*."""
        found = self._heads.get(content_type)
        if found is None:
            found = self._heads[content_type] = fields({"Content-Type": content_type, **self._headers})
        return found

    def _judged(self, answer: Answer) -> Outcome:
        wait = retry_after(answer.retry_after, self._now())
        return http_outcome(answer.status, response=answer.body, retry_after=wait)


def _unrendered(error: RenderError) -> Rejected:
    return Rejected(Failure("template", str(error)))


@asynccontextmanager
async def open_webhook(
    name: str,
    config: WebhookConfig,
    *,
    now: Callable[[], float],
    hosts: Mapping[str, str] | None = None,
) -> AsyncIterator[Webhook]:
    """The sink of *config*; raises StartError for a certificate that cannot be used.

    *hosts* maps each source to the host of its TTS: what CloudEvents name as their source.
    """
    async with target(
        config.url,
        guard.policy(config.allow_private_networks, config.allow_networks),
        limit=config.max_in_flight,
        timeout=config.timeout,
        tls=context(config.tls),
        proxy=config.proxy.get_secret_value() if config.proxy else None,
        hidden=config.hidden(),
    ) as to:
        yield Webhook(name, config, to, now, {} if hosts is None else hosts)
