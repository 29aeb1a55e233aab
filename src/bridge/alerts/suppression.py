"""Who is not told: silenced, or inhibited by another alert.  No I/O, no clock, no randomness in this file.

Times are nanoseconds of the server's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from bridge.alerts import Alert, Inhibitor, Track, absent
from bridge.alerts.groups import Suppression
from bridge.alerts.parts import SECOND
from bridge.alerts.silences import Silence, silenced_until

RECHECK = 30 * SECOND  # ns between looks at who is inhibited


@dataclass(frozen=True, slots=True)
class View:
    """What is known at *now* of all alerts: *tracks* and who is *active* (pending or firing), by alert.

    *overlap* in ns.
    """

    now: int
    overlap: int
    by_name: Mapping[str, Alert]
    silences: Iterable[Silence]
    tracks: Callable[[str, str], Track | None]
    active: Callable[[str], Iterable[str]]


def suppressed(alert: Alert, key: str, view: View) -> Suppression | None:
    until = silenced_until(view.silences, alert.labels_of(key), view.now / SECOND)
    if until is not None:
        return Suppression("silenced", int(until * SECOND))
    for inhibitor in alert.inhibitors:
        again = _inhibited_until(alert, key, inhibitor, view)
        if again is not None:
            return Suppression("inhibited", again)
    return None


def _inhibited_until(alert: Alert, key: str, inhibitor: Inhibitor, view: View) -> int | None:
    """When to look again; None if *inhibitor* does not keep *key* back."""
    source = view.by_name.get(inhibitor.alert)
    if source is None:
        return None
    if inhibitor.last_heard_by:
        return _unheard_until(alert, key, inhibitor.alert, view)
    labels = alert.labels_of(key)
    for other in view.active(source.name):
        theirs = source.labels_of(other)
        if all(labels.get(each, "") == theirs.get(each, "") for each in inhibitor.equal):
            return view.now + RECHECK
    return None


def _unheard_until(alert: Alert, key: str, inhibitor: str, view: View) -> int | None:
    """While all gateways that heard it last are down, and after that as long as it may be silent."""
    track = view.tracks(alert.name, key)
    if track is None or not track.heard:
        return None
    again = view.now + RECHECK
    for gateway in track.heard:
        theirs = view.tracks(inhibitor, gateway)
        if theirs is None:
            return None
        if theirs.phase == "inactive":
            grace = theirs.changed + _patience(alert, track) + view.overlap
            if theirs.changed <= track.seen or view.now >= grace:
                return None
            again = min(again, grace)
    return again


def _patience(alert: Alert, track: Track) -> int:
    """How long it may be silent before it is missed, ns."""
    if isinstance(alert.spec, absent.Absent) and isinstance(track.core, absent.Core):
        return absent.span(alert.spec, track.core) or 0
    return alert.hold
