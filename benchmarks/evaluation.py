"""Evaluation of GPT-2 124M: our model in lm-evaluation-harness against its own `hf`, and all tasks from local files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from benchmarks import decode
from benchmarks.timing import Benchmark, Work, run_python
from jaxgpt.data.sources import PLAYS_FOLDER
from jaxgpt.tokenizers import load_tokenizer

TEXTS, LENGTH, BATCH = 16, 512, 8
EXAMPLES = 100
CONTEXT, ENDING, WORD_CONTEXT = 32, 12, 60  # words, about as many as HellaSwag's and LAMBADA's have
TOKENS, STRIDE = 4096, 512


def benchmarks() -> list[Benchmark]:
    return [
        Benchmark(
            "evaluate-124m",
            f"GPT-2 124M, log-likelihoods of {TEXTS} texts of {LENGTH} tokens, batch {BATCH}",
            "call",
            1,
            {
                "jaxgpt": partial(work, ours, TEXTS, LENGTH),
                "the harness's hf": partial(work, hugging_face, TEXTS, LENGTH),
            },
            tokens=TEXTS * LENGTH,
            rounds=3,
        ),
        Benchmark(
            "evaluate-tasks-124m",
            f"GPT-2 124M, `python -m jaxgpt.evaluate` for each: {EXAMPLES} examples in HellaSwag's, LAMBADA's and the "
            f"multiple-choice format, a text of {TOKENS:,} tokens by windows, and by a stride of {STRIDE}",
            "set",
            1,
            {"jaxgpt": local_tasks},
            rounds=2,
        ),
    ]


def work(make: Callable[[str], Any], texts: int, length: int) -> Work:
    """Open a model in the harness, and let it score texts whole."""
    with TemporaryDirectory() as folder:
        decode.save(Path(folder))
        model = make(folder)
    tokenizer = load_tokenizer("gpt2")
    requests = [SimpleNamespace(args=(tokenizer.decode(ids),)) for ids in decode.random_prompts(texts, length)]

    def call() -> None:
        found = model.loglikelihood_rolling(requests, disable_tqdm=True)
        if len(found) != texts:
            raise RuntimeError(f"{len(found)} log-likelihoods of {texts} texts")

    return call


def local_tasks() -> Work:
    """Write the model and the data down, and measure everything, each by a process of its own."""
    kept = TemporaryDirectory()
    folder = Path(kept.name)
    decode.save(folder / "model")
    commands = write_tasks(folder)

    def call() -> None:
        for flags in commands:
            run_python("-m", "jaxgpt.evaluate", str(Path(kept.name, "model")), *flags)

    return call


def write_tasks(folder: Path) -> list[list[str]]:
    """Write files of all formats, made of a play, into a folder, and return the flags that measure on each."""
    text = (PLAYS_FOLDER / "hamlet.txt").read_text(encoding="utf-8")
    tokenizer = load_tokenizer("gpt2")
    words, commands = iter(text.split()), []
    for task, make in (("hellaswag", _hellaswag), ("lambada", _lambada), ("multiple_choice", _multiple_choice)):
        file = folder / f"{task}.jsonl"
        file.write_text("".join(json.dumps(make(words, number)) + "\n" for number in range(EXAMPLES)))
        commands.append(["--task", task, "--dataset", str(file)])
    file = folder / "text.txt"
    file.write_text(tokenizer.decode(tokenizer.encode(text)[:TOKENS]), encoding="utf-8")
    return [*commands, ["--dataset", str(file)], ["--dataset", str(file), "--stride", str(STRIDE)]]


def _hellaswag(words: Iterator[str], number: int) -> dict[str, Any]:
    context = {"activity_label": _next(words, 2), "ctx_a": _next(words, CONTEXT), "ctx_b": _next(words, 2)}
    return {**context, "endings": [_next(words, ENDING) for _ in range(4)], "label": number % 4}


def _lambada(words: Iterator[str], number: int) -> dict[str, Any]:
    return {"text": _next(words, WORD_CONTEXT)}


def _multiple_choice(words: Iterator[str], number: int) -> dict[str, Any]:
    question, choices = _next(words, CONTEXT // 2), [_next(words, ENDING // 3) for _ in range(4)]
    return {"question": question, "choices": choices, "answer": number % 4}


def _next(words: Iterator[str], count: int) -> str:
    return " ".join(islice(words, count))


def ours(folder: str) -> Any:
    from jaxgpt.evaluate.harness import HarnessModel

    make: Any = HarnessModel
    return make(folder, batch_size=BATCH, device="cpu", dtype="float32")


def hugging_face(folder: str) -> Any:
    from lm_eval.models.huggingface import HFLM

    make: Any = HFLM
    return make(pretrained=folder, batch_size=BATCH, device="cpu", dtype="float32")
