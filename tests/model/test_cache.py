"""The cache: reading a text in pieces, alone or padded beside others, gives what reading it at once gives."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model.atlas import map_parameters
from jaxgpt.model.cache import KVCache
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT

TINY = {"vocab_size": 19, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3}
LENGTH = 12
# Sums are taken in another order, over masked slots too.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


@functools.cache
def make(**options: Any) -> tuple[GPTConfig, Callable[..., Any]]:
    """Return a config and the compiled model with random parameters filled in."""
    config, generator = GPTConfig(**TINY, **options), np.random.default_rng(0)
    # At the initial std of 0.02 attention is nearly uniform, and errors would hide in it.
    params = map_parameters(config, lambda p: jnp.asarray(generator.normal(0, 0.3, p.shape), jnp.float32))
    return config, functools.partial(jax.jit(GPT(config).apply), {"params": params})


def draw_tokens(rows: int) -> jax.Array:
    return jax.random.randint(jax.random.key(1), (rows, LENGTH), 0, TINY["vocab_size"])


def read(options: dict[str, Any], tokens: jax.Array, pieces: list[int], start: jax.Array, size: int) -> jax.Array:
    """Return the logits of all tokens, read piece by piece."""
    config, apply = make(**options)
    cache, logits = KVCache.empty(config, start, size, jnp.float32), []
    for piece in jnp.split(tokens, np.cumsum(pieces)[:-1], axis=1):
        more, cache = apply(piece, cache)
        logits.append(more)
    assert int(cache.length) == tokens.shape[1]
    return jnp.concatenate(logits, axis=1)


@pytest.mark.parametrize("options", [{}, {"position_embedding": "sinusoidal", "norm_position": "post"}], ids=str)
@pytest.mark.parametrize(("rows", "pieces"), [(2, [12]), (2, [5, 1, 4, 1, 1]), (1, [8, 1, 1, 1, 1])], ids=str)
def test_cached_is_uncached(rows: int, pieces: list[int], options: dict):
    _, apply = make(**options)
    tokens = draw_tokens(rows)
    cached = read(options, tokens, pieces, jnp.zeros(rows, jnp.int32), size=LENGTH + 3)
    np.testing.assert_allclose(cached, apply(tokens)[0], **ROUNDING)


@pytest.mark.parametrize("options", [{}, {"position_embedding": "sinusoidal"}], ids=str)
def test_padded_on_the_left_is_one_by_one(options: dict):
    _, apply = make(**options)
    tokens, start = draw_tokens(3), jnp.array([0, 5, 9])
    logits = read(options, tokens, [10, 1, 1], start, size=LENGTH)
    # Alone, the rows begin at once; what then stands behind them, they can't see.
    alone, _ = apply(jnp.stack([jnp.roll(row, -begin) for row, begin in zip(tokens, start, strict=True)]))
    for row, begin in enumerate(start):
        np.testing.assert_allclose(logits[row, begin:], alone[row, : LENGTH - begin], **ROUNDING)
    assert jnp.isfinite(logits).all(), "padding, too, must not poison the cache with NaN"


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_that_take_a_seat_late_or_move_go_on_as_if_they_had_not(rows: int):
    config, apply = make()
    tokens, length, late = draw_tokens(rows), 9, 4
    cache = KVCache.empty(config, jnp.zeros(rows, jnp.int32), LENGTH + 4, jnp.float32)
    _, cache = apply(tokens[:, :length], cache)
    _, newcomer = apply(tokens[-1:, :late], KVCache.empty(config, jnp.zeros(1, jnp.int32), late, jnp.float32))
    cache = cache.seat(jnp.asarray(rows - 1), newcomer, width=late)
    cache = replace(cache, start=cache.start.at[-1].set(length - late))
    for slots in (-3, 3):
        cache = cache.shift(jnp.asarray(slots))
        logits, _ = apply(tokens[:, length : length + 1].at[-1].set(tokens[-1, late]), cache)
        whole, _ = apply(tokens)
        np.testing.assert_allclose(logits[:-1, 0], whole[:-1, length], **ROUNDING)
        np.testing.assert_allclose(logits[-1, 0], whole[-1, late], **ROUNDING)


@pytest.mark.parametrize("length", [12, 100])
def test_a_prompt_in_a_new_cache_is_read_like_one_that_attends_to_all_slots(length: int):
    config = replace(make()[0], n_positions=128)
    params = GPT(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    apply = jax.jit(functools.partial(GPT(config).apply, {"params": params}))
    tokens = jax.random.randint(jax.random.key(1), (3, length), 0, config.vocab_size)
    new = KVCache.empty(config, jnp.array([0, 5, length - 1]), length + 9, jnp.float32)
    (logits, read), (expected, whole) = (apply(tokens, cache) for cache in (new, replace(new, new=False)))
    assert not read.new and not whole.new
    for row, begin in enumerate(new.start):
        np.testing.assert_allclose(logits[row, begin:], expected[row, begin:], **ROUNDING)
        for layer in range(config.n_layer):
            for ours, theirs in zip(read.layer(layer), whole.layer(layer), strict=True):
                np.testing.assert_allclose(ours[row, :, begin:], theirs[row, :, begin:], **ROUNDING)


def test_what_padding_holds_does_not_matter():
    tokens, start = draw_tokens(1), jnp.array([4])
    other = tokens.at[:, :4].add(1) % TINY["vocab_size"]
    first, second = (read({}, x, [LENGTH], start, size=LENGTH) for x in (tokens, other))
    assert (first[:, 4:] == second[:, 4:]).all()


def test_a_cache_in_bf16_is_close():
    config, apply = make()
    tokens = draw_tokens(1)
    cache = KVCache.empty(config, jnp.zeros(1, jnp.int32), LENGTH, jnp.bfloat16)
    logits, cache = apply(tokens, cache)
    exact, _ = apply(tokens)
    assert {leaf.dtype for leaf in cache.layer(0)} == {jnp.dtype(jnp.bfloat16)}
    # Keys and values are rounded to 8 bits.
    assert jnp.linalg.norm(logits - exact) <= 2**-6 * jnp.linalg.norm(exact)


def test_with_a_cache_positions_and_segments_are_refused():
    config, apply = make()
    cache = KVCache.empty(config, jnp.zeros(1, jnp.int32), LENGTH, jnp.float32)
    tokens = draw_tokens(1)
    for name in ("positions", "segment_ids"):
        with pytest.raises(ValueError, match="pass only tokens"):
            apply(tokens, cache, **{name: jnp.zeros_like(tokens)})
