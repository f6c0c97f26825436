"""A vocabulary that grows: rows for new tokens behind those that the embedding table and the LM head have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax import Array

from jaxgpt.model.atlas import Parameter, axes, map_parameters, parameters
from jaxgpt.model.config import GPTConfig


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
        rows = existing.mean(0) + existing.std(0) * jax.random.normal(own, (count, config.n_embd))
        return jnp.concatenate([leaf, rows.astype(leaf.dtype)])

    return replace(config, vocab_size=vocab_size, tokenizer_vocab_size=None), map_parameters(config, extend)
