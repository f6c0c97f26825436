"""Drafts: cheap guesses of a row's next tokens, for the model to check in one pass (`jaxgpt.decode.speculative`).

A draft crosses `jit` as it is: what is no array in it is static.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Int

from jaxgpt import checks
from jaxgpt.decode.sampling_config import Sampling
from jaxgpt.decode.step import DecodeState, decode_step, read
from jaxgpt.errors import UsageError
from jaxgpt.model.cache import KVCache
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.model.quantized import check_params
from jaxgpt.parallel import on_mesh_of

# Each of its tokens is a comparison of its own in the program.
LONGEST_NGRAM = 64


@flax.struct.dataclass
class PromptLookup:
    """The guess that what followed the last few tokens when they stood together before follows again (Saxena 2023).

    It costs nothing to make, and where the tokens never stood together there is none.

    Attributes:
        tokens: guessed at a time.
        ngram: how many last tokens are looked for.
    """

    tokens: int = flax.struct.field(pytree_node=False, default=8)
    ngram: int = flax.struct.field(pytree_node=False, default=3)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", checks.whole("draft tokens", self.tokens, 1))
        object.__setattr__(self, "ngram", checks.whole("ngram", self.ngram, 1, LONGEST_NGRAM))

    def begin(self, dtype: DTypeLike, tokens: Int[Array, "B S"], start: Int[Array, " B"], *, width: int) -> None:
        """Return what the draft carries along: nothing."""

    def ready(self, cache: KVCache, progress: DecodeState) -> Bool[Array, " B"]:
        """Return which rows have a guess."""
        return self._distance(cache, progress) > 0

    def propose(
        self, sampling: Sampling, dtype: DTypeLike, state: None, cache: KVCache, progress: DecodeState
    ) -> tuple[Int[Array, "B K"], None]:
        """Guess the tokens after the newest; where text is repeated up to its end, by going round in it."""
        distance = jnp.maximum(self._distance(cache, progress), 1)[:, None]
        slots = cache.length + 1 - distance + jnp.arange(self.tokens) % distance
        return jnp.take_along_axis(progress.tokens, slots, axis=1), None

    def _distance(self, cache: KVCache, progress: DecodeState) -> Int[Array, " B"]:
        """Return how many slots before the newest token the latest earlier n-gram like the last ends; 0 if none."""
        tokens, newest = progress.tokens, cache.length
        slots = jnp.arange(tokens.shape[1])
        like = (slots >= cache.start[:, None] + self.ngram - 1) & (slots < newest)
        for back in range(self.ngram):
            token = jax.lax.dynamic_slice_in_dim(tokens, newest - back, 1, axis=1)
            like &= jnp.roll(tokens, back, axis=1) == token
        latest = jnp.where(like, slots, -1).max(axis=1)
        return jnp.where(latest < 0, 0, newest - latest)


@flax.struct.dataclass
class DraftModel:
    """The guess of a smaller model with the same token ids (Leviathan et al. 2023, Chen et al. 2023).

    It chooses with the row's own random keys, so its sample is the model's sample wherever their distributions are
    close enough (Daliri et al. 2024).

    Attributes:
        config: its architecture.
        params: its parameters.
        tokens: guessed at a time.
    """

    config: GPTConfig = flax.struct.field(pytree_node=False)
    params: Any
    tokens: int = flax.struct.field(pytree_node=False, default=4)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", checks.whole("draft tokens", self.tokens, 1))

    def begin(self, dtype: DTypeLike, tokens: Int[Array, "B S"], start: Int[Array, " B"], *, width: int) -> KVCache:
        """Return what the draft carries along: its own cache, with the first `width` slots read."""
        with on_mesh_of(self.params):
            return _begin(GPT(self.config, dtype), self.params, tokens, start, width=width)

    def ready(self, cache: KVCache, progress: DecodeState) -> Bool[Array, " B"]:
        """Return which rows have a guess: all."""
        return jnp.ones_like(progress.ended)

    def propose(
        self, sampling: Sampling, dtype: DTypeLike, state: KVCache, cache: KVCache, progress: DecodeState
    ) -> tuple[Int[Array, "B K"], KVCache]:
        """Guess the tokens after the newest, one by one."""
        step = partial(decode_step, GPT(self.config, dtype), sampling, self.params)
        # It has not read the last of its own guesses. So the token before the newest is read again, or for the first
        # time; what its slot holds stays or becomes right.
        carry = step(replace(state, length=cache.length - 1), progress, width=2)
        state, guessed = jax.lax.fori_loop(1, self.tokens, lambda _, carry: step(*carry), carry)
        return jax.lax.dynamic_slice_in_dim(guessed.tokens, cache.length + 1, self.tokens, axis=1), state


Draft = PromptLookup | DraftModel


def check_draft(draft: Draft, config: GPTConfig, sampling: Sampling, *, length: int) -> None:
    """Make sure that a draft can read and guess what the model reads and chooses.

    Args:
        draft: to check.
        config: the model's.
        sampling: how the model chooses.
        length: tokens of the longest row in the end.

    Raises:
        UsageError: it can't; the message says why.
    """
    wanted = "a PromptLookup or a DraftModel of jaxgpt.decode.draft"
    checks.instance("draft", draft, (PromptLookup, DraftModel), wanted)
    checks.whole("draft tokens", draft.tokens, 1, config.n_positions)
    if isinstance(draft, PromptLookup):
        return
    checks.instance("the draft's config", draft.config, GPTConfig, "a GPTConfig")
    theirs, ours = draft.config.vocab_size, config.vocab_size
    # Padding may differ, as long as it is never chosen: an id outside of a table gives NaN.
    if theirs != ours and (sampling.vocab_size is None or sampling.vocab_size > min(theirs, ours)):
        raise UsageError(f"the draft's vocabulary has {theirs} ids, and the model's {ours}; they must be the same")
    needed = min(length + draft.tokens, config.n_positions)
    if draft.config.n_positions < needed:
        raise UsageError(
            f"the draft's context is {draft.config.n_positions}; it must be {needed} or more, for the text and "
            f"{draft.tokens} guessed tokens or for the model's whole context"
        )
    check_params(draft.config, draft.params)


@partial(jax.jit, static_argnames=("model", "width"))
def _begin(model: GPT, params: Any, tokens: Int[Array, "B S"], start: Int[Array, " B"], *, width: int) -> KVCache:
    cache = KVCache.empty(model.config, start, tokens.shape[1], model.dtype)
    return read(model, params, tokens, cache, width=width, last=1)[1]
