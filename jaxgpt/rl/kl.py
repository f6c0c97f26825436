"""The KL divergence of a policy from its reference, token by token, and the coefficient that holds it near."""

import math
from typing import TypeVar

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxgpt.rl.config import KL_ERROR, KLEstimator

Number = TypeVar("Number", float, Array)


def estimate_kl(
    estimator: KLEstimator, log_probs: Float[Array, "B T"], reference: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """Estimate KL(policy, reference) from one sample of the policy for each token.

    Both are unbiased (Schulman 2020, "Approximating KL divergence"): k1 is the difference of the log-probabilities;
    k3 adds r - 1, r = reference / policy, whose mean is 0, and so is never negative.

    Args:
        estimator: which.
        log_probs: of the sampled tokens under the policy.
        reference: of the same tokens under the reference.
    """
    log_ratio = reference - log_probs
    return -log_ratio if estimator == "k1" else jnp.expm1(log_ratio) - log_ratio


def next_coefficient(coefficient: Number, measured: float, *, target: float, horizon: float, responses: int) -> Number:
    """Return the coefficient after `responses` more (Ziegler et al. 2019, section 2.2).

    It grows or shrinks with the relative error, cut to ±`KL_ERROR`: by that part of itself in `horizon` responses, so
    it stays positive where `horizon` is above `KL_ERROR` · `responses`. A divergence that is not finite leaves it as it
    is.
    """
    if not math.isfinite(measured):
        return coefficient
    error = min(max(measured / target - 1, -KL_ERROR), KL_ERROR)
    return coefficient * (1 + error * responses / horizon)
