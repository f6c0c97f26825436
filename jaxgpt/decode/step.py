"""The device's side: tokens are read into the cache, and the next are chosen. Pure functions; the host steps them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxgpt.decode.sampling import choose
from jaxgpt.decode.sampling_config import Sampling
from jaxgpt.model.cache import KVCache
from jaxgpt.model.gpt import GPT, applied


@flax.struct.dataclass
class DecodeState:
    """The rows' tokens so far. It is small beside the cache, and apart from it because the cache is donated.

    Attributes:
        tokens: (B, S) ids by slot: those in the cache, and in the next slot the newest, which is not.
        ended: rows that have chosen a stop id.
        count: tokens chosen so far, by all rows or by each.
        keys: (B,) each row's random key.
        stop_ids: ids that end a row.
        log_probs: (B, S) of each chosen token by its slot, before sampling's settings; None if nobody asks.
    """

    tokens: Int[Array, "B S"]
    ended: Bool[Array, " B"]
    count: Int[Array, "*#B"]
    keys: Array
    stop_ids: Int[Array, " N"]
    log_probs: Float[Array, "B S"] | None = None

    def unfinished(self, until: Int[Array, ""]) -> Bool[Array, ""]:
        """Return whether fewer than `until` tokens are chosen and a row has not ended."""
        return (self.count < until) & ~self.ended.all()

    def log_probs_with(
        self, chosen: Int[Array, "B T"], logits: Float[Array, "B T V"], slot: Int[Array, ""]
    ) -> Float[Array, "B S"] | None:
        """Return the log-probabilities with those of tokens that are chosen from these logits, from a slot on."""
        if self.log_probs is None:
            return None
        found = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen[..., None], axis=-1)[..., 0]
        return jax.lax.dynamic_update_slice_in_dim(self.log_probs, found, slot, axis=1)


@partial(jax.jit, static_argnames=("model", "sampling", "width"))
def prefill(
    model: GPT, sampling: Sampling, params: Any, progress: DecodeState, start: Int[Array, " B"], *, width: int
) -> tuple[KVCache, DecodeState]:
    """Read the first `width` slots into a new cache, and choose the first token."""
    cache = KVCache.empty(model.config, start, progress.tokens.shape[1], model.dtype)
    return decode_step(model, sampling, params, cache, progress, width=width)


@partial(jax.jit, static_argnames=("model", "sampling"), donate_argnames=("cache",))
def decode(
    model: GPT, sampling: Sampling, params: Any, cache: KVCache, progress: DecodeState, until: Int[Array, ""]
) -> tuple[KVCache, DecodeState]:
    """Take decode steps until `until` tokens are chosen or all rows have ended."""
    return jax.lax.while_loop(
        lambda carry: carry[1].unfinished(until),
        lambda carry: decode_step(model, sampling, params, *carry),
        (cache, progress),
    )


def decode_step(
    model: GPT, sampling: Sampling, params: Any, cache: KVCache, progress: DecodeState, *, width: int = 1
) -> tuple[KVCache, DecodeState]:
    """Read the next `width` slots, of which the newest token is the last, and choose the next."""
    logits, cache = read(model, params, progress.tokens, cache, width=width, last=1)
    chosen = choose_after(sampling, logits, cache, progress)
    return cache, replace(
        progress,
        tokens=jax.lax.dynamic_update_slice_in_dim(progress.tokens, chosen, cache.length, axis=1),
        ended=progress.ended | jnp.isin(chosen[:, 0], progress.stop_ids),
        count=progress.count + 1,
        log_probs=progress.log_probs_with(chosen, logits, cache.length),
    )


def read(
    model: GPT, params: Any, tokens: Int[Array, "B S"], cache: KVCache, *, width: int, last: int
) -> tuple[Float[Array, "B T V"], KVCache]:
    """Put the next `width` slots' tokens into the cache.

    Returns:
        The logits after each of the `last` of them only, as those of a long prompt would be large; and the cache.
    """
    tokens = jax.lax.dynamic_slice_in_dim(tokens, cache.length, width, axis=1)
    apply = applied(model, params)
    hidden, cache = apply(tokens, cache, method="hidden")
    return apply(hidden[:, width - last :], method="logits"), cache


def choose_after(
    sampling: Sampling, logits: Float[Array, "B T V"], cache: KVCache, progress: DecodeState
) -> Int[Array, "B T"]:
    """Choose a token after each of the last T that the cache has read, as if the later ones were not there."""
    rows, count, vocab = logits.shape
    tokens, ahead = progress.tokens, jnp.arange(count)
    slots, ends = jnp.arange(tokens.shape[1]), cache.length - count + 1 + ahead
    present = (slots >= cache.start[:, None, None]) & (slots < ends[:, None])
    # Randomness is a function of (row, step), so nothing needs to be carried from step to step.
    steps = jnp.broadcast_to(progress.count, progress.keys.shape)[:, None] + ahead
    keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(progress.keys, steps)
    chosen = choose(
        sampling,
        logits.reshape(rows * count, vocab),
        jnp.repeat(tokens, count, axis=0),
        present.reshape(rows * count, -1),
        keys.reshape(rows * count),
    )
    return chosen.reshape(rows, count)
