"""Config that every kind of sink has.  No I/O in this file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bridge.fields import Duration, Section


class RetryConfig(Section):
    """When a failed delivery is tried again: exponential, with full jitter."""

    initial: Annotated[Duration, Field(gt=0)] = 5.0
    """The first wait is up to this long; it doubles each time."""
    max: Annotated[Duration, Field(gt=0)] = 3600.0
    """No wait is longer."""
    give_up_after: Annotated[Duration, Field(gt=0)] = 86400.0
    """From the first attempt on, pauses not counted; then it is a dead letter."""
