"""Plain causal attention by the kernel that each platform brings: cuDNN's on CUDA, Pallas's on TPU.

Which one runs is chosen when a program is lowered, so that programs can be lowered for a platform that is not here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float

Kernel = Callable[[Array, Array, Array], Array]
"""(queries, keys, values) → each query's weighted mean of values, all of them (B, H, T, K)."""

# T must be a multiple of one of these; the largest is taken.
PALLAS_BLOCKS = (512, 384, 256, 128)
# Half a row of the TPU's registers, or whole ones.
PALLAS_HEAD_DIMS = (64, 128, 256)
# More takes a GPU of the newest kinds.
CUDNN_LARGEST_HEAD_DIM = 128


def kernels(q: Float[Array, "B H T K"], scale: float) -> dict[str, Kernel]:
    """Return the kernels that fit queries of this shape and dtype, by the platform's name in JAX.

    Only for bfloat16: in f32 cuDNN has none, and the TPU's would round the products' operands.
    """
    length, head_dim = q.shape[2:]
    found: dict[str, Kernel] = {}
    if q.dtype != jnp.bfloat16:
        return found
    if head_dim % 8 == 0 and head_dim <= CUDNN_LARGEST_HEAD_DIM and cudnn_works(length, head_dim):
        found["cuda"] = partial(cudnn, scale=scale)
    if length % PALLAS_BLOCKS[-1] == 0 and head_dim in PALLAS_HEAD_DIMS:
        found["tpu"] = lambda q, k, v: pallas(q, k, v, scale)
    return found


def cudnn(
    q: Float[Array, "B H T K"], k: Float[Array, "B H T K"], v: Float[Array, "B H T K"], scale: float
) -> Float[Array, "B H T K"]:
    """Return causal attention by cuDNN."""
    # cuDNN's layout is BTHK, and so is what q, k and v are made of: XLA drops both transpositions.
    rows = (x.swapaxes(1, 2) for x in (q, k, v))
    out = jax.nn.dot_product_attention(*rows, scale=scale, is_causal=True, implementation="cudnn")
    return out.swapaxes(1, 2)


@cache
def cudnn_works(length: int, head_dim: int) -> bool:
    """Return whether JAX finds cuDNN and, where there is a GPU, can compile its attention, forwards and backwards.

    A GPU that is too old or a library that is missing shows only then; training goes on without, after a warning.
    """
    on_gpu = jax.default_backend() == "gpu"
    heads = jax.ShapeDtypeStruct((1, 1, length, head_dim), jnp.bfloat16)

    def both(q: Array, k: Array, v: Array, d_out: Array) -> Any:
        out, pull = jax.vjp(partial(cudnn, scale=1.0), q, k, v)
        return out, pull(d_out)

    try:
        traced = jax.jit(both).trace(heads, heads, heads, heads)
        if on_gpu:
            traced.lower().compile()
    except Exception as error:  # whatever it is, there is another way
        if on_gpu:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            warnings.warn(f"cuDNN's attention can't be used here, so XLA's own is: {reason}", stacklevel=2)
        return False
    return True


def _divided(axes: str) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator: on several devices each takes its rows and heads, as XLA can't divide a Pallas kernel itself.

    Args:
        axes: of the function's arrays and results; behind the arrays it takes the scale.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        def partition(scale: float, mesh: Any, arrays: Any, results: Any) -> Any:
            like = arrays[0].sharding
            sharding = NamedSharding(mesh, PartitionSpec() if like is None else PartitionSpec(*like.spec[:2]))
            same = partial(jax.tree.map, lambda _: sharding)
            return mesh, lambda *own: function(*own, scale), same(results), same(arrays)

        whole = custom_partitioning(function, static_argnums=(axes.partition("->")[0].count(",") + 1,))
        whole.def_partition(partition, sharding_rule=axes, need_replication_factors=("t", "k"))
        return whole

    return decorate


# JAX's public function is not differentiable in two separate parts, so these are the parts. Importing Pallas takes a
# while, and most programs have no use for it.


@_divided("b h t k, b h t k, b h t k -> b h t k, b h t, b h t")
def _forward_kernel(q: Array, k: Array, v: Array, scale: float) -> tuple[Array, Array, Array]:
    """Return the output and, of each query's softmax, the sum and the largest score."""
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    return flash._flash_attention(q, k, v, None, None, True, True, scale, _block_sizes(q), False)


@_divided("b h t k, b h t k, b h t k, b h t k, b h t, b h t, b h t k -> b h t k, b h t k, b h t k")
def _backward_kernel(
    q: Array, k: Array, v: Array, out: Array, total: Array, top: Array, d_out: Array, scale: float
) -> tuple[Array, Array, Array]:
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    kept = (q, k, v, None, None, out, total, top)
    return flash._flash_attention_bwd(False, True, scale, _block_sizes(q), False, kept, d_out)[:3]


def _block_sizes(q: Array) -> Any:
    from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes

    size = next(size for size in PALLAS_BLOCKS if q.shape[2] % size == 0)
    sizes = {field.name: size for field in fields(BlockSizes)}
    # The queries' gradient takes a number per query copied as often as a block has keys: at 512, half of all scores at
    # GPT-2's context.
    least = dict.fromkeys(("block_k_major_dq", "block_k_dq"), PALLAS_BLOCKS[-1])
    return BlockSizes(**sizes | least | {"block_b": 1})


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def pallas(
    q: Float[Array, "B H T K"], k: Float[Array, "B H T K"], v: Float[Array, "B H T K"], scale: float
) -> Float[Array, "B H T K"]:
    """Return causal attention by JAX's flash-attention kernel for TPUs (Dao et al. 2022)."""
    return _pallas_forward(q, k, v, scale)[0]


def _pallas_forward(q: Array, k: Array, v: Array, scale: float) -> tuple[Array, tuple[Array, ...]]:
    out, total, top = _forward_kernel(q, k, v, scale)
    return out, (q, k, v, out, total, top)


def _pallas_backward(scale: float, kept: tuple[Array, ...], d_out: Array) -> tuple[Array, Array, Array]:
    return _backward_kernel(*kept, d_out, scale)


pallas.defvjp(_pallas_forward, _pallas_backward)
