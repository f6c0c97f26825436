"""Objectives, which training minimises: pure functions of (parameters, batch, key).

An objective returns sums, never means; only the step divides. So a loss is exact whatever the padding, the
accumulation and the sharding.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, no_type_check

import flax.struct
import jax
from jax import Array
from jaxtyping import Float

from jaxgpt.model.lora import merge
from jaxgpt.model.lora_config import LoRA
from jaxgpt.parallel import shared_key

Params = Any
"""A tree of arrays."""


@no_type_check  # accumulation also asks for its shapes alone
@flax.struct.dataclass
class Sums:
    """The sums of an objective over a batch.

    Attributes:
        loss: () weighted sum of losses; the gradient is taken of this.
        weight: () sum of weights, by which the step divides.
        metrics: what else is worth logging, by its name: a sum, and the sum of weights to divide it by.
    """

    loss: Float[Array, ""]
    weight: Float[Array, ""]
    metrics: Mapping[str, tuple[Float[Array, ""], Float[Array, ""]]] = flax.struct.field(default_factory=dict)


Objective = Callable[[Params, Any, Array | None], Sums]
"""(parameters, batch, random key or None) → sums; without a key nothing is dropped, as in evaluation.

The batch is a record with the rows first in every array: `Batch`, `Labelled`, `Pairs`.
"""


def with_adapters(objective: Objective, lora: LoRA) -> Objective:
    """Return the objective of a tree with adapters, which are merged first."""
    return partial(_merged, objective, lora)


def _merged(objective: Objective, lora: LoRA, params: Params, batch: Any, key: Array | None) -> Sums:
    if key is None:
        return objective(merge(params, lora), batch, None)
    own, rest = jax.random.split(key)
    return objective(merge(params, lora, shared_key(own)), batch, rest)
