"""bridge as an operator starts it: a process, a config file, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx

from bridge.outbox.sqlite import open_readonly
from bridge.outbox.verify import verify

COMMAND = [sys.executable, "-m", "bridge"]
PATIENCE = 60.0  # seconds for things that take a second on a machine of one's own


def environment(**more: str) -> dict[str, str]:
    """Nothing of the developer's own: no BRIDGE_*, no proxies."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("BRIDGE_") and "proxy" not in k.lower()}
    return kept | {"PYTHONUNBUFFERED": "1"} | more


@dataclass
class Bridge:
    """A running `bridge run`; *url* is its admin address."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    token: str = ""
    """The admin token, where the config has one."""

    def kill(self) -> None:
        """The power goes."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """As Kubernetes ends it; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    async def status(self) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        async with httpx.AsyncClient(trust_env=False, headers=headers) as client:
            answer = await client.get(f"{self.url}/api/status")
            found: dict[str, Any] = answer.json()
            return found

    async def metrics(self) -> str:
        async with httpx.AsyncClient(trust_env=False) as client:
            return (await client.get(f"{self.url}/metrics")).text


def start(
    folder: Path,
    *,
    log: str = "bridge.log",
    env: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    prefix: Sequence[str] = (),
) -> Bridge:
    """`bridge run` on *folder*/bridge.yaml; `announced` waits until it is up. *prefix* comes before it."""
    path = folder / log
    with path.open("ab") as stream:
        process = subprocess.Popen(
            [*prefix, *COMMAND, "run", "-c", str(folder / "bridge.yaml"), *arguments],
            cwd=folder,
            env=environment(**(env or {})),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )
    return Bridge(process, "", path)


async def announced(bridge: Bridge, *, since: int = 0) -> Bridge:
    """*bridge* with the address its log names after byte *since*; raises if it ended instead."""
    with anyio.fail_after(PATIENCE):
        while True:
            for line in bridge.log.read_bytes()[since:].splitlines():
                if b'"bridge runs"' in line:
                    bridge.url = json.loads(line)["admin"]
                    return bridge
            if bridge.process.poll() is not None:
                raise AssertionError(f"bridge ended: {bridge.log.read_text()[-2000:]}")
            await anyio.sleep(0.02)


@asynccontextmanager
async def running(folder: Path, env: Mapping[str, str] | None = None) -> AsyncIterator[Bridge]:
    bridge = start(folder, env=env)
    try:
        yield await announced(bridge)
    finally:
        if bridge.process.poll() is None:
            bridge.kill()


AS_OTHERS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
"""Takes from root what makes file permissions mean nothing to it."""


def run(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """One command of bridge, to its end; file permissions count, whoever runs the test."""
    return subprocess.run(
        [*AS_OTHERS, *COMMAND, *arguments],
        cwd=cwd,
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


async def until(
    bridge: Bridge, condition: Callable[[dict[str, Any]], bool], within: float = PATIENCE
) -> dict[str, Any]:
    """The status once *condition* holds of it; fails after *within* seconds, showing the last one."""
    status: dict[str, Any] = {}
    with anyio.move_on_after(within):
        while True:
            status = await bridge.status()
            if condition(status):
                return status
            await anyio.sleep(0.1)
    raise AssertionError(f"not within {within} s: {status}")


async def until_connected(bridge: Bridge) -> None:
    await until(bridge, lambda status: all(each["connected"] for each in status["sources"].values()))


async def until_settled(bridge: Bridge, sinks: Mapping[str, int]) -> dict[str, Any]:
    """The status once each of *sinks* has delivered that many and nothing waits."""

    def settled(status: dict[str, Any]) -> bool:
        found = [(status["sinks"][name], count) for name, count in sinks.items()]
        return all(each["delivered"] >= count and not each["waiting"] for each, count in found)

    return await until(bridge, settled)


async def violations(database: Path) -> list[str]:
    """The conservation sums of promise 6 that do not hold in the store."""
    async with open_readonly(database) as store:
        return await verify(store)
