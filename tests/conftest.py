"""What every test gets: reproducible properties, an event loop, virtual time."""

from __future__ import annotations

import os
import random
from typing import TypeAlias

import pytest
import trio.testing
from hypothesis import HealthCheck, settings
from trio._core import _run as trio_run

Backend: TypeAlias = str | tuple[str, dict[str, object]]

settings.register_profile(
    "local", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.register_profile("ci", settings.get_profile("local"), max_examples=200, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    """asyncio, unless the test asks for `virtual_time` (a parameter, or `usefixtures`)."""
    if "virtual_time" in request.fixturenames:
        backend: Backend = request.getfixturevalue("virtual_time")
        return backend
    return "asyncio"


@pytest.fixture
def virtual_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """trio on a clock that jumps to the next deadline whenever nobody can run: an hour takes no time.

    The order in which tasks run comes from the test's `seed` parameter (0 without one), so the same
    seed gives the same run. The names in `trio._core._run` are private; trio has no public ones. The
    global `random` is seeded too, because tenacity draws its jitter from there.
    """
    callspec = getattr(request.node, "callspec", None)
    seed = callspec.params.get("seed", 0) if callspec else 0
    monkeypatch.setattr(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    trio_run._r.seed(seed)
    random.seed(seed)
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
