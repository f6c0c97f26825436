"""The model's outputs that objectives use: the scores of a text, the log-probabilities of its tokens."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxgpt.model.gpt import GPT, applied
from jaxgpt.objectives.cross_entropy import map_logits
from jaxgpt.objectives.vocabulary import log_sum_exp, logits_of


def last_scores(
    model: GPT,
    params: Any,
    tokens: Int[Array | np.ndarray, "B T"],
    last: Int[Array | np.ndarray, " B"],
    key: Array | None = None,
) -> Float[Array, "B N"]:
    """Return the scores of each row at its column `last`, in f32.

    Args:
        model: one whose config has labels.
        params: its parameters.
        tokens: ids, padded on the right.
        last: column of each row's last real token. No other token goes through the head, and what stands behind it
            does not matter, as attention is causal.
        key: of dropout; without one nothing is dropped.
    """
    apply = applied(model, params)
    hidden, _ = apply(tokens, method="hidden", **dropout(key))
    return apply(jnp.take_along_axis(hidden, last[:, None, None], axis=1), method="scores")[:, 0]


def sequence_log_probs(
    model: GPT,
    params: Any,
    tokens: Int[Array | np.ndarray, "B T"],
    targets: Int[Array | np.ndarray, "B T"],
    weights: Float[Array | np.ndarray, "B T"],
    key: Array | None = None,
) -> Float[Array, " B"]:
    """Return the log-probability of each row's targets, times their weights, summed over the row."""
    apply = applied(model, params)
    hidden, _ = apply(tokens, method="hidden", **dropout(key))
    return (map_logits(token_log_probs, hidden, apply(method="head"), jnp.asarray(targets)) * weights).sum(-1)


def token_log_probs(logits: Float[Array, "B T V"], targets: Int[Array | np.ndarray, "B T"]) -> Float[Array, "B T"]:
    """Return each target's log-probability, in f32."""
    logits = logits.astype(jnp.float32)
    return logits_of(jnp.asarray(targets), logits) - log_sum_exp(logits)


def dropout(key: Array | None) -> dict[str, Any]:
    """Return the model's arguments for dropout with this key, or for none."""
    return {"deterministic": key is None, "rngs": None if key is None else {"dropout": key}}
