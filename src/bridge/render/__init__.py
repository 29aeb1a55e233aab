"""A delivery as text or bytes: templates, formats, the summary.  No I/O, no clock in this file.

Templates are Jinja2 in the sandbox of `sandbox`, strict about undefined names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TypeAlias

import msgspec
from jinja2 import TemplateError, meta, nodes

from bridge.delivery import Delivery
from bridge.errors import RenderError
from bridge.event import Event, ids_of
from bridge.render.filters import FILTERS, NOW, IdsPath, slack_escape, topic_level
from bridge.render.sandbox import BUDGET, LONGEST, PER_STEP, TEXT, Budget, Environment, Limits

__all__ = ["Format", "IdsPath", "Template", "body", "context", "slack_escape", "summary", "topic_level"]

Format: TypeAlias = Literal["event", "data"]

CONTENT_TYPE: Mapping[Format, str] = {"event": "application/json", "data": "application/json"}

NAMES = frozenset({"event", "ids", "data", "sink", "rule", "summary"})
ALERT_NAMES = frozenset({"alert", "status", "labels", "since", "ends", "events", "number", "value", "group"})
"""What only notifications of alerts have, beside each of their labels."""

ALERTS = "bridge.alert."
NAME_ONLY = "event.name"
"""Among what a template uses: of the event only this."""
FEW = frozenset({NAME_ONLY, "ids", "sink", "rule"})
"""What few deliveries differ in: texts made of these alone are remembered."""
REMEMBERED = 10_000  # texts of a template


_labels: ContextVar[frozenset[str]] = ContextVar("labels", default=frozenset())


@contextmanager
def labelled(labels: Collection[str]) -> Iterator[None]:
    """While inside, templates may use *labels*, those of all alerts of a config, by their names."""
    token = _labels.set(frozenset(labels))
    try:
        yield
    finally:
        _labels.reset(token)


class Template:
    """One template of the config, compiled; *escape* is applied to every value put into the text."""

    def __init__(
        self, text: str, escape: Callable[[Any], str] | None = None, *, labels: Collection[str] | None = ()
    ) -> None:
        """Raises ValueError that says what is wrong with *text*, and on names no template has.

        *labels* of alerts are names too, beside those of `labelled`; None if the names were looked at before.
        """
        if len(text) > TEXT:
            raise ValueError(f"template: at most {TEXT} characters")
        environment = Environment(escape, FILTERS)
        try:
            tree = environment.parse(text)
            self.uses = frozenset(meta.find_undeclared_variables(tree)) - set(environment.globals)
            if asks_only_names(tree):
                self.uses = self.uses - {"event"} | {NAME_ONLY}
            code = environment.compile(Limits().visit(tree))
        except TemplateError as error:
            raise ValueError(f"template: {error.message or type(error).__name__}") from None
        except (RecursionError, SyntaxError, MemoryError):
            raise ValueError("template: nested too deeply") from None
        unknown = self.uses - NAMES - {NAME_ONLY} - ALERT_NAMES - _labels.get() - set(labels or ())
        if unknown and labels is not None:
            raise ValueError(f"template: {min(unknown)} is not defined; there is {', '.join(sorted(NAMES))}")
        self._known: dict[tuple[object, ...], str] | None = (
            {} if is_plain(tree) and self.uses <= FEW else None
        )
        self._template = environment.template_class.from_code(environment, code, environment.globals)
        self._cost = 1 + len(text) // PER_STEP

    def render(self, delivery: Delivery, now: float | None = None) -> str:
        """The text for *delivery*; raises RenderError, which makes it a dead letter.

        *now*, unix seconds, is what `ago` counts back from; without it the time the event was taken in.
        """
        if self._known is None:
            return self.fill(context(delivery, self.uses), delivery.received if now is None else now)
        event = delivery.event
        key = event.name, event.identifiers, delivery.sink, delivery.rule
        text = self._known.get(key)
        if text is None:
            text = self.fill(context(delivery, self.uses), delivery.received)
            if not event.name.startswith(ALERTS):
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                self._known[key] = text
        return text

    def fill(self, values: dict[str, Any], now: float) -> str:
        """The text with *values*, such as `context` makes; raises RenderError."""
        values = values | {BUDGET: Budget(self._cost), NOW: now}
        parts: list[str] = []
        length = 0
        try:
            for part in self._template.generate(values):
                parts.append(part)
                length += len(part)
                if length > LONGEST:
                    raise RenderError(f"the template makes more than {LONGEST} characters")
        except RecursionError:
            raise RenderError("template: nested too deeply") from None
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise RenderError(f"template: {error}") from None
        return "".join(parts)


def is_plain(tree: nodes.Template) -> bool:
    """Does it only put values into a text? Then the same values make the same text, as with most topics."""
    return next(tree.find_all((nodes.Filter, nodes.Call, nodes.Test)), None) is None


def asks_only_names(tree: nodes.Template) -> bool:
    """Is `event.name` all that it wants of the event, as topics do? That is known without decoding it."""
    wants = [each.node for each in tree.find_all(nodes.Getattr) if each.attr == "name"]
    named = [each for each in tree.find_all(nodes.Name) if each.name == "event"]
    return bool(named) and all(any(each is want for want in wants) for each in named)


def context(delivery: Delivery, uses: frozenset[str] = NAMES) -> dict[str, Any]:
    """What a template sees of *delivery*; only the names in *uses*, since some cost decoding."""
    event = delivery.event
    values: dict[str, Any] = {"sink": delivery.sink, "rule": delivery.rule}
    if "ids" in uses:
        ids = ids_of(event)
        values["ids"] = ids | {"path": IdsPath(ids["path"])}
    if NAME_ONLY in uses:
        values["event"] = {"name": event.name}
        uses = uses - {NAME_ONLY}
    if uses - {"ids", "sink", "rule", "summary"} or event.name.startswith(ALERTS):
        document = event.document()
        values["event"] = document
        values["data"] = document.get("data", {})
        if event.name.startswith(ALERTS):
            values = alert_values(event.name, values["data"]) | values
    if "summary" in uses and "summary" not in values:
        values["summary"] = summary(event)
    return values


def alert_values(name: str, data: Any) -> dict[str, Any]:
    """The names a notification of an alert adds: its own, its `summary`, and each of its labels."""
    told = data if isinstance(data, dict) else {}
    labels = told.get("labels")
    own = {key: told[key] for key in (*ALERT_NAMES, "summary") if key in told}
    always: dict[str, Any] = {"status": name.rpartition(".")[2], "ends": "", "value": None, "group": {}}
    return (dict(labels) if isinstance(labels, dict) else {}) | always | own


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
