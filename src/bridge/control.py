"""How a command changes the store: through the running bridge, or by itself.

One process writes the store. It leaves its admin address in the lock file; who finds the lock taken asks
there.
"""

from __future__ import annotations

import fcntl
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from bridge.config import Config
from bridge.errors import StartError
from bridge.outbox.jetstream.outbox import JetStreamOutbox, open_jetstream, open_reader
from bridge.outbox.jetstream.replicas import command_name
from bridge.outbox.sqlite import SqliteOutbox, SqliteReader, open_outbox, open_readonly, threads

PATIENCE = 60.0  # seconds for one answer


@dataclass(frozen=True, slots=True)
class Admin:
    """The admin address of the running bridge."""

    url: str
    token: str | None

    async def post(self, path: str, body: dict[str, object]) -> dict[str, Any]:
        """The answer to a change; raises StartError that says why there was none."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
                response = await client.post(self.url + path, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise StartError(f"the running bridge does not answer: {type(error).__name__}") from None
        if response.status_code == 403:
            raise StartError("the running bridge takes no changes: set admin.token and start it again")
        if response.status_code == 401:
            raise StartError("the running bridge has another admin.token than this config")
        if response.status_code != 200:
            raise StartError(f"the running bridge answers HTTP {response.status_code}")
        found: dict[str, Any] = response.json()
        return found


def admin_of(config: Config) -> Admin | None:
    """Where the bridge that runs on the store of *config* listens; None if none runs."""
    if config.nats is not None:  # any number of processes may change it
        return None
    lock = Path(f"{config.outbox_path}.lock")
    try:
        with lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except FileNotFoundError:
        return None
    except BlockingIOError:
        url = lock.read_text().strip()
        return Admin(reachable(url or f"http://{config.admin.listen}"), config.admin.token_value)
    except OSError as error:
        raise StartError(f"{lock}: cannot be read: {error.strerror}") from None


def reachable(url: str) -> str:
    """*url*, with loopback for the address that stands for all."""
    parts = httpx.URL(url)
    try:
        unspecified = ipaddress.ip_address(parts.host).is_unspecified
    except ValueError:
        unspecified = False
    return str(parts.copy_with(host="127.0.0.1") if unspecified else parts).rstrip("/")


@asynccontextmanager
async def opened_store(
    config: Config, *, serving: bool = False
) -> AsyncIterator[SqliteOutbox | JetStreamOutbox]:
    """The store of *config*; raises StartError, or ConfigError where an extra is missing.

    *serving*: for `bridge run`. A command counts what it does under one name on all its runs.
    """
    if config.nats is not None:
        async with open_jetstream(
            config.nats if serving else replace(config.nats, replica=command_name()),
            dedup_window=config.dedup_window,
            dead_letter_retention=config.dead_letter_retention,
            trace_retention=config.trace_retention,
            max_size=config.max_size,
            overflow=config.overflow,
        ) as shared:
            yield shared
        return
    async with opened_file(config) as outbox:
        yield outbox


@asynccontextmanager
async def opened_reader(config: Config) -> AsyncIterator[SqliteReader | JetStreamOutbox]:
    """The store of *config* for a command that only looks, also while bridge runs; raises StartError."""
    if config.nats is not None:
        async with open_reader(config.nats) as shared:
            yield shared
        return
    async with open_readonly(config.outbox_path) as reader:
        yield reader


@asynccontextmanager
async def opened_file(config: Config) -> AsyncIterator[SqliteOutbox]:
    """The store of *config*, locked, with one thread that writes and one that reads; raises StartError."""
    async with (
        threads() as write,
        threads() as read,
        open_outbox(
            config.outbox_path,
            durability=config.durability,
            dedup_window=config.dedup_window,
            dead_letter_retention=config.dead_letter_retention,
            trace_retention=config.trace_retention,
            offload_write=write,
            offload_read=read,
            max_size=config.max_size,
            overflow=config.overflow,
        ) as outbox,
    ):
        yield outbox
