"""Devices → one mesh, and the atlas's axes → shardings of any tree; the compiler does the rest.

The mesh has three axes: `data` splits batches, `fsdp` splits batches and every matrix's D, `tensor` splits the
width of attention and of the feed-forward layer. One device is a mesh of 1 × 1 × 1, and nothing else changes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxgpt.errors import UsageError
from jaxgpt.model.atlas import Parameter, axes, tree_of

# V is left whole: GPT-2's 50257 is odd.
_MESH_AXIS = {"D": "fsdp", "F": "tensor", "(H K)": "tensor", "(3 H K)": "tensor"}


def make_mesh(*, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Arrange devices; `data` gets what the two other axes leave.

    Args:
        fsdp, tensor: the sizes of their axes.
        devices: None for all that there are.

    Raises:
        UsageError: the devices can't be divided so.
    """
    count = jax.device_count() if devices is None else len(devices)
    if fsdp < 1 or tensor < 1 or count % (fsdp * tensor):
        raise UsageError(f"fsdp {fsdp} x tensor {tensor} must be positive and divide the number of devices, {count}")
    shape = (count // (fsdp * tensor), fsdp, tensor)
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(mesh: Mesh, parameters: Iterable[Parameter]) -> Any:
    """Return a tree of shardings for these parameters; vectors and uneven axes stay whole."""

    return tree_of(parameters, lambda parameter: NamedSharding(mesh, parameter_spec(mesh, parameter)))


def parameter_spec(mesh: Mesh | AbstractMesh, parameter: Parameter) -> PartitionSpec:
    """Return over which of the mesh's axes each axis of a parameter is divided."""
    if len(parameter.shape) < 2:
        return PartitionSpec()
    names = [_MESH_AXIS.get(axis) for axis in axes(parameter.row.pattern)]
    sizes = zip(names, parameter.shape, strict=True)
    return PartitionSpec(*(name if name and size % mesh.shape[name] == 0 else None for name, size in sizes))


def optimizer_shardings(mesh: Mesh, optimizer: optax.GradientTransformation, shapes: Any, shardings: Any) -> Any:
    """Return a tree of shardings for the optimizer's state: moments lie where their parameters lie.

    Args:
        mesh: of the shardings.
        optimizer: whose state it is.
        shapes: tree of the parameters' shapes.
        shardings: tree of the parameters' shardings.
    """
    state = jax.eval_shape(optimizer.init, shapes)
    return optax.tree_utils.tree_map_params(
        optimizer, lambda _, sharding: sharding, state, shardings, transform_non_params=lambda _: replicated(mesh)
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays with a batch's rows first."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Place this process's rows of a global batch, those that `host_shard` names, on its devices."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(batch_sharding(mesh), np.asarray(x)), batch)


def host_shard(mesh: Mesh) -> dict[str, int]:
    """Return which part of each batch this process feeds: `shard` of `num_shards` equal parts.

    Processes whose devices hold the same rows, because `tensor` reaches across them, feed the same part.

    Raises:
        UsageError: the rows on this process's devices are no such part.
    """
    count = batch_divisor(mesh)
    slices = batch_sharding(mesh).addressable_devices_indices_map((count,)).values()
    rows = sorted({index[0].indices(count)[0] for index in slices if index is not None})
    if rows != list(range(rows[0], rows[-1] + 1)) or count % len(rows) or rows[0] % len(rows):
        raise UsageError(f"the mesh {dict(mesh.shape)} gives a process rows {rows} of {count}, which are no block")
    return {"shard": rows[0] // len(rows), "num_shards": count // len(rows)}


def batch_divisor(mesh: Mesh) -> int:
    """Return the number that a batch's rows must be a multiple of."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_rows(mesh: Mesh, batch_size: int) -> None:
    """Raise a UsageError unless a batch's rows can be divided among the devices."""
    divisor = batch_divisor(mesh)
    if over := batch_size % divisor:
        near = sorted({max(divisor, batch_size - over), batch_size - over + divisor})
        raise UsageError(
            f"batch_size {batch_size} can't be divided among {divisor} devices; nearest are "
            + " and ".join(map(str, near))
        )
