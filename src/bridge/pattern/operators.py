"""What one value of an event has to be: the operators of Amazon EventBridge event patterns.

No I/O, no clock, no logging in this file.

The judge is event-ruler 2.1.0, whose public sources settle what the guide leaves open; a comment says where
they surprise.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, TypeAlias

Holds: TypeAlias = Callable[[Any], bool]
Key: TypeAlias = str | float | tuple[str, object] | None
"""A value made comparable: equal exactly if event-ruler takes two values for equal."""


class OperandError(ValueError):
    """An operator with something it does not take; the message says what to write."""


@dataclass(frozen=True, slots=True)
class Check:
    """One value or operator in the list of a field."""

    text: str
    """As the operator wrote it."""
    holds: Holds
    key: Key | tuple[()] = ()
    """What `keys` of a matching value contains, if the test is one plain value."""
    operator: str = ""
    operand: Any = None


class Int64(str):
    """A string of digits that is a 64-bit integer on the wire: `numeric` takes it for a number."""

    __slots__ = ()


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value: Any) -> float | None:
    """*value* as a double, if it is a number that one can stand for.

    event-ruler compares only what its shortest decimal form gives back: 9007199254740993 is text to it.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    if -(2**53) <= value <= 2**53:
        return float(value)
    try:
        double = float(value)
    except OverflowError:
        return None
    return double if Decimal(repr(double)) == value else None


def key(value: Any) -> Key:
    """*value* by value: `5` is `5.0` and not `"5"` and not `true`."""
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, bool):
        return "bool", value
    double = number(value)
    return double if double is not None else ("text", value)


def keys(value: Any) -> tuple[Key, ...]:
    """The keys of the plain values that match *value*: its own, and that of the address it may be."""
    address = ip(value) if isinstance(value, str) else None
    return (key(value),) if address is None else (key(value), ("ip", address))


def ip(text: str) -> bytes | None:
    """The bytes of the address that *text* is, as Java reads one: 10.0.0.1 is ::ffff:a00:1; else None."""
    if _IPV4.match(text):
        parts = [int(part) for part in text.split(".")]
        return bytes(parts) if max(parts) < 256 else None
    if ":" not in text or not _IPV6.match(text):
        return None
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address).packed


_IPV4 = re.compile(r"[0-9]{1,12}\.[0-9]{1,12}\.[0-9]{1,12}\.[0-9]{1,12}\Z")
_IPV6 = re.compile(r"[0-9a-fA-F:]+\Z")


def plain(value: Any) -> Check:
    """A value standing for itself. A string that is an IP address stands for the address however written."""
    if isinstance(value, float) and not math.isfinite(value):
        raise OperandError("takes finite numbers")
    address = ip(value) if isinstance(value, str) else None
    if address is not None:
        return Check(
            shown(value), lambda leaf: isinstance(leaf, str) and ip(leaf) == address, ("ip", address)
        )
    wanted = key(value)
    return Check(shown(value), lambda leaf: key(leaf) == wanted, wanted)


def shown(value: Any) -> str:
    """*value* as JSON would write it, more or less."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return f"[{', '.join(shown(inner) for inner in value)}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def test(name: str, operand: Any) -> Check:
    """The operator *name* applied to *operand*; raises OperandError."""
    make = OPERATORS.get(name)
    if make is None:
        close = difflib.get_close_matches(name, OPERATORS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(sorted(OPERATORS))}"
        raise OperandError(f"is no operator; {hint}")
    return Check(f"{name} {shown(operand)}", make(operand), (), name, operand)


def _string(operand: Any) -> str:
    if not isinstance(operand, str):
        raise OperandError("takes a string")
    return operand


def _exactly(operand: Any) -> Holds:
    return partial(operator.eq, _string(operand))


def _folding(operand: Any) -> str | None:
    """The string of {equals-ignore-case: string}; None if *operand* is not that."""
    if not isinstance(operand, Mapping):
        return None
    if set(operand) != {"equals-ignore-case"}:
        raise OperandError("takes a string, or {equals-ignore-case: string}")
    return _string(operand["equals-ignore-case"])


def _prefix(operand: Any) -> Holds:
    folded = _folding(operand)
    if folded is None:
        text = _string(operand)
        return lambda leaf: isinstance(leaf, str) and leaf.startswith(text)
    cases = _cases(folded)
    return lambda leaf: isinstance(leaf, str) and bool(_ends(leaf, cases))


def _suffix(operand: Any) -> Holds:
    folded = _folding(operand)
    if folded is None:
        text = _string(operand)
        return lambda leaf: isinstance(leaf, str) and leaf.endswith(text)
    cases = _cases(folded)
    return lambda leaf: isinstance(leaf, str) and bool(_begins(leaf, cases))


def _equals_ignore_case(operand: Any) -> Holds:
    text = _string(operand)
    if text.isascii():
        folded = text.lower()
        return lambda leaf: isinstance(leaf, str) and leaf.isascii() and leaf.lower() == folded
    cases = _cases(text)
    return lambda leaf: isinstance(leaf, str) and len(leaf) in _ends(leaf, cases)


Cases: TypeAlias = Sequence[frozenset[str]]


def _cases(text: str) -> Cases:
    """Each character in lower and upper case, which may be longer: ß is ß or SS."""
    return [frozenset((character.lower(), character.upper())) for character in text]


def _ends(leaf: str, cases: Cases) -> set[int]:
    """Where in *leaf* a text written as in *cases* may end that begins at its beginning."""
    places = {0}
    for each in cases:
        places = {at + len(case) for at in places for case in each if leaf.startswith(case, at)}
    return places


def _begins(leaf: str, cases: Cases) -> set[int]:
    """Where in *leaf* a text written as in *cases* may begin that ends at its end."""
    places = {len(leaf)}
    for each in reversed(cases):
        places = {at - len(case) for at in places for case in each if leaf.endswith(case, 0, at)}
    return places


def _wildcard(operand: Any) -> Holds:
    r"""`*` is any run of characters; `\*` and `\\` are the characters themselves."""
    literals = [""]
    last = ""
    for token in re.findall(r"\\.|\\|[^\\]", _string(operand), re.DOTALL):
        if token == "*":
            if last == "*":
                raise OperandError("takes no two * in a row")
            literals.append("")
        elif token[0] == "\\" and token[1:] not in ("*", "\\"):
            raise OperandError(r"takes only \* and \\ after a backslash")
        else:
            literals[-1] += token[-1]
        last = token
    return partial(_between, literals)


def _between(literals: Sequence[str], leaf: Any) -> bool:
    """Does *leaf* hold *literals* in their order, from its beginning to its end? Linear in *leaf*."""
    if not isinstance(leaf, str):
        return False
    first, *middle = literals
    if not middle:
        return leaf == first
    last = middle.pop()
    at, end = len(first), len(leaf) - len(last)
    if at > end or not leaf.startswith(first) or not leaf.endswith(last):
        return False
    for literal in middle:
        at = leaf.find(literal, at, end)
        if at < 0:
            return False
        at += len(literal)
    return True


def _exists(operand: Any) -> Holds:
    """`exists: false` is no test of a value: `pattern` handles it."""
    if operand is not True:
        raise OperandError("takes true or false")
    return lambda _leaf: True


COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _numeric(operand: Any) -> Holds:
    """`[op, number]`, or a range `[">" or ">=", low, "<" or "<=", high]`."""
    if not isinstance(operand, list) or len(operand) not in (2, 4):
        raise OperandError('takes [">=", number] or a range [">=", low, "<", high]')
    signs, bounds = operand[::2], operand[1::2]
    if not all(isinstance(sign, str) and sign in COMPARE for sign in signs):
        raise OperandError("takes the comparisons = < <= > >= in quotes")
    if not all(is_number(bound) for bound in bounds):
        raise OperandError("takes numbers without quotes")
    if any(number(bound) is None for bound in bounds):
        raise OperandError("takes numbers that a double can stand for")
    if len(signs) == 2:
        if signs[0] not in (">", ">=") or signs[1] not in ("<", "<="):
            raise OperandError('takes a range as [">=", low, "<", high]')
        if bounds[0] >= bounds[1]:
            raise OperandError("takes a range whose low end is below its high end")
    return partial(_compares, [(COMPARE[sign], bound) for sign, bound in zip(signs, bounds, strict=True)])


def _compares(checks: Sequence[tuple[Callable[[Any, Any], bool], float]], leaf: Any) -> bool:
    value = int(leaf) if type(leaf) is Int64 else number(leaf)
    return value is not None and all(compare(value, bound) for compare, bound in checks)


def _cidr(operand: Any) -> Holds:
    """A network, the bits after its prefix ignored. event-ruler takes no /32: an address is a plain value."""
    text, slash, length = _string(operand).partition("/")
    base = ip(text)
    if base is None or not slash or not (length.isascii() and length.isdigit()):
        raise OperandError("takes a network such as 10.0.0.0/8 or 2001:db8::/32")
    width = 8 * len(base)
    if len(length) > 3 or int(length) >= width:
        raise OperandError(f"needs a prefix below {width}; an address alone is a plain value")
    shift = width - int(length)
    network = int.from_bytes(base) >> shift

    def holds(leaf: Any) -> bool:
        address = ip(leaf) if isinstance(leaf, str) else None
        return (
            address is not None and len(address) == len(base) and int.from_bytes(address) >> shift == network
        )

    return holds


def _anything_but(operand: Any) -> Holds:
    """Any value there is but these: strings, or numbers, or one operator over strings."""
    if isinstance(operand, Mapping):
        return _anything_but_operator(operand)
    values = operand if isinstance(operand, list) else [operand]
    strings = all(isinstance(value, str) for value in values)
    if not values or not (strings or all(is_number(value) for value in values)):
        raise OperandError("takes strings, or numbers, or one of {prefix: ...}, {suffix: ...}, ...")
    if not strings and any(number(value) is None for value in values):
        raise OperandError("takes numbers that a double can stand for")
    others = frozenset(key(value) for value in values)
    return lambda leaf: key(leaf) not in others


def _anything_but_operator(operand: Mapping[str, Any]) -> Holds:
    name, inner = next(iter(operand.items())) if len(operand) == 1 else ("", None)
    if name not in BUT:
        raise OperandError(f"takes strings, numbers or one of {', '.join(sorted(BUT))}")
    values = inner if isinstance(inner, list) else [inner]
    if not all(isinstance(value, str) for value in values):
        raise OperandError(f"takes a string or a list of strings in {name}")
    if not values or (name in ("prefix", "suffix") and "" in values):
        raise OperandError(f"takes strings that are not empty in {name}")
    others = [BUT[name](value) for value in values]
    return lambda leaf: not any(holds(leaf) for holds in others)


BUT: Mapping[str, Callable[[Any], Holds]] = {
    "prefix": _prefix,
    "suffix": _suffix,
    "wildcard": _wildcard,
    "equals-ignore-case": _equals_ignore_case,
}

OPERATORS: Mapping[str, Callable[[Any], Holds]] = {
    **BUT,
    "exactly": _exactly,
    "numeric": _numeric,
    "cidr": _cidr,
    "exists": _exists,
    "anything-but": _anything_but,
}
