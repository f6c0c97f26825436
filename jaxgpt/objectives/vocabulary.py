"""What is asked of logits where each device along `tensor` computes those of its own part of the vocabulary.

Devices hold columns of the head, as the vocabulary seldom divides, and get rows for them (`own_rows`), of which the
last may pad it: their logits stand for -∞. No logits are sent, but their largest, sums, and those of the targets
(Shoeybi et al. 2019, section 3). On one device, and outside of `by_vocabulary`, all is as its first line says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from jaxgpt.devices import platform
from jaxgpt.parallel import TENSOR, columns_in_order, size, with_tensor

EACH, COLUMNS = PartitionSpec(), PartitionSpec(None, TENSOR)
# For -∞, of which a product with 0 would be NaN.
LEAST = -1e30
# Rows of the head that a device's products take well: XLA for GPUs would pad, and so copy, logits instead.
LANES = 128


def by_vocabulary(function: Callable[..., Any], into: Any, out: Any) -> Callable[..., Any]:
    """Return a function that each device along `tensor` computes for its part of the vocabulary."""
    return with_tensor(function, into, out) if size(TENSOR) > 1 else function


def own_rows(columns: Float[Array, "V C"], dtype: DTypeLike) -> Float[Array, "P D"]:
    """Return this device's rows of a matrix of which it holds columns, sent in `dtype`; the last ones may be zeros."""
    count, each = size(TENSOR), 1 if platform() == "cpu" else LANES
    sent = columns.astype(dtype)
    if padding := -len(sent) % (count * each):
        sent = jnp.pad(sent, ((0, padding), (0, 0)))
    return sent if count == 1 else columns_in_order(jax.lax.all_to_all(sent, TENSOR, 0, 1, tiled=True))


def own_logits(logits: Float[Array, "B T P"], vocab_size: int) -> Float[Array, "B T P"]:
    """Return the products with `own_rows` as logits."""
    if logits.shape[-1] * _devices() == vocab_size:
        return logits
    return jnp.where(_ids(logits) < vocab_size, logits, LEAST)


def log_sum_exp(logits: Float[Array, "B T P"]) -> Float[Array, "B T"]:
    """Return `logsumexp(logits)`."""
    if _devices() == 1:
        return jax.nn.logsumexp(logits, axis=-1)
    largest = jax.lax.pmax(jax.lax.stop_gradient(logits.max(-1)), TENSOR)
    return largest + jnp.log(sum_of(jnp.exp(logits - largest[..., None])))


def sum_of(x: Float[Array, "B T P"]) -> Float[Array, "B T"]:
    """Return `x.sum(-1)`."""
    return x.sum(-1) if _devices() == 1 else jax.lax.psum(x.sum(-1), TENSOR)


def logits_of(targets: Int[Array, "B T"], logits: Float[Array, "B T P"]) -> Float[Array, "B T"]:
    """Return `logits[targets]`."""
    if _devices() == 1:
        return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return sum_of(jnp.where(is_target(targets, logits), logits, 0))


def is_target(targets: Int[Array, "B T"], logits: Float[Array, "B T P"]) -> Bool[Array, "B T P"]:
    """Return which of these logits are the targets'."""
    return _ids(logits) == targets[..., None]


def argmax(logits: Float[Array, "B T P"]) -> Int[Array, "B T"]:
    """Return `logits.argmax(-1)`."""
    best = logits.argmax(-1)
    if _devices() == 1:
        return best
    largest = logits.max(-1)
    there = largest == jax.lax.pmax(largest, TENSOR)
    return jax.lax.pmin(jnp.where(there, _ids(logits)[best], jnp.iinfo(best.dtype).max), TENSOR)


def _devices() -> int:
    """Return among how many devices the vocabulary is divided here."""
    return size(TENSOR) if TENSOR in jax.sharding.get_abstract_mesh().manual_axes else 1


def _ids(logits: Float[Array, "B T P"]) -> Int[Array, " P"]:
    """Return the ids that these logits are of."""
    places = jnp.arange(logits.shape[-1])
    return places if _devices() == 1 else places + jax.lax.axis_index(TENSOR) * len(places)
