"""Weights of 8 or 4 bits for decoding; activations stay floats."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxgpt import checks
from jaxgpt.decode.matrices import map_matrices
from jaxgpt.errors import UsageError
from jaxgpt.model.atlas import walk
from jaxgpt.model.matrix import DecodingMatrix

Kind = Literal["int8", "int4"]

# Inputs that share a scale at 4 bits, of which one large weight would else cost a whole row its digits.
GROUP = 64


def quantize(params: Any, kind: Kind) -> Any:
    """Round a model's matrices to integers, so that decoding reads a quarter or an eighth of the bytes.

    The kernels of linear layers, the token table and the head become symmetric integers with f32 scales: one for each
    output (Dettmers et al. 2022, section 2.1), at 4 bits one for each 64 inputs of it. Positions and
    vectors stay.

    Args:
        params: a model's parameters.
        kind: "int8" or "int4".

    Returns:
        Parameters that `GPT.apply`, `generate`, `stream` and `generate_many` take; not for training or saving.

    Raises:
        UsageError: there is no such kind, or a layer's inputs can't be paired.
    """
    checks.choice("quantize", kind, get_args(Kind))
    for path, leaf in walk(params):
        if not isinstance(leaf, DecodingMatrix) and not (checks.is_floating(leaf) and len(leaf.shape) <= 2):
            raise checks.refusal("/".join(path), leaf, "an array of floats, of at most two axes")
    return _quantize(params, kind)


@partial(jax.jit, static_argnames=("kind",))
def _quantize(params: Any, kind: Kind) -> Any:
    return map_matrices(params, _int8 if kind == "int8" else _int4)


def _int8(matrix: Float[Array, "O I"]) -> DecodingMatrix:
    integers, scale = _rounded(matrix, 127, matrix.shape[1])
    return DecodingMatrix(integers.astype(jnp.int8), scale)


def _int4(matrix: Float[Array, "O I"]) -> DecodingMatrix:
    width = matrix.shape[1]
    if width % 2:
        raise UsageError(f"quantize int4: a layer of {width} inputs; they must be even in number")
    integers, scale = _rounded(matrix, 7, math.gcd(width, GROUP))
    low, high = jnp.split((integers + 8).astype(jnp.uint8), 2, axis=1)
    return DecodingMatrix(low | high << 4, scale)


def _rounded(matrix: Float[Array, "O I"], most: int, size: int) -> tuple[Float[Array, "O I"], Float[Array, "O G"]]:
    """Return integers from -most to most, and the scale of each group of `size` inputs."""
    groups = matrix.astype(jnp.float32).reshape(len(matrix), -1, size)
    scale = jnp.abs(groups).max(-1) / most
    scale = jnp.where(scale > 0, scale, 1)
    return jnp.round(groups / scale[..., None]).reshape(matrix.shape), scale
