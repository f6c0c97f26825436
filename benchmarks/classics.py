"""What textbooks say of a cache's speed and of attention's memory, measured here: `python -m benchmarks classics`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from benchmarks.timing import Benchmark, Result, Work, apart
from jaxgpt import GPT, GPTConfig, generate
from jaxgpt.decode.rows import bucket
from jaxgpt.devices import start_devices
from jaxgpt.model.attention import BLOCKS, in_blocks
from jaxgpt.model.gpt import applied
from jaxgpt.train import init_params

# With a head of its own: a tied one repeats, with random weights, the token that was read, and all ids were one.
CONFIG = GPTConfig(
    vocab_size=256, n_embd=256, n_layer=6, n_head=4, bos_token_id=None, eos_token_id=None, tie_word_embeddings=False
)
PROMPT = [0]
LITERATURE = {100: 55, 1000: 500}
"""How many times faster so many new tokens are said to be with a cache."""

QKV = (1, 12, 4096, 64)
"""B, H, T, K of attention."""

Attend = Callable[[Array, Array, Array], Array]


def benchmarks() -> list[Benchmark]:
    caches = [_cache_benchmark(count) for count in LITERATURE]
    return [*caches, _attention_benchmark("forward"), _attention_benchmark("backward")]


def _cache_benchmark(count: int) -> Benchmark:
    return Benchmark(
        f"classics-cache-{count}",
        f"{CONFIG.n_layer} layers of width {CONFIG.n_embd}, {CONFIG.vocab_size} ids, {count:,} new tokens, greedy",
        "call",
        1,
        {"cached: `generate`": partial(_cached, count), "uncached": partial(_uncached, count)},
        tokens=count,
        rounds=5 if count < 1000 else 2,
        remark=partial(_faster, count),
    )


def _attention_benchmark(direction: str) -> Benchmark:
    rows, heads, length, width = QKV
    contestants = {f"jaxgpt: {BLOCKS} blocks of queries": ours, "naive: autodiff of softmax(QKᵀ)V": naive}
    return Benchmark(
        f"classics-attention-{direction}",
        f"{'forward and ' if direction == 'backward' else ''}{direction}, causal, batch {rows}, "
        f"{heads} heads of {width}, T = {length:,}",
        "call",
        1,
        {name: partial(_attention, attend, direction) for name, attend in contestants.items()},
        rounds=5,
        remark=partial(_smaller, direction),
    )


def uncached(config: GPTConfig, params: Any, prompt: Sequence[int], *, max_new_tokens: int) -> list[int]:
    """Continue a prompt greedily without a cache: the whole context is read again for each token.

    What is read is padded as `generate` pads prompts (`bucket`): a program for each size, which loops on the device.
    """
    count, end = len(prompt), len(prompt) + max_new_tokens
    tokens = jnp.zeros((1, end), jnp.int32).at[0, :count].set(jnp.asarray(prompt))
    while count < end:
        size = min(bucket(count), end)
        until = min(size + 1, end)  # what is full predicts one more
        tokens = _extend(GPT(config), params, tokens, jnp.asarray(count), jnp.asarray(until), size=size)
        count = until
    return tokens[0, len(prompt) :].tolist()


@partial(jax.jit, static_argnames=("model", "size"))
def _extend(
    model: GPT, params: Any, tokens: Int[Array, "1 S"], count: Int[Array, ""], until: Int[Array, ""], *, size: int
) -> Int[Array, "1 S"]:
    """Choose the tokens from `count` to `until`, reading the first `size` for each; padding comes after the newest."""
    apply = applied(model, params)

    def step(count: Array, tokens: Array) -> Array:
        hidden, _ = apply(tokens[:, :size], method="hidden")
        newest = jax.lax.dynamic_slice_in_dim(hidden, count - 1, 1, axis=1)
        chosen = apply(newest, method="logits").argmax(-1).astype(tokens.dtype)
        return jax.lax.dynamic_update_slice(tokens, chosen, (0, count))

    return jax.lax.fori_loop(count, until, step, tokens)


def _cached(count: int) -> Work:
    start_devices("cpu")
    params = init_params(GPT(CONFIG), seed=0)
    return lambda: generate(CONFIG, params, [PROMPT], max_new_tokens=count)


def _uncached(count: int) -> Work:
    start_devices("cpu")
    params = init_params(GPT(CONFIG), seed=0)
    [expected] = generate(CONFIG, params, [PROMPT], max_new_tokens=count)

    def work() -> None:
        ids = uncached(CONFIG, params, PROMPT, max_new_tokens=count)
        if ids != expected:
            equal = sum(ours == theirs for ours, theirs in zip(ids, expected, strict=True))
            raise RuntimeError(f"{equal} of {count} ids are those with a cache")

    return work


def _faster(count: int, results: Sequence[Result]) -> str:
    cached, without = results
    last = len(PROMPT) + count - 1  # the last token chosen is not read
    read = sum(range(len(PROMPT), last + 1)) / last
    return (
        f"The same ids, {without.best / cached.best:.1f} times as fast with a cache (the literature says "
        f"{LITERATURE[count]}); without one {read:.1f} times as many tokens are read, padding not counted."
    )


def ours(q: Float[Array, "B H T K"], k: Float[Array, "B H T K"], v: Float[Array, "B H T K"]) -> Float[Array, "B H T K"]:
    return in_blocks(q, k, v, None, q.shape[-1] ** -0.5)


def naive(
    q: Float[Array, "B H T K"], k: Float[Array, "B H T K"], v: Float[Array, "B H T K"]
) -> Float[Array, "B H T K"]:
    """Return causal attention as it stands in the paper: all scores at once, then a mask and a softmax."""
    scores = jnp.einsum("BHTK,BHSK->BHTS", q, k) * q.shape[-1] ** -0.5
    seen = jnp.tri(q.shape[2], dtype=bool)
    return jnp.einsum("BHTS,BHSK->BHTK", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)), v)


def passes(attend: Attend, direction: str) -> tuple[Any, list[Array]]:
    """Return the jitted passes and their inputs."""
    inputs = [jax.random.normal(key, QKV) for key in jax.random.split(jax.random.key(0), 4)]
    if direction == "forward":
        return jax.jit(attend), inputs[:3]

    @jax.jit
    def both(q: Array, k: Array, v: Array, d_out: Array) -> tuple[Array, tuple[Array, ...]]:
        out, backward = jax.vjp(attend, q, k, v)
        return out, backward(d_out)

    return both, inputs


def _attention(attend: Attend, direction: str) -> Work:
    start_devices("cpu")
    program, inputs = passes(attend, direction)
    return lambda: jax.block_until_ready(program(*inputs))


def _smaller(direction: str, _: Sequence[Result]) -> str:
    rows, heads, length = QKV[:3]
    blocks, whole = (apart(_temporary, attend, direction) / 2**20 for attend in (ours, naive))
    return (
        f"Temporary memory of the compiled program: {blocks:,.0f} MiB, naive's {whole:,.0f} MiB, of which each T × T "
        f"matrix of all heads is {4 * rows * heads * length**2 / 2**20:,.0f}. Blocks are not a flash kernel: "
        "theirs grows with T², too."
    )


def _temporary(attend: Attend, direction: str) -> int:
    start_devices("cpu")
    program, inputs = passes(attend, direction)
    return program.lower(*inputs).compile().memory_analysis().temp_size_in_bytes
