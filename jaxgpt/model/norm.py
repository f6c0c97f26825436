"""Layer norm (Ba et al. 2016) with statistics in f32 and a backward pass of its own."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float


class LayerNorm(nn.Module):
    """Layer norm over the last axis, with parameters named as Linen's.

    Attributes:
        epsilon: added to the variance.
        use_bias: whether there is a bias.
        dtype: of the result.
        autodiff: no backward pass of its own, see `GPT`.
    """

    epsilon: float
    use_bias: bool
    dtype: DTypeLike
    autodiff: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        width = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, width, jnp.float32)
        none = nn.initializers.zeros
        bias = self.param("bias", none, width, jnp.float32) if self.use_bias else jnp.zeros(width, jnp.float32)
        if self.autodiff:
            normalised, _ = _forward(x, jnp.asarray(scale), jnp.asarray(bias), self.epsilon)
        else:
            normalised = normalise(x, scale, bias, self.epsilon)
        return jnp.asarray(normalised, self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise(
    x: Float[Array, "B T D"], scale: Float[Array, " D"], bias: Float[Array, " D"], epsilon: float
) -> Float[Array, "B T D"]:
    """Return scale · (x - mean) / sqrt(variance + epsilon) + bias in f32.

    The variance is that of the centred values: E[x²] - E[x]², Linen's default, loses two digits. Autodiff of this would
    keep several (B, T, D) arrays for the backward pass, and on a CPU compute chains of them again in every layer; this
    keeps x and two numbers a row.
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, tuple[Array, ...]]:
    centred = x.astype(jnp.float32) - x.mean(-1, keepdims=True, dtype=jnp.float32)
    rate = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    return centred * rate * scale + bias, (x, scale, rate)


def _backward(epsilon: float, kept: tuple[Array, ...], d_out: Array) -> tuple[Array, Array, Array]:
    x, scale, rate = kept
    unit = (x.astype(jnp.float32) - x.mean(-1, keepdims=True, dtype=jnp.float32)) * rate
    d_unit = d_out * scale
    d_x = rate * (d_unit - d_unit.mean(-1, keepdims=True) - unit * (d_unit * unit).mean(-1, keepdims=True))
    return d_x.astype(x.dtype), (d_out * unit).sum((0, 1)), d_out.sum((0, 1))


normalise.defvjp(_forward, _backward)
