"""rules/TEMPLATES.md says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bridge.decode import event
from bridge.delivery import Delivery
from bridge.render import ALERT_NAMES, NAMES, Template
from bridge.render.filters import FILTERS
from bridge.render.sandbox import RANGE, STEPS, WIDEST

TEXT = (Path(__file__).parents[2] / "rules" / "TEMPLATES.md").read_text()
ROW = re.compile(r"^\| `(.*?)` \| `(.*)` \|$", re.MULTILINE)
ROWS = [(template.replace(r"\|", "|"), shown) for template, shown in ROW.findall(TEXT) if "{" in template]
TAKEN_IN = 1_795_468_150.7  # unix seconds, four after the event's time


@pytest.mark.parametrize(("template", "shown"), ROWS)
def test_each_row_makes_what_it_says(template: str, shown: str) -> None:
    """With the event below the table."""
    body = TEXT.partition("```json\n")[2].partition("```")[0].strip().encode()
    one = Delivery(1, "d", event(body), "eu1", "uplinks", "ops", 1, TAKEN_IN)
    assert Template(template).render(one) == shown


def test_the_table_is_there() -> None:
    """An empty table would pass everything."""
    assert len(ROWS) > 15


def test_every_name_and_filter_is_named() -> None:
    """Nothing is left for the sources to tell."""
    words = set(re.findall(r"\w+", TEXT))
    assert words >= NAMES | ALERT_NAMES
    assert words | {"d", "e"} >= set(FILTERS)


def test_the_limits_are_those() -> None:
    """In figures."""
    for limit in (STEPS, RANGE, WIDEST):
        assert f"{limit:,}" in TEXT
