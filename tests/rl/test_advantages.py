"""Advantages against plain loops of numpy, and blind to what lies outside the responses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.rl.advantages import explained_variance, gae, group_advantages, token_rewards, whiten

# Prompts and responses of different lengths in rows of 8: first column and length of each response.
SPANS = [(2, 4), (0, 8), (5, 1), (3, 5)]
INSIDE = np.asarray([[start <= column < start + length for column in range(8)] for start, length in SPANS])
MASK = jnp.asarray(INSIDE)


def draw(seed: int, outside: float = 0.0) -> jax.Array:
    """Return random numbers inside the responses, and the same number everywhere else."""
    numbers = np.random.default_rng(seed).normal(size=INSIDE.shape)
    return jnp.asarray(np.where(INSIDE, numbers, outside), jnp.float32)


def inside(x: jax.Array) -> np.ndarray:
    return np.asarray(x, np.float64)[INSIDE]


def outside(x: jax.Array) -> np.ndarray:
    return np.asarray(x)[~INSIDE]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 0.0), (1.0, 1.0)])
def test_gae_is_the_sum_over_later_errors(gamma: float, lam: float):
    rewards, values = draw(0), draw(1)
    advantages, returns = jax.jit(gae, static_argnames=("gamma", "lam"))(rewards, values, MASK, gamma=gamma, lam=lam)
    for row, (start, length) in enumerate(SPANS):
        r, v = (np.append(np.asarray(x, np.float64)[row, start : start + length], 0) for x in (rewards, values))
        errors = r[:-1] + gamma * v[1:] - v[:-1]
        wanted = [
            sum((gamma * lam) ** (later - t) * errors[later] for later in range(t, length)) for t in range(length)
        ]
        found = advantages[row, start : start + length]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(returns[row, start : start + length], wanted + v[:-1], rtol=1e-5, atol=1e-5)
    assert not outside(advantages).any() and not outside(returns).any()


def test_with_lambda_1_returns_are_what_was_got_and_with_0_one_step_is_looked_ahead():
    rewards, values = draw(0), draw(1)
    _, returns = gae(rewards, values, MASK, gamma=1.0, lam=1.0)
    rest = jnp.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(inside(returns), inside(rest), rtol=1e-5, atol=1e-5)
    _, returns = gae(rewards, values, MASK, gamma=1.0, lam=0.0)
    later = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    np.testing.assert_allclose(inside(returns), inside(rewards + later), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [True, False])
def test_whitening_is_over_what_the_mask_leaves(shift: bool):
    x = 3 * draw(0) + 5
    mean = inside(x).mean()
    wanted = (inside(x) - mean) / inside(x).std() + (0 if shift else mean)
    found = whiten(x, MASK, shift=shift)
    np.testing.assert_allclose(inside(found), wanted, rtol=1e-4, atol=1e-5)
    assert not outside(found).any()


def test_whitening_a_single_token_or_equal_ones_is_finite():
    for mask in (jnp.asarray([[False, True, False]]), jnp.ones((1, 3), bool)):
        assert not whiten(jnp.full((1, 3), 2.0), mask).any()


@pytest.mark.parametrize("garbage", [1e9, np.nan, np.inf])
def test_garbage_outside_the_responses_changes_nothing(garbage: float):
    """Bit for bit."""

    def everything(rewards, values):
        advantages, returns = gae(rewards, values, MASK, gamma=0.9, lam=0.8)
        given = token_rewards(jnp.arange(4.0), rewards, MASK, jnp.float32(0.1))
        return advantages, returns, given, whiten(values, MASK), explained_variance(values, rewards, MASK)

    clean = everything(draw(0), draw(1))
    for one, other in zip(clean, everything(draw(0, garbage), draw(1, garbage)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_score_is_the_last_tokens_and_the_divergence_each_ones():
    scores, kl = jnp.asarray([1.0, -2.0, 3.0, 0.0]), draw(0)
    found = token_rewards(scores, kl, MASK, jnp.float32(0.1))
    wanted = -0.1 * np.asarray(kl)
    for row, (start, length) in enumerate(SPANS):
        wanted[row, start + length - 1] += scores[row]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_groups_are_measured_against_themselves():
    scores = np.array([1, 2, 3, 10, 10, 10, -5, 0, 5], np.float32)
    groups = scores.reshape(3, 3)
    wanted = (groups - groups.mean(1, keepdims=True)) / (groups.std(1, keepdims=True) + 1e-4)
    found = np.asarray(group_advantages(jnp.asarray(scores), 3)).reshape(3, 3)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert not found[1].any(), "equal scores teach nothing"


def test_explained_variance_is_1_for_what_was_got_and_0_for_a_constant():
    returns = draw(0)
    assert explained_variance(returns, returns, MASK) == 1
    np.testing.assert_allclose(explained_variance(jnp.full_like(returns, 3), returns, MASK), 0, atol=1e-6)
    values = draw(1)
    wanted = 1 - inside(returns - values).var() / inside(returns).var()
    np.testing.assert_allclose(explained_variance(values, returns, MASK), wanted, rtol=1e-5)
