"""Templates that cannot hurt: Jinja2's immutable sandbox, with limits on time and size.

No I/O, no clock in this file, so time is counted in steps: turns of loops, calls, filters, and every 256
characters that go through one. What could blow up in a single call (repeating text, widths, powers,
joining, replacing, doubling a list) is weighed before it is done, or is not there at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from types import BuiltinMethodType, MethodType
from typing import Any, TypeVar

import msgspec
from jinja2 import StrictUndefined, Undefined, nodes, pass_context
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import _PassArg
from jinja2.visitor import NodeTransformer

from bridge.errors import RenderError

LONGEST = 1 << 20  # characters of a value, and of what a template makes; an event has 2 kB as a rule
STEPS = 50_000  # about 50 ms at most, and a thousand times what a sensible template needs
TEXT = 1 << 16  # characters of a template
PER_STEP = 256  # characters that cost as much as one step
WIDEST = 1000  # characters to which anything is filled up
RANGE = 10_000  # numbers in a range
DIGITS = 4096  # bits of a whole number

BUDGET = "_budget"  # beside the values of a rendering; no template can name it: it is not in NAMES

METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(
        (
            *(
                "capitalize",
                "casefold",
                "count",
                "endswith",
                "find",
                "index",
                "isalnum",
                "isalpha",
                "isdecimal",
            ),
            *(
                "isdigit",
                "islower",
                "isnumeric",
                "isspace",
                "isupper",
                "join",
                "lower",
                "lstrip",
                "partition",
            ),
            *("removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip"),
            *("split", "splitlines", "startswith", "strip", "swapcase", "title", "upper"),
        )
    ),
    bytes: frozenset(("count", "endswith", "find", "hex", "index", "startswith")),
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
    float: frozenset(("is_integer",)),
}
"""What may be called on values; nothing that takes a width."""

T = TypeVar("T")


class Budget:
    """What one rendering may still use up; *cost* of one turn of a loop or call of a macro, in steps."""

    __slots__ = ("characters", "cost", "steps")

    def __init__(self, cost: int) -> None:
        self.steps = STEPS
        self.characters = 2 * LONGEST
        self.cost = cost

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise RenderError("the template takes too long: fewer loops, or smaller ones")

    def write(self, characters: int) -> None:
        """Everything put into text, also into `{% set %}` blocks and macros that nobody prints."""
        self.characters -= characters
        if self.characters < 0:
            raise RenderError(f"the template makes more than {LONGEST} characters")


def budget_of(context: Context) -> Budget:
    """Not by name: a template's own `{% set %}` could stand before it."""
    found: Budget = context.parent[BUDGET]
    return found


def weigh(value: object) -> int:
    """About how many characters *value* is as text; raises RenderError if that is more than LONGEST.

    A list that holds another one twice counts it twice, as printing it would.
    """
    total, waiting = 0, [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str | bytes):
            total += len(each)
        elif isinstance(each, int):
            total += 8 + each.bit_length() // 3
        elif isinstance(each, Mapping):
            total += 4 * len(each)
            waiting += each.keys()
            waiting += each.values()
        elif isinstance(each, list | tuple | Set):
            total += 2 * len(each)
            waiting += each
        else:
            total += 16
        if total > LONGEST:
            raise too_long()
    return total


def too_long() -> RenderError:
    return RenderError(f"a value in the template is longer than {LONGEST} characters")


def as_text(value: Any) -> str:
    """What `{{ value }}` prints: JSON's own words for what is no text."""
    if isinstance(value, str):
        return value
    if value is True or value is False or value is None or isinstance(value, Mapping | list | tuple):
        weigh(value)
        return msgspec.json.encode(value).decode()
    if isinstance(value, bytes):
        return value.hex().upper()
    return str(value)


class Environment(ImmutableSandboxedEnvironment):
    """Item access comes before attribute access: `data.values` is the field and not the method of a dict."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(
        self, escape: Callable[[Any], str] | None, filters: Mapping[str, Callable[..., Any]]
    ) -> None:
        super().__init__(
            undefined=StrictUndefined, autoescape=False, optimized=False, finalize=finalizer(escape)
        )
        self.filters = {name: metered(each) for name, each in filters.items()}
        self.filters |= {"_counted": counted, "_joined": joined, "_built": built}
        self.globals = {"range": bounded_range, "dict": dict}

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sides = (left, right)
        if operator == "**" and not (abs(left) <= 10**6 and abs(right) <= 64):
            raise RenderError("power too large for a template")
        if operator == "*" and any(isinstance(side, str | bytes | list | tuple) for side in sides):
            raise RenderError("text and lists cannot be multiplied in a template")
        if operator == "*" and sum(side.bit_length() for side in sides if isinstance(side, int)) > DIGITS:
            raise RenderError("number too large for a template")
        if operator == "%" and isinstance(left, str | bytes):
            raise RenderError("use the filter format instead of %, such as '%.1f' | format(x)")
        if operator == "+" and isinstance(left, str | bytes | list | tuple):
            return self._sum(context, left, right)
        return super().call_binop(context, operator, left, right)

    def _sum(self, context: Context, left: Any, right: Any) -> Any:
        size = weigh(left) + weigh(right)
        if size > LONGEST:
            raise too_long()
        budget_of(context).spend(1 + size // PER_STEP)
        return left + right

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Only what is known to be harmless is called."""
        budget = budget_of(__context)
        budget.spend(1)
        if isinstance(__obj, Macro):
            budget.spend(budget.cost)
        elif isinstance(__obj, BuiltinMethodType):
            return method(budget, __obj, args, kwargs)
        elif not (
            isinstance(__obj, Undefined)
            or __obj is bounded_range
            or __obj is dict
            or (isinstance(__obj, MethodType) and isinstance(__obj.__self__, LoopContext))
        ):
            raise RenderError("this cannot be called in a template")
        return super().call(__context, __obj, *args, **kwargs)


def finalizer(escape: Callable[[Any], str] | None) -> Callable[[Context, Any], Any]:
    @pass_context
    def finalize(context: Context, value: Any) -> Any:
        if isinstance(value, Undefined):
            return value  # printing it raises, and says what is not defined
        text = as_text(value)
        if escape is not None:
            text = escape(value if isinstance(value, str) else text)
        budget_of(context).write(len(text))
        return text

    return finalize


def metered(function: Callable[..., Any]) -> Callable[..., Any]:
    """*function*, a filter, paid for by the size of what goes in and what comes out."""
    passes = _PassArg.from_obj(function)

    @pass_context
    def filter_(context: Context, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of(context)
        budget.spend(1 + (weigh(args) + weigh(kwargs)) // PER_STEP)
        if passes is _PassArg.context:
            args = (context, *args)
        elif passes is _PassArg.eval_context:
            args = (context.eval_ctx, *args)
        elif passes is _PassArg.environment:
            args = (context.environment, *args)
        found = function(*args, **kwargs)
        budget.spend(weigh(found) // PER_STEP)
        return found

    return filter_


def method(budget: Budget, bound: BuiltinMethodType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a method of a value, if it is one of METHODS."""
    owner, name = bound.__self__, bound.__name__
    if not any(isinstance(owner, kind) and name in names for kind, names in METHODS.items()):
        raise RenderError(f"{name} cannot be called in a template")
    if name == "replace":
        check_replace(owner, *args[:2])
    if name == "join":
        args = (check_join(args[0] if args else (), owner),)
    budget.spend((weigh(owner) + weigh(args)) // PER_STEP)
    found = bound(*args, **kwargs)
    budget.spend(weigh(found) // PER_STEP)
    return found


def check_replace(text: Any, old: Any, new: Any) -> None:
    """Raise RenderError if replacing *old* in *text* by *new* makes it too long."""
    grows = str(text).count(str(old)) * (len(str(new)) - len(str(old)))
    if len(str(text)) + max(0, grows) > LONGEST:
        raise too_long()


def check_join(values: Any, separator: Any) -> list[Any]:
    """*values* as a list that can be joined by *separator*; raises RenderError if that makes it too long."""
    found = list(values)
    if weigh(found) + len(str(separator)) * len(found) > LONGEST:
        raise too_long()
    return found


@pass_context
def counted(context: Context, iterable: Any) -> Iterator[Any]:
    """What a loop goes through: each turn is paid for."""
    budget = budget_of(context)
    for each in iterable:
        budget.spend(budget.cost)
        yield each


@pass_context
def joined(context: Context, *parts: Any) -> str:
    """`a ~ b`."""
    texts = [str(part) if isinstance(part, Undefined) else as_text(part) for part in parts]
    size = sum(map(len, texts))
    if size > LONGEST:
        raise too_long()
    budget_of(context).spend(1 + size // PER_STEP)
    return "".join(texts)


@pass_context
def built(context: Context, value: T) -> T:
    """A list, tuple or dict written in the template: it may hold another one more than once."""
    budget_of(context).spend(1 + weigh(value) // PER_STEP)
    return value


@pass_context
def bounded_range(context: Context, *args: int) -> range:
    found = range(*args)
    if len(found) > RANGE:
        raise RenderError(f"a range in a template has at most {RANGE} numbers")
    budget_of(context).spend(1 + len(found) // PER_STEP)
    return found


class Limits(NodeTransformer):
    """Puts the limits into a template's syntax tree; raises ValueError for statements it may not have."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        if node.recursive:
            raise ValueError("loops in templates cannot be recursive")
        self.generic_visit(node)
        node.iter = applied("_counted", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return applied("_joined", *node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return applied("_built", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return applied("_built", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return applied("_built", node) if node.ctx == "load" else node

    def refused(self, node: nodes.Node) -> nodes.Node:
        raise ValueError("a template stands alone: no include, import, extends or block")

    visit_Include = visit_Import = visit_FromImport = visit_Extends = visit_Block = refused  # noqa: N815


def applied(name: str, value: nodes.Node, *args: nodes.Node) -> nodes.Filter:
    return nodes.Filter(value, name, list(args), [], None, None, lineno=value.lineno)
