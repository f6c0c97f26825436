"""Cross-entropy from hidden states, a part of them at a time: the logits of a batch are training's largest array."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxgpt.model.linear import wide_product
from jaxgpt.objectives.vocabulary import (
    COLUMNS,
    EACH,
    by_vocabulary,
    is_target,
    log_sum_exp,
    logits_of,
    own_logits,
    own_rows,
)
from jaxgpt.parallel import TENSOR, total

# Rows are taken in so many parts that a part's logits stay below this, but not in more: parts run one after another.
PART_BYTES = 64 * 2**20
MOST_PARTS = 16


@jax.custom_vjp
def cross_entropy(
    x: Float[Array, "B T D"], head: Float[Array, "V D"], targets: Int[Array, "B T"], weights: Float[Array, "B T"]
) -> Float[Array, ""]:
    """Return the weighted sum of -log softmax(head · x) at the targets, in nats.

    The loss is a sum, so its gradient is known, but for one factor, as soon as a part's logits are. It is taken then:
    no logits are kept for the backward pass or computed again in it, as checkpointing would.

    Args:
        x: hidden states; in their dtype the products are computed, and accumulated in f32.
        head: the matrix that makes logits of them.
        targets: ids.
        weights: of each target's loss.
    """
    return _sum(x, head, targets, weights, gradient=False)[0]


def _forward(x: Array, head: Array, targets: Array, weights: Array) -> tuple[Array, tuple[Array, ...]]:
    return _sum(x, head, targets, weights, gradient=True)


def _backward(kept: tuple[Array, ...], d_out: Array) -> tuple[Array | None, ...]:
    d_x, d_head, losses = kept
    return (d_out * d_x).astype(d_x.dtype), d_out * d_head, None, d_out * losses


cross_entropy.defvjp(_forward, _backward)


def _sum(x: Array, head: Array, targets: Array, weights: Array, *, gradient: bool) -> tuple[Array, tuple[Array, ...]]:
    """Return the sum and, if asked for, its derivatives by x, head and weights."""
    derivatives = (EACH, COLUMNS, EACH) if gradient else ()
    own = by_vocabulary(partial(_own_sum, gradient=gradient), (EACH, COLUMNS, EACH, EACH), (EACH, derivatives))
    return own(x, head, targets, weights)


def _own_sum(
    x: Array, head: Array, targets: Array, weights: Array, *, gradient: bool
) -> tuple[Array, tuple[Array, ...]]:
    length = x.shape[1]
    matrix = own_rows(head, x.dtype)

    def part(d_head: Array, of_part: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        x, targets, weights = of_part
        logits = jnp.einsum("BTD,VD->BTV", x, matrix, preferred_element_type=jnp.float32)
        logits = own_logits(logits, len(head))
        log_sum = log_sum_exp(logits)
        losses = log_sum - logits_of(targets, logits)
        if not gradient:
            return d_head, (losses,)
        right = is_target(targets, logits)
        d_logits = (jnp.exp(logits - log_sum[..., None]) - right) * weights[..., None]
        d_logits = d_logits.astype(x.dtype)
        d_x = jnp.einsum("BTV,VD->BTD", d_logits, matrix)
        # The narrow operand on the left: see `jaxgpt.model.linear.product`.
        d_head += jnp.einsum("BTD,BTV->DV", x, d_logits, preferred_element_type=jnp.float32)
        return d_head, (losses, d_x)

    count = _parts(targets, matrix)
    start = jnp.zeros(matrix.shape[::-1] if gradient else (), jnp.float32)
    d_head, results = jax.lax.scan(part, start, tuple(_cut(rows, count) for rows in (x, targets, weights)))
    losses, *d_x = (_join(rows, length) for rows in results)
    loss = (losses * weights).sum()
    if not gradient:
        return loss, ()
    back = jax.linear_transpose(partial(own_rows, dtype=jnp.float32), jax.ShapeDtypeStruct(head.shape, jnp.float32))
    return loss, (*total(d_x, TENSOR), *(d.astype(head.dtype) for d in back(d_head.T)), losses)


def map_logits(
    function: Callable[..., Any], x: Float[Array, "B T D"], head: Float[Array, "V D"], targets: Int[Array, "B T"]
) -> Any:
    """Apply a function to logits, a part of them at a time; a backward pass computes them again.

    Args:
        function: (logits (B, P, V) in f32, targets (B, P)) → a tree of arrays (B, P). On a mesh it has the logits of a
            part of the vocabulary, and asks by the functions of `jaxgpt.objectives.vocabulary`.
        x: hidden states; in their dtype the products are computed, and accumulated in f32.
        head: the matrix that makes logits of them.
        targets: ids.

    Returns:
        The function's arrays, (B, T).
    """

    return by_vocabulary(partial(_map_own_logits, function), (EACH, COLUMNS, EACH), EACH)(x, head, targets)


def _map_own_logits(function: Callable[..., Any], x: Array, head: Array, targets: Array) -> Any:
    matrix = own_rows(head, x.dtype)

    def part(x: Array, targets: Array) -> Any:
        return function(own_logits(wide_product("BTD,VD->BTV", x, matrix), len(head)), targets)

    if (count := _parts(targets, matrix)) == 1:
        return part(x, targets)
    cut = _cut(x, count), _cut(targets, count)
    found = jax.lax.map(jax.checkpoint(lambda rows: part(*rows)), cut)
    return jax.tree.map(lambda rows: _join(rows, x.shape[1]), found)


def _parts(targets: Array, matrix: Array) -> int:
    """Return in how many parts to take the columns of rows, so that a part's logits are not large."""
    return min(max(-(-4 * targets.size * len(matrix) // PART_BYTES), 1), MOST_PARTS, targets.shape[1])


def _cut(rows: Array, count: int) -> Array:
    """Return parts of neighbouring columns, one after another in a new first axis, the last one padded."""
    size = -(-rows.shape[1] // count)
    padded = jnp.pad(rows, ((0, 0), (0, count * size - rows.shape[1]), *((0, 0),) * (rows.ndim - 2)))
    return jnp.moveaxis(padded.reshape(rows.shape[0], count, size, *rows.shape[2:]), 1, 0)


def _join(parts: Array, length: int) -> Array:
    """Return the rows that were cut."""
    rows = jnp.moveaxis(parts, 0, 1)
    return rows.reshape(rows.shape[0], -1, *rows.shape[3:])[:, :length]
