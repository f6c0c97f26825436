"""The assistant's parts of a rendered conversation, where the template does not mark it by `{% generation %}` blocks.

A template is asked what each of the assistant's turns adds: the text up to it, with what an answer begins with, and the
text with it must both be beginnings of the whole. Where one is not, as of templates that lay a turn out otherwise once
something follows, nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain, tee
from typing import Any

from jaxgpt.chat.template_process import Template
from jaxgpt.errors import UsageError

_BLOCK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


def has_blocks(template: Template) -> bool:
    """Return whether a template has `{% generation %}` blocks."""
    return _BLOCK.search(template.source) is not None


def render_turns(template: Template, given: Iterable[dict[str, Any]]) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Yield what is made of each of `given`, and where in it the assistant's turns begin and end, white space aside.

    Args:
        template: one without blocks.
        given: variables, `messages` among them.

    Raises:
        UsageError: the template fails, or it does not lay a turn out as it does without what follows.
    """
    conversations, again = tee(given)
    rendered = template.render(chain.from_iterable(map(_parts, again)))
    for variables in conversations:
        messages, spans = variables["messages"], []
        whole, _ = next(rendered)
        for turn in _turns(messages):
            before, _ = next(rendered)
            after = whole if turn + 1 == len(messages) else next(rendered)[0]
            if not (whole.startswith(after) and after.startswith(before)):
                raise UsageError(
                    f"{template.name}: has no {{% generation %}} … {{% endgeneration %}} around what the assistant "
                    f"says, and lays message {turn + 1} out otherwise than alone with what comes before it, so what is "
                    "to be learnt of it is not known"
                )
            end = len(after.rstrip())
            if end > len(before):
                spans.append((len(before), end))
        yield whole, spans


def _parts(variables: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the variables of the whole, of what comes before each turn of the assistant's, and of both together."""
    messages = variables["messages"]
    yield variables
    for turn in _turns(messages):
        yield {**variables, "messages": messages[:turn], "add_generation_prompt": True}
        if turn + 1 < len(messages):
            yield {**variables, "messages": messages[: turn + 1]}


def _turns(messages: list[dict[str, str]]) -> list[int]:
    return [number for number, message in enumerate(messages) if message["role"] == "assistant"]
