"""Experience: what one rollout yields, and in minibatches what an update of PPO reads."""

from __future__ import annotations

from collections.abc import Iterator

import flax.struct
import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxgpt.rl.config import PPOConfig


@flax.struct.dataclass
class Experience:
    """Prompts with the responses that a policy gave: numpy arrays as made here, jax arrays once on a device.

    What stands outside the responses is 0 and is never read. "Old" is of the policy that gave the responses.

    Attributes:
        tokens: (B, T) int32, prompt and response, padded on the right.
        targets: (B, T) int32, the id that follows each.
        weights: (B, T) f32, 1 where the target belongs to the response, its end token included, else 0.
        old_log_probs: (B, T) f32, the target's log-probability in the distribution it was sampled from.
        reference_log_probs: (B, T) f32, the same of the reference.
        advantages: (B, T) f32, how much better the target was than what was expected.
        old_values: (B, T) f32, what was expected before the target; None where nothing was (GRPO).
        returns: (B, T) f32, what should have been; None with them.
    """

    tokens: Int[Array | np.ndarray, "B T"]
    targets: Int[Array | np.ndarray, "B T"]
    weights: Float[Array | np.ndarray, "B T"]
    old_log_probs: Float[Array | np.ndarray, "B T"]
    reference_log_probs: Float[Array | np.ndarray, "B T"]
    advantages: Float[Array | np.ndarray, "B T"]
    old_values: Float[Array | np.ndarray, "B T"] | None = None
    returns: Float[Array | np.ndarray, "B T"] | None = None


def minibatches(experience: Experience, config: PPOConfig, *, seed: int, iteration: int) -> Iterator[Experience]:
    """Yield an iteration's minibatches: each epoch has all rows once, in an order of its own."""
    for epoch in range(config.epochs):
        order = np.random.default_rng([seed, iteration, epoch]).permutation(len(experience.tokens))
        for rows in np.split(order, config.minibatches):
            yield jax.tree.map(lambda x, rows=rows: x[rows], experience)


def empty_experience(rows: int, length: int, *, values: bool) -> Experience:
    """Return a minibatch of zeros: the shape of all others, with values as PPO has them, or without."""
    ids, numbers = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.float32)
    return Experience(ids, ids, numbers, numbers, numbers, numbers, *((numbers, numbers) if values else ()))
