"""Speculative decoding: a draft guesses the next K tokens, and the model reads them all in one pass.

A pass over a few tokens costs little more than one over a single token, as both read every weight once (Leviathan et
al. 2023, Chen et al. 2023). What the model chooses at each position it chooses as without a draft, with the key of
that row and step; guesses up to the first other one are kept, and after them the model's own choice. So not only the
distribution is the same but each token, and the draft only decides how many come of a pass.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from jaxgpt.decode.draft import Draft
from jaxgpt.decode.sampling_config import Sampling
from jaxgpt.decode.step import DecodeState, choose_after, decode_step, read
from jaxgpt.model.cache import KVCache
from jaxgpt.model.gpt import GPT

Carry = tuple[KVCache, Any, DecodeState, Array]
"""The model's cache, what the draft carries along, where the rows are, and the number of passes."""


@partial(jax.jit, static_argnames=("model", "sampling"), donate_argnames=("cache", "state"))
def speculate(
    model: GPT,
    sampling: Sampling,
    params: Any,
    draft: Draft,
    cache: KVCache,
    state: Any,
    progress: DecodeState,
    until: Int[Array, ""],
) -> tuple[KVCache, Any, DecodeState, Int[Array, ""]]:
    """Take passes until `until` tokens or some more are chosen, or all rows have ended.

    Rows share the cache's length, so all go on by what the slowest has: a guess is kept if it is right in every row
    that has not ended. Where a row has no guess, or the context no room for one, the pass is a plain decode step.
    There must be `draft.tokens` slots beyond those that `until` needs.

    Returns:
        The cache, the draft's state, the progress, and the number of passes.
    """

    def guessing(carry: Carry) -> Array:
        cache, _, progress, _ = carry
        fits = cache.length + draft.tokens - cache.start.min() < model.config.n_positions
        return fits & (draft.ready(cache, progress) | progress.ended).all()

    def check(carry: Carry) -> Carry:
        cache, state, progress, passes = carry
        guesses, state = draft.propose(sampling, model.dtype, state, cache, progress)
        cache, progress = verify(model, sampling, params, cache, progress, guesses)
        return cache, state, progress, passes + 1

    def plain(carry: Carry) -> Carry:
        cache, state, progress, passes = carry
        cache, progress = decode_step(model, sampling, params, cache, progress)
        return cache, state, progress, passes + 1

    def advance(carry: Carry) -> Carry:
        # Two loops and no `cond`, whose branches would each get a copy of the cache.
        carry = jax.lax.while_loop(lambda carry: carry[2].unfinished(until) & guessing(carry), check, carry)
        return jax.lax.while_loop(lambda carry: carry[2].unfinished(until) & ~guessing(carry), plain, carry)

    start = cache, state, progress, jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(lambda carry: carry[2].unfinished(until), advance, start)


def verify(
    model: GPT, sampling: Sampling, params: Any, cache: KVCache, progress: DecodeState, guesses: Int[Array, "B K"]
) -> tuple[KVCache, DecodeState]:
    """Read the newest token and the guesses, and go on by one token more than there are right guesses."""
    length, count = cache.length, guesses.shape[1]
    progress = replace(
        progress, tokens=jax.lax.dynamic_update_slice_in_dim(progress.tokens, guesses, length + 1, axis=1)
    )
    logits, cache = read(model, params, progress.tokens, cache, width=count + 1, last=count + 1)
    chosen = choose_after(sampling, logits, cache, progress)
    # Rows that have ended by then agree with every guess: nobody looks at what follows.
    ended = progress.ended[:, None] | (jnp.cumsum(jnp.isin(chosen, progress.stop_ids), axis=1) > 0)
    right = ((chosen[:, :-1] == guesses) | ended[:, :-1]).all(axis=0)
    kept = jnp.cumprod(right).sum(dtype=jnp.int32)
    # Behind its length a cache may hold anything: masks hide it, and what is read later takes its place.
    return replace(cache, length=length + kept + 1), replace(
        progress,
        tokens=jax.lax.dynamic_update_slice_in_dim(progress.tokens, chosen, length + 1, axis=1),
        ended=ended[:, kept],
        count=progress.count + kept + 1,
        log_probs=progress.log_probs_with(chosen, logits, length + 1),
    )
