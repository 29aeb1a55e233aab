"""Alerts in parts that replicas share: which part, and what readers send to its owner.

No I/O, no clock, no randomness in this file. Everything of one notification group has one owner. What a
replica reads goes to the owners as messages, numbered by the log they are kept in: first what alerts see of
events, then how far the reader is (`Beat`). Times are nanoseconds of the server's clock.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable, Mapping

import msgspec

from bridge.alerts import Alert, Track
from bridge.alerts.blind import BlindSpot
from bridge.alerts.groups import group_key
from bridge.alerts.parts import Observation
from bridge.event import Entity

PARTITIONS = 12  # evenly shared by 2, 3, 4, 6 or 12 replicas
LARGEST = 1 << 16  # bytes of a message: half of what a server has to take


def partition(alert: Alert, key: str) -> int:
    """Who judges *key*, on every replica the same; all keys of one notification group go together."""
    return zlib.crc32(f"{alert.name}\0{group_key(alert, key)}".encode(errors="replace")) % PARTITIONS


class Seen(msgspec.Struct, frozen=True, array_like=True):
    """A `Sight`, with the name of its alert."""

    alert: str
    key: str
    what: Observation


class Moved(msgspec.Struct, frozen=True, array_like=True):
    """What another partition remembered of *key*, until the alert's groups became others."""

    alert: str
    key: str
    track: Track


class Item(msgspec.Struct, frozen=True, omit_defaults=True):
    """What *source* brought in one event, as far as it concerns one partition.

    *id* is the event's: one that comes twice counts once. *now* is the reader's idea of the server's clock.
    *passed*: by another partition, to which it was sent by a replica with another config.
    """

    source: str
    id: str
    now: int
    sights: tuple[Seen, ...] = ()
    only_known: bool = False
    missed: BlindSpot | None = None
    moved: tuple[Moved, ...] = ()
    passed: bool = False


class Beat(msgspec.Struct, frozen=True):
    """Everything of *parts* up to *clock* stands before this, except what concerns who is *behind*.

    *parts* are leases of sources; *behind* is by source, None for everybody.
    """

    clock: int
    parts: tuple[str, ...] = ()
    behind: Mapping[str, tuple[Entity, ...] | None] = {}


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """From the replica *by*."""

    by: str
    items: tuple[Item, ...] = ()
    beat: Beat | None = None


def packed(by: str, items: Iterable[Item], beat: Beat | None, largest: int = LARGEST) -> list[bytes]:
    """As few messages as *largest* bytes allow, in order, the beat with the last; none for nothing."""
    packs: list[list[Item]] = [[]]
    size = 0
    for item, length in (found for each in items for found in _bounded(each, largest)):
        size += length
        if size > largest and packs[-1]:
            packs.append([])
            size = length
        packs[-1].append(item)
    last = len(packs) - 1
    found = [Message(by, tuple(pack), beat if at == last else None) for at, pack in enumerate(packs)]
    return [_encoder.encode(each) for each in found if each.items or each.beat]


def _bounded(item: Item, largest: int) -> Iterable[tuple[Item, int]]:
    """*item* and its size; of one that is too large each sight by itself, without the event's data.

    A sight that is too large even so is no message: its key alone would be.
    """
    length = len(_encoder.encode(item))
    if length <= largest or not item.sights:
        return [(item, length)]
    slim = [
        Seen(alert, key, _without_data(what))
        for alert, key, what in map(msgspec.structs.astuple, item.sights)
    ]
    found = [
        msgspec.structs.replace(item, id=f"{item.id}/{number}", sights=(each,), missed=None, moved=())
        for number, each in enumerate(slim)
    ]
    sized = [(each, len(_encoder.encode(each))) for each in found]
    return [(each, length) for each, length in sized if length <= largest]


def _without_data(what: Observation) -> Observation:
    return msgspec.structs.replace(what, data=msgspec.Raw(b"null"))


def unpacked(body: bytes) -> Message:
    """Raises msgspec.DecodeError."""
    return _decoder.decode(body)


class Recent:
    """The ids that came within the last *keep* ns of the log's own time."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._ids: set[str] = set()
        self._order: deque[tuple[int, str]] = deque()

    def is_new(self, id: str, at: int) -> bool:
        """Is it the first *id* for so long? It is known from now on."""
        while self._order and self._order[0][0] < at - self._keep:
            self._ids.discard(self._order.popleft()[1])
        if id in self._ids:
            return False
        self._ids.add(id)
        self._order.append((at, id))
        return True


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Message)
