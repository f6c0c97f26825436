"""The program in which Jinja templates from anyone's folder are rendered: a bad one can do no harm from here.

Templates see plain data in Jinja's sandbox, which keeps them from Python and so from files and network. Time and memory
are limited by the operating system, whatever a template spends them on. What transformers gives to templates is here
too, but for the current time: the same conversation is the same text on any day.

This file is run as a program. It imports nothing of this package and no JAX, so that it starts at once.
"""

from __future__ import annotations

import functools
import json
import re
import signal
import struct
import sys
from typing import Any, BinaryIO, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SIZE = struct.Struct(">Q")
BEGIN, END = "\udffe", "\udfff"
"""Stand in the rendered text where a `{% generation %}` block began and ended. No text has them: no UTF-8 can."""
_LONGER = 1 << 16  # characters by which a text may be longer than four times what it is made of


def serve(memory: int, seconds: float) -> None:
    """Answer requests from standard input on standard output until it ends, as it does with the parent process.

    A message is its length and JSON. The first one to the parent is a list of what can't be limited here. A request is
    a template's `source`, and `given`, pairs of variables and how long they are; each is answered by `{"text": …,
    "spans": …}`, the spans being where in the text `{% generation %}` blocks begin and end. Without `given` the answer
    is `{"texts": …}`: all that the source has literally. What fails is answered by `{"error": …}`.

    Args:
        memory: bytes that this process may have.
        seconds: of computing, after which a rendering is ended, and this process with it.
    """
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    clock = getattr(signal, "setitimer", None)
    if clock:  # a signal that the parent process ignores or holds back would be so here, too
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    write(answers, [*limit_memory(memory), *([] if clock else ["time"])])
    while size := requests.read(SIZE.size):
        content = requests.read(*SIZE.unpack(size))
        # Letter by letter, as JSON's escapes would make one character of two surrogates that stand side by side.
        request = json.loads(content.decode("utf-8", "surrogatepass"))
        source = request["source"]
        for size, variables in request.get("given", [(0, None)]):
            if clock:
                clock(signal.ITIMER_PROF, seconds)  # its signal ends a process that does not handle it
            answer = answer_to(source, variables, longest=_LONGER + 4 * (len(source) + size))
            if clock:
                clock(signal.ITIMER_PROF, 0)
            write(answers, answer)


def limit_memory(memory: int) -> list[str]:
    """Limit this process's memory; return `["memory"]` where that can't be done, else nothing."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    except (ImportError, ValueError, OSError):  # Windows has no such module, and macOS may refuse the limit
        return ["memory"]
    return []


def write(answers: BinaryIO, message: Any) -> None:
    """Write a message."""
    content = json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")
    answers.write(SIZE.pack(len(content)) + content)
    answers.flush()


def answer_to(source: str, variables: dict[str, Any] | None, *, longest: int) -> dict[str, Any]:
    """Return the answer to one request; a text may have `longest` characters."""
    try:
        template, texts = compiled(source)
        if variables is None:
            return {"texts": texts}
        rendered = template.render(variables)
        if len(rendered) > longest:
            raise TemplateError(f"it makes {len(rendered)} characters (limit {longest})")
        return marked(rendered)
    except MemoryError:
        return {"error": ": it needs too much memory"}
    except Exception as error:  # a template is a program, and fails in any way that a program does
        line = f" (line {lineno})" if (lineno := getattr(error, "lineno", None)) else ""
        kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
        return {"error": f"{line}: {kind}{' '.join(str(error).split())[:200]}"}


def marked(rendered: str) -> dict[str, Any]:
    """Return the text without its marks, and where they stood."""
    text, begun, spans = "", 0, []
    for part in re.split(f"([{BEGIN}{END}])", rendered):
        if part == BEGIN:
            begun = len(text)
        elif part == END:
            spans.append((begun, len(text)))
        else:
            text += part
    return {"text": text, "spans": spans}


@functools.lru_cache(maxsize=8)
def compiled(source: str) -> tuple[Template, list[str]]:
    """Return a template made ready to render, and all that its source has literally."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    tree = environment.parse(source)
    texts = [
        str(node.data if isinstance(node, nodes.TemplateData) else node.value)
        for node in tree.find_all((nodes.TemplateData, nodes.Const))
    ]
    code = environment.compile(tree)
    return environment.template_class.from_code(environment, code, environment.globals), texts


class _Sandbox(ImmutableSandboxedEnvironment):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters["tojson"] = _to_json
        kept = {name: self.globals[name] for name in ("dict", "namespace", "range")}
        self.globals = {**kept, "raise_exception": _raise_exception}

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"attribute {attribute!r} of a {type(obj).__name__} is unsafe")


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: around what an assistant is to learn to say."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (nodes.Output([nodes.TemplateData(mark)]) for mark in (BEGIN, END))
        return nodes.Scope([begin, *body, end]).set_lineno(line)


def _raise_exception(message: Any) -> NoReturn:
    raise TemplateError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as it is: Jinja's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


if __name__ == "__main__":
    serve(int(sys.argv[1]), float(sys.argv[2]))
