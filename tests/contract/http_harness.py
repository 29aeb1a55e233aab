"""The harnesses of the sinks that speak HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from bridge.receiver import Receiver, Reply, receive
from bridge.sinks import Sink
from bridge.sinks.alertmanager import AlertmanagerConfig, open_alertmanager
from bridge.sinks.slack import SlackConfig, open_slack
from bridge.sinks.webhook import WebhookConfig, open_webhook
from tests.contract.harness import Harness, Make
from tests.servers import free_port

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TOKEN = "xoxb-17653672481-19874698323-pdFZKVeTuE8sk7oOcHrzqqgy"
HOOK = "/services/T024BE7LH/B026BE7LI/oKtXu8DoSTIKbmHlIYzbjKLq"


def now() -> float:
    return 1_700_000_000.0


class HttpHarness:
    """A receiver that can go away and come back at its port; subclasses say what is answered."""

    secrets: tuple[str, ...] = ()
    ok = Reply(200)
    trouble = Reply(500, body=b"oops")
    denied = Reply(401, body=b"you sent s3cr3t-header")
    wrong = Reply(413)
    limited = 429

    def __init__(self) -> None:
        self.port = free_port()
        self._running = AsyncExitStack()
        self._receiver: Receiver | None = None
        self._earlier: list[str] = []

    async def start(self) -> None:
        if self._receiver is None:
            self._receiver = await self._running.enter_async_context(receive(port=self.port))
            self._receiver.answer = self.ok

    async def stop(self) -> None:
        self._earlier = self.arrived()
        self._receiver = None
        await self._running.aclose()
        self._running = AsyncExitStack()

    @property
    def receiver(self) -> Receiver:
        assert self._receiver is not None, "the receiver is down"
        return self._receiver

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def arrived(self) -> list[str]:
        return self._earlier + [got.id for got in (self._receiver.deliveries if self._receiver else ())]

    async def heal(self) -> None:
        await self.start()
        self.receiver.answer = self.ok

    async def go_down(self) -> None:
        await self.stop()

    async def hang(self) -> None:
        self.receiver.answer = Reply(hang=True)

    async def reset(self) -> None:
        self.receiver.answer = Reply(reset=True)

    async def fail(self) -> None:
        self.receiver.answer = self.trouble

    async def deny(self) -> None:
        self.receiver.answer = self.denied

    async def refuse(self) -> None:
        self.receiver.answer = self.wrong

    async def limit(self, seconds: float) -> bool:
        self.receiver.answer = Reply(self.limited, {"Retry-After": str(int(seconds))})
        return True


class WebhookHarness(HttpHarness):
    secrets = (SECRET, "s3cr3t-header", "s3cr3t-in-path")

    def open(self, *, timeout: float = 5.0, max_in_flight: int = 4) -> AbstractAsyncContextManager[Sink]:
        config = WebhookConfig.model_validate(
            {
                "type": "webhook",
                "url": f"{self.url}/s3cr3t-in-path",
                "secret": SECRET,
                "headers": {"Authorization": "s3cr3t-header"},
                "timeout": timeout,
                "max_in_flight": max_in_flight,
                "allow_private_networks": True,
            }
        )
        return open_webhook("sut", config, now=now)


class SlackHookHarness(HttpHarness):
    """An incoming webhook."""

    secrets: tuple[str, ...] = (HOOK, HOOK.rpartition("/")[2])
    ok = Reply(200, body=b"ok")
    trouble = Reply(500, body=f"no way to {HOOK}".encode())
    denied = Reply(403, body=b"invalid_token")
    wrong = Reply(400, body=b"invalid_payload")

    def open(self, *, timeout: float = 5.0, max_in_flight: int = 4) -> AbstractAsyncContextManager[Sink]:
        config = SlackConfig.model_validate(
            {"type": "slack", "timeout": timeout, "max_in_flight": max_in_flight, "rate_limit": None}
            | self.keys()
        )
        return open_slack("sut", config, now=now)

    def keys(self) -> dict[str, Any]:
        return {"webhook_url": self.url + HOOK}


class SlackApiHarness(SlackHookHarness):
    """The Web API: HTTP 200 whatever happens."""

    secrets = (TOKEN,)
    ok = Reply(200, body=b'{"ok":true,"ts":"1503435956.000247"}')
    trouble = Reply(200, body=f'{{"ok":false,"error":"internal_error","sent":"{TOKEN}"}}'.encode())
    denied = Reply(200, body=b'{"ok":false,"error":"token_revoked"}')
    wrong = Reply(200, body=b'{"ok":false,"error":"msg_too_long"}')

    def keys(self) -> dict[str, Any]:
        return {"token": TOKEN, "channel": "C1", "api_url": f"{self.url}/api", "allow_private_networks": True}


class AlertmanagerHarness(HttpHarness):
    secrets = ("s3cr3t-header", "bWU6czNjcjN0LWhlYWRlcg==")
    denied = Reply(401, body=b"no bWU6czNjcjN0LWhlYWRlcg==, that is s3cr3t-header")

    def open(self, *, timeout: float = 5.0, max_in_flight: int = 4) -> AbstractAsyncContextManager[Sink]:
        config = AlertmanagerConfig.model_validate(
            {
                "type": "alertmanager",
                "url": self.url,
                "username": "me",
                "password": "s3cr3t-header",
                "timeout": timeout,
                "max_in_flight": max_in_flight,
            }
        )
        return open_alertmanager("sut", config, now=now)


def _made(kind: type[WebhookHarness | SlackHookHarness | AlertmanagerHarness]) -> Make:
    @asynccontextmanager
    async def make(directory: Path) -> AsyncIterator[Harness]:
        harness = kind()
        await harness.start()
        try:
            yield harness
        finally:
            await harness.stop()

    make.__name__ = kind.__name__.removesuffix("Harness").lower()
    return make


HARNESSES: tuple[Make, ...] = tuple(
    _made(kind) for kind in (WebhookHarness, SlackHookHarness, SlackApiHarness, AlertmanagerHarness)
)
