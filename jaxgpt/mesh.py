"""Devices → one mesh, and the atlas's axes → shardings of any tree; the compiler does the rest.

The mesh has three axes: `data` splits batches, `fsdp` splits batches and every matrix's D, `tensor` splits the
width of attention and of the feed-forward layer, and the vocabulary. One device is a mesh of 1 × 1 × 1, and nothing
else changes.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from jaxgpt import checks
from jaxgpt.devices import target_devices
from jaxgpt.errors import UsageError
from jaxgpt.model.atlas import Parameter, axes, tree_of
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.lora import is_adapter
from jaxgpt.parallel import AXES, DATA, FSDP, ROWS, TENSOR, own_key, total, whole

if TYPE_CHECKING:
    import optax

_MESH_AXIS = {"D": FSDP, "F": TENSOR, "(H K)": TENSOR, "(3 H K)": TENSOR}
# Where `tensor` can't divide the other axis as it is used: whole heads of q, k and v; and GPT-2's V, 50257, is odd.
_BOTH_DIVIDE_D = (("D", "(3 H K)"), ("V", "D"), ("P", "D"))


class Sizes(NamedTuple):
    """A mesh's axes."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    @property
    def own(self) -> int:
        """Among how many devices rows are divided."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        return ", ".join(f"{name} {size}" for name, size in zip(AXES, self, strict=True) if size > 1) or "one device"


def divide(count: int, *, fsdp: int | None = None, tensor: int | None = None) -> Sizes:
    """Return the axes of a mesh of `count` devices; `data` gets what the two others, if any, leave.

    Raises:
        UsageError: they are no numbers of devices, or don't divide these; the message has the nearest that do.
    """
    fsdp, tensor = (1 if n is None else checks.whole(name, n, 1) for name, n in ((FSDP, fsdp), (TENSOR, tensor)))
    if count % tensor:
        raise UsageError(f"tensor {tensor} does not divide {count} devices; it may be {_nearest(tensor, count)}")
    own = count // tensor
    if own % fsdp:
        what = f"{count} devices" if tensor == 1 else f"the {own} devices that tensor {tensor} leaves of {count}"
        raise UsageError(f"fsdp {fsdp} does not divide {what}; it may be {_nearest(fsdp, own)}")
    return Sizes(own // fsdp, fsdp, tensor)


def make_mesh(*, fsdp: int | None = None, tensor: int | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """Arrange devices, None for all that there are, as `divide` says."""
    devices = target_devices() if devices is None else devices
    sizes = divide(len(devices), fsdp=fsdp, tensor=tensor)
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


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
    pattern = axes(parameter.row.pattern)
    if pattern in _BOTH_DIVIDE_D and parameter.shape[pattern.index("D")] % (mesh.shape[FSDP] * mesh.shape[TENSOR]) == 0:
        return PartitionSpec(*((FSDP, TENSOR) if axis == "D" else None for axis in pattern))
    names = [_MESH_AXIS.get(axis) for axis in pattern]
    sizes = zip(names, parameter.shape, strict=True)
    return PartitionSpec(*(name if name and size % mesh.shape[name] == 0 else None for name, size in sizes))


def optimizer_shardings(mesh: Mesh, optimizer: "optax.GradientTransformation", shapes: Any, shardings: Any) -> Any:
    """Return a tree of shardings for the optimizer's state: moments lie where their parameters lie.

    Args:
        mesh: of the shardings.
        optimizer: whose state it is.
        shapes: tree of the parameters' shapes.
        shardings: tree of the parameters' shardings.
    """
    import optax  # who only decodes needs none

    state = jax.eval_shape(optimizer.init, shapes)
    return optax.tree_utils.tree_map_params(
        optimizer, lambda _, sharding: sharding, state, shardings, transform_non_params=lambda _: replicated(mesh)
    )


def check_heads(mesh: Mesh | Sizes, config: GPTConfig) -> None:
    """Raise a UsageError unless the devices along `tensor` can have whole heads, and equal parts of all layers."""
    sizes = _sizes(mesh)
    for name, size in (("n_head", config.n_head), ("n_inner", config.inner_dim)):
        if size % sizes.tensor:
            near = _nearest(sizes.tensor, math.prod(sizes), config.n_head, config.inner_dim)
            raise UsageError(f"tensor {sizes.tensor} does not divide {name} {size}; it may be {near}")


def _sizes(mesh: Mesh | Sizes) -> Sizes:
    return mesh if isinstance(mesh, Sizes) else Sizes(**mesh.shape)


def _nearest(value: int, *counts: int) -> str:
    """Return what divides all counts and is next to a value, below and above, for a message."""
    valid = [n for n in range(1, min(counts) + 1) if not any(count % n for count in counts)]
    below, above = [n for n in valid if n < value][-1:], [n for n in valid if n > value][:1]
    return " or ".join(map(str, below + above))


def place(tree: Any, shardings: Any) -> Any:
    """Return a tree of arrays, each where its sharding says.

    In a run of several processes each of them may bring the whole of an array, and gives its devices their parts.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    return jax.tree.map(_place, tree, shardings)


def _place(leaf: Any, sharding: NamedSharding) -> Any:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays with a batch's rows first."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Place this process's rows of a global batch, those that `host_shard` names, on its devices."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(batch_sharding(mesh), np.asarray(x)), batch)


def share_out(mesh: Mesh, batch: Any) -> Any:
    """Place a global batch, of which each process has all rows, on all devices."""
    return jax.tree.map(lambda rows: place(rows, batch_sharding(mesh)), batch)


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
    return _sizes(mesh).own


def check_rows(mesh: Mesh | Sizes, batch_size: int) -> None:
    """Raise a UsageError unless a batch's rows can be divided among the devices."""
    own = _sizes(mesh).own
    if over := batch_size % own:
        near = sorted({max(own, batch_size - over), batch_size - over + own})
        raise UsageError(
            f"batch_size {batch_size} can't be divided among {own} devices; nearest are {' and '.join(map(str, near))}"
        )


class OwnRows:
    """Programs in which each device computes on its own rows, and holds parts of weights that it gathers to use them.

    What is said on the way is then what is written in `jaxgpt.parallel`, and no compiler's choice. On one device a
    function stays as it is.
    """

    def __init__(self, mesh: Mesh, parameters: Iterable[Parameter], dtype: DTypeLike) -> None:
        """Say what lies where.

        Args:
            mesh: the devices.
            parameters: all that objectives read.
            dtype: in which weights are sent.
        """
        self._mesh, self._dtype = mesh, dtype
        self._parameters = {parameter.path: parameter for parameter in parameters}
        self._adapted = any(is_adapter(path) for path in self._parameters)

    def gradient(self, function: Callable[..., Any], objective: Any) -> Callable[..., tuple[Any, Any]]:
        """Return `function(objective, …)`, of (trained, frozen, batch, key), for all rows.

        Args:
            function: gives a gradient by what is trained, and sums that are added up already.
            objective: of (parameters, batch, key).
        """
        if self._mesh.size == 1:
            return partial(function, objective)
        return partial(self._gradient, partial(function, partial(self._of_own_rows, objective)))

    def place(self, params: Any) -> Any:
        """Return parameters where they belong; on one device they stay where they are."""
        return place(params, parameter_shardings(self._mesh, self._parameters.values()))

    def each(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a compiled function of (parameters, arrays …), with rows first in its results, for all rows."""
        return function if self._mesh.size == 1 else jax.jit(partial(self._each, function))

    def sums(self, objective: Callable[..., Any]) -> Callable[..., Any]:
        """Return an objective of (parameters, batch, key) for all rows, for its values alone."""
        return objective if self._mesh.size == 1 else partial(self._sums, objective)

    def _gradient(self, function: Callable[..., Any], params: Any, frozen: Any, batch: Any, key: Any) -> Any:
        def add_up(*args: Any) -> Any:
            grads, sums = function(*args)
            leaves = flatten_dict(grads)
            # What is gathered has been summed over fsdp.
            parts = {path: leaf for path, leaf in leaves.items() if FSDP in self._spec(path)}
            others = {path: leaf for path, leaf in leaves.items() if path not in parts}
            return unflatten_dict({**total(parts, DATA), **total(others)}), sums

        into = self._specs(params), self._specs(frozen), PartitionSpec(ROWS), PartitionSpec()
        return self._spread(add_up, into, (self._specs(params), PartitionSpec()))(params, frozen, batch, key)

    def _sums(self, objective: Callable[..., Any], params: Any, batch: Any, key: Any) -> Any:
        function = partial(self._of_own_rows, objective)
        into = self._specs(params), PartitionSpec(ROWS), PartitionSpec()
        return self._spread(lambda *args: total(function(*args)), into, PartitionSpec())(params, batch, key)

    def _each(self, function: Callable[..., Any], params: Any, *arrays: Any) -> Any:
        own = self._spread(
            lambda params, *arrays: function(self._ready(params), *arrays),
            (self._specs(params), *[PartitionSpec(ROWS)] * len(arrays)),
            PartitionSpec(ROWS),
        )
        return own(params, *arrays)

    def _of_own_rows(self, objective: Callable[..., Any], params: Any, batch: Any, key: Any) -> Any:
        return objective(self._ready(params), batch, own_key(key))

    def _ready(self, params: Any) -> Any:
        # Tables are gathered once for both ends of the model; matrices of blocks where they are used, but those with
        # adapters before these are merged into them.
        ready = {
            path: leaf if "{i}" in self._parameters[path].row.path and not self._adapted else self._whole(path, leaf)
            for path, leaf in flatten_dict(params).items()
        }
        return unflatten_dict(ready)

    def _whole(self, path: tuple[str, ...], leaf: Any) -> Any:
        parameter, dtype = self._parameters[path], leaf.dtype if is_adapter(path) else self._dtype
        table = parameter_spec(self._mesh, parameter)[-1:] == ((FSDP, TENSOR),)
        return whole(leaf, parameter.shape, dtype, tensor_axis=1 if table else None)

    def _spread(self, function: Callable[..., Any], into: Any, out: Any) -> Callable[..., Any]:
        names = ROWS if self._mesh.shape[TENSOR] > 1 else AXES
        return jax.shard_map(
            function, mesh=self._mesh, in_specs=into, out_specs=out, axis_names=set(names), check_vma=False
        )

    def _specs(self, params: Any) -> Any:
        return unflatten_dict({path: self._spec(path) for path in flatten_dict(params)})

    def _spec(self, path: tuple[str, ...]) -> PartitionSpec:
        """Return where `fsdp` divides a parameter."""
        spec = parameter_spec(self._mesh, self._parameters[path])
        return PartitionSpec(*(FSDP if names in (FSDP, (FSDP, TENSOR)) else None for names in spec))
