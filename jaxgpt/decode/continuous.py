"""Many prompts of unequal lengths and ends → new tokens: a row that ends makes place for a prompt that waits.

Rows share one cache and its length (`KVCache`), so a newcomer is read alone and then put into its row so that it ends
in the slot where the others end. When the slots are used up all rows move to the left, as far as the longest allows.
Positions count from each row's start, so neither changes what a row computes. A row whose context has slid comes in
again, like a newcomer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, SupportsIndex, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Int

from jaxgpt import checks
from jaxgpt.decode.engine import decoder, row_keys
from jaxgpt.decode.rows import Rows, StopIds, bucket
from jaxgpt.decode.sampling_config import Overflow, Sampling, SamplingOptions, fitted
from jaxgpt.decode.step import DecodeState, decode_step, prefill
from jaxgpt.errors import UsageError
from jaxgpt.hosts import fetch
from jaxgpt.model.cache import KVCache
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.model.quantized import cast_matrices, check_params
from jaxgpt.parallel import on_mesh_of

# Every step attends to all slots, and every move copies them: this many beyond what the longest row needs.
SPARE_SLOTS = 64


def generate_many(
    config: GPTConfig,
    params: Any,
    prompts: checks.IdLists,
    *,
    max_new_tokens: SupportsIndex | checks.Ids,
    batch_size: SupportsIndex,
    eos_token_id: StopIds = "config",
    seed: SupportsIndex = 0,
    dtype: DTypeLike = jnp.float32,
    overflow: Overflow = "error",
    **sampling: Unpack[SamplingOptions],
) -> list[list[int]]:
    """Continue prompts as `generate` does, `batch_size` at a time (Yu et al. 2022, section 3.1).

    A prompt gets what `generate` gives it, alone or among the others, unless two tokens are so close that rounding
    decides: its samples depend on the seed, its ids and how many equal prompts stand before it, not on its row.
    Programs are compiled for the number of rows, the slots that the longest needs, and each width of prompts.

    Args:
        config, params, prompts, eos_token_id, seed, dtype, overflow, sampling: see `generate`.
        max_new_tokens: for each prompt, or a number for all.
        batch_size: rows that are decoded together.

    Returns:
        Each prompt's new ids, including the stop id that ended it.

    Raises:
        UsageError: an argument out of range; the message names it.
    """
    prompts = checks.rows("prompts", prompts)
    limits: list[Any] = [max_new_tokens] * len(prompts)
    if checks.several(max_new_tokens):
        limits = checks.ids("max_new_tokens", max_new_tokens, "a whole number, or one for each prompt").tolist()
    if len(limits) != len(prompts):
        raise UsageError(f"max_new_tokens has {len(limits)} numbers for {len(prompts)} prompts; it must have as many")
    batch_size = checks.whole("batch_size", batch_size, 1)
    rows = partial(Rows, config, eos_token_id=eos_token_id)
    together = rows(prompts, max_new_tokens=0, overflow="slide")  # which prompt has a bad id is seen only here
    keys = row_keys(seed, together)
    texts = [
        _Text(rows([prompt], max_new_tokens=limit, overflow=overflow), keys[number : number + 1])
        for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
    ]
    model, how = decoder(config, dtype), fitted(Sampling(**sampling), config)
    check_params(config, params)
    waiting = deque(text for text in texts if not text.rows.done)
    if waiting:
        seated = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
        size = _slots(config, prompts, [text.rows.left for text in texts])
        params = cast_matrices(params, dtype=model.dtype, rows=len(seated))
        _Batch(model, params, how, seated, size).run(waiting)
    return [text.rows.new[0] for text in texts]


@dataclass
class _Text:
    """A prompt and what follows it.

    Attributes:
        rows: its ids.
        key: (1,) random key.
        start: the first slot of the cache that holds a token of it.
        left: tokens that can be chosen before it has to be read anew.
    """

    rows: Rows
    key: Array
    start: int = 0
    left: int = 0


class _Batch:
    """The rows of one cache, and the texts in them."""

    def __init__(self, model: GPT, params: Any, sampling: Sampling, texts: list[_Text], size: int) -> None:
        """Allocate `size` slots for each of the texts."""
        self._model, self._sampling, self._params = model, sampling, params
        self._texts = texts
        self._length = 0
        self._tokens = np.zeros((len(texts), size), np.int32)
        # Rows are put into it, never read together.
        self._cache = KVCache.empty(model.config, jnp.zeros(len(texts), jnp.int32), size, model.dtype, new=False)
        self._stop_ids = jnp.asarray(texts[0].rows.stop_ids, jnp.int32)

    def run(self, waiting: deque[_Text]) -> None:
        """Decode until all texts are done, those in the rows and those that wait."""
        while True:
            for row in range(len(self._texts)):
                while (done := self._texts[row].rows.done) or self._texts[row].left == 0:
                    if done and not waiting:
                        break
                    if done:
                        self._texts[row] = waiting.popleft()
                    self._read(row)
            if all(text.rows.done for text in self._texts):
                break
            self._decode()

    def _read(self, row: int) -> None:
        """Read a text's window into its row, and choose its next token."""
        text = self._texts[row]
        window = text.rows.window()
        width = window.width
        # One slot more, for the token to choose: the first program has a shape for each width, and no other.
        progress = self._progress(window.tokens[:, : width + 1], [text])
        start = jnp.asarray(window.start)
        with on_mesh_of(self._params):
            newcomer, progress = prefill(self._model, self._sampling, self._params, progress, start, width=width)
        if width > self._length:
            self._move(self._length - width)
        self._cache = _seat(self._cache, jnp.asarray(row), newcomer, width=width)
        tokens = fetch(progress.tokens)[0]
        self._tokens[row, self._length - width : self._length + 1] = tokens
        text.rows.add(tokens[width:])
        text.start = self._length - width + int(window.start[0])
        text.left = window.count - 1

    def _decode(self) -> None:
        """Take decode steps until a text is done, or has to be read anew, or the slots are used up."""
        live = [text for text in self._texts if not text.rows.done]
        last = self._tokens.shape[1] - 1
        if self._length == last:
            self._move(min(text.start for text in live))
        # The positions of a row without a text stay small, as beyond the context they would give NaN.
        starts = [self._length if text.rows.done else text.start for text in self._texts]
        until = min(last, self._length + min(text.left for text in live))
        self._cache, progress = decode(
            self._model,
            self._sampling,
            self._params,
            replace(self._cache, start=jnp.asarray(starts, jnp.int32)),
            self._progress(self._tokens, self._texts),
            jnp.asarray(until),
        )
        self._tokens = np.array(fetch(progress.tokens))
        before, self._length = self._length, int(self._cache.length)
        for text, tokens in zip(self._texts, self._tokens[:, before + 1 : self._length + 1], strict=True):
            if not text.rows.done:
                text.left -= len(tokens)
                for token in tokens:
                    text.rows.add(token[None])

    def _move(self, slots: int) -> None:
        """Move all rows to the left."""
        self._cache = _shift(self._cache, jnp.asarray(slots))
        self._tokens = np.roll(self._tokens, -slots, axis=1)
        self._length -= slots
        for text in self._texts:
            text.start -= slots

    def _progress(self, tokens: np.ndarray, texts: Sequence[_Text]) -> DecodeState:
        return DecodeState(
            jnp.asarray(tokens),
            jnp.asarray([text.rows.done for text in texts]),
            jnp.asarray([text.rows.count for text in texts]),
            jnp.concatenate([text.key for text in texts]),
            self._stop_ids,
        )


@partial(jax.jit, static_argnames=("model", "sampling"), donate_argnames=("cache",))
def decode(
    model: GPT, sampling: Sampling, params: Any, cache: KVCache, progress: DecodeState, until: Int[Array, ""]
) -> tuple[KVCache, DecodeState]:
    """Take decode steps until `until` slots are filled or another row has ended."""
    ended = progress.ended
    return jax.lax.while_loop(
        lambda carry: (carry[0].length < until) & (carry[1].ended == ended).all(),
        lambda carry: decode_step(model, sampling, params, *carry),
        (cache, progress),
    )


_seat = jax.jit(KVCache.seat, static_argnames=("width",), donate_argnums=0)
_shift = jax.jit(KVCache.shift, donate_argnums=0)


def _slots(config: GPTConfig, prompts: Sequence[np.ndarray], limits: Sequence[int]) -> int:
    """Return how many slots the longest row needs, and some to spare."""
    context = config.n_positions
    longest = max(
        max(bucket(min(len(prompt), context)), min(len(prompt) + limit, context + 1))
        for prompt, limit in zip(prompts, limits, strict=True)
    )
    return bucket(longest + SPARE_SLOTS)
