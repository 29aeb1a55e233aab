"""What bridge says of the version of a nats-server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from nats.aio.client import ServerVersion
from structlog.testing import capture_logs

from bridge.errors import StartError
from bridge.outbox.jetstream.link import Link
from bridge.outbox.jetstream.streams import check_version


def link(version: str, replicas: int) -> Link:
    client = SimpleNamespace(connected_server_version=ServerVersion(version))
    address = SimpleNamespace(replicas=replicas, shown="nats://there")
    return cast(Link, SimpleNamespace(client=client, address=address))


@pytest.mark.parametrize(
    ("version", "replicas", "warned"),
    [
        ("2.9.10", 3, True),
        ("2.9.10", 1, False),
        ("2.10.0", 3, False),
        ("2.12.1", 5, False),
        ("3.0.0", 3, False),
    ],
)
def test_copies_on_an_old_server_are_warned_of(version: str, replicas: int, warned: bool) -> None:
    with capture_logs() as said:
        check_version(link(version, replicas))
    assert [each["version"] for each in said] == [version] * warned


def test_one_that_is_too_old_is_refused() -> None:
    with pytest.raises(StartError, match=r"^nats://there: runs nats-server 2\.8\.4; bridge needs 2\.9"):
        check_version(link("2.8.4", 1))
