"""Decoding where only the shape differs: far into the context, a ragged batch, a long prompt."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import decode
from benchmarks.timing import Benchmark, Work
from jaxgpt import GPT, generate
from jaxgpt.decode.rows import bucket
from jaxgpt.decode.sampling_config import Sampling
from jaxgpt.decode.step import DecodeState
from jaxgpt.decode.step import decode as decode_until
from jaxgpt.devices import start_devices
from jaxgpt.model.cache import KVCache
from jaxgpt.model.quantized import cast_matrices

STEPS, ROWS, LONG = 16, 8, 1023


def benchmarks() -> list[Benchmark]:
    positions = {f"from position {position:,}": partial(at, position) for position in (1000, 10)}
    batches = {"prompts of 4 to 32": partial(_batch, True), "all prompts of 32": partial(_batch, False)}
    readers = {"jaxgpt": decode.ours, "Hugging Face generate": decode.hugging_face}
    return [
        Benchmark("decode-position", f"GPT-2 124M, batch 1, {STEPS} tokens", "token", STEPS, positions),
        Benchmark(
            "decode-ragged",
            f"GPT-2 124M, batch {ROWS}, {decode.NEW_TOKENS} new tokens",
            "call",
            1,
            batches,
            tokens=ROWS * decode.NEW_TOKENS,
        ),
        Benchmark(
            "decode-prefill",
            f"GPT-2 124M, batch 1, prompt {LONG:,}, 1 new token",
            "call",
            1,
            {name: partial(decode.checked, make, 1, LONG, 1) for name, make in readers.items()},
        ),
    ]


def at(position: int, rows: int = 1) -> Work:
    """Decode from a position on, again and again, in a cache of the size that `generate` would take, empty so far."""
    start_devices("cpu")
    params = cast_matrices(decode.random_params(), dtype=jnp.float32, rows=rows)
    model, size = GPT(decode.CONFIG), bucket(position + STEPS)
    begin = progress(decode.random_prompts(rows, size))
    cache = KVCache.empty(decode.CONFIG, jnp.zeros(rows, jnp.int32), size, jnp.float32, new=False)

    def work() -> None:
        nonlocal cache
        cache = replace(cache, length=jnp.asarray(position, jnp.int32))
        cache, read = decode_until(model, Sampling(), params, cache, begin, jnp.asarray(STEPS))
        read.tokens.block_until_ready()

    return work


def progress(tokens: list[list[int]]) -> DecodeState:
    """Return rows that no token was chosen for yet, and that nothing ends."""
    keys = jax.random.split(jax.random.key(0), len(tokens))
    ended = jnp.zeros(len(tokens), bool)
    return DecodeState(jnp.asarray(tokens), ended, jnp.asarray(0), keys, jnp.zeros(0, jnp.int32))


def _batch(ragged: bool) -> Work:
    start_devices("cpu")
    params, prompts = decode.random_params(), decode.random_prompts(ROWS, decode.PROMPT)
    if ragged:
        lengths = np.linspace(4, decode.PROMPT, ROWS).astype(int)
        prompts = [ids[:length] for ids, length in zip(prompts, lengths, strict=True)]
    return lambda: generate(decode.CONFIG, params, prompts, max_new_tokens=decode.NEW_TOKENS, eos_token_id=None)
