"""The few JetStream calls that bridge makes, each answered by the server before it returns.

nats-py is asyncio-only, and so is everything here. Whatever goes wrong is an OutboxError: a publish that
was not answered may have been stored, which is what expectations (compare-and-set) and message ids are for.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from bridge.errors import ConfigError, Mistake, OutboxError, StartError
from bridge.outbox.jetstream import credentials
from bridge.outbox.jetstream.address import Address
from bridge.outbox.jetstream.asking import Asking

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

log = structlog.get_logger()

ANSWER_WITHIN = 5.0  # seconds for one answer of the server
CONNECT_WITHIN = 5.0  # seconds for the first connection
PING_EVERY = 5  # seconds between pings: two that are not answered end the connection
SAID = "nats: '"  # how nats-py quotes the server
COPY_BEHIND = 40  # looks, LOOK_AGAIN apart, until a copy that is behind is believed to be up to date
LOOK_AGAIN = 0.05  # seconds
RECONNECT_EVERY = 0.25  # seconds between tries
OLDEST = (2, 9)  # JetStream's direct get and compare-and-set on a subject came with it
WRONG_LAST = 10071  # err_code: the subject's last message is not the expected one
FULL = (10002, 10023, 10028, 10047, 10077)
"""err_codes: limits of the account, resources, memory or storage exceeded, limits of the stream."""
HEADROOM = 32 << 10  # bytes of headers a message may get: a dead letter's tell of the answer and the error
NO_MESSAGE = 10037
ACK = b"+ACK"
HEADERS_BEGIN = len("NATS/1.0\r\n\r\n")
NO_STREAM = 10059

Watch = Callable[[str], None]
"""Called with the subject before each write: tests let the power go there."""


def unwatched(_subject: str) -> None:
    pass


class ApiError(OutboxError):
    """The server refused; *code* is its `err_code`."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, full=code in FULL)
        self.code = code


class TooLargeError(OutboxError):
    """More than the server takes as one message, whenever it is asked."""


class UncertainError(OutboxError):
    """No answer came: it may have been stored or not."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A message as it is stored; *at* is the server's clock where it was told, RFC 3339."""

    subject: str
    seq: int
    headers: Mapping[str, str]
    body: bytes
    at: str = ""


@asynccontextmanager
async def connected(
    address: Address, *, watch: Watch = unwatched, why: str = "outbox"
) -> AsyncIterator[Link]:
    """Raises ConfigError without the extra `bridge[nats]`, StartError where no server is reached."""
    try:
        import nats.errors

        import nats
    except ImportError:
        advice = "nats: needs the extra: pip install 'tts-event-bridge[nats]'"
        raise ConfigError([Mistake("outbox", 0, "", advice)]) from None
    complaints: list[str] = []
    try:
        client = await asyncio.wait_for(nats.connect(**_options(address, complaints)), CONNECT_WITHIN)
    except (nats.errors.Error, OSError, TimeoutError) as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if complaints and isinstance(error, TimeoutError):
            reason = next((each for each in complaints if SAID in each), complaints[-1])
        raise StartError(f"{address.shown}: cannot be reached: {reason}") from None
    link = Link(client, address, watch)
    try:
        yield link
    finally:
        client._disconnected_cb = None  # closing is no loss; nats-py tells both in one way
        link.close()
        await client.close()


def _options(address: Address, complaints: list[str]) -> dict[str, Any]:
    """*complaints* gets why it could not be connected, which nats-py does not raise while it tries again."""

    async def ended() -> None:
        log.warning("nats connection lost", servers=address.shown)

    async def again() -> None:
        log.info("nats connected again", servers=address.shown)

    async def complain(error: Exception) -> None:
        told = f"{type(error).__name__}: {error}"
        complaints[:] = [*complaints[-9:], told]
        log.debug("nats", error=told)

    options: dict[str, Any] = {
        "servers": list(address.servers),
        "name": f"bridge {address.replica}",
        "user": None if address.password is None else address.user,
        "password": address.password,
        "token": address.user if address.password is None else None,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": RECONNECT_EVERY,
        "allow_reconnect": True,
        "pending_size": 16 << 20,
        "ping_interval": PING_EVERY,
        "max_outstanding_pings": 2,
        "disconnected_cb": ended,
        "reconnected_cb": again,
        "error_cb": complain,
    }
    if address.servers[0].startswith("tls:") or address.ca or address.cert:
        options["tls"] = _tls(address)
    if address.credentials:
        options |= credentials.options(address.credentials)
    return options


def _tls(address: Address) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=address.ca)
        if address.cert:
            context.load_cert_chain(address.cert, address.key)
    except (OSError, ssl.SSLError) as error:
        raise StartError(f"outbox: the PEM files of ca, cert and key cannot be used: {error}") from None
    return context


class Link:
    """One connection."""

    def __init__(self, client: Client, address: Address, watch: Watch = unwatched) -> None:
        self.client = client
        self.address = address
        self._watch = watch
        self._asking = Asking(client, ANSWER_WITHIN)

    def close(self) -> None:
        self._asking.close()

    @property
    def is_connected(self) -> bool:
        return self.client.is_connected

    def has_room(self, body: bytes) -> bool:
        """Does *body* fit into one message, whatever bridge says about it in the headers?"""
        return len(body) + HEADROOM <= self.client.max_payload

    async def ask(self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None) -> Msg:
        """The answer to a request; raises UncertainError, or OutboxError if it was not even sent."""
        import nats.errors

        if not self.client.is_connected:
            raise OutboxError(f"{self.address.shown}: not connected")
        try:
            answer = await self._asking.ask(subject, payload, headers)
        except nats.errors.MaxPayloadError:
            raise TooLargeError(f"{self.address.shown}: larger than the server's max_payload") from None
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise UncertainError(f"{self.address.shown}: no answer: {type(error).__name__}") from None
        if not answer.data and answer.headers and answer.headers.get("Status") == "503":
            raise OutboxError(f"{self.address.shown}: JetStream does not answer")
        return answer

    async def acknowledge(self, replies: Sequence[str]) -> None:
        """Messages of one consumer. Returns when the server has taken the last one, and so the others."""
        import nats.errors

        if not replies:
            return
        if not self.client.is_connected:
            raise OutboxError(f"{self.address.shown}: not connected")
        try:
            for each in replies[:-1]:
                await self.client.publish(each, ACK)
        except (nats.errors.Error, OSError) as error:
            raise UncertainError(f"{self.address.shown}: not sent: {type(error).__name__}") from None
        await self.ask(replies[-1], ACK)

    async def api(self, call: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """The answer to `$JS.API.<call>`; raises ApiError."""
        answer = await self.ask(f"$JS.API.{call}", json.dumps(body).encode() if body is not None else b"")
        found: dict[str, Any] = json.loads(answer.data)
        if error := found.get("error"):
            raise self._refused(error, call)
        return found

    def _refused(self, error: Mapping[str, Any], what: str) -> ApiError:
        text = f"{self.address.shown}: {what}: {error.get('description', 'refused')}"
        return ApiError(text, int(error.get("err_code", 0)))

    async def publish(
        self,
        subject: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        expect: int | None = None,
        message_id: str | None = None,
    ) -> int | None:
        """Store a message and return its sequence number; None if it was stored before, or *expect* fails.

        *expect*: sequence number of the last message on the subject, 0 for none.
        """
        self._watch(subject)
        sent = dict(headers or {})
        if expect is not None:
            sent["Nats-Expected-Last-Subject-Sequence"] = str(expect)
        if message_id is not None:
            sent["Nats-Msg-Id"] = message_id
        size = len(body) + sum(len(key) + len(value) + 4 for key, value in sent.items())
        if size + HEADERS_BEGIN > self.client.max_payload:  # the server would end the connection
            raise TooLargeError(f"{self.address.shown}: larger than the server's max_payload")
        answer = msgspec.json.decode((await self.ask(subject, body, sent or None)).data, type=dict[str, Any])
        if error := answer.get("error"):
            if error.get("err_code") == WRONG_LAST:
                return None
            raise self._refused(error, "publish")
        return None if answer.get("duplicate") else int(answer["seq"])

    async def get(
        self, stream: str, *, subject: str | None = None, seq: int | None = None, direct: bool = False
    ) -> Stored | None:
        """The last message on *subject*, or message *seq*; *direct*: by any copy, perhaps a little behind.

        With both: the first one on *subject*, which may have wildcards, from *seq* on (*direct* only).
        """
        asked: dict[str, object] = {}
        if seq is not None:
            asked["seq"] = seq
        if subject is not None:
            asked["next_by_subj" if seq is not None else "last_by_subj"] = subject
        if direct:
            return await self._get_direct(stream, asked)
        try:
            found = (await self.api(f"STREAM.MSG.GET.{stream}", asked))["message"]
        except ApiError as error:
            if error.code == NO_MESSAGE:
                return None
            raise
        headers = _headers(base64.b64decode(found.get("hdrs", "")))
        body = base64.b64decode(found.get("data", ""))
        return Stored(found["subject"], found["seq"], headers, body, found.get("time", ""))

    async def _get_direct(self, stream: str, asked: Mapping[str, object]) -> Stored | None:
        answer = await self.ask(f"$JS.API.DIRECT.GET.{stream}", json.dumps(asked).encode())
        headers = answer.headers or {}
        if "Nats-Sequence" not in headers:
            if headers.get("Status") == "404":
                return None
            raise OutboxError(f"{self.address.shown}: {stream}: {headers.get('Description', 'no answer')}")
        seq, at = int(headers["Nats-Sequence"]), headers.get("Nats-Time-Stamp", "")
        return Stored(headers["Nats-Subject"], seq, headers, answer.data, at)

    async def delete(self, stream: str, seq: int) -> bool:
        """False if it was gone."""
        self._watch(f"delete {stream}")
        try:
            await self.api(f"STREAM.MSG.DELETE.{stream}", {"seq": seq, "no_erase": True})
        except ApiError as error:
            if error.code in (NO_MESSAGE, 10057):  # 10057: "message not found" while deleting
                return False
            raise
        return True

    async def purge(self, stream: str, *, subject: str | None = None, before: int | None = None) -> int:
        """How many messages on *subject*, or with lower sequence numbers than *before*, went."""
        self._watch(f"purge {stream}")
        body: dict[str, object] = {}
        if subject is not None:
            body["filter"] = subject
        if before is not None:
            body["seq"] = before
        return int((await self.api(f"STREAM.PURGE.{stream}", body))["purged"])

    async def info(self, stream: str) -> dict[str, Any]:
        return await self.api(f"STREAM.INFO.{stream}")

    async def subjects(self, stream: str, filter_subject: str) -> list[str]:
        """Every subject that has a message; the server lists 100,000 at a time."""
        found: list[str] = []
        while True:
            asked = {"subjects_filter": filter_subject, "offset": len(found)}
            answer = await self.api(f"STREAM.INFO.{stream}", asked)
            page = answer["state"].get("subjects") or {}
            found.extend(page)
            if not page or len(found) >= int(answer.get("total", 0)):
                return found

    async def consumer(self, stream: str, name: str) -> dict[str, Any]:
        return await self.api(f"CONSUMER.INFO.{stream}.{name}")

    async def scan(
        self, stream: str, start: int, *, subject: str | None = None, page: int = 256
    ) -> AsyncIterator[Stored]:
        """Headers of the messages from sequence number *start* on, up to the last one there is now.

        It may be one copy of several that reads, and a little behind: then it is waited for.
        """
        state = (await self.info(stream))["state"]
        if not state["messages"] or start > state["last_seq"]:
            return
        config: dict[str, object] = {
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": max(1, start),
            "ack_policy": "none",
            "headers_only": True,
            "inactive_threshold": 30_000_000_000,
            "max_waiting": 8,
            "num_replicas": 1,
            "mem_storage": True,
        }
        if subject is not None:
            config["filter_subject"] = subject
        made = await self.api(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config})
        pull, last, count = Pull(self, stream, made["name"]), 0, 0
        patience = COPY_BEHIND if self.address.replicas > 1 else 0
        try:
            while True:
                got = await pull.fetch(page)
                for each in got:
                    count, last = count + 1, each.metadata.sequence.stream
                    if each.metadata.sequence.consumer != count:
                        raise OutboxError(f"{self.address.shown}: {stream}: messages were lost on the way")
                    yield Stored(each.subject, last, each.headers or {}, b"")
                if len(got) < page and (last >= state["last_seq"] or not patience):
                    return
                if not got:
                    patience -= 1
                    await asyncio.sleep(LOOK_AGAIN)
        finally:
            await pull.close()
            await self.api(f"CONSUMER.DELETE.{stream}.{made['name']}")


def _headers(block: bytes) -> dict[str, str]:
    lines = block.decode("utf-8", "replace").split("\r\n")[1:]
    return dict(_pairs(lines))


def _pairs(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        key, colon, value = line.partition(":")
        if colon:
            yield key, value.strip()


class Pull:
    """Messages of one consumer, taken by one caller at a time."""

    def __init__(self, link: Link, stream: str, consumer: str) -> None:
        self._link = link
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox: Subscription | None = None
        self._wanted = 0
        self._found: list[Msg] = []
        self._over: asyncio.Future[str] | None = None
        """The status with which the server ended a request, '' where it had as many as were wanted."""

    async def fetch(self, batch: int) -> list[Msg]:
        """What is there now, up to *batch*; raises OutboxError, and what was under way comes again."""
        import nats.errors

        client = self._link.client
        if not client.is_connected:
            raise OutboxError(f"{self._link.address.shown}: not connected")
        if self._inbox is None:
            self._inbox = await client.subscribe(
                client.new_inbox(), cb=self._came, pending_msgs_limit=0, pending_bytes_limit=1 << 30
            )
        asked = json.dumps({"batch": batch, "no_wait": True}).encode()
        self._wanted, self._found = batch, []
        self._over = asyncio.get_running_loop().create_future()
        try:
            await client.publish(self._subject, asked, reply=self._inbox.subject)
            status = await asyncio.wait_for(self._over, ANSWER_WITHIN)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            await self.close()
            if not self._found:
                raise OutboxError(f"{self._link.address.shown}: no answer: {type(error).__name__}") from None
            return self._found
        if status == "503":
            raise OutboxError(f"{self._link.address.shown}: JetStream does not answer")
        return self._found

    async def _came(self, message: Msg) -> None:
        status = None
        if message.headers and "Status" in message.headers and not message.reply:
            status = message.headers["Status"]
        else:
            self._found.append(message)
        if self._over and not self._over.done() and (status or len(self._found) == self._wanted):
            self._over.set_result(status or "")

    async def close(self) -> None:
        import nats.errors

        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            try:
                await inbox.unsubscribe()
            except nats.errors.Error:
                log.debug("nats inbox not closed")
