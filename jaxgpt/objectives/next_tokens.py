"""The objective of pretraining and of instruction tuning: the cross-entropy of each next token."""

from functools import partial

from jax import Array

from jaxgpt.data.batches import Batch
from jaxgpt.model.gpt import GPT, applied
from jaxgpt.objectives.base import Objective, Params, Sums
from jaxgpt.objectives.cross_entropy import cross_entropy
from jaxgpt.objectives.outputs import dropout


def pretrain(model: GPT) -> Objective:
    """Next-token cross-entropy, in nats per token."""
    return partial(_next_tokens, model)


def _next_tokens(model: GPT, params: Params, batch: Batch, key: Array | None) -> Sums:
    apply = applied(model, params)
    hidden, _ = apply(
        batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids, method="hidden", **dropout(key)
    )
    loss = cross_entropy(hidden, apply(method="head"), batch.targets, batch.weights)
    return Sums(loss, batch.weights.sum())
