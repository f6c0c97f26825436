"""`generate.py --compare A B --prompts FILE`: what models answer to the same prompts, side by side."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from jaxgpt.chat.reading import read_prompts
from jaxgpt.chat.records import Prompt
from jaxgpt.cli.generate import Options, chat_template, fit, how, open_quantized, prompt_ids
from jaxgpt.cli.processes import started
from jaxgpt.decode.continuous import generate_many
from jaxgpt.decode.text import TextStream
from jaxgpt.errors import UsageError
from jaxgpt.visible import visible

BATCH_SIZE = 16
GAP = " | "
NARROWEST = 20


def compare(options: Options) -> None:
    """Print a table a prompt, with a column a model."""
    assert options.compare is not None and options.prompts is not None
    prompts = read_prompts(options.prompts)
    with started(options):
        answers = [answer(options, model, prompts) for model in options.compare]
    for prompt, *texts in zip(prompts, *answers, strict=True):
        print(f"{prompt.where}: {visible(' '.join(prompt.asked.split()))}")
        print(columns(options.compare, list(map(visible, texts))), end="\n\n")


def answer(options: Options, model: str, prompts: Sequence[Prompt]) -> list[str]:
    """Return a model's answers, each what it would be alone."""
    config, params, tokenizer = open_quantized(options, model)
    template = chat_template(options, tokenizer, model)
    # Each by how many tokens there is room for, so that a long prompt does not cut the others' answers short.
    rows, counts = [], []
    for prompt in prompts:
        try:
            ids = prompt_ids(tokenizer, template, prompt.prompt, options.allow_special)
            ids, count = fit(options, ids, config.n_positions)
        except UsageError as error:
            raise UsageError(f"{prompt.where}: {error}") from None
        rows.append(ids)
        counts.append(count)
    chosen = generate_many(
        config, params, rows, max_new_tokens=counts, batch_size=BATCH_SIZE, **how(options, tokenizer)
    )
    answers = []
    for ids, tokens in zip(rows, chosen, strict=True):
        text = TextStream(tokenizer, end_ids=config.eos_token_ids, after=ids)
        answers.append("".join([*map(text.push, tokens), text.flush()]))
    return answers


def wrapped(text: str, width: int) -> Iterator[str]:
    """Yield the lines of a text, cut where they are too wide."""
    for line in text.splitlines():
        yield from textwrap.wrap(line, width) or [""]


def columns(names: Sequence[str], texts: Sequence[str]) -> str:
    """Lay texts out side by side below their names, as wide as the terminal."""
    width = max((shutil.get_terminal_size().columns - len(GAP) * (len(names) - 1)) // len(names), NARROWEST)
    cells = [[name[-width:], "-" * width, *wrapped(text, width)] for name, text in zip(names, texts, strict=True)]
    return "\n".join(GAP.join(cell.ljust(width) for cell in row).rstrip() for row in zip_longest(*cells, fillvalue=""))
