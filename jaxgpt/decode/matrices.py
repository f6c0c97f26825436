"""A model's matrices, made ready for many steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxgpt.model.atlas import leaves_of, parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.matrix import DecodingMatrix


def cast_matrices(params: Any, *, dtype: DTypeLike, rows: int = 0) -> Any:
    """Cast matrices once instead of in every step; vectors are small, and layer norm's are used in f32.

    Nothing is copied that is as it should be.

    Args:
        params: a model's parameters, JAX's arrays or NumPy's; quantized matrices in them stay as they are.
        dtype: to compute in.
        rows: that a step reads, where many steps follow. In f32 a CPU reads the matrices fastest that are stored by
            outputs: of a single row those with more inputs than outputs, and of several rows all of them. To store
            them so takes as long as one such step, or two or three.
    """

    def cast(x: Any) -> Any:
        return x if isinstance(x, DecodingMatrix) else jnp.asarray(x, x.dtype if x.ndim == 1 else dtype)

    params = jax.tree.map(cast, params, is_leaf=_is_matrix)
    if rows == 0 or dtype != jnp.float32 or jax.default_backend() != "cpu":
        return params
    return map_matrices(params, DecodingMatrix, lambda outputs, inputs: rows > 1 or inputs > outputs)


def check_params(config: GPTConfig, params: Any) -> None:
    """Make sure that parameters, quantized or not, are a model's of this config.

    Raises:
        UsageError: they are not; the message has the first few differences.
    """
    leaves_of(params, parameters(config), quantized=DecodingMatrix)


def map_matrices(
    params: Any,
    function: Callable[[Float[Array, "O I"]], DecodingMatrix],
    chosen: Callable[[int, int], bool] = lambda outputs, inputs: True,
) -> Any:
    """Replace kernels of linear layers, the token table and the head, but not those that are replaced already.

    Args:
        params: a model's parameters.
        function: of a matrix stored by outputs.
        chosen: (O, I) → whether to replace a matrix of this size.
    """

    def replaced(path: tuple[Any, ...], x: Any) -> Any:
        *_, module, name = ("", *(key.key for key in path))
        if isinstance(x, DecodingMatrix):
            return x
        if name == "kernel" and chosen(*x.shape[::-1]):
            return function(x.T)
        return function(x) if name == "embedding" and module in ("wte", "lm_head") and chosen(*x.shape) else x

    return jax.tree_util.tree_map_with_path(replaced, params, is_leaf=_is_matrix)


def _is_matrix(x: Any) -> bool:
    return isinstance(x, DecodingMatrix)
