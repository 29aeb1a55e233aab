"""Templates that want too much: each is stopped, soon and small."""

from __future__ import annotations

import resource
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import RenderError
from bridge.render import Template
from tests.unit.test_render import METER, delivery

SOON = 1.0  # seconds of CPU; 0.2 is what the worst of them took
SMALL = 64 << 10  # kB by which the process may grow at its highest

DATA = {"x": "abc" * 100, "n": 7, "list": list(range(50)), "values": 1}
DOUBLED = "{% set a = [1] %}" + "{% set a = [a, a] %}" * 60
HOSTILE = [
    "{% for i in range(10**9) %}{% endfor %}",
    "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "{% for i in range(9999) %}{% for j in range(9999) if false %}{% endfor %}{% endfor %}",
    "{% for i in range(9999) %}{% set y = range(9999) | map('string') | list %}{% endfor %}",
    "{% for i in range(9999) %}{% set y = data.list | sort | list | unique | list %}{% endfor %}"
    "{% for i in range(9999) %}{% set y = range(9999) | list %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ [1] * 10**10 }}",
    "{{ (1,) * 10**10 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ 10 ** 64 ** 64 }}",
    "{% set a = 10**64 %}" + "{% set a = a * a %}" * 40 + "{{ a }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%10000000000d' | format(1) }}",
    "{{ '%.10000000000f' | format(1.0) }}",
    "{{ '%*d' | format(10000000000, 1) }}",
    "{{ '%(a(b))10000000000d' | format(**{'a(b)': 1}) }}",
    "{{ '%s' * 1 }}{{ ('%s' ~ '%s') | format(data.x) }}{{ 1 / 0 }}",
    "{{ '{:10000000000}'.format(1) }}",
    "{{ '{0:{1}}'.format(1, 10000000000) }}",
    "{{ '{:10000000000}'.format_map({}) }}",
    "{{ 'a'.ljust(10**10) }}",
    "{{ 'a'.rjust(10**10) }}",
    "{{ 'a'.center(10**10) }}",
    "{{ 'a'.zfill(10**10) }}",
    "{{ '\\t'.expandtabs(10**10) }}",
    "{{ 'a'.translate({97: 'b' }) }}",
    "{{ (1).to_bytes(10**10, 'big') }}",
    "{{ 'a' | center(10**10) }}",
    "{{ 'a' | indent(10**10, true) }}",
    "{{ 1.5 | round(10**10) }}",
    "{{ 1.5 | round(-(10**10)) }}",
    "{{ 'a' | replace('', 'b' | center(1000)) | replace('b', 'c' | center(1000)) }}"
    "{{ ('a' | center(1000)) | replace('', ' ' | center(1000)) | replace(' ', ' ' | center(1000)) }}",
    "{{ ('a' | center(1000)).replace('', ' ' | center(1000)).replace(' ', ' ' | center(1000)) }}",
    "{{ range(9999) | join(' ' | center(1000)) }}",
    "{{ (' ' | center(1000)).join(range(9999) | map('string')) }}",
    "{% set a = 'aaaaaaaa' %}" + "{% set a = a ~ a %}" * 60 + "{{ a | length }}",
    "{% set a = 'aaaaaaaa' %}" + "{% set a = a + a %}" * 60 + "{{ a | length }}",
    "{% set a = [1] %}" + "{% set a = a + a %}" * 60 + "{{ a | length }}",
    "{% set a = (1,) %}" + "{% set a = a + a %}" * 60 + "{{ a | length }}",
    "{% set a = 'aaaaaaaa' %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 60 + "{{ a | length }}",
    DOUBLED + "{{ a }}",
    DOUBLED + "{{ a | string | length }}",
    DOUBLED + "{{ a | json | length }}",
    DOUBLED.replace("[a, a]", "{'a': a, 'b': a}") + "{{ a | length }}",
    DOUBLED.replace("[a, a]", "(a, a)") + "{{ a | length }}",
    DOUBLED + DOUBLED.replace("a", "b") + "{{ a == b }}",
    "{{ dict(a=1) }}" + "{% set a = dict(a=1) %}" + "{% set a = dict(a=a, b=a) %}" * 60 + "{{ a }}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f(n) %}"
    + "x" * 10_000
    + "{% endmacro %}{% for i in range(9999) %}{% set a = f(i) %}{% endfor %}",
    "{% for i in range(9999) %}" + "x" * 10_000 + "{% endfor %}",
    "{% set a %}{% for i in range(9999) %}" + "x" * 10_000 + "{% endfor %}{% endset %}",
    "{% for i in range(9999) %}{{ data.x }}{{ data.x }}{{ data.x }}{{ data.x }}{% endfor %}",
    "{{ cycler('a', 'b') }}",
    "{{ namespace(a=1) }}",
    "{{ lipsum(n=10**6) }}",
    "{{ range(9999) | batch(10**10, 'x') | list }}",
    "{{ range(9999) | slice(10**10) | list }}",
    "{{ [[1], [2]] | sum(start=[]) }}",
    "{{ 'x'.__class__.__mro__[1].__subclasses__() }}",
    "{{ data.list.append(1) }}",
    "{{ event.update(name='x') }}",
    "{{ data.x.encode() }}",
    "{{ data.x() }}",
    "{{ data['x'].join }}{{ data.x.join.__self__ }}",
    "{{ self.__init__ }}",
    "{{ event | attr('update') }}",
    "{{ ([data.x] | map(attribute='format') | first)('a') }}",
    "{{ ([data.x] | map(attribute='ljust') | first)(10**10) }}",
    "{% set _budget = 1 %}{{ _budget.steps }}",
    "{{ local_time }}",
    "{{ event.time | local_time('UTC', '%99999999999d') }}",
    "{{ 1 | local_time('UTC', '%99999999999d') }}",
    "{{ data.x | hex(' ' | center(1000)) }}" * 5000,
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ " + "-" * 20000 + "1 }}",
    "{% if 1 %}" * 200 + "{% endif %}" * 200,
    "{% for i in [1] %}" * 60 + "{% endfor %}" * 60,
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% from 'x' import y %}",
    "{% extends 'x' %}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "x" * 100_000,
]


def most_memory() -> int:
    """The most this process ever had, in kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:60])
def test_a_template_that_wants_too_much_is_stopped(text: str) -> None:
    """By an error of ours, at load or when rendered; soon, and without eating the memory."""
    most, started = most_memory(), time.thread_time()
    with pytest.raises((RenderError, ValueError)):
        Template(text).render(delivery("a", DATA))
    assert time.thread_time() - started < SOON
    assert most_memory() - most < SMALL


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{% for i in range(3) %}{{ i }}{% if not loop.last %},{% endif %}{% endfor %}", "0,1,2"),
        ("{% for i in data.list[:3] %}{{ loop.index }}/{{ loop.length }} {% endfor %}", "1/3 2/3 3/3 "),
        ("{% for i in [] %}{% else %}none{% endfor %}", "none"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% endfor %}", "a=1"),
        ("{% for i in data.list if i > 47 %}{{ i }} {% endfor %}", "48 49 "),
        ("{% for i in [1, 2] %}{{ loop.cycle('odd', 'even') }} {% endfor %}", "odd even "),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(1) }}{{ m('a') }}", "<1><a>"),
        ("{{ 'a' ~ 1 ~ 'b' }}", "a1b"),
        (
            "{{ 2 * 3 }} {{ 2 ** 10 }} {{ 7 % 4 }} {{ 1 + 1 }} {{ [1] + [2] }} {{ 'a' + 'b' }}",
            "6 1024 3 2 [1,2] ab",
        ),
        ("{{ 'A-B'.lower().split('-') | join('+') }}", "a+b"),
        ("{{ 'abc'.replace('b', 'xx') }} {{ '-'.join(['a', 'b']) }}", "axxc a-b"),
        ("{{ data.get('nope', 'default') }}", "default"),
        ("{{ data.values }} {{ data['values'] }}", "1 1"),
        (
            "{{ true }} {{ none }} {{ 1.5 }} {{ [true, none] }} {{ {'a': 'b'} }}",
            'true null 1.5 [true,null] {"a":"b"}',
        ),
        ("{% set a %}{{ data.n }}!{% endset %}{{ a }}{{ a }}", "7!7!"),
        ("{% set x, y = (1, 2) %}{{ y }}{{ x }}", "21"),
        ("{{ ids.path or 'none' }}", "plant-a/meter-01"),
        ("{{ dict(a=1).a }}", "1"),
        ("{{ data.nope is defined }} {{ data.nope | default('-') }}", "false -"),
        ("{{ data.list | select('gt', 47) | map('string') | join(' ') }}", "48 49"),
        ("{% filter upper %}{{ data.n }}a{% endfilter %}", "7A"),
    ],
)
def test_what_a_sensible_template_does_still_works(text: str, shown: str) -> None:
    """The near misses of what is stopped."""
    assert Template(text).render(delivery("a", DATA, METER)) == shown


def test_a_large_event_can_be_printed_whole_up_to_the_limit() -> None:
    """A megabyte, and not a byte more."""
    assert len(Template("{{ data.x }}").render(delivery("a", {"x": "a" * (1 << 20)}))) == 1 << 20
    with pytest.raises(RenderError):
        Template("{{ data.x }}{{ data.n }}").render(delivery("a", {"x": "a" * (1 << 20), "n": 1}))


def test_each_rendering_has_a_budget_of_its_own() -> None:
    """What one event used up is not missing for the next."""
    template = Template("{% for i in range(9000) %}{% endfor %}x")
    assert [template.render(delivery()) for _ in range(20)] == ["x"] * 20


pieces = st.sampled_from(
    [
        *(
            "{{ ",
            " }}",
            "{% ",
            " %}",
            "data",
            ".x",
            "| ",
            "list",
            "range(",
            ")",
            "for i in ",
            "endfor",
            "if ",
        ),
        *(
            "endif",
            "'a'",
            "10**9",
            "[",
            "]",
            "*",
            "~",
            "+",
            "set a = ",
            "a",
            "json",
            "join",
            "%",
            "(",
            ",",
            "x",
        ),
    ]
)


@given(st.lists(pieces, max_size=25).map("".join))
def test_no_template_text_raises_anything_else(text: str) -> None:
    """At load ValueError, when rendered RenderError; never a traceback."""
    try:
        template = Template(text)
    except ValueError:
        return
    with suppress(RenderError):
        template.render(delivery("a", DATA))
