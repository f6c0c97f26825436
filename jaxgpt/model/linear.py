"""The linear layer, with a backward pass that transposes the smaller of its operands; and the table of vectors."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxgpt.model.quantized import DecodingMatrix, stored
from jaxgpt.parallel import all_columns, laid_in_thirds


class Linear(nn.Module):
    """x W + b over the last axis, with parameters named as `nn.Dense`'s.

    Attributes:
        features: O, outputs.
        use_bias: whether there is a bias.
        dtype: of the product and the result.
        kernel_init: of W.
        autodiff: no backward pass of its own, see `GPT`.
        tensor_axis: of W, which several devices may divide among them: 0 its inputs, 1 its outputs.
        thirds: whether the outputs are three times what is divided, to be taken apart by `split_thirds`.
    """

    features: int
    use_bias: bool
    dtype: DTypeLike
    kernel_init: Initializer
    autodiff: bool = False
    tensor_axis: int = 1
    thirds: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        x, shape = x.astype(self.dtype), (x.shape[-1], self.features)
        kernel = stored(
            self, "kernel", self.kernel_init, shape, self.dtype, tensor_axis=self.tensor_axis, thirds=self.thirds
        )
        if isinstance(kernel, DecodingMatrix):
            out = kernel.product(x).astype(self.dtype)
        else:
            kernel = kernel.astype(self.dtype)
            out = x @ kernel if self.autodiff else product(x, kernel)
        if not self.use_bias:
            return out
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return out + (laid_in_thirds(bias) if self.thirds else bias).astype(self.dtype)


class Embed(nn.Module):
    """A table of vectors, with parameters named as `nn.Embed`'s; an index outside gives NaN.

    Attributes:
        count, features: V and D.
        dtype: of the vectors that are looked up.
        embedding_init: of the table.
    """

    count: int
    features: int
    dtype: DTypeLike
    embedding_init: Initializer

    def setup(self) -> None:
        self.embedding = stored(self, "embedding", self.embedding_init, (self.count, self.features), self.dtype)

    def __call__(self, index: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        table = self.embedding
        found = table.rows(index) if isinstance(table, DecodingMatrix) else jnp.take(table, index, axis=0)
        return all_columns(found.astype(self.dtype))


@jax.custom_vjp
def product(x: Float[Array, "B T I"], kernel: Float[Array, "I O"]) -> Float[Array, "B T O"]:
    """Return x W.

    The kernel's gradient sums over rows, for which XLA on a CPU makes a transposed copy of the product's left operand,
    computing again all that leads to it. Autodiff always puts the output's gradient there, which is the wide one where
    it hurts most: behind an activation. Here the narrow one is copied, and a small model's step takes 0.7 of the time.
    """
    return x @ kernel


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _backward(kept: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    x, kernel = kept
    rows = (((0, 1), (0, 1)), ((), ()))
    if x.shape[-1] <= d_out.shape[-1]:
        d_kernel = jax.lax.dot_general(after(d_out, x), d_out, rows)
    else:
        d_kernel = jax.lax.dot_general(d_out, x, rows).T
    return d_out @ kernel.T, d_kernel


product.defvjp(_forward, _backward)


def after(known: Array, x: Array) -> Array:
    """Return x, of which a CPU computes nothing before `known` is there.

    XLA on a CPU runs whatever is ready, so what a backward pass computes again from kept arrays alone it computes in
    the forward pass, in every layer, and keeps until it is needed. It drops optimization barriers before it decides on
    an order, but not a zero, which may be NaN: then `known`, a gradient, is not finite anyway.
    """
    return jax.lax.platform_dependent(
        x, known, cpu=lambda x, known: x + (0 * known[(0,) * known.ndim]).astype(x.dtype), default=lambda x, known: x
    )


def again(known: Array, x: Array) -> Array:
    """Return x, to compute from it behind `known` what was computed before: else compilers keep that in its stead."""
    return after(known, jax.lax.optimization_barrier(x))


def wide_product(axes: str, x: Array, y: Array, *, autodiff: bool = False) -> Array:
    """Return `einsum(axes, x, y)` in f32, with products of the operands' dtype in both directions.

    Autodiff would widen an operand instead, and multiply it with the f32 gradient.

    Args:
        axes: as in `jnp.einsum`; each axis of an array occurs in another, and none twice in one.
        x, y: of one dtype, to which the gradient is rounded first.
        autodiff: widen nevertheless, so that every kind of derivative can be taken.
    """
    if x.dtype == jnp.float32 or autodiff:
        return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)
    return _narrow_product(axes, x, y)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _narrow_product(axes: str, x: Array, y: Array) -> Array:
    return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)


def _narrow_forward(axes: str, x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return _narrow_product(axes, x, y), (x, y)


def _narrow_backward(axes: str, kept: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    x, y = kept
    left, right, out = axes.replace("->", ",").split(",")
    d_out = d_out.astype(x.dtype)
    return jnp.einsum(f"{out},{right}->{left}", d_out, y), jnp.einsum(f"{out},{left}->{right}", d_out, x)


_narrow_product.defvjp(_narrow_forward, _narrow_backward)
