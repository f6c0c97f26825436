"""A row with a draft and without, where the draft guesses well and where it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax

from benchmarks.decode import CONFIG, PROMPT, random_params, random_prompts
from benchmarks.timing import Benchmark, Work
from jaxgpt import GPT, generate
from jaxgpt.decode.draft import Draft, DraftModel, PromptLookup
from jaxgpt.devices import start_devices
from jaxgpt.train import init_params

NEW_TOKENS = 64
SMALL = replace(CONFIG, n_layer=1)

Setting = Callable[[], tuple[Any, Draft, float]]
"""Makes the model's parameters, the draft, and the temperature."""


def benchmarks() -> list[Benchmark]:
    settings: dict[str, tuple[Setting, str]] = {
        "lookup-repetitive": (repetitive, "greedy text of random weights, which repeats itself; looked up in the text"),
        "lookup-random": (random, "text of random weights at temperature 1, near to uniform; looked up in the text"),
        "model-good": (
            good,
            "temperature 1; of random weights, layers 2 to 12 add a hundredth of what they would; the draft is the "
            "model's own layer 1",
        ),
        "model-bad": (
            bad,
            "greedy text of random weights; the draft, a layer of other random weights with a head of its own, is "
            "never right",
        ),
    }
    return [
        Benchmark(
            f"speculative-{name}",
            f"GPT-2 124M, batch 1, prompt {PROMPT}, {NEW_TOKENS} new tokens: {what}",
            "call",
            1,
            {"draft": partial(decode, make, True), "no draft": partial(decode, make, False)},
            tokens=NEW_TOKENS,
        )
        for name, (make, what) in settings.items()
    ]


def decode(make: Setting, drafts: bool) -> Work:
    start_devices("cpu")
    params, draft, temperature = make()
    return partial(
        generate,
        CONFIG,
        params,
        random_prompts(1, PROMPT),
        max_new_tokens=NEW_TOKENS,
        temperature=temperature,
        eos_token_id=None,
        draft=draft if drafts else None,
    )


def repetitive() -> tuple[Any, Draft, float]:
    return random_params(), PromptLookup(), 0.0


def random() -> tuple[Any, Draft, float]:
    return random_params(), PromptLookup(), 1.0


def good() -> tuple[Any, Draft, float]:
    params = random_params()
    upper = [f"h_{layer}" for layer in range(1, CONFIG.n_layer)]
    params |= {name: jax.tree_util.tree_map_with_path(_faint, params[name]) for name in upper}
    return params, DraftModel(SMALL, {name: leaf for name, leaf in params.items() if name not in upper}), 1.0


def bad() -> tuple[Any, Draft, float]:
    other = replace(SMALL, tie_word_embeddings=False)  # tied, both would guess that a token repeats itself
    return random_params(), DraftModel(other, init_params(GPT(other), seed=1)), 0.0


def _faint(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    """Scale what a layer adds to the residual stream."""
    return 0.01 * leaf if any(key.key == "c_proj" for key in path) else leaf
