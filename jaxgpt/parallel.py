"""A device's parts of arrays, in a program that several devices run, each on rows of its own.

`jaxgpt.mesh.OwnRows` begins such a program: the axes `data` and `fsdp` are then this device's own place, and what a
function sees of rows and weights is its part. `tensor` stays the compiler's, which divides heads and the feed-forward
layer as the weights are divided; of tables it divides columns, see `jaxgpt.objectives.vocabulary`. Outside of such a
program all functions here return what they are given, but for `by_heads`. Decoding is outside: a step reads all weights
for a few rows, which are then what is better sent.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.random import define_prng_impl, threefry2x32_p, threefry_prng_impl
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from jaxgpt import checks
from jaxgpt.devices import platform

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")
ROWS = (DATA, FSDP)


def inside() -> bool:
    """Return whether this is a program in which each device has its own rows."""
    return FSDP in jax.sharding.get_abstract_mesh().manual_axes


def size(*axes: str) -> int:
    """Return over how many devices these axes of the mesh divide something here; 1 outside."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[axis] for axis in axes) if inside() else 1


def total(tree: Any, *axes: str) -> Any:
    """Return the sums over the devices along these axes, or all that have rows of their own, of what each has."""
    return jax.lax.psum(tree, axes or ROWS) if size(*(axes or ROWS)) > 1 else tree


def whole(
    part: Array, shape: tuple[int, ...], dtype: DTypeLike, *, tensor_axis: int | None = None, thirds: bool = False
) -> Array:
    """Return a matrix for its use, of which this device holds a part: gathered in `dtype`; its gradient is scattered.

    Args:
        part: what this device holds.
        shape: of the whole matrix.
        dtype: in which it is sent, as it is going to be used in it; the result has the part's own.
        tensor_axis: which of its axes `tensor` divides where it can.
        thirds: whether its outputs are three times as many as it divides; they are laid out for `split_thirds`.
    """
    if size(*AXES) == 1:
        return part
    fsdp_axis = next((axis for axis, of_whole in enumerate(shape) if part.shape[axis] != of_whole), None)
    if thirds and part.shape[0] % size(TENSOR):
        return laid_in_thirds(whole(part, shape, dtype))
    if tensor_axis is not None and part.shape[tensor_axis] % size(TENSOR):
        tensor_axis = None
    if fsdp_axis is None and (tensor_axis is None or size(TENSOR) == 1):
        return part
    return _gathered(part, jnp.dtype(dtype), fsdp_axis, tensor_axis, thirds)


def keep_all_but_weights(primitive: Any, *_: Any, **params: Any) -> bool:
    """Say of what a block computes whether it is kept for the backward pass: not weights, which are gathered again."""
    if primitive.name in ("all_gather", "all_to_all", "convert_element_type", "shard_map", "reshape"):
        return False
    return not any(map(_gathers, params.values()))  # as those of `_gathered`, a call by its name


def _gathers(parameter: Any) -> bool:
    """Return whether a primitive's parameter is a program that gathers."""
    jaxpr = getattr(parameter, "jaxpr", parameter)
    return any(
        one.primitive.name in ("all_gather", "all_to_all") or any(map(_gathers, one.params.values()))
        for one in getattr(jaxpr, "eqns", ())
    )


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gathered(part: Array, dtype: Any, fsdp_axis: int | None, tensor_axis: int | None, thirds: bool) -> Array:
    def gather(part: Array) -> Array:
        sent = part.astype(dtype)
        if thirds and size(TENSOR) > 1:  # D is divided; each device gives the others their columns of its rows
            sent = sent.reshape(len(sent), 3, size(TENSOR), -1)
            sent = jax.lax.all_to_all(sent, TENSOR, 2, 0, tiled=True)
            sent = sent.reshape(len(sent), -1)
        return sent if fsdp_axis is None else jax.lax.all_gather(sent, FSDP, axis=fsdp_axis, tiled=True)

    held, used = _specs(part.ndim, tensor_axis, thirds)
    return with_tensor(gather, held, used)(part).astype(part.dtype)


def _gathered_forward(part: Array, *static: Any) -> tuple[Array, None]:
    return _gathered(part, *static), None


def _gathered_backward(
    dtype: Any, fsdp_axis: int | None, tensor_axis: int | None, thirds: bool, _: None, d_whole: Array
) -> tuple[Array]:
    def scatter(d: Array) -> Array:
        if fsdp_axis is not None:
            d = jnp.moveaxis(_scattered(jnp.moveaxis(d, fsdp_axis, 0)), 0, fsdp_axis)
        if thirds and size(TENSOR) > 1:
            d = jax.lax.all_to_all(d.reshape(len(d), 3, 1, -1), TENSOR, 0, 2, tiled=True)
            d = d.reshape(len(d), -1)
        return d

    held, used = _specs(d_whole.ndim, tensor_axis, thirds)
    return (with_tensor(scatter, used, held)(d_whole),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def _scattered(x: Array) -> Array:
    """Return this device's part of the rows of a sum over `fsdp`.

    The TPU's compiler makes a sum that every chip gets whole, twice the bytes, of one whose rows don't lie one after
    another, as a table's columns don't, and of one over all chips of a square slice. These it also puts off to the end
    of the backward pass; not sums over rows of chips and then over columns.
    """
    if platform() != "tpu":
        return jax.lax.psum_scatter(x, FSDP, scatter_dimension=0, tiled=True)
    count = size(FSDP)
    columns = max((n for n in range(4, math.isqrt(count) + 1) if count % n == 0), default=count)
    chips = np.arange(count).reshape(-1, columns)
    x = with_layout_constraint(x, Layout(tuple(range(x.ndim))))
    for groups in (chips.T, chips) if columns < count else (chips,):
        x = jax.lax.psum_scatter(x, FSDP, scatter_dimension=0, axis_index_groups=groups.tolist(), tiled=True)
    return x


def _specs(axes: int, tensor_axis: int | None, thirds: bool) -> tuple[PartitionSpec, PartitionSpec]:
    """Return where `tensor` divides a matrix as devices hold it, and as they use it."""
    used = PartitionSpec(*(TENSOR if axis == tensor_axis else None for axis in range(axes)))
    return (PartitionSpec(TENSOR) if thirds else used), used


def with_tensor(function: Callable[..., Any], into: Any, out: Any) -> Callable[..., Any]:
    """Return a function of a device's parts along the axes that are still the compiler's, if `tensor` is."""
    axes = jax.sharding.get_abstract_mesh().auto_axes
    if TENSOR not in axes:
        return function
    return jax.shard_map(function, in_specs=into, out_specs=out, axis_names=set(axes), check_vma=False)


def by_heads(function: Callable[..., Any], *arrays: Array | None) -> Any:
    """Apply a function, which the compiler can't divide, to each device's own rows and heads.

    Args:
        function: of the arrays, with results of axes (B, H, …).
        arrays: (B, H, …), and segments (B, T) or None.
    """
    mesh = jax.sharding.get_abstract_mesh()
    count = math.prod(mesh.shape[axis] for axis in ROWS if axis in mesh.auto_axes)
    shape = next(x.shape for x in arrays if x is not None)
    rows = ROWS if count > 1 and shape[0] % count == 0 else None
    of_all, heads = PartitionSpec(rows), PartitionSpec(rows, TENSOR)
    into = tuple(of_all if x is None or jnp.issubdtype(x.dtype, jnp.integer) else heads for x in arrays)
    return with_tensor(function, into, heads)(*arrays)


def on_mesh_of(tree: Any) -> contextlib.AbstractContextManager[Any]:
    """Let programs know on which mesh these arrays lie, where the compiler divides them: see `by_heads`."""
    shardings = (leaf.sharding for leaf in jax.tree.leaves(tree) if isinstance(leaf, Array))
    meshes = (sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding))
    mesh = next((mesh for mesh in meshes if isinstance(mesh, Mesh) and mesh.size > 1), None)
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def split_thirds(x: Array) -> list[Array]:
    """Return the thirds of the last axis, of outputs of a matrix that is `whole` with thirds."""
    count = size(TENSOR)
    if count == 1:
        return jnp.split(x, 3, -1)
    parts = x.reshape(*x.shape[:-1], count, 3, -1)
    return [parts[..., third, :].reshape(*x.shape[:-1], -1) for third in range(3)]


def laid_in_thirds(x: Any) -> Any:
    """Return an array whose last axis is three thirds laid out for `split_thirds`."""
    return x if size(TENSOR) == 1 else _swapped(x, 3, size(TENSOR))


def all_columns(part: Array) -> Array:
    """Return vectors (…, D) as each device needs them, from those of a table of which it holds columns."""
    if size(TENSOR) == 1:
        return part
    return jax.lax.with_sharding_constraint(columns_in_order(part), PartitionSpec())


def columns_in_order(x: Array) -> Array:
    """Return an array (…, D) as it should be, from one whose columns `tensor` and then `fsdp` divide.

    They are held the other way round, so that `fsdp` divides them alone where `tensor` is the compiler's; but what is
    gathered over it then has gaps.
    """
    fsdp = size(FSDP)
    return _swapped(x, size(TENSOR), fsdp) if fsdp > 1 and x.shape[-1] % (fsdp * size(TENSOR)) == 0 else x


def _swapped(x: Array, first: int, second: int) -> Array:
    """Return an array whose last axis is two and a rest, with the two swapped."""
    return x.reshape(*x.shape[:-1], first, second, -1).swapaxes(-3, -2).reshape(x.shape)


def seed_key(seed: SupportsIndex) -> Array:
    """Return the random key of a seed, of the same generator whatever JAX's default is here: a run may go on there.

    Raises:
        UsageError: it is no whole number of 32 bits, of which JAX would leave bits out.
    """
    seed = checks.whole("seed", seed, 0, 2**32 - 1, "from 0 to 2^32 - 1, and a whole number")
    return jax.random.key(seed, impl="threefry2x32")


def own_key(key: Array | None) -> Array | None:
    """Return a key that draws for this device's rows what `key` draws for them among all rows."""
    if key is None or size(*ROWS) == 1:
        return key
    place = jax.lax.axis_index(ROWS).astype(jnp.uint32)
    return jax.random.wrap_key_data(jnp.append(jax.random.key_data(key), place), impl=_ROWS_IMPL)


def shared_key(key: Array) -> Array:
    """Return the key that an `own_key` was made from, to draw the same on all devices."""
    data = jax.random.key_data(key)
    return jax.random.wrap_key_data(data[..., :2], impl="threefry2x32") if data.shape[-1] == 3 else key


# JAX's own generator hashes an element's number among all of them. Rows come first, so a device's elements are
# neighbours, and their numbers begin where the ones before them end. A key is JAX's two words and the device's place.


def _own_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    *words, place = key
    count = math.prod(shape)
    starts = np.arange(size(*ROWS), dtype=np.uint64) * np.uint64(count)
    start = jnp.asarray((starts & np.uint64(2**32 - 1)).astype(np.uint32))[place]
    high = jnp.asarray((starts >> np.uint64(32)).astype(np.uint32))[place]
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    number = sum(
        (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride) for axis, stride in enumerate(strides)),
        jnp.zeros(shape, jnp.uint32),
    )
    low = number + start
    bits = threefry2x32_p.bind(*words, high + (low < start).astype(jnp.uint32), low)
    if bit_width == 64:
        return (bits[0].astype(jnp.uint64) << 32) | bits[1].astype(jnp.uint64)
    return (bits[0] ^ bits[1]).astype(f"uint{bit_width}")


def _split(key: Array, shape: tuple[int, ...]) -> Array:
    words = threefry_prng_impl.split(key[:2], shape)
    return jnp.concatenate([words, jnp.broadcast_to(key[2], (*shape, 1))], -1)


def _fold_in(key: Array, data: Any) -> Array:
    return jnp.append(threefry_prng_impl.fold_in(key[:2], data), key[2])


_ROWS_IMPL = define_prng_impl(
    key_shape=(3,),
    seed=lambda seed: jnp.append(threefry_prng_impl.seed(seed), jnp.uint32(0)),
    split=_split,
    random_bits=_own_bits,
    fold_in=_fold_in,
    name="rows",
    tag="rows",
)
