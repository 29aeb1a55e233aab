"""The alertmanager sink: the alerts that fire, as state, to the API v2 of an Alertmanager.

A change is a delivery. Beside that everything that fires is told again each minute, with an end a little
ahead: an Alertmanager that was started anew knows it within a minute, and one that hears nothing more from
bridge lets it go. What has ended is told for a quarter of an hour (as Prometheus does).
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import anyio
import msgspec
import structlog
from pydantic import AfterValidator, Field, SecretStr, model_validator

from bridge.delivery import Delivered, Delivery, Failure, Outcome, RetryLater
from bridge.errors import OutboxError
from bridge.fields import Duration, Section
from bridge.retry import http_outcome, retry_after
from bridge.sinks import guard
from bridge.sinks.alertmanager.state import (
    SECOND,
    Told,
    is_over,
    newer,
    notified,
    posted,
    posted_once,
    truly,
)
from bridge.sinks.http import Answer, SecretUrl, Target, http_url, post, target
from bridge.sinks.memory import Firing, Fleeting, Memory, unknown
from bridge.sinks.settings import RetryConfig
from bridge.tls import TlsConfig, context

log = structlog.get_logger()

ALERTS = "/api/v2/alerts"
EVERY = 60.0  # seconds between two rounds; endsAt is four of them ahead
AT_ONCE = 256  # alerts in one request, as Prometheus sends them


def _base_url(url: str) -> str:
    parts = urlsplit(http_url(url))
    if parts.username is not None:
        raise ValueError("write username and password as keys of their own")
    if parts.query or parts.fragment or parts.path.rstrip("/").endswith(("/alerts", "/v2", "/v1")):
        raise ValueError(f"write the address alone, such as http://alertmanager:9093; {ALERTS} is added")
    return url


class AlertmanagerConfig(Section):
    """Alerts as state, to one Alertmanager; each of a cluster is a sink of its own."""

    type: Literal["alertmanager"]
    url: Annotated[str, AfterValidator(_base_url)]
    """With the path of --web.route-prefix, if it has one; /api/v2/alerts is added."""
    username: str | None = None
    password: SecretStr | None = None
    token: SecretStr | None = None
    """Sent as bearer, for a proxy before it that wants one."""
    max_in_flight: Annotated[int, Field(ge=1, le=100)] = 4
    """Requests at once."""
    timeout: Annotated[Duration, Field(gt=0, le=600)] = 10.0
    """For one attempt, connecting included."""
    proxy: SecretUrl | None = None
    """URL of an HTTP proxy; none is ever taken from the environment."""
    tls: TlsConfig = TlsConfig()
    retry: RetryConfig = RetryConfig()

    @model_validator(mode="after")
    def _one_way_in(self) -> AlertmanagerConfig:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password belong together")
        if self.token is not None and self.username is not None:
            raise ValueError("set token, or username and password")
        return self

    @property
    def alerts_url(self) -> str:
        return self.url.rstrip("/") + ALERTS

    def headers(self) -> dict[str, str]:
        found = {"Content-Type": "application/json"}
        if self.token is not None:
            found["Authorization"] = f"Bearer {self.token.get_secret_value()}"
        if self.username is not None and self.password is not None:
            both = f"{self.username}:{self.password.get_secret_value()}"
            found["Authorization"] = f"Basic {base64.b64encode(both.encode()).decode()}"
        return found

    def hidden(self) -> list[str]:
        """What must not come back in an answer that is kept."""
        secrets = [each.get_secret_value() for each in (self.password, self.token) if each]
        return [*secrets, self.headers().get("Authorization", "").partition(" ")[2]]


class Alertmanager:
    """*now* is unix seconds; *firing* says what fires by the alerts' own account."""

    def __init__(
        self,
        name: str,
        config: AlertmanagerConfig,
        to: Target,
        *,
        now: Callable[[], float],
        memory: Memory,
        firing: Firing,
    ) -> None:
        self.name = name
        self.max_in_flight = config.max_in_flight
        self._headers = config.headers()
        self._to = to
        self._now = now
        self._memory = memory
        self._firing = firing
        self._told: dict[str, Told] = {}
        """By `Told.id`."""
        self._failing = False

    async def send(self, delivery: Delivery) -> Outcome:
        """Tell what *delivery* says, as far as it still is so."""
        now = self._now_ns()
        told = notified(delivery)
        if not told:
            return await self._post([posted_once(delivery, now)], delivery.id)
        self._told |= newer(self._told, told)
        firing = self._firing()
        current = {each.id: truly(self._told[each.id], firing, now) for each in told}
        self._told |= current
        outcome: Outcome = Delivered()
        for part in _parts([posted(each, now) for each in current.values()]):
            outcome = await self._post(part, delivery.id)
            if not isinstance(outcome, Delivered):
                return outcome
        return await self._remembered(current, outcome)

    async def _remembered(self, told: dict[str, Told], outcome: Outcome) -> Outcome:
        """What Alertmanager has taken is known after a restart, or it is told once more."""
        try:
            await self._memory.keep({id_: msgspec.json.encode(each) for id_, each in told.items()})
        except OutboxError as error:
            return RetryLater(Failure("other", f"delivered, and not noted: {error}"))
        return outcome

    async def run(self, every: float = EVERY) -> None:
        """Tell everything now and then every *every* seconds, until cancelled."""
        await self._recall()
        while True:
            try:
                await self.again()
            except Exception:
                log.exception("bug in telling alerts again", sink=self.name)
            await anyio.sleep(every)

    async def _recall(self) -> None:
        try:
            rows = await self._memory.recall()
        except OutboxError as error:
            log.warning("alerts told before cannot be read", sink=self.name, error=str(error))
            return
        for row in rows.values():
            with suppress(msgspec.DecodeError):
                told = msgspec.json.decode(row, type=Told)
                self._told.setdefault(told.id, told)

    async def again(self) -> None:
        """One round."""
        now, firing = self._now_ns(), self._firing()
        self._told = {id_: truly(each, firing, now) for id_, each in self._told.items()}
        over: dict[str, bytes | None] = {id_: None for id_, each in self._told.items() if is_over(each, now)}
        if over:
            self._told = {id_: each for id_, each in self._told.items() if id_ not in over}
            with suppress(OutboxError):  # then it is over again after the next start
                await self._memory.keep(over)
        for part in _parts([posted(each, now) for each in self._told.values()]):
            outcome = await self._post(part)
            self._note(outcome)
            if not isinstance(outcome, Delivered):
                return

    def _note(self, outcome: Outcome) -> None:
        """Log when telling again begins to fail, and when it no longer does."""
        failed = not isinstance(outcome, Delivered)
        if failed != self._failing:
            self._failing = failed
            if isinstance(outcome, Delivered):
                log.info("alerts are told again", sink=self.name)
            else:
                error = outcome.failure.error
                log.warning("alerts that fire are not told again", sink=self.name, error=error)

    async def _post(self, alerts: Sequence[dict[str, Any]], delivery_id: str = "") -> Outcome:
        """The id is for logs of proxies; Alertmanager itself tells alerts apart by their labels."""
        headers = self._headers | ({"webhook-id": delivery_id} if delivery_id else {})
        answer = await post(self._to, msgspec.json.encode(alerts), headers)
        if not isinstance(answer, Answer):
            return answer
        wait = retry_after(answer.retry_after, self._now())
        return http_outcome(answer.status, response=answer.body, retry_after=wait)

    def _now_ns(self) -> int:
        return int(self._now() * SECOND)


def _parts(alerts: Sequence[dict[str, Any]]) -> list[Sequence[dict[str, Any]]]:
    return [alerts[at : at + AT_ONCE] for at in range(0, len(alerts), AT_ONCE)]


@asynccontextmanager
async def open_alertmanager(
    name: str,
    config: AlertmanagerConfig,
    *,
    now: Callable[[], float],
    memory: Memory | None = None,
    firing: Firing = unknown,
    every: float | None = EVERY,
) -> AsyncIterator[Alertmanager]:
    """The sink of *config*; raises StartError for a certificate that cannot be used. Needs asyncio.

    *every* None: only deliveries are told, as by a command that runs beside the bridge. An Alertmanager is
    a server of one's own: it may have a private address, but not that of a cloud's metadata.
    """
    async with target(
        config.alerts_url,
        guard.Policy(allow_private=True),
        limit=config.max_in_flight + 1,
        timeout=config.timeout,
        tls=context(config.tls),
        proxy=config.proxy.get_secret_value() if config.proxy else None,
        hidden=config.hidden(),
    ) as to:
        kept = Fleeting() if memory is None else memory
        sink = Alertmanager(name, config, to, now=now, memory=kept, firing=firing)
        if every is None:
            yield sink
            return
        # no task group: it would wrap what the caller raises
        rounds = asyncio.create_task(sink.run(every))
        try:
            yield sink
        finally:
            with anyio.CancelScope(shield=True):
                rounds.cancel()
                with suppress(asyncio.CancelledError):
                    await rounds
