"""A matrix as decoding reads it: stored by outputs, as floats or as integers with scales."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer
from jaxtyping import Float, Int, Num

# Rows up to which a CPU multiplies and sums; see `DecodingMatrix.product`.
MOST_ROWS = 32


@flax.struct.dataclass
class DecodingMatrix:
    """A matrix of O outputs and I inputs: in the model's parameters it stands for a kernel (I, O) or a table (V, D).

    Attributes:
        values: (O, I) floats or int8, or (O, I/2) uint8: two integers of 4 bits each, less 8, in a byte. The low bits
            are the first half of the inputs. XLA:CPU would give each of its own int4 a byte.
        scale: (O, G) factors of the integers, one for each of G groups of neighbouring inputs; None for floats.
    """

    values: Num[Array, "O J"]
    scale: Float[Array, "O G"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        outputs, columns = self.values.shape
        return outputs, 2 * columns if self.values.dtype == jnp.uint8 else columns

    def dense(self) -> Float[Array, "O I"]:
        """Return the matrix as floats."""
        return _scaled(self.values, self.scale)

    def rows(self, index: Int[Array, "B T"]) -> Float[Array, "B T I"]:
        """Return the rows at an index, as floats; NaN where there is none."""
        scale = None if self.scale is None else jnp.take(self.scale, index, axis=0)
        return _scaled(jnp.take(self.values, index, axis=0), scale)

    def product(self, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        """Return x W, accumulated and returned in f32.

        A step of decoding reads all weights for a few rows, so how they are read is what it costs. XLA:CPU reads them
        as they lie, and fuses their cast to f32, in a dot of one row with W stored (O, I), and for more rows in a sum
        of products; else it writes copies first. All of GPT-2 124M's products took, in ms on two cores,

            rows   f32 dot   f32 sum   int8 dot   int8 sum
            1      25        266       9          190
            8      66        44        72         29

        and with 32 rows of f32 the sum still took 0.65 of the dot's time. 4 bits took 60 and 115, as their unpacking
        fuses into neither.
        """
        rows = x.reshape(-1, x.shape[-1])
        if jax.default_backend() == "cpu":
            out = self._on_cpu(rows.astype(jnp.float32))
        else:
            out = jnp.matmul(rows, self.dense().astype(x.dtype).T, preferred_element_type=jnp.float32)
        return out.reshape(*x.shape[:-1], -1)

    def _on_cpu(self, rows: Float[Array, "N I"]) -> Float[Array, "N O"]:
        values, scale = self.values, self.scale
        if values.dtype != jnp.float32:
            # Ties the weights to the rows: or else XLA moves the cast, the same in every step, out of a loop, which
            # then reads f32. Without a cast it would only make copies.
            values, scale, rows = jax.lax.optimization_barrier((values, scale, rows))
        # One factor an output can wait until after the sum, and the cast alone fuses into it.
        late = None if scale is None or scale.shape[1] > 1 else scale[:, 0]
        weights = (_scaled(values, scale) if late is None else _unpacked(values)).astype(jnp.float32)
        if 1 < len(rows) <= MOST_ROWS:
            out = (weights[:, None] * rows).sum(-1).T
        elif len(rows) == 1 and scale is None:  # a product of matrices would, with a bias added to it, transpose W
            out = (weights @ rows[0])[None]
        else:
            out = rows @ weights.T
        return out if late is None else out * late


def stored(module: nn.Module, name: str, init: Initializer, shape: tuple[int, int]) -> Any:
    """Return a module's matrix: a parameter of this shape, or the `DecodingMatrix` that its parameters hold instead."""
    found = module.get_variable("params", name)
    return found if isinstance(found, DecodingMatrix) else module.param(name, init, shape)


def _unpacked(values: Num[Array, "*N J"]) -> Num[Array, "*N I"]:
    if values.dtype != jnp.uint8:
        return values
    return jnp.concatenate([values & 15, values >> 4], -1).astype(jnp.int8) - jnp.int8(8)


def _scaled(values: Num[Array, "*N J"], scale: Float[Array, "*N G"] | None) -> Float[Array, "*N I"]:
    values = _unpacked(values)
    if scale is None:
        return values
    grouped = values.astype(jnp.float32).reshape(*scale.shape, -1)
    return (grouped * scale[..., None]).reshape(values.shape)
