"""New parameters for a trained model: rows for new tokens, and a head for labels. Or fewer: without that head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax import Array
from jaxtyping import Float

from jaxgpt.model.atlas import Parameter, axes, map_parameters, parameters
from jaxgpt.model.config import VALUE, GPTConfig
from jaxgpt.parallel import seed_key

Drawn = Literal["adapters", "head", "vocabulary"]
"""What may be drawn when a stage begins."""


def key_of(seed: int, drawn: Drawn) -> Array:
    """Return the key of what is drawn when a stage begins: no other draw's, and no update's.

    An update folds its number, counted from 0 up, into the seed's key, for dropout. These numbers come from the top.
    """
    return jax.random.fold_in(seed_key(seed), 2**32 - 1 - get_args(Drawn).index(drawn))


def extend_vocabulary(config: GPTConfig, params: Any, vocab_size: int, key: Array) -> tuple[GPTConfig, Any]:
    """Return a model with at least `vocab_size` ids; existing rows are unchanged, bit for bit.

    New rows are drawn from a normal distribution with the mean and the spread of the existing ones, so that new tokens
    begin as one more of them (Hewitt 2021): adapters and the last layers, which leave the table alone, can tell them
    apart.
    """
    if vocab_size <= config.vocab_size:
        known = config.tokenizer_vocab_size
        return config if known is None else replace(config, tokenizer_vocab_size=max(known, vocab_size)), params
    leaves: dict[Any, Any] = flatten_dict(params)
    count = vocab_size - config.vocab_size
    grown = [parameter.path for parameter in parameters(config) if axes(parameter.row.pattern)[0] == "V"]

    def extend(parameter: Parameter) -> Array:
        leaf = leaves[parameter.path]
        if parameter.path not in grown:
            return leaf
        existing = leaf.astype(jnp.float32)
        own = jax.random.fold_in(key, grown.index(parameter.path))
        rows = existing.mean(0) + existing.std(0) * jax.random.normal(own, (count, config.n_embd), jnp.float32)
        return jnp.concatenate([leaf, rows.astype(leaf.dtype)])

    return replace(config, vocab_size=vocab_size, tokenizer_vocab_size=None), map_parameters(config, extend)


def new_score(config: GPTConfig, key: Array, *, zero: bool = False) -> Float[Array, "N D"]:
    """Return a new head for a config's labels, or one whose scores are all 0."""
    shape = (len(config.labels or ()), config.n_embd)
    deviation = 0.0 if zero else config.initializer_range
    return deviation * jax.random.normal(key, shape, jnp.float32)


def without_values(config: GPTConfig, params: Mapping[str, Any]) -> tuple[GPTConfig, Mapping[str, Any]]:
    """Return a policy as the language model that it is, without the head that PPO trained beside it."""
    if config.labels != VALUE:
        return config, params
    return replace(config, labels=None), {name: leaf for name, leaf in params.items() if name != "score"}
