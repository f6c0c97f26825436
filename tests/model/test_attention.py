"""Attention: the textbook's formula, causal or under any mask, finite where nothing may be attended to."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model.attention import attention

B, H, T, S, K = 2, 3, 5, 7, 4


def draw(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def reference(q, k, v, mask, scale):
    """Softmax row by row over the keys that the mask allows, in f64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, h, t in np.ndindex(q.shape[:3]):
        allowed = np.flatnonzero(mask[b % len(mask), 0, t])
        weights = np.exp(scale * k[b, h, allowed] @ q[b, h, t])
        out[b, h, t] = weights @ v[b, h, allowed] / weights.sum()
    return out


@pytest.mark.parametrize("rows", [1, B])
def test_equals_softmax_over_what_the_mask_allows(rows: int):
    q, k, v = draw(B, H, T, K), draw(B, H, S, K, seed=1), draw(B, H, S, K, seed=2)
    mask = np.random.default_rng(0).random((rows, 1, T, S)) < 0.5
    mask[..., 0] = True
    out = attention(q, k, v, jnp.asarray(mask), scale=0.7)
    np.testing.assert_allclose(out, reference(q, k, v, mask, 0.7), rtol=1e-5, atol=1e-6)


def test_a_mask_that_shows_later_tokens_is_honoured():
    q, k, v = (draw(B, H, 40, K, seed=i) for i in range(3))
    for mask in (np.ones((1, 1, 40, 40), bool), np.tri(40, dtype=bool)[None, None].swapaxes(2, 3)):
        out = attention(q, k, v, jnp.asarray(mask), scale=0.5)
        np.testing.assert_allclose(out, reference(q, k, v, mask, 0.5), rtol=1e-5, atol=1e-6)


def test_without_a_mask_it_is_causal():
    q, k, v = (draw(B, H, T, K, seed=i) for i in range(3))
    out = attention(q, k, v, None, scale=0.5)
    np.testing.assert_allclose(out, reference(q, k, v, np.tri(T, dtype=bool)[None, None], 0.5), rtol=1e-5, atol=1e-6)


def whole(q, k, v, mask, scale):
    """All scores at once, with autodiff's backward pass."""
    scores = jnp.einsum("BHTK,BHSK->BHTS", q, k) * scale
    return jnp.einsum("BHTS,BHSK->BHTK", jax.nn.softmax(jnp.where(mask, scores, -1e9)), v)


@pytest.mark.parametrize("length", [1, 32, 33, 130])
@pytest.mark.parametrize("kind", ["plain", "padding", "segments"])
def test_causal_in_blocks_has_the_values_and_gradients_of_the_whole(length: int, kind: str):
    q, k, v, d_out = (draw(2, 2, length, K, seed=i) for i in range(4))
    slots = jnp.arange(length)
    # Padding on the left attends to itself, and a segment is a third of the row.
    group = {"plain": slots < 0, "padding": slots < length // 4, "segments": slots // (length // 3 + 1)}[kind]
    segment_ids = jnp.stack([group, group[::-1]]).astype(jnp.int32)
    mask = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]

    @partial(jax.jit, static_argnums=0)
    def both(attend, seen: jax.Array | None) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, seen, scale=0.8), q, k, v)
        return out, pull(d_out)

    blocks = both(attention, None if kind == "plain" else segment_ids)
    for some, all in zip(*map(jax.tree.leaves, (blocks, both(whole, mask & jnp.tri(length, dtype=bool)))), strict=True):
        np.testing.assert_allclose(some, all, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("length", [1, 33, 130])
def test_dropout_in_blocks_has_the_values_and_gradients_of_the_whole(length: int, packed: bool):
    shape, rate = (2, 2, length, length), 0.4
    q, k, v, d_out = (draw(*shape, seed=i) for i in range(4))
    segment_ids = jnp.broadcast_to(jnp.arange(length) // (length // 3 + 1), (2, length))
    drop = partial(attention, seen=segment_ids if packed else None, scale=0.2, dropout_rate=rate)
    drop = partial(drop, dropout_key=jax.random.key(7))
    mask = jnp.tri(length, dtype=bool)
    mask &= segment_ids[:, None, :, None] == segment_ids[:, None, None, :] if packed else True
    eye = jnp.broadcast_to(jnp.eye(length), shape)  # of which attention makes the weights themselves
    kept = drop(q, k, eye) != 0
    count = int(jnp.broadcast_to(mask, shape).sum())
    assert kept.sum() / count == pytest.approx(1 - rate, abs=5 * (rate * (1 - rate) / count) ** 0.5)

    def dropped(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return (whole(q, k, eye, mask, 0.2) * kept / (1 - rate)) @ v

    for attend in (drop, jax.jit(drop)):
        (out, pull), (all_out, all_pull) = (jax.vjp(one, q, k, v) for one in (attend, dropped))
        for some, all in zip((out, *pull(d_out)), (all_out, *all_pull(d_out)), strict=True):
            np.testing.assert_allclose(some, all, rtol=1e-4, atol=1e-5)


def in_half(packed: bool, dropped: bool) -> Callable[[jax.Array], jax.Array]:
    """Return attention of (1, 1, 512, K) queries that are keys and values, too."""
    segment_ids, key = (jnp.ones((1, 512), jnp.int32) if packed else None), jax.random.key(0)
    return lambda q: attention(q, q, q, segment_ids, scale=1.0, dropout_rate=0.1 * dropped, dropout_key=key)


@pytest.mark.usefixtures("unchecked_types")  # the shapes that `make_jaxpr` gives are no arrays
@pytest.mark.parametrize("dropped", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_half_of_the_scores_are_never_computed(packed: bool, dropped: bool):
    attend = in_half(packed, dropped)
    program = jax.jit(jax.grad(lambda q: attend(q).sum())).lower(draw(1, 1, 512, K)).as_text()
    assert "128x512xf32" in program and "512x512x" not in program


@pytest.mark.parametrize("dropped", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_no_weights_are_kept_for_the_backward_pass(packed: bool, dropped: bool):
    q = draw(1, 1, 512, K)
    kept = jax.eval_shape(lambda q: jax.vjp(in_half(packed, dropped), q)[1], q)
    assert sum(leaf.size for leaf in jax.tree.leaves(kept)) <= 5 * q.size


@pytest.mark.parametrize("length", [5, 70])
def test_the_gradients_of_bf16_are_close(length: int):
    q, k, v, d_out = (draw(1, 2, length, K, seed=i) for i in range(4))

    @partial(jax.jit, static_argnums=0)
    def gradients(dtype: jnp.dtype) -> tuple[jax.Array, ...]:
        _, pull = jax.vjp(lambda *qkv: attention(*qkv, None, scale=0.8), *(x.astype(dtype) for x in (q, k, v)))
        return pull(d_out.astype(dtype))

    for close, exact in zip(gradients(jnp.bfloat16), gradients(jnp.float32), strict=True):
        assert close.dtype == jnp.bfloat16
        # Each of a few roundings is up to 2^-9 of what is rounded.
        assert jnp.linalg.norm(close - exact) < 2**-6 * jnp.linalg.norm(exact)


def test_a_row_that_may_attend_to_nothing_is_finite_and_so_is_its_gradient():
    q, k, v = (draw(1, 1, T, K, seed=i) for i in range(3))
    mask = jnp.tri(T, dtype=bool)[None, None].at[:, :, 2].set(False)
    out, gradients = jax.value_and_grad(lambda q, k, v: attention(q, k, v, mask, scale=1.0).sum(), (0, 1, 2))(q, k, v)
    assert all(jnp.isfinite(x).all() for x in (out, *gradients))


def test_scores_of_bf16_inputs_are_f32():
    # The scores are 512 and 514, which is 512 in bf16: the weights would be equal.
    q = k = jnp.full((1, 1, 2, 2), 16, jnp.bfloat16)
    k = k.at[0, 0, 1, 0].set(16.125)
    v = jnp.array([0, 1], jnp.bfloat16).reshape(1, 1, 2, 1) * jnp.ones(2, jnp.bfloat16)
    out = attention(q, k, v, None, scale=1.0)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out[0, 0, 1, 0].astype(float), 1 / (1 + np.exp(-2)), rtol=2**-8)


def test_dropout_of_weights_keeps_the_mean():
    q, k, v = (draw(1, 1, T, K, seed=i) for i in range(3))
    keys = jax.random.split(jax.random.key(3), 4096)

    @jax.jit
    @jax.vmap
    def drop(key: jax.Array) -> jax.Array:
        return attention(q, k, v, None, scale=1.0, dropout_rate=0.3, dropout_key=key)

    dropped = drop(keys)
    error = dropped.std(0) / len(keys) ** 0.5
    # Five standard errors of the mean; the keys are fixed, so it does not fail by chance.
    assert (jnp.abs(dropped.mean(0) - attention(q, k, v, None, scale=1.0)) <= 5 * error).all()
    assert (error > 0).all()


def test_dropout_needs_a_key():
    q, k, v = (draw(B, H, T, K, seed=i) for i in range(3))
    assert (attention(q, k, v, None, scale=1.0, dropout_rate=0.9) == attention(q, k, v, None, scale=1.0)).all()
