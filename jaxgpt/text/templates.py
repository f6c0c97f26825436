"""Jinja templates from anyone's folder, rendered so that a bad one is an error and does no harm.

They see plain data in Jinja's sandbox, which keeps them from Python and so from files and network. Loops and macros run
against the clock; memory is not limited. What transformers gives to templates is here too, but for the current time:
the same conversation is the same text on any day.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jaxgpt.errors import UsageError

BEGIN, END = "\udffe", "\udfff"
"""Stand in the rendered text where a `{% generation %}` block began and ended. No text has them: no UTF-8 can."""

_SECONDS = 2.0  # of this thread's computing, in which a conversation takes some thousandths
_MAX_SOURCE = 1 << 20  # characters
_MAX_REPEATED = 1 << 20  # characters or items

_deadline: ContextVar[float] = ContextVar("deadline")


class Template:
    """A template made ready to render.

    Attributes:
        texts: all that its source has literally: the text between blocks, and the strings in them.
    """

    def __init__(self, source: str, name: str) -> None:
        """Compile `source`, which messages call `name`.

        Raises:
            UsageError: it is no template.
        """
        self._name = name
        if len(source) > _MAX_SOURCE:
            raise UsageError(f"{name}: {len(source)} characters is too large for a template (limit {_MAX_SOURCE})")
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, _Clock, loopcontrols])
        try:
            tree = environment.parse(source)
            self.texts = tuple(
                str(node.data if isinstance(node, nodes.TemplateData) else node.value)
                for node in tree.find_all((nodes.TemplateData, nodes.Const))
            )
            _Clock.watch(tree)
            code = environment.compile(tree)
            self._template = environment.template_class.from_code(environment, code, environment.globals)
        except Exception as error:  # of the lexer, the parser, the generator, or of Python on what these made
            raise self._failed(error) from None

    def render(self, variables: Mapping[str, Any]) -> str:
        """Return the text, with `BEGIN` and `END` around what `{% generation %}` blocks made of it.

        Raises:
            UsageError: the template fails, by itself or because of what it was given.
        """
        _deadline.set(time.thread_time() + _SECONDS)
        try:
            return self._template.render(variables)
        except Exception as error:  # a template is a program, and fails in any way that a program does
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> UsageError:
        line = f" (line {lineno})" if (lineno := getattr(error, "lineno", None)) else ""
        kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
        return UsageError(f"{self._name}: the chat template fails{line}: {kind}{' '.join(str(error).split())[:200]}")


class _Sandbox(ImmutableSandboxedEnvironment):
    # One such operation can take all time or memory there is, and no clock interrupts it.
    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters["tojson"] = _to_json
        kept = {name: self.globals[name] for name in ("dict", "namespace", "range")}
        self.globals = {**kept, "raise_exception": _raise_exception}

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"attribute {attribute!r} of a {type(obj).__name__} is unsafe")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("powers are not allowed")
        numbers = [value for value in (left, right) if isinstance(value, int | float)]
        sizes = [len(value) for value in (left, right) if isinstance(value, str | list | tuple)]
        if (sizes and sizes[0] * max(numbers, default=0) > _MAX_REPEATED) or max(map(abs, numbers), default=0) > 1e18:
            raise SecurityError("a product is too large")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: around what an assistant is to learn to say."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (nodes.Output([nodes.TemplateData(mark)]) for mark in (BEGIN, END))
        return nodes.Scope([begin, *body, end]).set_lineno(line)


class _Clock(Extension):
    """Looks at the clock at each turn of a loop and each call of a macro, without which nothing goes on for long."""

    @classmethod
    def watch(cls, tree: nodes.Template) -> None:
        for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            look = nodes.Call(nodes.ExtensionAttribute(cls.identifier, "look"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(look).set_lineno(node.lineno))

    def look(self) -> None:
        if time.thread_time() > _deadline.get():
            raise TemplateError(f"it has not ended after {_SECONDS:g} seconds")


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
