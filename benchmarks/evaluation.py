"""Evaluation by lm-evaluation-harness: our model in it against its own `hf`, on equal weights of GPT-2 124M."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from benchmarks import decode
from benchmarks.timing import Benchmark, Work
from jaxgpt.tokenizers import load_tokenizer

TEXTS, LENGTH, BATCH = 16, 512, 8


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
        )
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


def ours(folder: str) -> Any:
    from jaxgpt.evaluate.harness import HarnessModel

    make: Any = HarnessModel
    return make(folder, batch_size=BATCH, device="cpu", dtype="float32")


def hugging_face(folder: str) -> Any:
    from lm_eval.models.huggingface import HFLM

    make: Any = HFLM
    return make(pretrained=folder, batch_size=BATCH, device="cpu", dtype="float32")
