"""A policy's view of responses, and PPO's objective: what is minimised in an update.

The model is one trunk with two heads: the language model's, which is the policy, and for PPO a score of one label,
which is the value. Nothing is dropped, whatever the config's rates: the ratio to the old policy would be noise.
"""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxgpt.errors import UsageError
from jaxgpt.model.gpt import GPT, applied
from jaxgpt.objectives.base import Objective, Params, Sums
from jaxgpt.objectives.cross_entropy import map_logits
from jaxgpt.objectives.vocabulary import log_sum_exp, logits_of, sum_of
from jaxgpt.rl.config import PPOConfig
from jaxgpt.rl.experience import Experience
from jaxgpt.rl.kl import estimate_kl


@flax.struct.dataclass
class View:
    """A model's outputs for the tokens of a sequence.

    Attributes:
        log_probs: (B, T) each target's log-probability.
        entropy: (B, T) of the distribution that the target is from.
        values: (B, T) what is expected before the target; None for a model without a value head.
    """

    log_probs: Float[Array, "B T"]
    entropy: Float[Array, "B T"]
    values: Float[Array, "B T"] | None


def view(
    model: GPT,
    params: Params,
    tokens: Int[Array, "B T"],
    targets: Int[Array, "B T"],
    *,
    temperature: float,
    vocab_size: int | None = None,
) -> View:
    """Read rows that begin at position 0.

    Args:
        model, params: the policy or its reference.
        tokens: inputs.
        targets: the id that follows each.
        temperature, vocab_size: those of `Sampling`, so that probabilities are those that responses are drawn with.
    """
    apply = applied(model, params)
    hidden, _ = apply(tokens, method="hidden")

    read, head = partial(_log_probs_and_entropy, temperature), apply(method="head")[:vocab_size]
    log_probs, entropy = map_logits(read, hidden, head, targets)
    values = None if model.config.labels is None else apply(hidden, method="scores")[..., 0]
    return View(log_probs, entropy, values)


def _log_probs_and_entropy(temperature: float, logits: Array, targets: Array) -> tuple[Array, Array]:
    logits /= temperature
    total = log_sum_exp(logits)
    log_probs = logits_of(targets, logits) - total
    return log_probs, total - sum_of(jnp.exp(logits - total[..., None]) * logits)


def ppo(model: GPT, config: PPOConfig, *, vocab_size: int | None = None) -> Objective:
    """PPO's clipped losses in a mean over the responses' tokens; for GRPO with the divergence in the loss.

    Raises:
        UsageError: PPO has no value head.
    """
    check_value_head(model, config)
    return partial(_ppo, model, config, vocab_size)


def check_value_head(model: GPT, config: PPOConfig) -> None:
    """Raise a UsageError unless the policy has the one label that is the value, where PPO asks for it."""
    labels = model.config.labels
    if config.algorithm == "ppo" and (labels is None or len(labels) != 1):
        raise UsageError(f"the policy's labels are {labels}; ppo needs one, for the value")


def _ppo(
    model: GPT, config: PPOConfig, vocab_size: int | None, params: Params, experience: Experience, key: Array | None
) -> Sums:
    tokens, targets, weights = map(jnp.asarray, (experience.tokens, experience.targets, experience.weights))
    now = view(model, params, tokens, targets, temperature=config.temperature, vocab_size=vocab_size)
    inside, add = partial(_inside, weights), partial(_weighted_sum, weights)
    log_probs, old = inside(now.log_probs), inside(experience.old_log_probs)
    policy, cut = policy_losses(log_probs, old, inside(experience.advantages), clip=config.clip)
    loss = add(policy)
    found = {"policy_loss": policy, "clip_fraction": cut, "approx_kl": estimate_kl("k3", old, log_probs)}
    if config.algorithm == "ppo":
        assert now.values is not None and experience.old_values is not None and experience.returns is not None
        values, before, returns = map(inside, (now.values, experience.old_values, experience.returns))
        found["value_loss"] = value_losses(values, before, returns, clip=config.value_clip)
        loss += config.value_coef * add(found["value_loss"])
    elif config.kl_coef:
        loss += config.kl_coef * add(estimate_kl("k3", log_probs, inside(experience.reference_log_probs)))
    found["entropy"] = now.entropy
    if config.entropy_coef:  # its gradient is as large as the logits
        loss -= config.entropy_coef * add(now.entropy)
    weight = weights.sum()
    return Sums(loss, weight, {name: (add(jax.lax.stop_gradient(x)), weight) for name, x in found.items()})


def _inside(weights: Float[Array, "B T"], x: Array | np.ndarray) -> Float[Array, "B T"]:
    return jnp.where(weights > 0, x, 0)  # not a product: what stands outside may be anything


def _weighted_sum(weights: Float[Array, "B T"], x: Array) -> Float[Array, ""]:
    return (_inside(weights, x) * weights).sum()


def policy_losses(
    log_probs: Float[Array, "B T"], old: Float[Array, "B T"], advantages: Float[Array, "B T"], *, clip: float
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Return each token's loss (Schulman et al. 2017, equation 7), and 1 where clipping has cut its gradient."""
    ratio = jnp.exp(log_probs - old)
    free, clipped = -advantages * ratio, -advantages * jnp.clip(ratio, 1 - clip, 1 + clip)
    return jnp.maximum(free, clipped), (clipped > free).astype(jnp.float32)


def value_losses(
    values: Float[Array, "B T"], old: Float[Array, "B T"], returns: Float[Array, "B T"], *, clip: float | None
) -> Float[Array, "B T"]:
    """Return each token's half squared error, the larger one of the value and of the value that moved by `clip`."""
    free = (values - returns) ** 2
    if clip is None:
        return free / 2
    return jnp.maximum(free, (jnp.clip(values, old - clip, old + clip) - returns) ** 2) / 2
