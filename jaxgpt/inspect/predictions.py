"""Predictions of a model: each next token's probability, before and after sampling's filters, and a text's loss."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxgpt import checks
from jaxgpt.decode.sampling import filter_logits
from jaxgpt.decode.sampling_config import Sampling
from jaxgpt.errors import UsageError
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT, applied
from jaxgpt.objectives.outputs import token_log_probs as log_probs_of


@dataclass(frozen=True)
class NextToken:
    """One row of `next_token_table`.

    Attributes:
        token: id.
        probability: softmax of the logits.
        sampled: probability with which sampling chooses it.
    """

    token: int
    probability: float
    sampled: float


def next_token_table(
    logits: Float[Array | np.ndarray, " V"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    *,
    count: int = 10,
) -> list[NextToken]:
    """Return the `count` likeliest next tokens, with their probabilities before and after sampling's settings.

    Args:
        logits: of one position.
        temperature, top_k, top_p, min_p: see `Sampling`; a temperature of 0 is certain of the likeliest.
        count: rows at most.

    Raises:
        UsageError: a setting out of range.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p)
    logits = jnp.asarray(logits, jnp.float32)
    before = jax.nn.softmax(logits)
    if sampling.greedy:
        after = jax.nn.one_hot(logits.argmax(), len(logits))
    else:
        after = jax.nn.softmax(filter_logits(sampling, logits[None])[0])
    best = np.argsort(-np.asarray(before), kind="stable")[: checks.whole("count", count, 1)]
    return [NextToken(int(i), float(before[i]), float(after[i])) for i in best]


def token_log_probs(config: GPTConfig, params: Any, tokens: checks.Ids) -> Float[np.ndarray, " M"]:
    """Return the log-probability of each token of a text but the first, given those before it.

    Their negative mean is the text's loss, and `exp` of that its perplexity.

    Raises:
        UsageError: fewer than two tokens, more than the context, or an id that the model has not.
    """
    ids = checks.ids("tokens", tokens)
    if not 2 <= len(ids) <= config.n_positions + 1:
        raise UsageError(f"tokens: {len(ids)} of them; there must be 2 to {config.n_positions + 1}")
    checks.below("tokens", ids, config.vocab_size)
    return np.asarray(_token_log_probs(GPT(config), params, jnp.asarray(ids, jnp.int32)[None]))[0]


@partial(jax.jit, static_argnames="model")
def _token_log_probs(model: GPT, params: Any, tokens: Array) -> Array:
    logits, _ = applied(model, params)(tokens[:, :-1])
    return log_probs_of(logits, tokens[:, 1:])
