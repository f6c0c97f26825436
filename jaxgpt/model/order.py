"""The one thing that a program says of its order: not before."""

import jax
from jax import Array


def after(known: Array, x: Array) -> Array:
    """Return x, of which a CPU computes nothing before `known` is there.

    XLA on a CPU runs whatever is ready, so what a backward pass computes again from kept arrays alone it computes in
    the forward pass, in every layer, and keeps until it is needed. It drops optimization barriers before it decides on
    an order, but not a zero, which may be NaN: then `known`, a gradient, is not finite anyway.
    """
    return jax.lax.platform_dependent(
        x, known, cpu=lambda x, known: x + 0 * known[(0,) * known.ndim].astype(x.dtype), default=lambda x, known: x
    )
