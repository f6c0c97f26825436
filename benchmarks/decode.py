"""Decoding: `generate` against Hugging Face's and CTranslate2's, greedy, in f32, on equal random weights of GPT-2."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.timing import Benchmark, Work
from jaxgpt import GPT, GPTConfig, generate, save_pretrained
from jaxgpt.devices import start_devices
from jaxgpt.model.quantized import Kind, quantize
from jaxgpt.tokenizers import load_tokenizer
from jaxgpt.train import init_params

CONFIG = GPTConfig.preset("gpt2")
PROMPT, NEW_TOKENS = 32, 96

Maker = Callable[[list[list[int]], int], Callable[[], list[list[int]]]]
"""(prompts, new tokens) → a function that decodes them."""


def benchmarks() -> list[Benchmark]:
    makers = {"jaxgpt": ours, "Hugging Face generate": hugging_face, "CTranslate2": ctranslate2}
    return [benchmark(f"decode-{rows}", "GPT-2 124M", rows, makers) for rows in (1, 8)]


def benchmark(name: str, model: str, rows: int, makers: Mapping[str, Maker]) -> Benchmark:
    """Compare makers at a batch of `rows` prompts."""
    return Benchmark(
        name,
        f"{model}, batch {rows}, prompt {PROMPT}, {NEW_TOKENS} new tokens",
        "call",
        1,
        {name: partial(checked, make, rows, PROMPT, NEW_TOKENS) for name, make in makers.items()},
        tokens=rows * NEW_TOKENS,
    )


def checked(make: Maker, rows: int, length: int, new_tokens: int) -> Work:
    """Build a contestant, and make sure that it does not stop early."""
    call = make(random_prompts(rows, length), new_tokens)

    def work() -> None:
        lengths = [len(ids) for ids in call()]
        if lengths != [new_tokens] * rows:
            raise RuntimeError(f"{lengths} new tokens instead of {new_tokens}")

    return work


def ours(
    prompts: list[list[int]],
    new_tokens: int,
    *,
    kind: Kind | None = None,
    dtype: str = "float32",
    config: GPTConfig = CONFIG,
    device: str = "cpu",
) -> Callable[[], list[list[int]]]:
    start_devices(device)
    params = random_params(config) if kind is None else quantize(random_params(config), kind)
    return lambda: generate(config, params, prompts, max_new_tokens=new_tokens, eos_token_id=None, dtype=dtype)


def hugging_face(
    prompts: list[list[int]],
    new_tokens: int,
    *,
    dtype: str = "float32",
    config: GPTConfig = CONFIG,
    device: str = "cpu",
    **options: Any,
) -> Callable[[], list[list[int]]]:
    """Decode by transformers' `generate`, with these further options of it."""
    import torch

    model = hugging_face_model(config).to(device, getattr(torch, dtype))
    tokens = torch.tensor(prompts, device=device)
    mask = torch.ones_like(tokens)

    @torch.inference_mode()
    def call() -> list[list[int]]:
        ids = model.generate(tokens, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, **options)
        return ids[:, tokens.shape[1] :].tolist()

    return call


def hugging_face_model(config: GPTConfig) -> Any:
    """Return the model of transformers with our random weights, which never stops."""
    from transformers import GPT2LMHeadModel

    with TemporaryDirectory() as folder:
        save(Path(folder), config)
        model: Any = GPT2LMHeadModel.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = None
    return model


def ctranslate2(prompts: list[list[int]], new_tokens: int, *, kind: str = "float32") -> Callable[[], list[list[int]]]:
    from ctranslate2 import Generator  # pyright: ignore[reportMissingImports]
    from ctranslate2.converters import TransformersConverter  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer

    with TemporaryDirectory() as folder:
        save(Path(folder))
        converted = TransformersConverter(folder).convert(str(Path(folder, "converted")))
        generator = Generator(converted, compute_type=kind, inter_threads=1, intra_threads=len(os.sched_getaffinity(0)))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    words = [tokenizer.convert_ids_to_tokens(ids) for ids in prompts]

    def call() -> list[list[int]]:
        results = generator.generate_batch(
            words, beam_size=1, sampling_topk=1, include_prompt_in_result=False,
            min_length=new_tokens, max_length=new_tokens,
        )  # fmt: skip
        return [result.sequences_ids[0] for result in results]

    return call


def random_prompts(rows: int, length: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(CONFIG.vocab_size - 1, size=(rows, length)).tolist()


def random_params(config: GPTConfig = CONFIG) -> Any:
    return init_params(GPT(config), seed=0)


def save(folder: Path, config: GPTConfig = CONFIG) -> None:
    """Write the weights as transformers and CTranslate2's converter read them."""
    tokenizer = load_tokenizer("gpt2") if config.vocab_size == CONFIG.vocab_size else None
    save_pretrained(folder, config, random_params(config), tokenizer=tokenizer)
