"""Completion tasks from files: which of several endings a model finds likeliest, or whether it knows a last word.

Texts are laid out as in lm-evaluation-harness, so that figures compare with those that are published by it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt import checks
from jaxgpt.data.download import WebFile, web_file
from jaxgpt.data.opening import default_cache_dir
from jaxgpt.data.record_files import read_records
from jaxgpt.errors import UsageError
from jaxgpt.evaluate.scoring import Row, Scorer, perplexity
from jaxgpt.tokenizers import Tokenizer

SUFFIXES = (".jsonl", ".json")
TASK_FILES = {
    "hellaswag": WebFile(
        "https://raw.githubusercontent.com/rowanz/hellaswag/a29ff8e9a04bba4bd6588223785ce105328adc57/"
        "data/hellaswag_val.jsonl",
        "hellaswag_val.jsonl",
        "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
    ),
    "lambada": WebFile(
        "https://huggingface.co/datasets/EleutherAI/lambada_openai/resolve/900124bf3b8235c6daf21033af9948b3f07346c4/"
        "data/lambada_test_en.jsonl",
        "lambada_test_en.jsonl",
        "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
    ),
}
"""By a task's name, its data at a revision that does not move."""


@dataclass(frozen=True)
class Example:
    """A text and what may follow it.

    Attributes:
        context: the text.
        choices: what may follow, each behind a space; of LAMBADA the one right word.
        right: the number of the right one.
        where: the place it was read from.
    """

    context: str
    choices: tuple[str, ...]
    right: int
    where: str


@dataclass(frozen=True)
class ChoiceScore:
    """Which choice a model finds likeliest, of M examples.

    Attributes:
        chosen: (M,) the number of the choice with the highest log-likelihood.
        chosen_normed: (M,) the number of that with the highest log-likelihood a character.
        right: (M,) the number of the right one.
        cut: how many contexts lost their beginning, as they did not fit with a choice.
    """

    chosen: np.ndarray
    chosen_normed: np.ndarray
    right: np.ndarray
    cut: int

    def metrics(self) -> dict[str, float | int]:
        """Return acc and acc_norm, and their standard errors."""
        found: dict[str, float | int] = {}
        for name, chosen in (("acc", self.chosen), ("acc_norm", self.chosen_normed)):
            found |= _mean(name, chosen == self.right)
        return {**found, "examples": len(self.right), "contexts_cut": self.cut}


@dataclass(frozen=True)
class WordScore:
    """The figures of a model that predicts the last words of M texts.

    Attributes:
        log_likelihoods: (M,) of the words, in nats.
        greedy: (M,) whether greedy decoding would give all tokens of the word.
        cut: how many contexts lost their beginning.
    """

    log_likelihoods: np.ndarray
    greedy: np.ndarray
    cut: int

    def metrics(self) -> dict[str, float | int]:
        """Return the accuracy with its standard error, and the perplexity of a word."""
        per_word, count = perplexity(-self.log_likelihoods.mean(dtype=np.float64)), len(self.greedy)
        return {**_mean("acc", self.greedy), "perplexity": per_word, "examples": count, "contexts_cut": self.cut}


def read_task(task: str, file: str | Path | None = None, *, cache_dir: str | Path | None = None) -> list[Example]:
    """Read a task's examples.

    Args:
        task: "hellaswag", "lambada" or "multiple_choice". The last has an object a line, `{"context": …, "choices": [
            …, …], "answer": NUMBER}`, counted from 0; "question" says the same as "context".
        file: .jsonl or .json in that format; None for the task's own validation or test data, which are downloaded.
        cache_dir: of downloads; None for the default.

    Raises:
        UsageError: there is no such task, its data can't be had, or naming file and line of a record of another shape.
    """
    if file is None:
        if task not in TASK_FILES:
            raise UsageError(f"--task {task} has no data of its own; --dataset names a file, {', '.join(SUFFIXES)}")
        cache = default_cache_dir() if cache_dir is None else Path(cache_dir)
        file = web_file(task, TASK_FILES[task], cache)
    return [TASKS[task](record, where) for where, record in read_records(file, SUFFIXES)]


def measure_task(scorer: Scorer, task: str, examples: Iterable[Example]) -> ChoiceScore | WordScore:
    """Score each choice of each example, given its context, of which the end is kept where both do not fit.

    Raises:
        UsageError: there is no such task, or no example; naming the place of a choice that does not fit even alone, or
            of an empty context where the tokenizer has no token that begins a text.
    """
    checks.choice("task", task, TASKS)
    examples = checks.records("examples", examples, Example, least=1)
    rows, cut = [], 0
    for example in examples:
        try:
            found = [choice_row(scorer.tokenizer, example.context, f" {choice}") for choice in example.choices]
            shortened = [fitted(row, scorer.config.n_positions) for row in found]
        except UsageError as error:
            raise UsageError(f"{example.where}: {error}") from None
        cut += any(short is not row for short, row in zip(shortened, found, strict=True))
        rows += shortened
    total = sum(len(row.ids) - row.first for row in rows)
    scored = scorer.score(rows, total=total, what=task)
    if task == "lambada":
        found = [(float(one.log_probs.sum(dtype=np.float64)), bool(one.likeliest.all())) for one in scored]
        return WordScore(np.array([ll for ll, _ in found]), np.array([greedy for _, greedy in found]), cut)
    sums = (float(one.log_probs.sum(dtype=np.float64)) for one in scored)
    likelihoods = [np.array(list(islice(sums, len(example.choices)))) for example in examples]
    lengths = [np.array([len(choice) for choice in example.choices]) for example in examples]
    return ChoiceScore(
        np.array([one.argmax() for one in likelihoods]),
        np.array([(one / length).argmax() for one, length in zip(likelihoods, lengths, strict=True)]),
        np.array([example.right for example in examples]),
        cut,
    )


def choice_row(tokenizer: Tokenizer, context: str, continuation: str) -> Row:
    """Return the tokens of two texts, those of the second to be scored.

    They are encoded as one text. White space that ends the context counts to what follows, as words begin with it.
    """
    kept = context.rstrip()
    context, continuation = kept, context[len(kept) :] + continuation
    begin = tokenizer.ends.begin
    if not context and not begin:
        if tokenizer.eos_token_id is None:
            raise UsageError(f"the context is empty, and this {tokenizer.name} tokenizer has no token to begin with")
        begin = (tokenizer.eos_token_id,)
    first = len(begin) + len(tokenizer.encode_part(context))
    ids = np.array([*begin, *tokenizer.encode_part(context + continuation)], np.int32)
    if first >= len(ids):
        raise UsageError(f"{continuation!r} has no token of its own behind the context")
    return Row(ids, first)


def fitted(row: Row, context: int) -> Row:
    """Return a row that the model can read: the same, or one that has lost its beginning."""
    over = len(row.ids) - context - 1
    if over <= 0:
        return row
    if row.first - over < 1:
        raise UsageError(f"a choice has {len(row.ids) - row.first} tokens; the model's context is {context}")
    return Row(row.ids[over:], row.first - over)


def _hellaswag(record: Mapping[str, Any], where: str) -> Example:
    first, second, activity = (_text(record, name, where) for name in ("ctx_a", "ctx_b", "activity_label"))
    context = _clean(f"{activity}: {first} {second.capitalize()}")
    endings = tuple(map(_clean, _texts(record, "endings", where)))
    return Example(context, endings, _number(record, "label", len(endings), where), where)


def _lambada(record: Mapping[str, Any], where: str) -> Example:
    context, _, word = _text(record, "text", where).rpartition(" ")
    if not context.strip() or not word:
        raise UsageError(f"{where}: 'text' must be words, of which the last is to be predicted")
    return Example(context, (word,), 0, where)


def _multiple_choice(record: Mapping[str, Any], where: str) -> Example:
    context = _text(record, "context" if "context" in record else "question", where)
    choices = tuple(_texts(record, "choices", where))
    return Example(context, choices, _number(record, "answer", len(choices), where), where)


TASKS: dict[str, Callable[[Mapping[str, Any], str], Example]] = {
    "hellaswag": _hellaswag,
    "lambada": _lambada,
    "multiple_choice": _multiple_choice,
}
"""By a task's name, what makes an example of a record."""


def _clean(text: str) -> str:
    """Take out what WikiHow's pages left in HellaSwag's texts, as the harness does."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _text(record: Mapping[str, Any], name: str, where: str) -> str:
    if not isinstance(value := record.get(name), str):
        fields = ", ".join(map(repr, record))[:200]
        raise UsageError(f"{where}: no text in the field {name!r}; there are {fields}")
    return value


def _texts(record: Mapping[str, Any], name: str, where: str) -> Sequence[str]:
    values = record.get(name)
    if not isinstance(values, list) or len(values) < 2 or not all(isinstance(one, str) and one for one in values):
        raise UsageError(f"{where}: {name!r} must be a list of two or more texts, none of them empty")
    return values


def _number(record: Mapping[str, Any], name: str, count: int, where: str) -> int:
    value = record.get(name)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if type(value) is not int or not 0 <= value < count:
        raise UsageError(f"{where}: {name!r} is {value!r}; it must be the right choice's number, from 0 to {count - 1}")
    return value


def _mean(name: str, right: np.ndarray) -> dict[str, float | int]:
    """Return a share and its standard error, from the sample's variance."""
    error = right.std(ddof=1) / math.sqrt(len(right)) if len(right) > 1 else math.nan
    return {name: float(right.mean()), f"{name}_stderr": float(error)}
