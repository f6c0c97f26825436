"""Many prompts with unequal ends: `generate_many`, which fills a row when it ends, against batches by `generate`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.timing import Benchmark, Work
from jaxgpt import GPT, GPTConfig, generate
from jaxgpt.decode.continuous import generate_many
from jaxgpt.devices import start_devices
from jaxgpt.train import init_params

CONFIG = replace(GPTConfig.preset("gpt2"), n_positions=512, n_embd=384, n_layer=6, n_head=6, eos_token_id=None)
PROMPTS, ROWS = 64, 8
SHORTEST, LONGEST, MEAN = 8, 200, 60

_random = np.random.default_rng(0)
LIMITS = np.clip(_random.geometric(1 / MEAN, PROMPTS), SHORTEST, LONGEST).tolist()
IDS = [_random.integers(CONFIG.vocab_size - 1, size=n).tolist() for n in _random.integers(8, 65, PROMPTS)]


def benchmarks() -> list[Benchmark]:
    what = (
        f"GPT of {CONFIG.n_layer} layers of width {CONFIG.n_embd}, {PROMPTS} prompts in rows of {ROWS}, "
        f"{SHORTEST} to {LONGEST} new tokens, {sum(LIMITS) / PROMPTS:.0f} on average"
    )
    contestants = {"continuous": continuous, "batch after batch": batches}
    return [Benchmark("continuous", what, "call", 1, contestants, tokens=sum(LIMITS))]


def continuous() -> Work:
    start_devices("cpu")
    params = init_params(GPT(CONFIG), seed=0)
    return lambda: generate_many(CONFIG, params, IDS, max_new_tokens=LIMITS, batch_size=ROWS)


def batches() -> Work:
    start_devices("cpu")
    params = init_params(GPT(CONFIG), seed=0)

    def work() -> None:
        for i in range(0, PROMPTS, ROWS):
            generate(CONFIG, params, IDS[i : i + ROWS], max_new_tokens=max(LIMITS[i : i + ROWS]))

    return work
