"""A recorded file at full speed through the whole process to a webhook, to MQTT, and to both.

The receivers run in processes of their own and do no work worth counting. Everything is stored with
`durability: power` before it is sent. Figures are of one machine at one moment: compare them in one run.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import re
import tempfile
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import anyio
import msgspec

from tests.integration.process import Bridge, announced, start, until_settled
from tests.recordings import documents
from tests.servers import mosquitto

EVENTS = 20_000
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"

CONFIG = """
sources: {{file: {{type: replay, path: events.ndjson, speed: max, verbatim: true}}}}
sinks:
{sinks}
rules: [rules.yaml]
admin: {{listen: "127.0.0.1:0"}}
log: {{format: json}}
"""
WEBHOOK = "  crm: {{type: webhook, url: 'http://127.0.0.1:{}/', allow_private_networks: true}}"
MQTT = "  broker: {{type: mqtt, url: '{}'}}"


class Counting(asyncio.Protocol):
    """Reads requests with a Content-Length and answers 204."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            found = LENGTH.search(self.buffer, 0, end)
            whole = end + 4 + (int(found[1]) if found else 0)
            if len(self.buffer) < whole:
                return
            self.buffer = self.buffer[whole:]
            self.transport.write(ANSWER)


def receiver(port: Connection) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Counting, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


def write_events(path: Path) -> None:
    events = itertools.islice(itertools.cycle(documents("devices.sse")), EVENTS)
    with path.open("wb") as file:
        for number, event in enumerate(events):
            file.write(msgspec.json.encode(event | {"unique_id": f"01BENCH{number:019d}"}) + b"\n")


def cpu_seconds(bridge: Bridge) -> float:
    """User and system time of the process so far."""
    fields = Path(f"/proc/{bridge.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(folder: Path, sinks: dict[str, str]) -> tuple[float, float]:
    """Events a second from start to the last delivery, and CPU seconds per 10,000 events."""
    (folder / "bridge.yaml").write_text(CONFIG.format(sinks="\n".join(sinks.values())))
    rules = f"rules: [{{name: all, match: {{}}, send: [{', '.join(sinks)}]}}]"
    (folder / "rules.yaml").write_text(rules)
    write_events(folder / "events.ndjson")
    bridge = await announced(start(folder))
    began, cpu = time.perf_counter(), cpu_seconds(bridge)
    await until_settled(bridge, dict.fromkeys(sinks, EVENTS))
    took, used = time.perf_counter() - began, cpu_seconds(bridge) - cpu
    bridge.terminate()
    return EVENTS / took, used / EVENTS * 10_000


def main() -> None:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=receiver, args=(there,), daemon=True)
    process.start()
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(mosquitto(root / "mosquitto"))
        crm, queue = WEBHOOK.format(here.recv()), MQTT.format(broker.url())
        for name, sinks in (
            ("webhook", {"crm": crm}),
            ("mqtt qos 1", {"broker": queue}),
            ("both", {"crm": crm, "broker": queue}),
        ):
            folder = root / name.replace(" ", "-")
            folder.mkdir()
            rate, cpu = anyio.run(measure, folder, sinks)
            print(f"{name:12} {rate:8,.0f} events/s   {cpu:5.2f} CPU s per 10,000 events")
    process.terminate()


if __name__ == "__main__":
    main()
