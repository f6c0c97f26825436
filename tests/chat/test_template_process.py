"""A chat template is a stranger's program: it is kept in, and fails in one line that names its file."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxgpt.chat import template_process as templates
from jaxgpt.chat.template_process import Renderer, Template
from jaxgpt.errors import RunError, UsageError

MEMORY = 1 << 27  # of which Python and Jinja take a quarter
HARMLESS = Template("{{ text }}{% generation %}!{% endgeneration %}", "t.jinja")


def render(source: str, **variables: object) -> str:
    [(text, _)] = Template(source, "t.jinja").render([variables])
    return text


def test_generation_blocks_are_found_wherever_they_stand():
    source = "{% for x in 'ab' %}<{% generation %}{{ x }}{% if x == 'b' %}!{% endif %}{% endgeneration %}>{% endfor %}"
    assert list(Template(source, "").render([{}])) == [("<a><b!>", [(1, 2), (4, 6)])]
    source = "{% filter upper %}a{%- generation -%} b {%- endgeneration -%}{% endfilter %}"
    assert list(Template(source, "").render([{}])) == [("AB", [(1, 2)])]


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
    ("a" * ((1 << 20) + 1), "1048577 characters is too large for a template (limit 1048576)"),
    ("{{ 'a' * 100000 }}", "it makes 100000 characters (limit 65"),
]


@pytest.mark.parametrize(("source", "message"), HOSTILE, ids=lambda text: text[:40])
def test_failures_name_the_file_in_one_line(source: str, message: str):
    with pytest.raises(UsageError) as caught:
        render(source, messages=[{"role": "user", "content": "x"}])
    assert str(caught.value).startswith("t.jinja: ") and message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.fixture(scope="module")
def one_for_all():
    renderer = Renderer(memory=MEMORY, seconds=0.3)
    yield renderer
    renderer.end()


@pytest.fixture
def small(one_for_all: Renderer, monkeypatch: pytest.MonkeyPatch) -> Renderer:
    """A renderer of a little memory and a little time."""
    monkeypatch.setattr(templates, "renderer", one_for_all)
    return one_for_all


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ENDLESS = [
    LOOP,
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for a in range(99999) if a < 0 or a > 5 %}{{ range(99999) | sum }}{% endfor %}",
    "{{ ('a ' * 500000) | wordwrap(1) | wordwrap(1) | length }}",
    "{{ (([[1] * 900] * 900) | sum(start=[])) | length }}{{ (([[1] * 900] * 9000) | sum(start=[])) | length }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 7 ** (99999 ** 2) }}",
    "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
]


@pytest.mark.parametrize("source", ENDLESS, ids=lambda text: text[:40])
def test_what_does_not_end_is_ended(source: str, small: Renderer):
    with pytest.raises(UsageError, match=r"t.jinja: the chat template fails: it (has not ended after 0.3 s|needs too)"):
        render(source)
    assert render("and the next one is rendered") == "and the next one is rendered"


HUGE = [
    "{{ '%2000000000d' % 1 }}",
    "{{ '%2000000000s' | format(1) }}",
    "{{ 'a' * 1000000000 }}",
    "{{ (10000000000 * [1]) | length }}",
    "{{ 'a'.rjust(1000000000) }}",
    "{{ 'a' | center(1000000000) }}",
    "{{ 'a'.zfill(1000000000) }}",
    "{{ ('a' * 9999).replace('a', 'a' * 99999) }}",
    "{{ ('a' * 9999999) | indent(99999999, true) }}",
    "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x | replace('b', n.x) %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
]


@pytest.mark.parametrize("source", HUGE, ids=lambda text: text[:40])
def test_what_needs_much_memory_does_not_get_it(source: str, small: Renderer):
    with pytest.raises(UsageError, match=r"t.jinja: the chat template fails: it needs too much memory$"):
        render(source)
    assert render("and the next one is rendered") == "and the next one is rendered"


def test_each_rendering_has_its_own_time(small: Renderer):
    template = Template("{% for i in range(9999) if i * i * i %}{% endfor %}", "t.jinja")
    assert len(list(template.render([{}] * 200))) == 200


def test_the_one_that_fails_is_the_one_whose_turn_it_is(small: Renderer):
    """Whatever was read ahead, and whatever it was that ended the process."""
    bad = Template("{{ x }}{% if x == 100 %}{{ [][9].a }}{% elif x == 200 %}" + LOOP + "{% endif %}", "t.jinja")
    for first, failing, message in ((0, 100, "has no element 9"), (101, 200, "has not ended")):
        rendered = bad.render({"x": x} for x in range(first, 300))
        assert [text for text, _ in (next(rendered) for _ in range(first, failing))] == list(
            map(str, range(first, failing))
        )
        with pytest.raises(UsageError, match=message):
            next(rendered)


def test_many_are_what_each_is_alone():
    given = [{"text": text} for text in ("", "é", "\ud83d\ude42", "\ud800", '"\n\\', "a" * 2_000_000, "🙂" * 500) * 20]
    assert list(HARMLESS.render(given)) == [
        (one["text"] + "!", [(len(one["text"]), len(one["text"]) + 1)]) for one in given
    ]


def test_threads_and_forks_get_their_own_answers(small: Renderer):
    wrong: list[object] = []

    def work(name: str) -> None:
        for i in range(100):
            if render("{{ x }}", x=f"{name}{i}") != f"{name}{i}":
                wrong.append((name, i))

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    code = (
        "import os; from jaxgpt.chat.template_process import Template\n"
        "render = lambda x: next(Template('{{ x }}', '').render([{'x': x}]))[0]\n"
        "assert render(1) == '1'\n"
        "child = os.fork()\n"
        "for i in range(200): assert render(f'{child > 0} {i}') == f'{child > 0} {i}'\n"
        "assert not child or os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("source", ["{{ 1 }}", LOOP], ids=["idle", "busy"])
def test_the_process_imports_no_jax_and_ends_with_this_one_however_it_ends(source: str, tmp_path: Path):
    code = (
        "import sys, threading; from jaxgpt.chat import template_process as templates\n"
        "list(templates.Template('x', '').render([{}]))\n"
        "print(templates.renderer._process.pid, flush=True)\n"
        f"try: list(templates.Template({source!r}, '').render([{{}}]))\n"
        "except ValueError: pass\n"
        "threading.Event().wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "jaxlib" not in maps and "numpy" not in maps and alive(pid)
        os.kill(pid, signal.SIGINT)  # Ctrl-C is this process's to answer; a terminal sends it to a group
        assert os.getpgid(pid) != os.getpgid(parent.pid)
    finally:
        parent.kill()
        parent.communicate()
    until = time.monotonic() + 60
    while alive(pid):
        assert time.monotonic() < until, "the process that renders has outlived its parent"
        time.sleep(0.02)


def test_where_nothing_can_be_limited_it_is_said_and_time_is_still_limited(monkeypatch, capsys):
    without = "import signal, sys; sys.modules['resource'] = None; del signal.setitimer\n"
    monkeypatch.setattr(templates, "_START", without + templates._START)
    renderer = Renderer(patience=1.0)
    monkeypatch.setattr(templates, "renderer", renderer)
    assert render("{{ 1 }}") == "1"
    note = "note: the memory that chat templates take can't be limited on this platform\n"
    assert capsys.readouterr().err == note
    with pytest.raises(UsageError, match="it has not ended after 1 seconds"):
        render(LOOP)
    assert render("{{ 2 }}") == "2"
    renderer.end()


def test_a_process_that_is_ended_by_others_is_started_again(small: Renderer):
    assert render("{{ 1 }}") == "1" and small._process is not None
    os.kill(small._process.pid, signal.SIGKILL)
    small._process.wait()
    assert render("{{ 2 }}") == "2"


def test_a_process_that_can_not_start_is_an_error(monkeypatch, small: Renderer):
    small.end()
    monkeypatch.setattr(templates, "_START", "raise SystemExit(3)")
    with pytest.raises(RunError, match=r"renders chat templates does not start \(exit code 3\)"):
        render("x")


def test_what_lies_in_the_current_folder_is_not_imported(tmp_path: Path):
    for name in ("json", "jinja2", "signal", "runpy"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()")
    code = f"import sys; sys.path[:] = {json.dumps(sys.path)}; from jaxgpt.chat.template_process import Template\n"
    code += "assert next(Template('x', '').render([{}])) == ('x', [])"
    subprocess.run([sys.executable, "-I", "-c", code], check=True, cwd=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_no_template_writes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Renderer):
    monkeypatch.chdir(tmp_path)
    for name in ("cycler", "namespace", "raise_exception"):
        with pytest.raises(UsageError, match="is unsafe|is undefined"):
            render("{{ " + name + ".__init__.__globals__.os.system('touch escaped') }}")
    assert not list(tmp_path.iterdir())
