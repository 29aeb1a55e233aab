"""Who else works on the same streams, and the totals of those that are gone."""

from __future__ import annotations

import math
import os
import socket
from datetime import datetime

import msgspec

from bridge.outbox.jetstream.books import Books, Ledger, Page
from bridge.outbox.jetstream.bucket import Entry
from bridge.outbox.jetstream.desk import Desk
from bridge.outbox.jetstream.pages import pages, since
from bridge.outbox.jetstream.shelf import monotonic
from bridge.outbox.jetstream.streams import EVENTS, SETTLED

CLOSE_AFTER = 600.0  # seconds without a sign of life after which a replica is not waited for any more
READ_AGAIN = 1000  # messages looked through for one that is gone, at most, that are looked through again
COMMAND = "command-"  # what names of commands begin with


class Presence(msgspec.Struct, frozen=True):
    """A sign of life of a replica; *boot* tells one process from the next under the same name."""

    boot: str
    admin: str = ""


def own_name() -> str:
    """The host (the pod) and the process; NATS allows no dots here."""
    return f"{_host()}-{os.getpid()}"


def command_name() -> str:
    """The name under which commands of this host change something."""
    return COMMAND + _host()


def _host() -> str:
    """Of a long name the end: pods of one Deployment differ in the last letters."""
    host = socket.gethostname().partition(".")[0]
    letters = (each if each.isascii() and (each.isalnum() or each in "-_") else "-" for each in host)
    return "".join(letters)[-48:]


def unix(at: str) -> float:
    """Unix seconds of a server's RFC 3339 time with up to 9 digits."""
    whole, _, fraction = at.rstrip("Z").partition(".")
    seconds = datetime.fromisoformat(f"{whole}+00:00").timestamp()
    return seconds + float(f"0.{fraction or 0}")


class Replicas:
    """This replica's signs of life, and what it sees of the others."""

    def __init__(self, desk: Desk, boot: str) -> None:
        self._desk = desk
        self._boot = boot
        self._revision: int | None = None
        self.alive: frozenset[str] = frozenset()
        """Replicas with a sign of life within the lease, as of the last `beat`; commands are none."""
        self.seen = -math.inf
        """Monotonic seconds from which on the others have seen this one alive."""

    async def begin(self) -> None:
        """Take up what this name has left behind; afterwards all its messages are counted."""
        desk = self._desk
        entry = await desk.shared.get(f"totals.{desk.me}")
        page = Page()
        if entry is not None:
            page = await self._completed(desk.me)
        else:
            page = Page((), *await self._ends())
        desk.books = Books(desk.me, page)
        await self.write_down()
        await self.beat(anyway=True)

    async def _ends(self) -> tuple[Ledger, Ledger]:
        link, stream = self._desk.link, self._desk.stream
        events, settled = [(await link.info(stream(kind)))["state"]["last_seq"] for kind in (EVENTS, SETTLED)]
        return Ledger(events), Ledger(settled)

    async def _completed(self, name: str) -> Page:
        """The page of *name* with everything that came after it.

        Others go on meanwhile, and *name* may too, if it was only stopped: only what was there before this
        began is claimed.
        """
        desk, ends = self._desk, await self._ends()
        page = (await pages(desk.shared))[name]
        sums = page.counter()
        for _, (kind, seq), moves in await since(desk.link, desk.subjects, {name: page}, only=name):
            if seq <= (ends[0] if kind == EVENTS else ends[1]).through:
                sums.update(moves)
        return Page(
            tuple((*total, value) for total, value in sorted(sums.items())),
            Ledger(max(ends[0].through, page.events.through)),
            Ledger(max(ends[1].through, page.settled.through)),
        )

    async def write_down(self, *, closed: bool = False) -> None:
        desk = self._desk
        page = msgspec.structs.replace(desk.books.page(), closed=closed)
        await desk.shared.put(f"totals.{desk.me}", msgspec.json.encode(page))

    async def beat(self, *, anyway: bool = False, admin: str = "") -> None:
        """A sign of life, and a look at the others."""
        desk, asked = self._desk, monotonic()
        key, value = f"replicas.{desk.me}", msgspec.json.encode(Presence(self._boot, admin))
        revision = await desk.shared.put(key, value, None if anyway else self._revision)
        if revision is None:
            entry = await desk.shared.get(key)
            if entry and msgspec.json.decode(entry.value, type=Presence).boot != self._boot:
                desk.replaced = True
                desk.check()
            revision = entry.revision if entry else await desk.shared.put(key, value)
        self._revision, self.seen = revision, asked
        entries = await desk.shared.all("replicas")
        own = next((entry for entry in entries if entry.key == key), None)
        now = unix(own.at) if own else 0.0
        lives = {self._name(each) for each in entries if self._lives(each, now)}
        self.alive = frozenset(each for each in lives if not each.startswith(COMMAND))
        known = await pages(desk.shared)
        gone = [name for name, page in known.items() if name not in {*lives, desk.me} and not page.closed]
        recent = {self._name(each) for each in entries if unix(each.at) > now - CLOSE_AFTER}
        for name in gone:
            await self._adopt(name, close=name not in recent)
        known = await pages(desk.shared) if gone else known
        desk.books.others = {name: page.counter() for name, page in known.items() if name != desk.me}

    async def lives(self, name: str) -> bool:
        """By the last look, or else by one now: it may be new."""
        if name not in self.alive:
            await self.beat()
        return name in self.alive

    def _name(self, entry: Entry) -> str:
        return entry.key.removeprefix("replicas.")

    def _lives(self, entry: Entry, now: float) -> bool:
        return unix(entry.at) > now - self._desk.link.address.lease

    async def _adopt(self, name: str, *, close: bool) -> None:
        """Complete the page of one that is gone, so that its messages need not be looked at again."""
        desk = self._desk
        entry = await desk.shared.get(f"totals.{name}")
        if entry is None:
            return
        page = msgspec.json.decode(entry.value, type=Page)
        completed = msgspec.structs.replace(await self._completed(name), closed=close)
        read = (
            completed.events.through - page.events.through + completed.settled.through - page.settled.through
        )
        if close or completed.sums != page.sums or read > READ_AGAIN:
            await desk.shared.put(entry.key, msgspec.json.encode(completed), entry.revision)

    async def end(self) -> None:
        """Gone on purpose: nobody has to wait for this replica."""
        await self.write_down(closed=True)
        await self._desk.shared.forget(f"replicas.{self._desk.me}")
