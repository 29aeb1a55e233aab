"""The totals of one replica beside those of the others."""

from __future__ import annotations

from collections import Counter

from bridge.outbox.jetstream.books import Books

CRM = ("sink", "crm", "waiting")


def test_what_waits_is_everybodys() -> None:
    """One replica accepts, another delivers: together nothing waits but what nobody has delivered."""
    books = Books("a")
    books.move("sink", "crm", delivered=2, waiting=-2)
    books.others = {"b": Counter({CRM: 5, ("sink", "crm", "delivered"): 1})}
    assert books.sink_totals()["crm"].waiting == 3
    assert books.sink_totals()["crm"].delivered == 2


def test_nothing_waits_less_than_nothing() -> None:
    """The others' figures are those of their last sign of life; the sums that are written down stay exact."""
    books = Books("a")
    books.move("sink", "crm", delivered=2, waiting=-2, dead=-1)
    books.others = {"b": Counter({CRM: 1})}
    found = books.sink_totals()["crm"]
    assert (found.waiting, found.dead) == (0, 0)
    assert ("sink", "crm", "waiting", -2) in books.page().sums
