"""Warmup-cosine schedule, clipping by global norm, and AdamW: one chain, read from top to bottom."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import path_aware_map
from jax import Array

from jaxgpt.model.atlas import parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.train.config import OptimizerConfig


def adamw(config: OptimizerConfig, model: GPTConfig) -> optax.GradientTransformationExtraArgs:
    """Build the optimizer of a run (Loshchilov & Hutter 2019); the atlas says which of the model's parameters decay."""
    return optax.chain(
        optax.identity() if config.grad_clip is None else clip(config.grad_clip),
        optax.scale_by_adam(config.beta1, config.beta2),
        optax.add_decayed_weights(config.weight_decay, partial(decays, model)),
        optax.scale_by_learning_rate(schedule(config)),
    )


def clip(most: float) -> optax.GradientTransformationExtraArgs:
    """Scale gradients down to this global norm, by one number; optax's divides by the norm first, into a whole copy.

    A caller who knows the norm may give it to `update`.
    """

    def update(updates: Any, state: Any, params: Any = None, *, norm: Array | None = None, **_: Any) -> tuple[Any, Any]:
        factor = jnp.minimum(1, most / (optax.tree.norm(updates) if norm is None else norm))
        return jax.tree.map(lambda g: factor * g, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def decays(model: GPTConfig, params: Any) -> Any:
    """Return a tree of booleans like `params`, which may be a part of the model's: whether each leaf decays."""
    named = {parameter.path: parameter.row.decay for parameter in parameters(model)}
    # What the model's own rows do not name are adapters, and those are matrices.
    return path_aware_map(lambda path, _: named.get(tuple(map(str, path)), True), params)


def schedule(config: OptimizerConfig) -> optax.Schedule:
    """Return update → learning rate: linear warmup, then half a cosine down to `final_lr`, where it stays.

    The first update already moves: warmup counts from 1 / (warmup + 1).
    """
    start = config.learning_rate / (config.warmup + 1)
    steps = max(config.decay_iters, config.warmup + 1)
    return optax.warmup_cosine_decay_schedule(start, config.learning_rate, config.warmup, steps, config.final_lr)
