"""Which event names the server is asked for.  No I/O, no clock, no logging in this file."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import re2

from bridge.errors import SourceError

EVERYTHING = "/./"  # the server expands it to all it knows, `gcs.managed.*` included
MANAGED = r"/^gcs\.managed\./"
"""Events of managed gateways come only to those who name them (pkg/events/mux/mux.go in v3.32)."""

OWN = ("bridge.", "notification.")
MARK = "names:"
NAME_ERRORS = frozenset({"unknown_event_name", "no_matching_events", "invalid_regexp"})
"""The request names an event this server does not know (pkg/events/pattern.go in v3.32)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """*names* go with every live and history stream, empty for all; *apart* on a stream of its own.

    *refused* were left out because the server does not know them; rules match them all the same.
    """

    names: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def is_filtered(self) -> bool:
        """May the server hold back events that an entity has?"""
        return bool(self.names) and self.names != (EVERYTHING,)


def mark(names: Iterable[str]) -> str:
    """Under what a source remembers, beside its cursors, that it asked for *names*.

    Ids kept beside a cursor prove nothing once others are asked for: those events do not come again.
    """
    return MARK + hashlib.sha256("\0".join(names).encode()).hexdigest()[:12]


def is_changed(cursors: Mapping[str, int], current: str) -> bool:
    """Were other names asked for when the newest of the marks in *cursors* was made?"""
    marks = {key: at for key, at in cursors.items() if key.startswith(MARK)}
    return bool(marks) and max(marks, key=lambda each: marks[each]) != current


def asked(wanted: Iterable[str], known: Collection[str] = (), also: Iterable[str] = ()) -> Asked:
    """What to ask for when rules want *wanted* (exact names and `/regex/`, empty for everything).

    *known* are the names of the catalogue, *also* those bridge needs itself. Own names are never sent.
    """
    names = tuple(wanted)
    if not names:
        return Asked((EVERYTHING,))
    return Asked(tuple(sorted({name for name in names if not is_own(name, known)} | set(also))))


def is_own(name: str, known: Collection[str]) -> bool:
    """Is *name* one that only bridge makes? A regular expression is if it looks so and finds no other."""
    if not is_regex(name):
        return name.startswith(OWN)
    text = name.strip("/").lstrip("^(?:").replace("\\", "")
    return text.startswith(OWN) and not _found(name.strip("/"), known)


def is_regex(name: str) -> bool:
    return name.startswith("/") and name.endswith("/")


def matching(names: Iterable[str], known: Collection[str]) -> set[str]:
    """Which of the *known* names *names* ask for, as the server finds them (pkg/events/pattern.go)."""
    found: set[str] = set()
    for name in names:
        found.update(_found(name.strip("/"), known) if is_regex(name) else {name}.intersection(known))
    return found


def _found(text: str, known: Collection[str]) -> set[str]:
    """What the expression *text* finds; everything if only the server can say."""
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(text, options)
    except re2.error:
        return set(known)
    return {each for each in known if compiled.search(each)}


def without(current: Asked, error: SourceError) -> Asked | None:
    """*current* without what *error* refused; None if it is not about names that were asked for.

    Everything refused means an old server: then all events but the managed gateways', and those apart.
    If nothing is left to ask for, everything is, for a stream without names is one with all of them.
    """
    if error.name not in NAME_ERRORS:
        return None
    guilty = _guilty(current.names, error)
    if not guilty:
        return None
    kept = tuple(name for name in current.names if name not in guilty)
    apart = (MANAGED,) if EVERYTHING in guilty else current.apart
    refused = tuple(dict.fromkeys((*current.refused, *guilty)))
    return replace(current, names=kept, apart=apart, refused=refused)


def _guilty(names: tuple[str, ...], error: SourceError) -> tuple[str, ...]:
    """Whom the attributes name; where they name nobody, every regular expression, and then every name."""
    said = {str(value) for value in error.attributes.values()}
    found = tuple(name for name in names if name in said or (is_regex(name) and name.strip("/") in said))
    return found or tuple(filter(is_regex, names)) or names
