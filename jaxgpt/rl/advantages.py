"""From scores of responses to advantages of tokens, exact whatever lies outside the responses.

Columns are inputs, as in `Experience`: where `mask` is true, the model chose the token that follows. A response's
columns are neighbours.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

EPSILON = 1e-8


def token_rewards(
    scores: Float[Array, " B"],
    kl: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    coefficient: Float[Array, ""],
) -> Float[Array, "B T"]:
    """Give each token its divergence, times -coefficient, and a response's last token also the score."""
    ends = mask & ~jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
    return jnp.where(mask, -coefficient * kl, 0) + jnp.where(ends, scores[:, None], 0)


def gae(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    gamma: float,
    lam: float,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Estimate advantages (Schulman et al. 2016, equation 16); nothing is expected after a response's last token.

    Returns:
        Advantages, and returns: what the values should have been. Both 0 outside the responses.
    """
    rewards, values = (jnp.where(mask, x, 0) for x in (rewards, values))
    errors = rewards + gamma * jnp.pad(values[:, 1:], ((0, 0), (0, 1))) - values

    def back(later: Array, column: tuple[Array, Array]) -> tuple[Array, Array]:
        error, inside = column
        advantage = jnp.where(inside, error + gamma * lam * later, 0)
        return advantage, advantage

    zeros = jnp.zeros_like(errors[:, 0])
    advantages = jax.lax.scan(back, zeros, (errors.T, mask.T), reverse=True)[1].T
    return advantages, advantages + values


def group_advantages(scores: Float[Array, " B"], group_size: int) -> Float[Array, " B"]:
    """Measure each response against the others to its prompt, which are its neighbours (Shao et al. 2024)."""
    groups = scores.reshape(-1, group_size)
    # A group whose scores are all the same teaches nothing; the larger epsilon keeps rounding from being blown up.
    scale = groups.std(axis=1, keepdims=True) + 1e-4
    return ((groups - groups.mean(axis=1, keepdims=True)) / scale).reshape(-1)


def whiten(x: Float[Array, "B T"], mask: Bool[Array, "B T"], *, shift: bool = True) -> Float[Array, "B T"]:
    """Scale to variance 1 and, with `shift`, mean 0, over all that the mask leaves; 0 elsewhere."""
    mean = jnp.mean(x, where=mask)
    white = (x - mean) * jax.lax.rsqrt(jnp.var(x, where=mask) + EPSILON)
    return jnp.where(mask, white if shift else white + mean, 0)


def explained_variance(
    values: Float[Array, "B T"], returns: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, ""]:
    """Return the part of the returns' variance that the values foresaw: 1 at best, 0 for a constant."""
    return 1 - jnp.var(returns - values, where=mask) / jnp.var(returns, where=mask)
