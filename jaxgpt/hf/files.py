"""Files of weights: what their headers promise, checked before memory is asked for, and tensors read one by one.

Nothing here knows a model. A file is someone else's data: whatever is wrong with it becomes one `UsageError`. New
files are written beside their places and then moved into them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxgpt.errors import RunError, UsageError

JSON_LIMIT = 2**24
FLOAT_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
TORCH_DTYPES = {"torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float32": "F32", "torch.float64": "F64"}


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


def open_weights(folder: Path, *, allow_pickle: bool) -> list[Tensor]:
    """Return the tensors of an HF folder: one file of weights or the shards of an index, safetensors first.

    Raises:
        UsageError: there are none, only pickles and `allow_pickle` is off, or a file is damaged or missing.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        single, index = folder / name, folder / f"{name}.index.json"
        if single.exists() or index.exists():
            files = [single] if single.exists() else _shards(index)
            if name.endswith(".safetensors"):
                return [tensor for file in files for tensor in open_safetensors(file)]
            states = [(file, load_pickle(file, allow_pickle=allow_pickle)) for file in files]
            return [tensor for file, state in states for tensor in torch_tensors(file, state)]
    other = [name for name in ("flax_model.msgpack", "tf_model.h5", "rust_model.ot") if (folder / name).exists()]
    hint = f"; {other[0]} can't be read: convert it to safetensors with transformers" if other else ""
    raise UsageError(f"{folder}: no model.safetensors or pytorch_model.bin{hint}")


def open_safetensors(file: Path) -> list[Tensor]:
    """Return the tensors of a safetensors file; the library has checked its header against its length."""
    try:
        # By reads, not by a memory map: a map's pages count as ours, and would double the peak.
        handle = safe_open(file, "np", backend="pread")
        parts = {name: handle.get_slice(name) for name in handle.keys()}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file}: not a whole safetensors file: {error}") from None

    def reader(name: str) -> Callable[[], np.ndarray]:
        return lambda: handle.get_tensor(name)

    return [Tensor(name, file, tuple(part.get_shape()), part.get_dtype(), reader(name)) for name, part in parts.items()]


def load_pickle(file: Path, *, allow_pickle: bool) -> Any:
    """Return what `torch.save` wrote, if it is tensors and plain values; no code of the pickle's is run.

    Zip files, which torch has written since 1.6, are mapped into memory and read where they are touched.
    """
    if not allow_pickle:
        raise UsageError(f"{file} is a pickle, not safetensors; allow_pickle (--allow_pickle) reads tensors from it")
    try:
        import torch
    except ImportError:
        raise UsageError(f"{file} is a pickle: reading it takes PyTorch (pip install torch)") from None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
        # Older unpicklers can be led to run code or to corrupt memory in spite of weights_only.
        raise UsageError(f"{file} is a pickle: reading it safely takes torch 2.10; installed is {torch.__version__}")
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # bytes that are no pickle make the unpickler fail in every way there is
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"{file}: torch.load(weights_only=True) refuses it: {reason}") from None


def torch_tensors(file: Path, state: Any) -> list[Tensor]:
    """Return the tensors of a PyTorch state dict that was loaded from a file."""
    import torch

    if not isinstance(state, dict):
        raise UsageError(f"{file}: holds a {type(state).__name__}; it must be a state dict")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UsageError(f"{file}: {name!r} is a {type(tensor).__name__}; a state dict maps names to tensors")

    def reader(tensor: torch.Tensor) -> Callable[[], np.ndarray]:
        if tensor.dtype == torch.bfloat16:  # NumPy's own types lack it
            return lambda: tensor.contiguous().view(torch.uint16).numpy().view(jnp.dtype(jnp.bfloat16)).copy()
        return lambda: tensor.numpy().copy()

    return [
        Tensor(name, file, tuple(tensor.shape), TORCH_DTYPES.get(str(tensor.dtype), str(tensor.dtype)), reader(tensor))
        for name, tensor in state.items()
    ]


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


def listed(what: str, names: Set[str]) -> list[str]:
    """Return a list with one problem that these names have, or with none if there are no names."""
    shown = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return [f"{what}: {shown}"] if names else []


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make a folder to write into, and make one clear error of what fails there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}") from None
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise RunError(f"{folder}: {error}") from None


def replace_files(weights: Path, tensors: dict[str, np.ndarray], settings: Path, values: Mapping[str, Any]) -> None:
    """Write tensors and a JSON object; neither file is ever there in part."""
    _beside(settings).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, _beside(weights), {"format": "pt"})
    shutil.copymode(_beside(settings), _beside(weights))  # safetensors makes files for their owner only
    os.replace(_beside(weights), weights)
    os.replace(_beside(settings), settings)


def read_json(file: Path) -> dict[str, Any]:
    """Return a JSON file's object."""
    try:
        if file.stat().st_size > JSON_LIMIT:
            raise UsageError(f"{file}: {file.stat().st_size} bytes; a JSON file here has at most {JSON_LIMIT}")
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{file}: holds a {type(value).__name__}; it must be an object")
    return value


def _beside(file: Path) -> Path:
    return file.with_name(f".{file.name}.tmp")


def _shards(index: Path) -> list[Path]:
    """Return the files of an index, which must lie beside it."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UsageError(f"{index}: no weight_map from tensors to files")
    files = []
    for name in dict.fromkeys(map(str, names.values())):
        if Path(name).name != name or "\\" in name:
            raise UsageError(f"{index}: {name!r} is not the name of a file in its folder")
        if not (index.parent / name).is_file():
            raise UsageError(f"{index}: the shard {name} is missing")
        files.append(index.parent / name)
    return files
