"""Does one matcher let in everything another does?  No I/O, no clock, no logging in this file.

"Yes" is certain, "no" means that it could not be shown: good enough for warnings.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridge.pattern import Clause, Pattern
from bridge.rules.identity import HEX_BITS, Glob, Identity, Prefix, address
from bridge.rules.matcher import Matcher
from bridge.rules.names import NamePattern


def covers(wide: Matcher, narrow: Matcher) -> bool:
    """Does every event that *narrow* matches match *wide* too?"""
    if wide.names and not _names(wide.names, narrow.name_patterns()):
        return False
    if not all(any(_identities(each, other) for other in narrow.identities) for each in wide.identities):
        return False
    if wide.content is not None and (narrow.content is None or not _content(wide.content, narrow.content)):
        return False
    return not wide.any or any(covers(block, narrow) for block in wide.any) or _any(wide, narrow)


def _any(wide: Matcher, narrow: Matcher) -> bool:
    return bool(narrow.any) and all(any(covers(w, n) for w in wide.any) for n in narrow.any)


def _names(wide: Sequence[NamePattern], narrow: Sequence[NamePattern]) -> bool:
    return bool(narrow) and all(
        any(w.text == n.text or (n.exact and w.holds(n.text)) or w.text in ("**", "/") for w in wide)
        for n in narrow
    )


def _identities(wide: Sequence[Identity], narrow: Sequence[Identity]) -> bool:
    return all(any(_identity(w, n) for w in wide) for n in narrow)


def _identity(wide: Identity, narrow: Identity) -> bool:
    """Every value of *narrow* is one of *wide*."""
    if wide.key != narrow.key:
        return False
    exact = all(pair in wide.exact or _fits(wide, pair[1]) for pair in narrow.exact)
    globs = all(_glob(wide.globs, each) for each in narrow.globs)
    return exact and globs and all(_prefix(wide.prefixes, each) for each in narrow.prefixes)


def _fits(wide: Identity, value: str) -> bool:
    if any(glob.search(value) for glob in wide.globs):
        return True
    number = address(value)
    return number is not None and any(
        number >> (HEX_BITS[wide.field] - prefix.bits) == prefix.value for prefix in wide.prefixes
    )


def _glob(wide: Sequence[Glob], narrow: Glob) -> bool:
    return any(each.text in (narrow.text, "*") for each in wide)


def _prefix(wide: Sequence[Prefix], narrow: Prefix) -> bool:
    return any(
        each.bits <= narrow.bits and narrow.value >> (narrow.bits - each.bits) == each.value for each in wide
    )


def _content(wide: Pattern, narrow: Pattern) -> bool:
    return all(any(_clauses(w, n) for w in wide.alternatives) for n in narrow.alternatives)


def _clauses(wide: Sequence[Clause], narrow: Sequence[Clause]) -> bool:
    """Every clause of *wide* is there in *narrow*, as it is or with fewer values."""
    by_path = {clause.field.path: clause for clause in narrow}
    return all(each.field.path in by_path and _clause(each, by_path[each.field.path]) for each in wide)


def _clause(wide: Clause, narrow: Clause) -> bool:
    texts = {check.text for check in wide.tests}
    return (wide.absent or not narrow.absent) and texts.issuperset(check.text for check in narrow.tests)
