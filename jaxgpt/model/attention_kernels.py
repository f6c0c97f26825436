"""Causal attention, in segments or without, by the kernel that each platform brings: cuDNN's on CUDA, Pallas's on TPU.

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
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxgpt.devices import platform
from jaxgpt.model.config import GPTConfig
from jaxgpt.parallel import by_heads

Kernel = Callable[[Array, Array, Array, Array | None], Array]
"""(queries, keys, values, segments or None) → each query's weighted mean of values, (B, H, T, K)."""

NAMES = {"cuda": "cuDNN's", "tpu": "Pallas's"}

# T must be a multiple of one of these; the largest is taken.
PALLAS_BLOCKS = (512, 384, 256, 128)
# Half a row of the TPU's registers, or whole ones.
PALLAS_HEAD_DIMS = (64, 128, 256)
# More takes a GPU of the newest kinds.
CUDNN_LARGEST_HEAD_DIM = 128


def kernels(q: Float[Array, "B H T K"], segment_ids: Int[Array, "B T"] | None, scale: float) -> dict[str, Kernel]:
    """Return the kernels that fit queries of this shape and dtype, by the platform's name in JAX."""
    found: dict[str, Kernel] = {"cuda": partial(cudnn, scale=scale), "tpu": partial(pallas, scale=scale)}
    found = {name: partial(by_heads, kernel) for name, kernel in found.items()}
    length, head_dim, packed = *q.shape[2:], segment_ids is not None
    return {name: found[name] for name in found if not why_not(name, length, head_dim, q.dtype, packed=packed)}


def why_not(platform: str, length: int, head_dim: int, dtype: DTypeLike, *, packed: bool) -> str:
    """Return why rows of `length` have no kernel on a platform; empty if they have one."""
    if platform not in NAMES:
        return f"there is no kernel for {platform}"
    if jnp.dtype(dtype) != jnp.bfloat16:  # in f32 cuDNN has none, and the TPU's would round the products' operands
        return f"activations are {jnp.dtype(dtype)}, not bfloat16"
    if platform == "tpu":
        if length % PALLAS_BLOCKS[-1]:
            return f"rows of {length} tokens are no multiple of {PALLAS_BLOCKS[-1]}"
        return "" if head_dim in PALLAS_HEAD_DIMS else f"heads are {head_dim} wide, not one of {PALLAS_HEAD_DIMS}"
    if head_dim % 8 or head_dim > CUDNN_LARGEST_HEAD_DIM:
        return f"heads are {head_dim} wide, not a multiple of 8 up to {CUDNN_LARGEST_HEAD_DIM}"
    if packed and length % 2:
        return f"rows of {length} tokens are packed, and no multiple of 2"
    return "" if cudnn_works(length, head_dim, packed) else "cuDNN's does not work here"


def report(config: GPTConfig, dtype: DTypeLike, length: int, *, packed: bool) -> str:
    """Return which attention trains on rows of `length` on this run's devices, and why no kernel does."""
    name = "cuda" if platform() == "gpu" else platform()
    why = why_not(name, length, config.head_dim, dtype, packed=packed)
    if config.attn_pdrop > 0:
        rest = "" if why else f"; with --dropout 0 it is {NAMES[name]} kernel"
        why = f"attn_pdrop is {config.attn_pdrop}, and kernels drop nothing{rest}"
    return f"XLA's, because {why}" if why else f"{NAMES[name]} kernel"


def cudnn(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B H T K"],
    v: Float[Array, "B H T K"],
    segment_ids: Int[Array, "B T"] | None,
    scale: float,
) -> Float[Array, "B H T K"]:
    """Return causal attention by cuDNN.

    Segments are a mask in bf16, (B, 1, T, T), which all heads and layers share. cuDNN takes segments as such, too, but
    on newer GPUs only, through no public function of JAX, and no more of them than it was compiled for.
    """
    same = None if segment_ids is None else (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
    # cuDNN's layout is BTHK, and so is what q, k and v are made of: XLA drops both transpositions.
    rows = (x.swapaxes(1, 2) for x in (q, k, v))
    out = jax.nn.dot_product_attention(*rows, mask=same, scale=scale, is_causal=True, implementation="cudnn")
    return out.swapaxes(1, 2)


@cache
def cudnn_works(length: int, head_dim: int, packed: bool) -> bool:
    """Return whether JAX finds cuDNN and, where there is a GPU, can compile its attention, forwards and backwards.

    A GPU that is too old or a library that is missing shows only then; training goes on without, after a warning.
    """
    on_gpu = jax.default_backend() == "gpu"
    # Several rows and heads: of fewer, the mask's gradient is one that older versions have, too.
    heads = jax.ShapeDtypeStruct((2, 2, length, head_dim), jnp.bfloat16)
    segment_ids = jax.ShapeDtypeStruct((2, length), jnp.int32) if packed else None

    def both(q: Array, k: Array, v: Array, segment_ids: Array | None, d_out: Array) -> Any:
        out, pull = jax.vjp(lambda q, k, v: cudnn(q, k, v, segment_ids, scale=1.0), q, k, v)
        return out, pull(d_out)

    try:
        traced = jax.jit(both).trace(heads, heads, heads, segment_ids, heads)
        if on_gpu:
            traced.lower().compile()
    except Exception as error:  # whatever it is, there is another way
        if on_gpu:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            warnings.warn(f"cuDNN's attention can't be used here, so XLA's own is: {reason}", stacklevel=2)
        return False
    return True


# JAX's public function is not differentiable in two separate parts, so these are the parts. Importing Pallas takes a
# while, and most programs have no use for it.


def _forward_kernel(
    q: Array, k: Array, v: Array, segment_ids: Array | None, scale: float
) -> tuple[Array, Array, Array]:
    """Return the output and, of each query's softmax, the sum and the largest score."""
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    segments = None if segment_ids is None else flash.SegmentIds(segment_ids, segment_ids)
    return flash._flash_attention(q, k, v, None, segments, True, True, scale, _block_sizes(q), False)


def _backward_kernel(
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    total: Array,
    top: Array,
    d_out: Array,
    segment_ids: Array | None,
    scale: float,
) -> tuple[Array, Array, Array]:
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    segments = None if segment_ids is None else flash.SegmentIds(segment_ids, segment_ids)
    kept = (q, k, v, None, segments, out, total, top)
    return flash._flash_attention_bwd(False, True, scale, _block_sizes(q), False, kept, d_out)[:3]


def _block_sizes(q: Array) -> Any:
    from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes

    size = next(size for size in PALLAS_BLOCKS if q.shape[2] % size == 0)
    sizes = {field.name: size for field in fields(BlockSizes)}
    # The queries' gradient takes a number per query copied as often as a block has keys: at 512, half of all scores at
    # GPT-2's context.
    least = dict.fromkeys(("block_k_major_dq", "block_k_dq"), PALLAS_BLOCKS[-1])
    return BlockSizes(**sizes | least | {"block_b": 1})


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def pallas(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B H T K"],
    v: Float[Array, "B H T K"],
    segment_ids: Int[Array, "B T"] | None,
    scale: float,
) -> Float[Array, "B H T K"]:
    """Return causal attention by JAX's flash-attention kernel for TPUs (Dao et al. 2022)."""
    return _forward_kernel(q, k, v, segment_ids, scale)[0]


def _pallas_forward(q: Array, k: Array, v: Array, segment_ids: Array | None, scale: float) -> tuple[Array, Any]:
    # The kernel gives 128 copies of each sum, of which XLA would keep all for the backward pass.
    out, total, top = jax.lax.optimization_barrier(_forward_kernel(q, k, v, segment_ids, scale))
    return out, (q, k, v, out, total, top, segment_ids)


def _pallas_backward(scale: float, kept: tuple[Any, ...], d_out: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, out, total, top, segment_ids = kept
    return *_backward_kernel(q, k, v, out, total, top, d_out, segment_ids, scale), None


pallas.defvjp(_pallas_forward, _pallas_backward)
