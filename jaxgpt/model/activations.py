"""The feed-forward layer's activations under HF's names (`transformers.activations.ACT2FN`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import pi, sqrt

import jax
import jax.numpy as jnp
from jax import Array

from jaxgpt.model.linear import again

_gelu = partial(jax.nn.gelu, approximate=False)
_gelu_tanh = partial(jax.nn.gelu, approximate=True)


def _gelu_10(x: Array) -> Array:
    return jnp.clip(_gelu(x), -10, 10)


def _laplace(x: Array) -> Array:
    return 0.5 * (1 + jax.lax.erf((x - sqrt(0.5)) / (sqrt(0.25 / pi) * sqrt(2))))


def _linear(x: Array) -> Array:
    return x


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _relu2(x: Array) -> Array:
    return jnp.square(jax.nn.relu(x))


def _recomputed(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Keep only the input for the backward pass, from which the rest costs less to compute than to move."""
    wrapped = jax.custom_vjp(lambda x: function(x))
    wrapped.defvjp(lambda x: (function(x), x), lambda x, d_out: jax.vjp(function, again(d_out, x))[1](d_out))
    return wrapped


FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu,
    "gelu_10": _gelu_10,
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_python": _gelu,
    "gelu_python_tanh": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "hardswish": jax.nn.hard_swish,
    "laplace": _laplace,
    "leaky_relu": jax.nn.leaky_relu,
    "linear": _linear,
    "mish": jax.nn.mish,
    "quick_gelu": _quick_gelu,
    "relu": jax.nn.relu,
    "relu2": _relu2,
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}

ACTIVATIONS = {name: _recomputed(function) for name, function in FUNCTIONS.items()}
