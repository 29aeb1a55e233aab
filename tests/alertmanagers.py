"""A real Alertmanager for integration tests, which tells a webhook of ours what it would tell a person."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.servers import HOST, START_WITHIN, free_port, need, poll

CONFIG = """\
route:
  receiver: person
  group_by: [{group_by}]
  group_wait: 1s
  group_interval: 1s
  repeat_interval: 1h
receivers:
  - name: person
    webhook_configs: [{{url: "{person}", send_resolved: true}}]
"""


@dataclass(slots=True)
class Alertmanager:
    program: str
    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def log(self) -> str:
        return (self.directory / "alertmanager.log").read_text(errors="replace")

    def start(self) -> None:
        with (self.directory / "alertmanager.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    self.program,
                    f"--config.file={self.directory / 'alertmanager.yml'}",
                    f"--storage.path={self.directory / 'storage'}",
                    f"--web.listen-address={HOST}:{self.port}",
                    "--cluster.listen-address=",
                ],
                stdout=log,
                stderr=log,
            )
        poll(self._up, f"alertmanager on port {self.port}")

    def _up(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            pytest.fail(f"alertmanager ended at start:\n{self.log}")
        try:
            return httpx.get(f"{self.url}/-/ready", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """What it knew of alerts is gone with it: it has them in memory."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(START_WITHIN)
            self.process = None

    def forget(self) -> None:
        """As a new one, without its log of notifications either."""
        self.kill()
        shutil.rmtree(self.directory / "storage", ignore_errors=True)
        self.start()

    async def alerts(self) -> list[dict[str, Any]]:
        """What fires, by its own account."""
        async with httpx.AsyncClient(trust_env=False) as client:
            found: list[dict[str, Any]] = (await client.get(f"{self.url}/api/v2/alerts")).json()
            return found

    async def until(self, names: Sequence[str], within: float = 15.0) -> list[dict[str, Any]]:
        """Its alerts once those of *names* fire, in the order of their names."""
        found: list[dict[str, Any]] = []
        with anyio.move_on_after(within):
            while True:
                found = sorted(await self.alerts(), key=lambda each: str(each["labels"]["alertname"]))
                if [each["labels"]["alertname"] for each in found] == sorted(names):
                    return found
                await anyio.sleep(0.05)
        pytest.fail(f"alertmanager has {found}\n{self.log}")


@contextmanager
def alertmanager(directory: Path, person: str, group_by: str = "alertname") -> Iterator[Alertmanager]:
    """One that runs, with its files in *directory*, and posts to the URL *person*."""
    program = need("prometheus-alertmanager")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "alertmanager.yml").write_text(CONFIG.format(person=person, group_by=group_by))
    server = Alertmanager(program, directory, free_port())
    server.start()
    try:
        yield server
    finally:
        server.kill()
