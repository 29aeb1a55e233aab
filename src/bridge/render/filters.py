"""What templates can do with values.  No I/O, no clock in this file; `ago` is told the time.

Of Jinja's own filters those are here that cannot blow up, or that can be kept from it.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from jinja2 import Undefined, pass_context, pass_environment
from jinja2 import filters as jinja
from jinja2.runtime import Context

from bridge.errors import RenderError
from bridge.event import nanoseconds
from bridge.render.sandbox import LONGEST, WIDEST, as_text, check_join, check_replace, too_long, weigh

NOW = "_now"  # beside the values of a rendering: unix seconds

FORMAT_SPEC = re.compile(r"%(?:\(\w+\))?[-+ #0]*(\d*)(?:\.(\d*))?[diouxXeEfFgGcrsa]|%%")
STRFTIME = re.compile(r"(?:[^%]|%[aAbBcdfGHIjmMpSuUVwWxXyYzZ%])*\Z")
LONG_AGO = ((86400, "d"), (3600, "h"), (60, "min"))


class IdsPath(str):
    """`ids.path`: the one value whose slash is a separator and stays one in a topic."""

    __slots__ = ()


def topic_level(value: Any) -> str:
    """*value* as it may stand in an MQTT topic name (MQTT 5 §4.7.1): `+ # /` and NUL are escaped."""
    text = as_text(value).replace("+", "%2B").replace("#", "%23").replace("\0", "%00")
    return IdsPath(text) if isinstance(value, IdsPath) else text.replace("/", "%2F")


class SlackText(str):
    """Text that is escaped already."""

    __slots__ = ()


def slack_escape(value: Any) -> str:
    """*value* with Slack's three control characters escaped (Slack, "Formatting text"), once only."""
    if isinstance(value, SlackText):
        return value
    return SlackText(as_text(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def to_json(value: Any) -> str:
    """*value* as JSON, of one line: numbers, text in quotes, true, null, lists, objects."""
    try:
        return msgspec.json.encode(value).decode()
    except TypeError:
        raise RenderError("this value cannot be written as JSON") from None


def base64_bytes(value: Any) -> bytes:
    """The bytes that base64 text stands for, such as `uplink_message.frm_payload`; either alphabet."""
    text = str(value).replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise RenderError("base64_bytes: the value is no base64") from None


def to_hex(value: Any, separator: str = "") -> str:
    """Bytes, a list of them, base64 text or a whole number in hexadecimal; upper case, as TTS writes EUIs."""
    if isinstance(value, int):
        return f"{value:X}"
    if isinstance(value, str):
        value = base64_bytes(value)
    if len(str(separator)) * len(value) > LONGEST:
        raise too_long()
    return str(separator).join(f"{byte:02X}" for byte in bytes(value))


def best(name: str) -> Callable[[Context, Any], Any]:
    """The filter that finds the highest *name* of several receptions."""

    @pass_context
    def highest(context: Context, value: Any) -> Any:
        """Of an event, its data, an uplink message or its `rx_metadata`; undefined if there is none."""
        found = [each[name] for each in receptions(value) if isinstance(each.get(name), int | float)]
        return max(found) if found else context.environment.undefined(f"no {name} in the value")

    return highest


def receptions(value: Any) -> Iterable[Mapping[str, Any]]:
    """The `rx_metadata` objects in *value*, which may stand at any of the places they come at."""
    for key in ("data", "uplink_message", "message", "rx_metadata"):
        if isinstance(value, Mapping) and key in value:
            value = value[key]
    if isinstance(value, Mapping):
        value = [value]
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def moment(value: Any) -> float:
    """Unix seconds of an RFC 3339 time or a number of seconds; raises RenderError."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    try:
        return nanoseconds(str(value)) / 1e9
    except (ValueError, OverflowError):
        raise RenderError("this is no time: write an RFC 3339 time such as event.time") from None


def local_time(value: Any, timezone: str = "UTC", format: str = "%Y-%m-%d %H:%M:%S %Z") -> str:
    """A time on the clocks of *timezone*, such as Europe/Amsterdam; *format* as of strftime."""
    seconds = moment(value)
    if not STRFTIME.match(format) or len(format) > WIDEST:
        raise RenderError("local_time: the format has a % that is followed by no letter it knows")
    try:
        return datetime.fromtimestamp(seconds, UTC).astimezone(ZoneInfo(timezone)).strftime(format)
    except (KeyError, ValueError, OSError):
        raise RenderError(
            "local_time: there is no such timezone; write one such as Europe/Amsterdam"
        ) from None


@pass_context
def ago(context: Context, value: Any) -> str:
    """How long ago a time is, in its largest unit: `3 min ago`, `in 2 h`, `now`."""
    seconds = context.parent[NOW] - moment(value)
    size = abs(seconds)
    if size < 1:
        return "now"
    length, unit = next(((int(size // per), unit) for per, unit in LONG_AGO if size >= per), (int(size), "s"))
    return f"{length} {unit} ago" if seconds > 0 else f"in {length} {unit}"


def format_(value: Any, *args: Any, **kwargs: Any) -> str:
    """`'%.1f' | format(x)`: printf's, with widths that end somewhere."""
    text = str(value)
    specs = FORMAT_SPEC.findall(text)
    if "%" in FORMAT_SPEC.sub("", text) or any(int(n or 0) > WIDEST for spec in specs for n in spec):
        raise RenderError("format: a % is followed by nothing it knows, or by too large a width")
    if len(text) + len(specs) * (2 * WIDEST + weigh(args) + weigh(kwargs)) > LONGEST:
        raise too_long()
    return text % (kwargs or args)


def replace(value: Any, old: Any, new: Any, count: int = -1) -> str:
    check_replace(value, old, new)
    return as_text(value).replace(str(old), str(new), count)


def join(value: Any, d: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        raise RenderError("join: use map(attribute=…) before it")
    return str(d).join(as_text(each) for each in check_join(value, d))


def sum_(value: Iterable[Any]) -> Any:
    return sum(each for each in value if not isinstance(each, Undefined))


def round_(value: Any, precision: int = 0, method: str = "common") -> float:
    if not -20 <= precision <= 20:
        raise RenderError("round: -20 to 20 digits")
    return jinja.do_round(value, precision, method)  # type: ignore[arg-type]  # it checks the word itself


def center(value: Any, width: int = 80) -> str:
    return as_text(value).center(checked_width(width))


def indent(value: Any, width: int = 4, first: bool = False, blank: bool = False) -> str:
    text = as_text(value)
    if len(text) + (text.count("\n") + 1) * checked_width(width) > LONGEST:
        raise too_long()
    return jinja.do_indent(text, width, first, blank)


def checked_width(width: int) -> int:
    if not 0 <= width <= WIDEST:
        raise RenderError(f"a width is 0 to {WIDEST}")
    return width


@pass_environment
def truncate(environment: Any, value: Any, length: int = 255, killwords: bool = False, end: str = "…") -> str:
    """Cut to *length* characters, *end* among them."""
    return jinja.do_truncate(environment, as_text(value), length, killwords, end, 0)


PLAIN = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby"),
    *("int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr"),
    *(
        "reverse",
        "select",
        "selectattr",
        "sort",
        "title",
        "trim",
        "unique",
        "upper",
        "urlencode",
        "wordcount",
    ),
)
"""Of Jinja's own: what comes out is not much larger than what goes in."""

FILTERS: Mapping[str, Callable[..., Any]] = {
    **{name: jinja.FILTERS[name] for name in PLAIN},
    "ago": ago,
    "base64_bytes": base64_bytes,
    "center": center,
    "format": format_,
    "hex": to_hex,
    "indent": indent,
    "join": join,
    "json": to_json,
    "local_time": local_time,
    "replace": replace,
    "round": round_,
    "rssi": best("rssi"),
    "slack_escape": slack_escape,
    "snr": best("snr"),
    "string": as_text,
    "sum": sum_,
    "tojson": to_json,
    "topic_level": topic_level,
    "truncate": truncate,
}
