"""An event that is larger than the server takes as one message: what is kept of it.  No I/O in this file."""

from __future__ import annotations

import msgspec

from bridge.delivery import Reason
from bridge.outbox.jetstream.wire import Decision, Taken, Wanted

REASON: Reason = "rejected"


class _Envelope(msgspec.Struct, omit_defaults=True):
    """Nothing of an event that can be large."""

    name: str = ""
    time: str = ""
    identifiers: msgspec.Raw = msgspec.Raw(b"[]")
    unique_id: str = ""


def hollow(body: bytes, name: str) -> bytes:
    """*body* without its data; of one that cannot be read, or is large otherwise, the *name*."""
    try:
        kept = msgspec.json.decode(body, type=_Envelope)
    except msgspec.DecodeError:
        kept = _Envelope(name)
    if len(kept.identifiers) + len(kept.time) + len(kept.unique_id) > 4096:
        kept = _Envelope(name)
    return msgspec.json.encode(kept)


def refusal(taken: Taken, wanted: Wanted, by: str) -> Decision:
    """Why the delivery *wanted* is a dead letter from the beginning."""
    size = f" of {taken.too_large} bytes" if taken.too_large else ""
    return Decision(
        state="dead",
        by=by,
        at=taken.received,
        rule=wanted.rule,
        sink=wanted.sink,
        reason=REASON,
        first=taken.received,
        last=taken.received,
        error=f"the event{size} is larger than max_payload of nats-server; its data is not kept",
    )
