"""Divergence: estimates against the exact sum, and the coefficient against the paper's formula."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.rl.config import PPOConfig
from jaxgpt.rl.kl import estimate_kl, next_coefficient


@pytest.fixture(scope="module")
def distributions():
    """Log-probabilities of 5 tokens under a policy and its reference."""
    logits = np.random.default_rng(0).normal(size=(2, 5))
    return np.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), np.float32)


def estimate(estimator, policy, reference):
    return np.asarray(estimate_kl(estimator, jnp.asarray(policy)[None], jnp.asarray(reference)[None]))[0]


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_estimates_have_the_divergence_as_their_mean(distributions, estimator):
    policy, reference = distributions
    estimates = estimate(estimator, policy, reference)
    exact = (np.exp(policy) * (policy - reference)).sum()
    np.testing.assert_allclose((np.exp(policy) * estimates).sum(), exact, rtol=1e-5)


def test_k1_is_the_difference_and_k3_is_never_negative(distributions):
    policy, reference = distributions
    np.testing.assert_array_equal(estimate("k1", policy, reference), policy - reference)
    ratio = np.exp(reference - policy)
    k3 = estimate("k3", policy, reference)
    np.testing.assert_allclose(k3, ratio - 1 - np.log(ratio), rtol=1e-4, atol=1e-6)
    assert (k3 >= 0).all()
    assert not estimate("k3", policy, policy).any()


@pytest.mark.parametrize(
    ("measured", "factor"),
    [(6.0, 1), (6.6, 1 + 0.1 * 0.256), (5.7, 1 - 0.05 * 0.256), (60.0, 1 + 0.2 * 0.256), (-1.0, 1 - 0.2 * 0.256)],
)
def test_the_coefficient_follows_the_error_that_is_cut(measured, factor):
    found = next_coefficient(0.3, measured, target=6.0, horizon=10_000.0, responses=2560)
    assert found == pytest.approx(0.3 * factor)


def test_the_shortest_horizon_that_is_taken_leaves_the_coefficient_positive():
    """Below it a policy would be rewarded for leaving its reference."""
    config = PPOConfig(kl_target=6.0, kl_horizon=12.801)
    assert next_coefficient(0.3, 0.0, target=6.0, horizon=config.horizon, responses=config.rollout_size) > 0


@pytest.mark.parametrize("measured", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_leaves_the_coefficient(measured):
    assert next_coefficient(0.3, measured, target=6.0, horizon=100.0, responses=50) == 0.3
