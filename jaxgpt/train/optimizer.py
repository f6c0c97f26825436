"""Warmup-cosine schedule, clipping by global norm, and AdamW: one chain, read from top to bottom."""

import optax

from jaxgpt.model.atlas import map_parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.train.config import OptimizerConfig


def adamw(config: OptimizerConfig, model: GPTConfig) -> optax.GradientTransformation:
    """Build the optimizer of a run (Loshchilov & Hutter 2019); the atlas says which parameters decay."""
    return optax.chain(
        optax.identity() if config.grad_clip is None else optax.clip_by_global_norm(config.grad_clip),
        optax.scale_by_adam(config.beta1, config.beta2),
        optax.add_decayed_weights(config.weight_decay, map_parameters(model, lambda p: p.row.decay)),
        optax.scale_by_learning_rate(schedule(config)),
    )


def schedule(config: OptimizerConfig) -> optax.Schedule:
    """Return update → learning rate: linear warmup, then half a cosine down to `final_lr`, where it stays.

    The first update already moves: warmup counts from 1 / (warmup_iters + 1).
    """
    start = config.learning_rate / (config.warmup_iters + 1)
    steps = max(config.decay_iters, config.warmup_iters + 1)
    return optax.warmup_cosine_decay_schedule(start, config.learning_rate, config.warmup_iters, steps, config.final_lr)
