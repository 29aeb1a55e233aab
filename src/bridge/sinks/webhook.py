"""The webhook sink: one signed POST a delivery (Standard Webhooks 1.0).

The client is aiohttp: 5,000 requests a second on the machine where httpx made 150 (its pool is quadratic).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from bridge.delivery import Delivery, Outcome
from bridge.fields import Duration, Section, Size
from bridge.render import CONTENT_TYPE, Format, body
from bridge.retry import http_outcome, retry_after
from bridge.sinks import guard, signing
from bridge.sinks.http import Answer, HttpUrl, Target, post, target
from bridge.sinks.settings import RetryConfig
from bridge.tls import TlsConfig, context

LATER = "is not available in this version"
OURS = frozenset(
    {"webhook-id", "webhook-timestamp", "webhook-signature", "content-length", "host", "transfer-encoding"}
)


def _usable(secret: SecretStr) -> SecretStr:
    signing.key(secret.get_secret_value())
    return secret


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Secrets = Annotated[tuple[Annotated[SecretStr, AfterValidator(_usable)], ...], BeforeValidator(_listed)]


class BatchConfig(Section):
    max_events: Annotated[int, Field(ge=1)] = 1
    max_wait: Duration = 0.2
    max_bytes: Size = 1 << 20


class WebhookConfig(Section):
    """HTTP POST to one URL."""

    type: Literal["webhook"]
    url: HttpUrl
    secret: Secrets = ()
    """Signs each request (Standard Webhooks; whsec_...). A list while rotating: all sign."""
    headers: Annotated[dict[str, SecretStr], Field(default_factory=dict)]
    format: Literal[
        "event", "data", "cloudevents", "alertmanager", "tts-v3", "home-assistant", "template"
    ] = "event"
    cloudevents: Literal["structured", "binary"] = "structured"
    template: str | None = None
    content_type: str | None = None
    batch: BatchConfig = BatchConfig()
    max_in_flight: Annotated[int, Field(ge=1, le=1000)] = 64
    timeout: Annotated[Duration, Field(gt=0, le=600)] = 10.0
    """For one attempt, connecting included."""
    rate_limit: str | None = None
    order: Literal["none", "entity"] = "none"
    allow_private_networks: bool = False
    """Lets private and loopback addresses be reached; link-local and cloud metadata stay shut."""
    allow_networks: tuple[str, ...] = ()
    """CIDRs or host names that may be reached although they are not public."""
    proxy: str | None = None
    tls: TlsConfig = TlsConfig()
    retry: RetryConfig = RetryConfig()

    @model_validator(mode="after")
    def _checked(self) -> WebhookConfig:
        guard.policy(self.allow_private_networks, self.allow_networks)
        taken = sorted(OURS & {name.lower() for name in self.headers})
        if taken:
            raise ValueError(f"headers: {taken[0]} is set by bridge; leave it out")
        later = {
            f"format: {self.format}": self.format not in CONTENT_TYPE,
            "cloudevents": self.cloudevents != "structured",
            "template": self.template is not None,
            "content_type": self.content_type is not None,
            "batch": self.batch != BatchConfig(),
            "rate_limit": self.rate_limit is not None,
            "order: entity": self.order != "none",
            "proxy": self.proxy is not None,
        }
        for key, set_ in later.items():
            if set_:
                raise ValueError(f"{key} {LATER}")
        return self


class Webhook:
    def __init__(self, name: str, config: WebhookConfig, to: Target, now: Callable[[], float]) -> None:
        self.name = name
        self.max_in_flight = config.max_in_flight
        self._format: Format = "data" if config.format == "data" else "event"
        self._keys = [signing.key(secret.get_secret_value()) for secret in config.secret]
        self._headers = {"Content-Type": CONTENT_TYPE[self._format]} | {
            name: value.get_secret_value() for name, value in config.headers.items()
        }
        self._to = to
        self._now = now

    async def send(self, delivery: Delivery) -> Outcome:
        payload = body(delivery, self._format)
        signed = signing.headers(self._keys, delivery.id, int(self._now()), payload)
        answer = await post(self._to, payload, self._headers | signed)
        if not isinstance(answer, Answer):
            return answer
        wait = retry_after(answer.retry_after, self._now())
        return http_outcome(answer.status, response=answer.body, retry_after=wait)


@asynccontextmanager
async def open_webhook(
    name: str, config: WebhookConfig, *, now: Callable[[], float]
) -> AsyncIterator[Webhook]:
    """The sink of *config*; raises StartError for a certificate that cannot be used."""
    async with target(
        config.url,
        guard.policy(config.allow_private_networks, config.allow_networks),
        limit=config.max_in_flight,
        timeout=config.timeout,
        tls=context(config.tls),
        hidden=[value.get_secret_value() for value in (*config.secret, *config.headers.values())],
    ) as to:
        yield Webhook(name, config, to, now)
