"""Prompts → new tokens: one prefill, then one decode step a token, the same program for `generate` and `stream`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from jaxgpt.decode.choose import choose
from jaxgpt.decode.matrices import cast_matrices
from jaxgpt.decode.rows import Overflow, Rows
from jaxgpt.decode.sampling import GREEDY, Sampling
from jaxgpt.errors import UsageError
from jaxgpt.model.cache import KVCache
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.layers import GPT, applied


def generate(
    config: GPTConfig,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    vocab_size: int | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    seed: int = 0,
    dtype: DTypeLike = jnp.float32,
    overflow: Overflow = "error",
) -> list[list[int]]:
    """Continue prompts.

    A row of a batch gets what it gets alone with the same seed, greedy or sampled, unless two tokens are so close that
    the rounding of differently shaped products decides. Equal prompts of a batch draw different samples. Programs are
    compiled for the number of rows and, rounded up (`bucket`), for the longest prompt and the tokens asked for.

    Args:
        config: the architecture.
        params: the model's parameters.
        prompts: ids; an empty prompt starts from the config's token for the beginning, or else the end, of a text.
        max_new_tokens: for each row; fewer if it chooses a stop id.
        temperature, top_k, top_p, min_p, repetition_penalty, vocab_size: see `Sampling`.
        eos_token_id: stop id or ids; None for none, whatever the config says.
        seed: of the samples, from 0 to 2^32 - 1.
        dtype: of activations, matrix products and the cache; logits are f32.
        overflow: what happens to a row that is longer than the context: "error", before anything is computed, or
            "slide": when its context is full it goes on from the last half of it.

    Returns:
        Each row's new ids, including the stop id that ended it, as Hugging Face does.

    Raises:
        UsageError: an argument out of range; the message names it.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, vocab_size)
    rows = Rows(config, prompts, max_new_tokens=max_new_tokens, eos_token_id=eos_token_id, overflow=overflow)
    model, keys = GPT(config, jnp.dtype(dtype)), row_keys(seed, rows)
    for _ in _decode(model, params, rows, sampling, keys, stride=max(max_new_tokens, 1)):
        pass
    return rows.new


def stream(
    config: GPTConfig,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    eos_token_id: int | Sequence[int] | None = None,
    seed: int = 0,
    dtype: DTypeLike = jnp.float32,
    overflow: Overflow = "error",
) -> Iterator[list[int | None]]:
    """Continue prompts as `generate` does, token by token.

    Yields:
        Each row's next id; None for rows that have ended.
    """
    rows = Rows(config, prompts, max_new_tokens=max_new_tokens, eos_token_id=eos_token_id, overflow=overflow)
    return _decode(GPT(config, jnp.dtype(dtype)), params, rows, sampling, row_keys(seed, rows), stride=1)


@flax.struct.dataclass
class Progress:
    """Where the rows are. It is small beside the cache, and apart from it because the cache is donated.

    Attributes:
        tokens: (B, S) ids by slot: those in the cache, and in the next slot the newest, which is not.
        ended: rows that have chosen a stop id.
        count: tokens chosen so far, by all rows or by each.
        keys: (B,) each row's random key.
        stop_ids: ids that end a row.
    """

    tokens: Int[Array, "B S"]
    ended: Bool[Array, " B"]
    count: Int[Array, "*#B"]
    keys: Array
    stop_ids: Int[Array, " N"]


@partial(jax.jit, static_argnames=("model", "sampling", "width"))
def prefill(
    model: GPT, sampling: Sampling, params: Any, progress: Progress, start: Int[Array, " B"], *, width: int
) -> tuple[KVCache, Progress]:
    """Read the first `width` slots into a new cache, and choose the first token."""
    cache = KVCache.empty(model.config, start, progress.tokens.shape[1], model.dtype)
    logits, cache = _read(model, params, progress.tokens[:, :width], cache)
    return cache, _choose(sampling, logits, cache, progress)


def decode_step(
    model: GPT, sampling: Sampling, params: Any, cache: KVCache, progress: Progress
) -> tuple[KVCache, Progress]:
    """Read the newest token, and choose the next."""
    newest = jax.lax.dynamic_slice_in_dim(progress.tokens, cache.length, 1, axis=1)
    logits, cache = _read(model, params, newest, cache)
    return cache, _choose(sampling, logits, cache, progress)


@partial(jax.jit, static_argnames=("model", "sampling"), donate_argnames=("cache",))
def decode(
    model: GPT, sampling: Sampling, params: Any, cache: KVCache, progress: Progress, until: Int[Array, ""]
) -> tuple[KVCache, Progress]:
    """Take decode steps until `until` tokens are chosen or all rows have ended."""

    def going(carry: tuple[KVCache, Progress]) -> Array:
        return (carry[1].count < until) & ~carry[1].ended.all()

    return jax.lax.while_loop(going, lambda carry: decode_step(model, sampling, params, *carry), (cache, progress))


def _decode(
    model: GPT, params: Any, rows: Rows, sampling: Sampling, keys: Array, *, stride: int
) -> Iterator[list[int | None]]:
    """Fill the rows, `stride` tokens a call of the device; yield each step's tokens."""
    params = cast_matrices(params, dtype=model.dtype, steps=rows.left > 1)
    stop_ids = jnp.asarray(rows.stop_ids, jnp.int32)
    while not rows.done:
        window = rows.window()
        slot, last = window.width, rows.count + window.count
        progress = Progress(
            jnp.asarray(window.tokens), jnp.asarray(rows.ended), jnp.asarray(rows.count), keys, stop_ids
        )
        cache, progress = prefill(model, sampling, params, progress, jnp.asarray(window.start), width=window.width)
        while True:
            for tokens in np.asarray(progress.tokens).T[slot : slot + int(progress.count) - rows.count]:
                slot += 1
                yield rows.add(tokens)
            if rows.done or rows.count == last:
                break
            until = jnp.asarray(min(rows.count + stride, last))
            cache, progress = decode(model, sampling, params, cache, progress, until)


def _read(model: GPT, params: Any, tokens: Int[Array, "B T"], cache: KVCache) -> tuple[Float[Array, "B V"], KVCache]:
    """Put tokens into the cache; return the logits after the last one only, as (B, T, V) would be large."""
    apply = applied(model, params)
    hidden, cache = apply(tokens, cache, method="hidden")
    return apply(hidden[:, -1:], method="logits")[:, 0], cache


def _choose(sampling: Sampling, logits: Float[Array, "B V"], cache: KVCache, progress: Progress) -> Progress:
    """Put each row's next token into the slot after the cache's last."""
    slots = jnp.arange(progress.tokens.shape[1])
    present = (slots >= cache.start[:, None]) & (slots < cache.length)
    # Randomness is a function of (row, step), so nothing needs to be carried from step to step.
    counts = jnp.broadcast_to(progress.count, progress.keys.shape)
    keys = jax.vmap(jax.random.fold_in)(progress.keys, counts)
    chosen = choose(sampling, logits, progress.tokens, present, keys)
    return replace(
        progress,
        tokens=jax.lax.dynamic_update_slice(progress.tokens, chosen[:, None], (0, cache.length)),
        ended=progress.ended | jnp.isin(chosen, progress.stop_ids),
        count=progress.count + 1,
    )


def row_keys(seed: int, rows: Rows) -> Array:
    """Return each row's random key, (B,); raise a UsageError if the seed is out of range."""
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed is {seed}; it must be from 0 to 2^32 - 1")
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows.salts())
