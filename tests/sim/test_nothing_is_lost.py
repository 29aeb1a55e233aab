"""The promises of DESIGN.md §1 in a world where everything breaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.app import simulate
from tests.sim.world import Faults

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]

TROUBLE = Faults(
    reset=0.02,
    refuse=0.3,
    stall=0.01,
    repeat=0.02,
    late=0.2,
    http_503=0.1,
    http_400=0.01,
    http_401=0.005,
    http_429=0.01,
    hang=0.03,
    lost_reply=0.05,
    crash=0.001,
    life=600.0,
    disk_full=0.005,
)


@pytest.mark.parametrize("seed", range(50))
def test_nothing_is_lost(seed: int, tmp_path: Path) -> None:
    """Whatever breaks, every matched event arrives, we can say why any came twice, and the sums hold."""
    outcome = simulate(seed, tmp_path / "bridge.db", TROUBLE)
    ledger = outcome.ledger

    assert len(ledger.published) > 200
    assert outcome.lost == set()
    assert ledger.repeats() <= outcome.explained_repeats
    assert ledger.disorder == []
    assert outcome.violations == []
    assert outcome.accepted == {sink: len(outcome.known(sink)) for sink in outcome.accepted}
    assert "bridge.sink.paused" in ledger.own["broker"].values()


@pytest.mark.parametrize("seed", [3, 14, 15])
def test_the_same_seed_gives_the_same_trace(seed: int, tmp_path: Path) -> None:
    """So a failing seed can be looked at as often as it takes."""
    first = simulate(seed, tmp_path / "first.db", TROUBLE)
    again = simulate(seed, tmp_path / "again.db", TROUBLE)

    assert first.ledger.trace == again.ledger.trace


@pytest.mark.parametrize("seed", range(100, 105))
def test_what_the_server_drops_is_read_again(seed: int, tmp_path: Path) -> None:
    """A full channel at the server is no loss as long as its history has the event and bridge lives on."""
    outcome = simulate(seed, tmp_path / "bridge.db", Faults(lost_live=0.2, repeat=0.05, late=0.2))

    assert len(outcome.ledger.lost_live) > 20
    assert outcome.wanted("crm") == outcome.ledger.arrived("crm")


@pytest.mark.parametrize("seed", range(200, 205))
def test_without_trouble_everything_arrives_exactly_once(seed: int, tmp_path: Path) -> None:
    """Repeats and late events of the server are no trouble."""
    outcome = simulate(seed, tmp_path / "bridge.db", Faults(repeat=0.2, late=0.2))

    assert outcome.lost == set()
    assert outcome.ledger.repeats() == 0
    assert outcome.violations == []
