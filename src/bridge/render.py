"""A delivery as text or bytes: templates, formats, the summary.  No I/O, no clock in this file.

Templates are Jinja2 in its immutable sandbox, strict about undefined names. Item access comes before
attribute access, so that `data.values` is the field and not the method of a dict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import msgspec
from jinja2 import StrictUndefined, TemplateError, Undefined, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bridge.delivery import Delivery
from bridge.errors import RenderError
from bridge.event import Event, ids_of

Format: TypeAlias = Literal["event", "data"]

CONTENT_TYPE: Mapping[Format, str] = {"event": "application/json", "data": "application/json"}

RENDER_LIMIT = 1 << 20  # characters a template may make; an event is 16 MiB at most and 2 kB as a rule

NAMES = frozenset({"event", "ids", "data", "sink", "rule", "summary"})


class IdsPath(str):
    """`ids.path`: the one value whose slash is a separator and stays one in a topic."""

    __slots__ = ()


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse what one call could blow up: `'a' * 10**10`, `10**10**10`, `'%10000000d' % 1`."""
        if operator == "**" and (abs(left) > 10**6 or abs(right) > 64):
            raise RenderError("power too large for a template")
        if operator == "*" and any(isinstance(side, str | list | tuple) for side in (left, right)):
            raise RenderError("text and lists cannot be multiplied in a template")
        if operator == "%" and isinstance(left, str):
            raise RenderError("use ~ or filters instead of % to build text in a template")
        return super().call_binop(context, operator, left, right)


def _environment(escape: Callable[[Any], str] | None) -> _Environment:
    def finalize(value: Any) -> Any:
        return value if isinstance(value, Undefined) or escape is None else escape(value)

    environment = _Environment(undefined=StrictUndefined, finalize=finalize, autoescape=False)
    for name in ("center", "indent", "format", "pprint", "lipsum"):  # widths and sizes without end
        environment.filters.pop(name, None)
        environment.globals.pop(name, None)
    environment.globals.pop("namespace", None)
    return environment


class Template:
    """One template of the config, compiled; *escape* is applied to every value put into the text."""

    def __init__(self, text: str, escape: Callable[[Any], str] | None = None) -> None:
        """Raises ValueError that says what is wrong with *text*, and on names no template has."""
        environment = _environment(escape)
        try:
            tree = environment.parse(text)
            unknown = meta.find_undeclared_variables(tree) - NAMES - set(environment.globals)
            self._template = environment.from_string(text)
        except TemplateError as error:
            raise ValueError(f"template: {error.message or type(error).__name__}") from None
        if unknown:
            raise ValueError(f"template: {min(unknown)} is not defined; there is {', '.join(sorted(NAMES))}")
        self._uses = frozenset(meta.find_undeclared_variables(tree))

    def render(self, delivery: Delivery) -> str:
        """The text for *delivery*; raises RenderError, which makes it a dead letter."""
        return self.fill(context(delivery, self._uses))

    def fill(self, values: Mapping[str, Any]) -> str:
        """The text with *values* for its names, where there is no delivery; raises RenderError."""
        parts: list[str] = []
        length = 0
        try:
            for part in self._template.generate(values):
                parts.append(part)
                length += len(part)
                if length > RENDER_LIMIT:
                    raise RenderError(f"template made more than {RENDER_LIMIT} characters")
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise RenderError(f"template: {error}") from None
        return "".join(parts)


def context(delivery: Delivery, uses: frozenset[str] = NAMES) -> dict[str, Any]:
    """What a template sees of *delivery*; only the names in *uses*, since some cost decoding."""
    event = delivery.event
    values: dict[str, Any] = {"sink": delivery.sink, "rule": delivery.rule}
    if "ids" in uses:
        ids = ids_of(event)
        values["ids"] = ids | {"path": IdsPath(ids["path"])}
    if uses & {"event", "data"}:
        document = event.document()
        values["event"] = document
        values["data"] = document.get("data", {})
    if "summary" in uses:
        values["summary"] = summary(event)
    return values


def topic_level(value: Any) -> str:
    """*value* as it may stand in an MQTT topic name (MQTT 5 §4.7.1): `+ # /` and NUL are escaped."""
    text = str(value).replace("+", "%2B").replace("#", "%23").replace("\0", "%00")
    return text if isinstance(value, IdsPath) else text.replace("/", "%2F")


def slack_escape(value: Any) -> str:
    """*value* with Slack's three control characters escaped (Slack, "Formatting text")."""
    return str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


class _Data(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"null")


def body(delivery: Delivery, format: Format) -> bytes:
    """The payload of *delivery* (DESIGN.md §2.4)."""
    if format == "event":
        return delivery.event.body
    return bytes(msgspec.json.decode(delivery.event.body, type=_Data).data)


WORDS: Mapping[str, str] = {
    "as.down.data.receive": "downlink queued",
    "as.up.data.decode.fail": "payload could not be decoded",
    "as.up.data.decode.warning": "payload decoded with a warning",
    "as.up.data.forward": "uplink",
    "as.up.join.forward": "joined",
    "gs.down.schedule.fail": "downlink could not be scheduled",
    "gs.gateway.connect": "gateway connected",
    "gs.gateway.connection.stats": "gateway statistics",
    "gs.gateway.disconnect": "gateway disconnected",
    "js.join.accept": "join accepted",
    "ns.down.data.schedule.fail": "downlink could not be scheduled",
    "ns.up.join.cluster.fail": "join server in the cluster refused",
    "ns.up.join.drop": "join dropped",
}


def summary(event: Event) -> str:
    """One plain sentence: what it is about, what happened, and the error or the radio if there is one."""
    words = WORDS.get(event.name, event.name)
    path = ids_of(event)["path"]
    detail = _detail(event.document().get("data"))
    return f"{path + ': ' if path else ''}{words}{', ' + detail if detail else ''}"


def _detail(data: Any) -> str:
    if not isinstance(data, dict):
        return ""
    uplink = data.get("uplink_message")
    if isinstance(uplink, dict):
        return _radio(uplink)
    return error_text(data)


def error_text(error: Mapping[str, Any]) -> str:
    """What went wrong by an event's `data`, or ''.

    The innermost cause of an `ErrorDetails` (error.proto, v3.32) with its attributes filled in; a plain Go
    error comes as a `StringValue`.
    """
    if error.get("@type") == "type.googleapis.com/google.protobuf.StringValue":
        return str(error.get("value", ""))
    while (cause := _cause(error)) is not None:
        error = cause
    text = str(error.get("message_format", "")).replace("`", "")
    attributes = error.get("attributes")
    for key, value in attributes.items() if isinstance(attributes, dict) else ():
        text = text.replace("{" + key + "}", str(value))
    return text


def _cause(error: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The next error inward: `cause`, or the first of the paths a downlink was tried on."""
    cause = error.get("cause")
    if isinstance(cause, dict):
        return cause
    for detail in _objects(error.get("details")):
        for path in _objects(detail.get("path_errors")):
            return path
    return None


def _objects(value: Any) -> list[dict[str, Any]]:
    """The objects in *value*, if it is a list: what comes over the wire may be anything."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _radio(uplink: Mapping[str, Any]) -> str:
    heard = _objects(uplink.get("rx_metadata"))
    strengths = [each["rssi"] for each in heard if isinstance(each.get("rssi"), int | float)]
    parts = [f"port {uplink.get('f_port', 0)}"]
    if strengths:
        parts.append(f"{max(strengths):g} dBm")
    parts.append(f"{len(heard)} gateway{'' if len(heard) == 1 else 's'}")
    return ", ".join(parts)
