"""A model's matrices, made ready for many steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxgpt.model.matrix import DecodingMatrix


def cast_matrices(params: Any, *, dtype: DTypeLike, by_outputs: bool = False) -> Any:
    """Cast matrices once instead of in every step; vectors are small, and layer norm's are used in f32.

    Args:
        params: a model's parameters; quantized matrices in them stay as they are.
        dtype: to compute in.
        by_outputs: in f32 on a CPU also store matrices as it reads them fastest for several rows. That copies all
            kernels, at the price of two or three such steps.
    """
    return _cast(params, dtype, by_outputs and dtype == jnp.float32 and jax.default_backend() == "cpu")


@partial(jax.jit, static_argnames=("dtype", "by_outputs"))
def _cast(params: Any, dtype: DTypeLike, by_outputs: bool) -> Any:
    def cast(x: Any) -> Any:
        return x.astype(dtype) if not isinstance(x, DecodingMatrix) and x.ndim > 1 else x

    params = jax.tree.map(cast, params, is_leaf=_is_matrix)
    return map_matrices(params, DecodingMatrix) if by_outputs else params


def map_matrices(params: Any, function: Callable[[Float[Array, "O I"]], DecodingMatrix]) -> Any:
    """Replace kernels of linear layers, the token table and the head, but not those that are replaced already.

    Args:
        params: a model's parameters.
        function: of a matrix stored by outputs.
    """

    def replaced(path: tuple[Any, ...], x: Any) -> Any:
        *_, module, name = ("", *(key.key for key in path))
        if isinstance(x, DecodingMatrix):
            return x
        if name == "kernel":
            return function(x.T)
        return function(x) if name == "embedding" and module in ("wte", "lm_head") else x

    return jax.tree_util.tree_map_with_path(replaced, params, is_leaf=_is_matrix)


def _is_matrix(x: Any) -> bool:
    return isinstance(x, DecodingMatrix)
