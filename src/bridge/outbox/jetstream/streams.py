"""The streams, consumers and the bucket: made or brought to what the config says, and checked, at start."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import structlog

from bridge.errors import OutboxError, StartError
from bridge.outbox.jetstream.link import FULL, NO_STREAM, OLDEST, ApiError, Link
from bridge.outbox.jetstream.wire import Subjects, sink_token

log = structlog.get_logger()

EVENTS, DELIVERIES, SETTLED, ATTEMPTS, DEAD = "events", "deliveries", "settled", "attempts", "dead"
SIGHTS = "sights"
STATE, SHARED = "state", "shared"  # buckets
ROUTER = "router"  # the consumer on the events
KEPT = 20  # attempts, and decisions, kept of one delivery
NANO = 1_000_000_000
IN_USE = 10058  # err_code: there is a stream of this name with another config
NO_CONSUMER = 10014
COPIES_HEAL = (2, 10)  # see docs/nats.md
OLD_COPIES = "a copy may stay behind for good when its server restarts, and the next loss stops deliveries"
LEAST_PAYLOAD = 128 << 10  # bytes; JetStream comes with 1 MiB
LEAST_CONSUMERS = 32  # of each stream: of the sights one a partition, and those of owners that have just died
LEAST_ACK_PENDING = 10_000  # what is held for its next attempt must not keep others from being sent
SMALLEST_WINDOW = 0.1  # seconds the server takes at least for duplicates


@dataclass(frozen=True, slots=True)
class Windows:
    """Seconds and bytes of the config that the streams depend on."""

    dedup_window: float
    max_size: int | None

    @property
    def reserved(self) -> int:
        """Bytes of each copy of the deliveries; -1 for any number."""
        return -1 if self.max_size is None else self.max_size * 2


@dataclass(frozen=True, slots=True)
class Account:
    """What the server allows this user; -1 for no limit."""

    payload: int
    """Bytes of one message."""
    bytes_required: bool = False
    """Each stream has to say how large it may become."""
    consumers: int = -1
    """Of each stream."""
    ack_pending: int = -1
    """Messages a consumer may have handed out."""

    def lack(self) -> str | None:
        """Why bridge cannot work with so little."""
        if self.payload < LEAST_PAYLOAD:
            return f"max_payload is {self.payload} bytes; bridge needs {LEAST_PAYLOAD}"
        if -1 < self.consumers < LEAST_CONSUMERS:
            return f"the account may have {self.consumers} consumers a stream; bridge needs {LEAST_CONSUMERS}"
        if -1 < self.ack_pending < LEAST_ACK_PENDING:
            return f"the account's max_ack_pending is {self.ack_pending}; bridge needs {LEAST_ACK_PENDING}"
        return None


async def account_of(link: Link) -> Account:
    limits = (await link.api("INFO"))["limits"]
    return Account(
        link.client.max_payload,
        bool(limits.get("max_bytes_required")),
        int(limits.get("max_consumers", -1)) or -1,
        int(limits.get("max_ack_pending", -1)) or -1,
    )


def definitions(link: Link, windows: Windows, account: Account) -> dict[str, dict[str, Any]]:
    """The config of each stream by its kind.

    Nothing goes by age: bridge lets go by the times it has written into the messages (`tidy`), and only of
    what no delivery needs any more. `max_size` is bridge's to keep; twice as much is reserved for deliveries,
    so that a server with less says so at the start and not when it is full. What does not fit is refused:
    to discard old deliveries would be to lose them.
    """
    address = link.address
    window = max(SMALLEST_WINDOW, min(windows.dedup_window, address.duplicate_window))
    common = {
        "storage": address.storage,
        "num_replicas": address.replicas,
        "discard": "new",
        "allow_direct": True,
        "max_msgs": -1,
        "max_bytes": windows.reserved if account.bytes_required else -1,
        "max_age": 0,
        "max_consumers": -1,
        "duplicate_window": int(window * NANO),
    }
    latest = {"retention": "limits", "max_msgs_per_subject": 1}
    history = {"retention": "limits", "max_msgs_per_subject": KEPT, "discard": "old"}
    queue = {"retention": "workqueue", "max_msgs_per_subject": 1, "max_bytes": windows.reserved}
    log_of_sights = {"retention": "limits", "max_msgs_per_subject": -1}
    kinds = {
        EVENTS: latest,
        DELIVERIES: queue,
        SETTLED: history,
        ATTEMPTS: history,
        DEAD: latest,
        SIGHTS: log_of_sights,
    }
    prefix = address.stream
    made = {
        kind: common | shape | {"name": f"{prefix}-{kind}", "subjects": [f"{prefix}.{kind}.>"]}
        for kind, shape in kinds.items()
    }
    for bucket in (STATE, SHARED):
        keys = {"name": f"KV_{prefix}-{bucket}", "subjects": [f"$KV.{prefix}-{bucket}.>"]}
        made[bucket] = common | latest | keys | {"allow_rollup_hdrs": True, "deny_delete": True}
    return made


def check_version(link: Link) -> None:
    """Raises StartError; warns of a server on which copies do not heal."""
    runs = link.client.connected_server_version
    version = f"{runs.major}.{runs.minor}.{runs.patch}"
    if (runs.major, runs.minor) < OLDEST:
        raise StartError(f"{link.address.shown}: runs nats-server {version}; bridge needs 2.9 or newer")
    if link.address.replicas > 1 and (runs.major, runs.minor) < COPIES_HEAL:
        log.warning("nats-server is old for copies: update it", version=version, why=OLD_COPIES)


async def prepared(link: Link, windows: Windows) -> None:
    """Raises StartError that says what the server lacks or what stands in the way."""
    check_version(link)
    try:
        account = await account_of(link)
        if lack := account.lack():
            raise StartError(f"{link.address.shown}: {lack}")
        for config in definitions(link, windows, account).values():
            await _made(link, config)
        await consumer(link, EVENTS, ROUTER)
    except ApiError as error:
        raise StartError(f"{error}; {_advice(error, link, windows)}") from None
    except OutboxError as error:
        raise StartError(f"{error}; is JetStream enabled (jetstream {{}} in its config)?") from None


def _advice(error: ApiError, link: Link, windows: Windows) -> str:
    if error.code in FULL and windows.max_size is not None:
        size = f"{windows.reserved / (1 << 30):.3g} GiB for each of {link.address.replicas} copies"
        return f"max_size has twice its size reserved, {size}: lower it, or give JetStream more storage"
    return "check JetStream, its limits (bridge needs 8 streams), and the rights of this user"


async def _made(link: Link, config: dict[str, Any]) -> None:
    name = config["name"]
    try:
        found = (await link.info(name))["config"]
    except ApiError as error:
        if error.code != NO_STREAM:
            raise
        await _with_window(link, f"STREAM.CREATE.{name}", config)
        return
    for key in ("retention", "storage", "max_msgs_per_subject"):
        if found.get(key) != config[key]:
            raise StartError(
                f"{link.address.shown}: stream {name} has another {key} than bridge needs;"
                " name another one in ?stream=, or export, delete and import it"
            )
    if any(found.get(key) != value for key, value in config.items()):
        await _with_window(link, f"STREAM.UPDATE.{name}", found | config)


async def _with_window(link: Link, call: str, config: dict[str, Any]) -> None:
    """With the duplicate window of the server where ours is longer than it allows."""
    try:
        await link.api(call, config)
    except ApiError as error:
        allowed = re.search(r"duplicates? window.*limit.* ([0-9hms.]+)$", str(error))
        if allowed is None:
            raise
        seconds = _go_duration(allowed[1])
        log.warning("the server keeps ids of messages for a shorter time", seconds=seconds)
        await link.api(call, config | {"duplicate_window": int(seconds * NANO)})


def _go_duration(text: str) -> float:
    """Seconds of `1h2m3.5s`."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([0-9.]+)([hms])", text))


async def consumer(
    link: Link, kind: str, name: str, filter_subject: str | None = None, *, anew: bool = False
) -> str:
    """A durable consumer that wants acknowledgements; *anew*: what it handed out comes again at once."""
    stream = f"{link.address.stream}-{kind}"
    config: dict[str, object] = {
        "durable_name": name,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": int(link.address.ack_wait * NANO),
        "max_ack_pending": -1,
        "max_deliver": -1,
        "max_waiting": 512,
        "replay_policy": "instant",
    }
    if filter_subject is not None:
        config["filter_subject"] = filter_subject
    if anew:
        await forget_consumer(link, kind, name)
    await link.api(f"CONSUMER.DURABLE.CREATE.{stream}.{name}", {"stream_name": stream, "config": config})
    return name


async def is_consumer(link: Link, kind: str, name: str) -> bool:
    try:
        await link.consumer(f"{link.address.stream}-{kind}", name)
    except ApiError as error:
        if error.code == NO_CONSUMER:
            return False
        raise
    return True


async def forget_consumer(link: Link, kind: str, name: str) -> None:
    stream = f"{link.address.stream}-{kind}"
    try:
        await link.api(f"CONSUMER.DELETE.{stream}.{name}")
    except ApiError as error:
        if error.code not in (NO_CONSUMER, NO_STREAM):
            raise


def sink_consumer(sink: str) -> str:
    """A durable's name has no dots, slashes or spaces; `=` is in no sink's name."""
    return "sink-" + sink_token(sink).replace("/", "=")


async def deliveries_consumer(link: Link, subjects: Subjects, sink: str, *, anew: bool = False) -> str:
    return await consumer(link, DELIVERIES, sink_consumer(sink), subjects.deliveries(sink), anew=anew)
