"""Who may ask the admin address what (DESIGN.md §2.7)."""

from __future__ import annotations

import pytest

from bridge.ops import known_host, refusal
from bridge.ops.parts import Access

TOKEN = Access(token="s3cret")
OPEN = Access()


def status(method: str, path: str, access: Access, **headers: str) -> int:
    answer = refusal(method, path, {"host": "127.0.0.1:8080"} | headers, access)
    return 200 if answer is None else answer.status_code


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:8080", True),
        ("localhost:8080", True),
        ("LOCALHOST", True),
        ("[::1]:8080", True),
        ("[::1]", True),
        ("bridge.example:8080", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("10.0.0.1:8080", False),
        ("", False),
    ],
)
def test_only_loopback_and_configured_hosts_are_known(host: str, known: bool) -> None:
    """A page in a browser cannot rebind its own name to our address."""
    assert known_host(host, ["bridge.example"]) is known


def test_a_foreign_host_is_misdirected() -> None:
    """421, whatever else is right."""
    assert status("GET", "/livez", OPEN, host="evil.example") == 421


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_probes_and_metrics_need_no_token(path: str) -> None:
    """Prometheus and the kubelet have none."""
    assert status("GET", path, TOKEN) == 200


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, 401), ({"authorization": "Bearer wrong"}, 401), ({"authorization": "Bearer s3cret"}, 200)],
)
def test_with_a_token_everything_else_needs_it(given: dict[str, str], expected: int) -> None:
    """Reading too."""
    assert status("GET", "/api/status", TOKEN, **given) == expected
    assert status("POST", "/api/dead-letters/d_x/retry", TOKEN, **given) == expected


def test_without_a_token_reading_is_open_and_changing_is_shut() -> None:
    """The address is loopback then: the config sees to it."""
    assert status("GET", "/api/status", OPEN) == 200
    assert status("POST", "/api/dead-letters/d_x/retry", OPEN) == 403
