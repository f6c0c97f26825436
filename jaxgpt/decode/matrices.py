"""A model's matrices, made ready for many steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxgpt.model.quantized import DecodingMatrix


def cast_matrices(params: Any, *, dtype: DTypeLike, steps: bool = True) -> Any:
    """Cast matrices once instead of in every step; vectors are small, and layer norm's are used in f32.

    Where there will be steps on a CPU the matrices are also stored as it reads them fastest: by outputs. That takes
    0.1 s for GPT-2 124M on two cores, which is what four steps gain at batch 8. Quantized ones stay as they are.
    """
    return _cast(params, dtype, steps and jax.default_backend() == "cpu")


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
