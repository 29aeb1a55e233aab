"""Gateway state after a break, asked of the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio
import pytest

from bridge.errors import SourceError
from bridge.event import Entity, rfc3339
from bridge.sources import Reconciled
from bridge.sources.reconcile import Reconcile, told

NOW = 1_795_468_146_000_000_000
YARD, ROOF, FIELD = (Entity("gateway", f"gw-{each}") for each in ("yard", "roof", "field"))


def test_what_statistics_say() -> None:
    """Connected, disconnected since, and not connected: which may mean never."""
    stats = {
        "gw-yard": b'{"connected_at":"2026-11-23T21:00:00Z"}',
        "gw-roof": b'{"disconnected_at":"2026-11-23T21:05:00Z"}',
    }
    found = [
        (each.event.name, each.event.time, each.event.document().get("data"), each.only_known)
        for each in told("eu1", [YARD, ROOF, FIELD], stats, NOW)
    ]

    kind = {"@type": "type.googleapis.com/ttn.lorawan.v3.GatewayConnectionStats"}
    assert found == [
        (
            "gs.gateway.connection.stats",
            rfc3339(NOW),
            {**kind, "connected_at": "2026-11-23T21:00:00Z"},
            False,
        ),
        (
            "gs.gateway.disconnect",
            "2026-11-23T21:05:00Z",
            {**kind, "disconnected_at": "2026-11-23T21:05:00Z"},
            False,
        ),
        ("gs.gateway.disconnect", rfc3339(NOW), None, True),
    ]


class Server:
    def __init__(self, refused: frozenset[str] = frozenset()) -> None:
        self.asked: list[list[str]] = []
        self.refused = refused
        self.unsettled: frozenset[Entity] | None = None
        self.sent: list[str] = []

    async def ask(self, gateways: Sequence[str]) -> Mapping[str, bytes]:
        self.asked.append(list(gateways))
        if self.refused & set(gateways):
            raise SourceError("no rights", kind="refused")
        return {}

    async def send(self, reading: Reconciled) -> None:
        ids = reading.event.identifiers[0].gateway_ids
        assert ids is not None
        self.sent.append(ids.gateway_id)

    async def run(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self.reconcile.run()

    @property
    def reconcile(self) -> Reconcile:
        return Reconcile(
            "eu1", self.ask, lambda: [YARD, ROOF, FIELD], lambda: (NOW, self.unsettled), self.send
        )


@pytest.mark.anyio
@pytest.mark.usefixtures("virtual_time")
async def test_each_gateway_is_asked_about_once_it_is_settled() -> None:
    """Not while it reads back; once, and again after the next break."""
    server = Server()
    reconcile = server.reconcile
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reconcile.run)
        await anyio.sleep(5)
        assert server.asked == []
        server.unsettled = frozenset({ROOF})
        await anyio.sleep(5)
        server.unsettled = frozenset()
        await anyio.sleep(5)
        server.unsettled = frozenset({YARD})
        await anyio.sleep(5)
        server.unsettled = frozenset()
        await anyio.sleep(5)
        tasks.cancel_scope.cancel()

    assert server.asked == [["gw-yard", "gw-field"], ["gw-roof"], ["gw-yard"]]


@pytest.mark.anyio
@pytest.mark.usefixtures("virtual_time")
async def test_one_gateway_without_the_right_does_not_hide_the_others() -> None:
    """The server refuses them all: they are asked about by halves, and the refused one not again."""
    server = Server(refused=frozenset({"gw-roof"}))
    server.unsettled = frozenset()
    await server.run(30)

    assert server.sent == ["gw-yard", "gw-field"]
    assert len(server.asked) == 5
