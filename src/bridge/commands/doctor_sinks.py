"""The doctor's questions to receivers: may they be reached, do they let bridge in, may it publish."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import msgspec

from bridge.commands.send_test import delivery
from bridge.delivery import Delivered, Failure
from bridge.doctor import Finding, listing
from bridge.errors import StartError
from bridge.sinks import guard
from bridge.sinks.alertmanager import AlertmanagerConfig
from bridge.sinks.http import Answer, literal, post, target
from bridge.sinks.mqtt import MqttConfig, open_mqtt
from bridge.sinks.mqtt import address as mqtt_address
from bridge.sinks.registry import SinkConfig
from bridge.sinks.slack import API, SlackConfig
from bridge.sinks.webhook import WebhookConfig
from bridge.tls import TlsConfig, context

CONNECT_WITHIN = 10.0  # seconds
BROKER_WITHIN = 5.0  # seconds
PUBLISHING = "publish"  # what a broker's refusal of a message says, and that of a login does not
OWN_TOPICS = frozenset({"tts-v3", "home-assistant"})
TEST_TOPIC = "bridge/test"  # for formats that make topics of their own

Now = Callable[[], float]


async def sink(name: str, config: SinkConfig, now: Now) -> AsyncIterator[Finding]:
    """Everything about one sink. Nothing is sent but one marked test message to a broker."""
    about = f"sink {name}"
    try:
        match config:
            case MqttConfig():
                async for each in mqtt(about, name, config, now):
                    yield each
            case SlackConfig():
                yield await slack(about, config)
            case AlertmanagerConfig():
                yield await alertmanager(about, config)
            case _:
                async for each in http(about, receiver(config)):
                    yield each
    except StartError as error:
        yield Finding(about, "certificates", "wrong", str(error), "correct tls")


@dataclass(frozen=True, slots=True)
class Receiver:
    """Where an HTTP sink posts to."""

    url: str
    policy: guard.Policy | None
    """What the guard lets through; None where there is no guard."""
    proxy: str | None
    tls: TlsConfig


def receiver(config: SinkConfig) -> Receiver:
    """Of any sink with a `url`; only webhooks have a guard (DESIGN.md §2.6)."""
    url = str(getattr(config, "url", ""))
    tls = getattr(config, "tls", TlsConfig())
    if isinstance(config, WebhookConfig):
        policy = guard.policy(config.allow_private_networks, config.allow_networks)
        proxy = config.proxy.get_secret_value() if config.proxy else None
        return Receiver(url, policy, proxy, tls)
    return Receiver(url, None, None, tls)


async def http(about: str, to: Receiver) -> AsyncIterator[Finding]:
    """Name, guard, connection and certificate; no request is made."""
    parts = urlsplit(to.proxy or to.url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = await resolved(literal(host) or host, port)
    if not found:
        what = "the proxy's name" if to.proxy else "its name"
        advice = "correct it, or see to the DNS of this machine"
        yield Finding(about, "address", "wrong", f"{what} does not resolve", advice)
        return
    if to.policy is not None and not to.proxy:
        refused = guarded(about, host, found, to.policy)
        if refused:
            yield refused
            return
        yield Finding(about, "address", "ok", "the guard lets it be reached")
    secured = parts.scheme == "https"
    yield await reached(about, host, port, context(to.tls) if secured else None, "proxy" if to.proxy else "")


async def resolved(host: str, port: int) -> list[str]:
    """The addresses *host* stands for now."""
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted({str(each[4][0]) for each in found})


def guarded(about: str, host: str, found: list[str], policy: guard.Policy) -> Finding | None:
    """What the guard refuses of the addresses *found*, with the line that opens it."""
    whys = {why for address in found if (why := guard.blocked(address, policy, host))}
    if not whys:
        return None
    opened = [why for why in whys if guard.openable(why)]
    advice = (
        f"add allow_networks: [{host}]" if opened == list(whys) else "no key opens it: use another address"
    )
    return Finding(about, "address", "wrong", f"the guard refuses it: {listing(sorted(whys))}", advice)


async def reached(about: str, host: str, port: int, tls: ssl.SSLContext | None, what: str) -> Finding:
    """A connection, and with *tls* a handshake."""
    says = f"the {what} cannot be reached" if what else "it cannot be reached"
    try:
        with anyio.fail_after(CONNECT_WITHIN):
            stream = (
                await anyio.connect_tcp(host, port, ssl_context=tls)
                if tls
                else await anyio.connect_tcp(host, port)
            )
            await stream.aclose()
    except TimeoutError:
        return Finding(about, "connection", "wrong", f"{says}: no answer in {CONNECT_WITHIN:g} s", FIREWALL)
    except ssl.SSLError as error:
        why = error.reason
        if isinstance(error, ssl.SSLCertVerificationError):
            why = error.verify_message
        advice = "set tls.ca_file to the authority that signed it, or renew the certificate"
        return Finding(about, "connection", "wrong", f"its certificate is not accepted: {why}", advice)
    except OSError as error:
        cause = error.__cause__
        text = cause.strerror if isinstance(cause, OSError) else error.strerror
        return Finding(about, "connection", "wrong", f"{says}: {text or 'refused'}", FIREWALL)
    return Finding(about, "connection", "ok", "it takes connections")


FIREWALL = "see that it runs, and that no firewall is between"


async def mqtt(about: str, name: str, config: MqttConfig, now: Now) -> AsyncIterator[Finding]:
    """A login under a client id of its own, then one marked message on the topic of the config."""
    address = mqtt_address.parse(config.url)
    if not await resolved(address.host, address.port):
        advice = "correct url, or see to the DNS of this machine"
        yield Finding(about, "address", "wrong", "the broker's name does not resolve", advice)
        return
    suffix = f"doctor-{random.SystemRandom().randrange(16**6):06x}"
    changes: dict[str, object] = {"qos": 1, "retain": False, "timeout": min(config.timeout, BROKER_WITHIN)}
    if config.format in OWN_TOPICS:
        changes |= {"format": "event", "topic": TEST_TOPIC}
    async with open_mqtt(name, config.model_copy(update=changes), now=now, suffix=suffix) as opened:
        outcome = await opened.send(delivery(name, now()))
    failure = None if isinstance(outcome, Delivered) else outcome.failure
    if failure is not None and PUBLISHING not in failure.error:
        yield refused_login(about, failure)
        return
    yield Finding(about, "login", "ok", "the broker takes us")
    yield published(about, config, failure)


def refused_login(about: str, failure: Failure) -> Finding:
    advice = {
        "auth": "correct username and password, or client_id",
        "tls": "set tls.ca_file to the authority that signed its certificate",
        "connect": FIREWALL,
        "timeout": FIREWALL,
    }.get(failure.reason, "see to the broker")
    check = "login" if failure.reason == "auth" else "connection"
    return Finding(about, check, "wrong", f"the broker does not take us: {failure.error}", advice)


def published(about: str, config: MqttConfig, failure: Failure | None) -> Finding:
    """*failure* of a publish, None if it was acknowledged."""
    if failure is not None and config.format not in OWN_TOPICS:
        advice = "let the user publish on the topics that topic makes (ACL of the broker)"
        says = f"a test message was not taken: {failure.error}"
        return Finding(about, "publish", "wrong", says, advice)
    if config.format in OWN_TOPICS:
        says = f"the topics of format: {config.format} are not tried"
        return Finding(about, "publish", "unknown", says, "try `bridge send-test`")
    if config.protocol == "3.1.1":
        says = "a test message was acknowledged, which under 3.1.1 does not say that it may be published"
        return Finding(about, "publish", "unknown", says, "use protocol: 5 if the broker has it")
    return Finding(about, "publish", "ok", "a test message was taken")


async def slack(about: str, config: SlackConfig) -> Finding:
    """The token by `auth.test`, a webhook by a message without a text, which Slack refuses unsent."""
    if config.webhook_url:
        url, policy = config.webhook_url.get_secret_value(), guard.Policy(allow_private=True)
        headers = {}
    else:
        url = f"{(config.api_url or API).rstrip('/')}/auth.test"
        policy = guard.policy(config.allow_private_networks, config.allow_networks)
        headers = {"Authorization": f"Bearer {config.token.get_secret_value() if config.token else ''}"}
    headers["Content-Type"] = "application/json; charset=utf-8"
    proxy = config.proxy.get_secret_value() if config.proxy else None
    async with target(
        url,
        policy,
        limit=1,
        timeout=config.timeout,
        tls=context(config.tls),
        proxy=proxy,
        hidden=[url, headers.get("Authorization", url)],
    ) as to:
        answer = await post(to, b"{}", headers)
    if not isinstance(answer, Answer):
        failure = answer.failure if not isinstance(answer, Delivered) else None
        check = "address" if failure and failure.reason == "blocked_address" else "connection"
        return Finding(about, check, "wrong", failure.error if failure else "no answer", FIREWALL)
    return webhook_answer(about, answer) if config.webhook_url else token_answer(about, answer)


async def alertmanager(about: str, config: AlertmanagerConfig) -> Finding:
    """An empty list of alerts, which changes nothing: whether it lets us in, and is one at all."""
    async with target(
        config.alerts_url,
        guard.Policy(allow_private=True),
        limit=1,
        timeout=config.timeout,
        tls=context(config.tls),
        proxy=config.proxy.get_secret_value() if config.proxy else None,
        hidden=config.hidden(),
    ) as to:
        answer = await post(to, b"[]", config.headers())
    if not isinstance(answer, Answer):
        says = "no answer" if isinstance(answer, Delivered) else answer.failure.error
        return Finding(about, "connection", "wrong", says, FIREWALL)
    if answer.status == 200:
        return Finding(about, "alertmanager", "ok", "it takes alerts")
    if answer.status in (401, 403, 407):
        advice = "correct username and password, or token"
        return Finding(about, "login", "wrong", f"it does not let us in: HTTP {answer.status}", advice)
    says = f"what answers there is no Alertmanager with API v2: HTTP {answer.status}"
    return Finding(about, "alertmanager", "wrong", says, "correct url")


def webhook_answer(about: str, answer: Answer) -> Finding:
    """400 says that only the text was missing (api.slack.com/messaging/webhooks, "Handling errors")."""
    if answer.status in (200, 400):
        return Finding(about, "slack", "ok", "the webhook answers")
    says = f"the webhook answers {answer.status} {answer.body.strip()[:60]}".rstrip()
    return Finding(about, "slack", "wrong", says, "make a new incoming webhook, and set webhook_url")


class _Auth(msgspec.Struct):
    ok: bool = False
    error: str = ""
    team: str = ""


def token_answer(about: str, answer: Answer) -> Finding:
    try:
        read = msgspec.json.decode(answer.body, type=_Auth)
    except msgspec.DecodeError:
        says = f"what answers at api_url is no Web API of Slack: HTTP {answer.status}"
        return Finding(about, "slack", "wrong", says, "correct api_url")
    if read.ok:
        return Finding(about, "slack", "ok", f"the token is good{f' for {read.team}' if read.team else ''}")
    advice = "install the app anew and set token (xoxb-…), with the scope chat:write"
    return Finding(about, "slack", "wrong", f"the token is refused: {read.error or answer.status}", advice)
