"""A chat template is a stranger's program: it is kept in, and fails in one line that names its file."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxgpt.errors import UsageError
from jaxgpt.text import templates
from jaxgpt.text.templates import BEGIN, END, Template


def render(source: str, **variables: object) -> str:
    return Template(source, "t.jinja").render(variables)


def test_generation_blocks_are_marked_wherever_they_stand():
    source = "{% for x in 'ab' %}<{% generation %}{{ x }}{% if x == 'b' %}!{% endif %}{% endgeneration %}>{% endfor %}"
    assert render(source) == f"<{BEGIN}a{END}><{BEGIN}b!{END}>"
    assert render("{% filter upper %}a{%- generation -%} b {%- endgeneration -%}{% endfilter %}") == f"A{BEGIN}B{END}"


def test_templates_have_what_transformers_gives_them():
    source = """{%- for x in [1, 2, 3] %}
        {%- if x == 2 %}{% continue %}{% endif %}
        {{- {'é': x} | tojson }}{{ 2 * x }}{{ '-' * x }}
    {%- endfor %}"""
    assert render(source) == '{"é": 1}2-{"é": 3}6---'


HOSTILE = [
    ("{% for x in", "(line 1): unexpected 'end of template'"),
    ("a\n\n{{ x ]}", "(line 3): unexpected ']'"),
    ("{% generation %}", "(line 1): Unexpected end of template"),
    ("{{ raise_exception('roles\nmust alternate') }}", "fails: roles must alternate"),
    ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{{ messages[3].content }}", "list object has no element 3"),
    ("{{ nothing.at_all }}", "'nothing' is undefined"),
    ("{{ strftime_now('%Y') }}", "'strftime_now' is undefined"),
    ("{% include '/etc/passwd' %}", "no loader"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "attribute '__class__' of a str is unsafe"),
    ("{{ raise_exception.__globals__ }}", "attribute '__globals__' of a function is unsafe"),
    ("{{ '{0.__class__}'.format(1) }}", "attribute '__class__' of a int is unsafe"),
    ("{{ messages.append(1) }}", "attribute 'append' of a list is unsafe"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ("{{" + "(" * 5000, "RecursionError"),
    ("{{ range(1000000) }}", "OverflowError"),
    ("{{ 9 ** 9 ** 9 }}", "powers are not allowed"),
    ("{{ 'a' * 1000000000 }}", "a product is too large"),
    ("{{ 10000000000 * [1] }}", "a product is too large"),
    ("{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}", "product is too"),
    ("{% for a in range(9**5) %}{{ a }}{% endfor %}", "powers are not allowed"),
    ("a" * ((1 << 20) + 1), "1048577 characters is too large for a template (limit 1048576)"),
]


@pytest.mark.parametrize(("source", "message"), HOSTILE, ids=lambda text: text[:40])
def test_failures_name_the_file_in_one_line(source: str, message: str):
    with pytest.raises(UsageError) as caught:
        render(source, messages=[{"role": "user", "content": "x"}])
    assert str(caught.value).startswith("t.jinja: ") and message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for a in range(99999) if a < 0 or a > 5 %}{{ range(99999) | sum }}{% endfor %}",
]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """A clock on which a hundredth of a second passes with each look at it."""
    ticks = itertools.count()
    monkeypatch.setattr(templates.time, "thread_time", lambda: next(ticks) / 100)
    return ticks


@pytest.mark.parametrize("source", ENDLESS)
def test_what_does_not_end_is_ended(source: str, clock: Iterator[int]):
    with pytest.raises(UsageError, match="t.jinja: the chat template fails: it has not ended after 2 seconds"):
        render(source)
    assert next(clock) < 210


def test_each_rendering_has_its_own_time(clock: Iterator[int]):
    template = Template("{% for i in range(150) %}{% endfor %}done", "t.jinja")
    assert [template.render({}) for _ in range(3)] == ["done"] * 3
    assert next(clock) > 450


def test_no_template_writes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cycler", "namespace", "raise_exception"):
        with pytest.raises(UsageError, match="is unsafe"):
            render("{{ " + name + ".__init__.__globals__.os.system('touch escaped') }}")
    assert not list(tmp_path.iterdir())
