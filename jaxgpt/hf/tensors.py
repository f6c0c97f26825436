"""Tensors in files: what headers promise, checked before memory is asked for, and values, read one by one.

Nothing here knows a model or a format. Whatever is wrong with someone else's tensors becomes one `UsageError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jaxgpt.errors import UsageError, listed
from jaxgpt.progress import bar

FLOAT_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}


@dataclass(frozen=True)
class Tensor:
    """A tensor that lies in a file.

    Attributes:
        name: as it stands there.
        file: where.
        shape, dtype: from the file's header; dtypes by safetensors' codes, such as "BF16".
        read: returns the values, in an array of their own.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def transposed(tensor: Tensor) -> Tensor:
    """Return a matrix the other way round: (out, in), as PyTorch's Linear has it, is (in, out) in HF's Conv1D."""
    return replace(tensor, shape=tensor.shape[::-1], read=lambda: tensor.read().T)


def by_name(tensors: Iterable[Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Return tensors by what `rename` makes of their names."""
    found: dict[str, Tensor] = {}
    for tensor in tensors:
        name = rename(tensor.name)
        if name in found:
            raise UsageError(f"{name} is there twice, as {found[name].name} and {tensor.name}")
        found[name] = tensor
    return found


def fit(
    found: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], *, optional: Set[str] = frozenset()
) -> None:
    """Check that tensors have these shapes, that none is left over, and that only optional ones are missing.

    Raises:
        UsageError: they don't, or their files are too small for them.
    """
    required = shapes.keys() - optional
    problems = listed("missing", required - found.keys()) + listed("not of this model", found.keys() - shapes.keys())
    for name in shapes.keys() & found.keys():
        if found[name].shape != shapes[name]:
            problems.append(f"{name} has shape {found[name].shape}; the config makes it {shapes[name]}")
        if found[name].dtype not in FLOAT_BYTES:
            problems.append(f"{name} is {found[name].dtype}; valid are {', '.join(FLOAT_BYTES)}")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UsageError("; ".join(sorted(problems)[:5]) + more)
    # A pickle can describe a large tensor, or many, over a few bytes.
    needed = sum(math.prod(shapes[name]) * FLOAT_BYTES[found[name].dtype] for name in required)
    there = sum(file.stat().st_size for file in {tensor.file for tensor in found.values()})
    if needed > there:
        raise UsageError(f"the weights would take {needed} bytes, but the files have {there}")


def read_values(tensors: Mapping[str, Tensor], dtype: DTypeLike) -> dict[str, Array]:
    """Return the values of tensors by their names: the one door through which others' weights come in.

    Raises:
        UsageError: values are not finite, or not in that dtype.
    """
    # From the largest down, so that the memory of one that was read has room for the next. By NumPy, as JAX would
    # compile a program for each shape.
    by_size = sorted(tensors.items(), key=lambda item: -math.prod(item[1].shape))
    values, bad = {}, set()
    for name, tensor in bar("weights", by_size, unit="tensors"):
        with np.errstate(over="ignore"):  # it is found below
            read = tensor.read().astype(dtype, copy=False)
        if not np.isfinite(read).all():
            bad.add(name)
        # JAX copies in the background: what is read next waits for it, or else much would be in memory twice.
        values[name] = jax.device_put(read, may_alias=False).block_until_ready()
    if bad:
        raise UsageError(listed(f"values that are not finite in {jnp.dtype(dtype).name}", bad)[0])
    return values
