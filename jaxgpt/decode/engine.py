"""Prompts → new tokens: one prefill, then one decode step a token, the same program for `generate` and `stream`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal, SupportsIndex, Unpack, overload

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxgpt import checks
from jaxgpt.decode.draft import Draft, DraftModel, check_draft
from jaxgpt.decode.rows import Rows, StopIds
from jaxgpt.decode.sampling_config import Overflow, Sampling, SamplingOptions, fitted
from jaxgpt.decode.speculative import speculate
from jaxgpt.decode.step import DecodeState, decode, prefill
from jaxgpt.hosts import fetch
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.model.quantized import cast_matrices, check_params
from jaxgpt.parallel import on_mesh_of, seed_key


@overload
def generate(
    config: GPTConfig,
    params: Any,
    prompts: checks.IdLists,
    *,
    return_log_probs: Literal[False] = False,
    max_new_tokens: SupportsIndex,
    eos_token_id: StopIds = ...,
    seed: SupportsIndex = ...,
    dtype: DTypeLike = ...,
    overflow: Overflow = ...,
    draft: Draft | None = ...,
    **sampling: Unpack[SamplingOptions],
) -> list[list[int]]: ...


@overload
def generate(
    config: GPTConfig,
    params: Any,
    prompts: checks.IdLists,
    *,
    return_log_probs: Literal[True],
    max_new_tokens: SupportsIndex,
    eos_token_id: StopIds = ...,
    seed: SupportsIndex = ...,
    dtype: DTypeLike = ...,
    overflow: Overflow = ...,
    draft: Draft | None = ...,
    **sampling: Unpack[SamplingOptions],
) -> tuple[list[list[int]], list[list[float]]]: ...


def generate(
    config: GPTConfig,
    params: Any,
    prompts: checks.IdLists,
    *,
    return_log_probs: bool = False,
    max_new_tokens: SupportsIndex,
    eos_token_id: StopIds = "config",
    seed: SupportsIndex = 0,
    dtype: DTypeLike = jnp.float32,
    overflow: Overflow = "error",
    draft: Draft | None = None,
    **sampling: Unpack[SamplingOptions],
) -> list[list[int]] | tuple[list[list[int]], list[list[float]]]:
    """Continue prompts.

    A row of a batch gets what it gets alone with the same seed, greedy or sampled, unless two tokens are so close that
    the rounding of differently shaped products decides. Equal prompts of a batch draw different samples. Programs are
    compiled for the number of rows and, rounded up (`bucket`), for the longest prompt and the tokens asked for.

    Args:
        config: the architecture.
        params: the model's parameters.
        prompts: lists of ids, or an array of two axes; an empty prompt starts from the config's token for the
            beginning, or else the end, of a text.
        return_log_probs: also return the natural logarithm of each new token's probability by the model itself: the
            softmax of its logits, before temperature, filters and penalties.
        max_new_tokens: for each row; fewer if it chooses a stop id.
        eos_token_id: stop id or ids; by default the config's, None for none.
        seed: of the samples, from 0 to 2^32 - 1.
        dtype: of activations, matrix products and the cache; logits are f32.
        overflow: what happens to a row that is longer than the context: "error", before anything is computed, or
            "slide": when its context is full it goes on from the last half of it.
        draft: guesses tokens ahead, a `PromptLookup` or a `DraftModel`, for the model to read several in one pass.
            That can save time, most with a single row, and changes no token but as rounding may, see above.
        sampling: temperature (0, the likeliest token, by default), top_k, top_p, min_p, repetition_penalty,
            vocab_size and logits_processor: see `Sampling`.

    Returns:
        Each row's new ids, including the stop id that ended it, as Hugging Face does; with `return_log_probs` also
        each row's log-probabilities, one for each of these ids.

    Raises:
        UsageError: an argument out of range; the message names it.
    """
    rows = Rows(config, prompts, max_new_tokens=max_new_tokens, eos_token_id=eos_token_id, overflow=overflow)
    how, keys = Sampling(**sampling), row_keys(seed, rows)
    want = checks.flag("return_log_probs", return_log_probs)
    steps = Stream(
        decoder(config, dtype), params, rows, how, keys, draft, stride=max(rows.left, 1), keep_log_probs=want
    )
    for _ in steps:
        pass
    return (rows.new, steps.log_probs) if want else rows.new


def stream(
    config: GPTConfig,
    params: Any,
    prompts: checks.IdLists,
    *,
    max_new_tokens: SupportsIndex,
    eos_token_id: StopIds = "config",
    seed: SupportsIndex = 0,
    dtype: DTypeLike = jnp.float32,
    overflow: Overflow = "error",
    draft: Draft | None = None,
    coarse: bool = False,
    **sampling: Unpack[SamplingOptions],
) -> Stream:
    """Continue prompts as `generate` does, token by token; with a draft, as many at once as come of a pass.

    `coarse` rounds lengths up to powers of two, so that prompts that grow from call to call compile few programs.
    """
    rows = Rows(
        config,
        prompts,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_token_id,
        overflow=overflow,
        coarse=checks.flag("coarse", coarse),
    )
    return Stream(decoder(config, dtype), params, rows, Sampling(**sampling), row_keys(seed, rows), draft, stride=1)


class Stream(Iterator[list[int | None]]):
    """Yields each row's next id, step by step; None for rows that have ended.

    Attributes:
        passes: through the model so far, those that read prompts and windows included.
        log_probs: of each row's new tokens so far, by the model itself; empty unless asked for.
    """

    def __init__(
        self,
        model: GPT,
        params: Any,
        rows: Rows,
        sampling: Sampling,
        keys: Array,
        draft: Draft | None,
        *,
        stride: int,
        keep_log_probs: bool = False,
    ) -> None:
        """Begin to fill the rows, `stride` tokens or more a call of the device."""
        sampling = fitted(sampling, model.config)
        if draft is not None:
            check_draft(draft, model.config, sampling, length=rows.longest)
        check_params(model.config, params)
        self.passes = 0
        self.log_probs: list[list[float]] = [[] for _ in rows.ended]
        self._keep_log_probs = keep_log_probs
        self._model, self._params, self._rows, self._sampling, self._keys = model, params, rows, sampling, keys
        self._draft, self._stride = draft, stride
        self._steps = self._decode()

    def __next__(self) -> list[int | None]:
        return next(self._steps)

    def _decode(self) -> Iterator[list[int | None]]:
        model, rows, sampling, draft = self._model, self._rows, self._sampling, self._draft
        read = rows.ended.size * (1 if draft is None else draft.tokens + 1)
        cast = partial(cast_matrices, dtype=model.dtype, rows=read if rows.left > 1 else 0)
        params = cast(self._params)
        if isinstance(draft, DraftModel):
            draft = replace(draft, params=cast(draft.params))
        stop_ids = jnp.asarray(rows.stop_ids, jnp.int32)
        while not rows.done:
            window = rows.window(spare=0 if draft is None else draft.tokens)
            slot, last = window.width, rows.count + window.count
            # With its dtype: one that JAX may widen would make a second program of the first pass.
            count = jnp.asarray(rows.count, jnp.int32)
            kept = jnp.zeros(window.tokens.shape, jnp.float32) if self._keep_log_probs else None
            progress = DecodeState(
                jnp.asarray(window.tokens), jnp.asarray(rows.ended), count, self._keys, stop_ids, kept
            )
            start = jnp.asarray(window.start)
            with on_mesh_of(params):
                cache, progress = prefill(model, sampling, params, progress, start, width=window.width)
            self.passes += 1
            state = None if draft is None else draft.begin(model.dtype, progress.tokens, start, width=window.width)
            while True:
                log_probs = None if progress.log_probs is None else fetch(progress.log_probs)
                for tokens in fetch(progress.tokens).T[slot : slot + int(progress.count) - rows.count]:
                    added = rows.add(tokens)
                    if log_probs is not None:
                        for row, token in enumerate(added):
                            self.log_probs[row] += [] if token is None else [float(log_probs[row, slot])]
                    slot += 1
                    yield added
                    if rows.done:  # a pass with a draft may have chosen more
                        return
                if rows.count == last:
                    break
                until = jnp.asarray(min(rows.count + self._stride, last))
                if draft is None:
                    cache, progress = decode(model, sampling, params, cache, progress, until)
                    self.passes += int(progress.count) - rows.count
                else:
                    cache, state, progress, passes = speculate(
                        model, sampling, params, draft, cache, state, progress, until
                    )
                    self.passes += int(passes)


def decoder(config: GPTConfig, dtype: DTypeLike) -> GPT:
    """Return the module that computes in a type of floats; raise a UsageError if it is none."""
    return GPT(config, jnp.dtype(checks.floating("dtype", dtype)))


def row_keys(seed: SupportsIndex, rows: Rows) -> Array:
    """Return each row's random key, (B,); raise a UsageError if the seed is out of range."""
    return jax.vmap(jax.random.fold_in, (None, 0))(seed_key(seed), rows.row_seeds())
