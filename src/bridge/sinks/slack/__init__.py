"""The slack sink: one message a delivery, by an incoming webhook or by the Web API (`chat.postMessage`).

Slack takes about one message a second for a channel. What comes faster than `rate_limit` is folded into a
digest: one message that says how many there were and which. By the Web API alerts have threads
(`threads`); an incoming webhook knows none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from pydantic import Field, SecretStr, field_validator, model_validator

from bridge.delivery import Delivered, Delivery, Failure, Outcome, Rejected
from bridge.errors import RenderError
from bridge.fields import Duration, Section
from bridge.render import Template, slack_escape
from bridge.retry import retry_after
from bridge.sinks import BatchLimits, guard
from bridge.sinks.batch import batch_id, by_halves
from bridge.sinks.http import Answer, HttpUrl, SecretUrl, Target, post, target
from bridge.sinks.memory import Fleeting, Memory
from bridge.sinks.pace import Pace, Rate
from bridge.sinks.settings import RetryConfig
from bridge.sinks.slack.answers import document, judged, word
from bridge.sinks.slack.threads import Said, Threads
from bridge.tls import TlsConfig, context

API = "https://slack.com/api"
BURST = 3  # messages sent singly after a calm: Slack "allows short bursts" (its "Rate limits")
DIGEST = 100  # deliveries in one digest
LINE = 300  # characters of a message in a digest
LONGEST = 3500  # characters of a digest; Slack asks for at most 4,000


class SlackConfig(Section):
    """Messages to one Slack channel."""

    type: Literal["slack"]
    webhook_url: SecretUrl | None = None
    """The URL of an incoming webhook; or token and channel."""
    token: SecretStr | None = None
    """A bot token with the scope chat:write."""
    channel: str | None = None
    """With token: the channel's id, such as C024BE91L, or its name."""
    api_url: HttpUrl | None = None
    """With token: another server that speaks Slack's Web API. Default: https://slack.com/api"""
    text: str = ":satellite: {{ summary }}"
    """Template of a message; & < > in what it inserts are escaped."""
    rate_limit: Rate | None = 1.0
    """Messages a second; bursts beyond it become digests. null: each event its own message."""
    max_in_flight: Annotated[int, Field(ge=1, le=100)] = 1
    order: Literal["none", "entity"] = "none"
    """entity: one at a time for each device or gateway, in the order received."""
    timeout: Annotated[Duration, Field(gt=0, le=600)] = 10.0
    """For one attempt, connecting included."""
    allow_private_networks: bool = False
    """With api_url: lets private and loopback addresses be reached."""
    allow_networks: tuple[str, ...] = ()
    """With api_url: CIDRs or host names that may be reached although they are not public."""
    proxy: SecretUrl | None = None
    """URL of an HTTP proxy; none is ever taken from the environment."""
    tls: TlsConfig = TlsConfig()
    retry: RetryConfig = RetryConfig()

    @field_validator("text")
    @classmethod
    def _compiles(cls, text: str) -> str:
        Template(text, slack_escape)
        return text

    @model_validator(mode="after")
    def _one_way_in(self) -> SlackConfig:
        if (self.webhook_url is None) == (self.token is None):
            raise ValueError("set exactly one of webhook_url and token")
        if (self.channel is None) != (self.token is None):
            raise ValueError("token and channel belong together")
        if self.api_url and not self.token:
            raise ValueError("api_url goes with token and channel")
        guard.policy(self.allow_private_networks, self.allow_networks)
        return self


@dataclass(frozen=True, slots=True)
class _Message:
    delivery: Delivery
    text: str


class Slack:
    """*editing* is `chat.update`, for alerts whose threads *memory* knows; None with an incoming webhook."""

    def __init__(
        self,
        name: str,
        config: SlackConfig,
        to: Target,
        now: Callable[[], float],
        pace: Pace,
        editing: Target | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.name = name
        self.max_in_flight = config.max_in_flight
        self.batch_limits = BatchLimits(max_events=DIGEST if config.rate_limit else 1, max_bytes=16 << 20)
        self._channel = config.channel
        self._template = Template(config.text, slack_escape, labels=None)
        self._headers = {"Content-Type": "application/json; charset=utf-8"}
        if config.token:
            self._headers["Authorization"] = f"Bearer {config.token.get_secret_value()}"
        self._to = to
        self._now = now
        self._pace = pace
        self._editing = editing
        self._threads: Threads | None = None
        if editing is not None and config.channel is not None:
            kept = Fleeting() if memory is None else memory
            self._threads = Threads(name, config.channel, kept, self._edit)

    async def send(self, delivery: Delivery) -> Outcome:
        message = self._rendered(delivery)
        if not isinstance(message, _Message):
            return message
        await self._pace.turn()
        return await self._post([message])

    async def send_batch(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        """One by one while the channel is free, and then what is left as one digest."""
        rendered = {delivery.row: self._rendered(delivery) for delivery in deliveries}
        messages = [each for each in rendered.values() if isinstance(each, _Message)]
        outcomes: dict[int, Outcome] = {
            row: each for row, each in rendered.items() if not isinstance(each, _Message)
        }
        while messages and self._pace.take():
            outcome = await self._post(messages[:1])
            outcomes[messages.pop(0).delivery.row] = outcome
            if not isinstance(outcome, Delivered | Rejected):
                outcomes |= {each.delivery.row: outcome for each in messages}
                messages = []
        if messages:
            judged_ = await by_halves(messages, self._paced)
            outcomes |= {each.delivery.row: outcome for each, outcome in zip(messages, judged_, strict=True)}
        return [outcomes[delivery.row] for delivery in deliveries]

    def _rendered(self, delivery: Delivery) -> _Message | Rejected:
        try:
            return _Message(delivery, self._template.render(delivery))
        except RenderError as error:
            return Rejected(Failure("template", str(error)))

    async def _paced(self, messages: Sequence[_Message]) -> Outcome:
        await self._pace.turn()
        return await self._post(messages)

    async def _post(self, messages: Sequence[_Message]) -> Outcome:
        """One message for all of *messages*."""
        if self._threads is None:
            return (await self._say(messages)).outcome
        told = [(message.delivery, message.text) for message in messages]
        return await self._threads.tell(told, lambda thread: self._say(messages, thread))

    async def _say(self, messages: Sequence[_Message], thread: str | None = None) -> Said:
        ids = [message.delivery.id for message in messages]
        text = messages[0].text if len(messages) == 1 else digest(messages)
        body: dict[str, Any] = {"text": text}
        if self._channel is not None:
            body |= {"channel": self._channel, "metadata": metadata(ids)}
        if thread is not None:
            body["thread_ts"] = thread
        return await self._call(self._to, body, {"webhook-id": batch_id(ids)})

    async def _edit(self, channel: str, ts: str, text: str) -> Said:
        assert self._editing is not None  # noqa: S101  # only threads edit
        return await self._call(self._editing, {"channel": channel, "ts": ts, "text": text}, {})

    async def _call(self, to: Target, body: dict[str, Any], headers: dict[str, str]) -> Said:
        answer = await post(to, msgspec.json.encode(body), self._headers | headers)
        if not isinstance(answer, Answer):
            return Said(answer)
        wait = retry_after(answer.retry_after, self._now())
        outcome = judged(answer.status, answer.body, wait, web_api=self._channel is not None)
        told = document(answer.body)
        channel, ts = (str(told.get(key, "")) for key in ("channel", "ts"))
        return Said(outcome, word(told), channel, ts)


def metadata(ids: Sequence[str]) -> dict[str, Any]:
    """Slack's message metadata: lets a program find the deliveries a message stands for."""
    return {"event_type": "bridge_delivery", "event_payload": {"delivery_ids": ",".join(ids)}}


def digest(messages: Sequence[_Message]) -> str:
    """One message for many: how many, of which events, and the first lines of as many as fit."""
    names = Counter(message.delivery.event.name for message in messages)
    kinds = ", ".join(f"{count} × {slack_escape(name)}" for name, count in names.most_common(10))
    more = f", and {len(names) - 10} other events" if len(names) > 10 else ""
    lines = [f"*{len(messages)} messages in one*, so as to keep to the channel's rate: {kinds}{more}"]
    length = len(lines[0])
    for shown, message in enumerate(messages):
        line = f"• {shortened(message.text)}"
        length += len(line) + 1
        if length > LONGEST:
            lines.append(f"… and {len(messages) - shown} more")
            break
        lines.append(line)
    return "\n".join(lines)


def shortened(text: str) -> str:
    """The first line of *text*, cut to LINE characters but not inside of `&amp;` or `<link>`."""
    line = text.strip().partition("\n")[0]
    if len(line) <= LINE:
        return line
    cut = line[:LINE]
    for opening, closing in (("&", ";"), ("<", ">")):
        at = cut.rfind(opening)
        if at >= 0 and closing not in cut[at:]:
            cut = cut[:at]
    return f"{cut}…"


@asynccontextmanager
async def open_slack(
    name: str, config: SlackConfig, *, now: Callable[[], float], memory: Memory | None = None
) -> AsyncIterator[Slack]:
    """The sink of *config*; raises StartError for a certificate that cannot be used.

    The guard is for `api_url`. A webhook's URL is a secret the operator was given: it may lead to a
    private server such as Mattermost, but not to a cloud's metadata. *memory* is for the threads of alerts.
    """
    async with AsyncExitStack() as stack:

        async def at(url: str, policy: guard.Policy) -> Target:
            secrets = [config.token.get_secret_value()] if config.token else [url, urlsplit(url).path]
            opened = target(
                url,
                policy,
                limit=config.max_in_flight,
                timeout=config.timeout,
                tls=context(config.tls),
                proxy=config.proxy.get_secret_value() if config.proxy else None,
                hidden=[each for each in secrets if len(each) > 1],
            )
            return await stack.enter_async_context(opened)

        pace = Pace(config.rate_limit, BURST)
        if config.webhook_url:
            to = await at(config.webhook_url.get_secret_value(), guard.Policy(allow_private=True))
            yield Slack(name, config, to, now, pace)
            return
        api = (config.api_url or API).rstrip("/")
        policy = guard.policy(config.allow_private_networks, config.allow_networks)
        to, editing = [await at(f"{api}/{method}", policy) for method in ("chat.postMessage", "chat.update")]
        yield Slack(name, config, to, now, pace, editing, memory)
