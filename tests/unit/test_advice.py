"""What a config may say and probably does not mean, beyond its rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.advice import warnings
from bridge.config import load

CONFIG = """\
sinks:
  broker:
    type: mqtt
    url: mqtt://broker.example
    client_id: {client_id}
outbox: {outbox}
rules: [rules.yaml]
"""


@pytest.mark.parametrize(
    ("outbox", "client_id", "told"),
    [
        ("nats://nats:4222", "bridge", True),
        ("nats://nats:4222", "null", False),
        ("sqlite:bridge.db", "bridge", False),
    ],
)
def test_a_client_id_that_replicas_would_share_is_told(
    outbox: str, client_id: str, told: bool, tmp_path: Path
) -> None:
    """With its line; one process may be called what one likes."""
    (tmp_path / "bridge.yaml").write_text(CONFIG.format(outbox=outbox, client_id=client_id))
    (tmp_path / "rules.yaml").write_text("rules: [{name: all, match: {}, send: broker}]")
    found = [str(each) for each in warnings(load(tmp_path / "bridge.yaml", {}))]
    start = (
        f"{tmp_path}/bridge.yaml:5: sinks.broker.client_id: replicas with one client id throw each other off"
    )
    assert [each.startswith(start) for each in found] == ([True] if told else []), found
