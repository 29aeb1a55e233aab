"""Questions asked all the time look up what they need: none scans or sorts a queue, however long it is."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest

from bridge.outbox import queries, queue, transactions
from bridge.outbox.file import connect

SCAN = re.compile(r"SCAN (?!json_each|CONSTANT)|TEMP B-TREE|AUTOMATIC")

QUESTIONS = {
    "due now": queries.DUE.format("d.due <= ?"),
    "due far ahead": queries.DUE.format("d.due > ?"),
    "next due": queries.NEXT_DUE,
    "waiting": queue.WAITING,
    "wait": transactions.WAIT_IN_ORDER,
    "leave": transactions.LEAVE,
    "let go": transactions.LET_GO,
    "promote": transactions.PROMOTE,
    "still waiting": transactions.STILL_WAITING,
    "known": transactions.KNOWN,
    "held": transactions.HELD,
    "oldest": queries.OLDEST,
}


@pytest.mark.parametrize("name", sorted(QUESTIONS))
def test_no_question_scans_or_sorts(tmp_path: Path, name: str) -> None:
    """By SQLite's own plan (eqp.html): SEARCH, never SCAN, and no b-tree made for the occasion."""
    question = QUESTIONS[name]
    with closing(connect(tmp_path / "bridge.db", "process")) as db:
        numbered = {int(each) for each in re.findall(r"\?(\d+)", question)}
        count = max(numbered) if numbered else question.count("?")
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {question}", (None,) * count)]
    assert not [step for step in plan if SCAN.search(step)], plan
