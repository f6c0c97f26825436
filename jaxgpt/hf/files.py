"""Files of weights, settings and shards: opened to be read where they are whole, written beside their places.

Nothing here knows a model. A file is someone else's data: whatever is wrong with it becomes one `UsageError`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxgpt.errors import RunError, UsageError
from jaxgpt.files import read_json, regular, replacing, write_json
from jaxgpt.hf.flax_files import open_flax
from jaxgpt.hf.tensors import Tensor

TORCH_DTYPES = {"torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float32": "F32", "torch.float64": "F64"}


def open_weights(folder: Path, *, allow_pickle: bool) -> list[Tensor]:
    """Return the tensors of an HF folder: one file of weights or the shards of an index, safetensors first.

    Pickles come before Flax's files only where they are allowed.

    Raises:
        UsageError: there are none, only pickles and `allow_pickle` is off, or a file is damaged or missing.
    """
    others = ("pytorch_model.bin", "flax_model.msgpack")
    for name in ("model.safetensors", *(others if allow_pickle else reversed(others))):
        single, index = folder / name, folder / f"{name}.index.json"
        if single.exists() or index.exists():
            files = [single] if single.exists() else _shards(index)
            return [tensor for file in files for tensor in _open(file, name, allow_pickle=allow_pickle)]
    tensorflow = (folder / "tf_model.h5").exists()
    hint = "; tf_model.h5 can't be read: transformers before version 5 makes safetensors of it" if tensorflow else ""
    raise UsageError(f"{folder}: no model.safetensors, flax_model.msgpack or pytorch_model.bin{hint}")


def _open(file: Path, name: str, *, allow_pickle: bool) -> list[Tensor]:
    """Return the tensors of a file of the format that has this name."""
    if name.endswith(".safetensors"):
        return open_safetensors(file)
    if name.endswith(".msgpack"):
        return open_flax(file)
    return torch_tensors(file, load_pickle(file, allow_pickle=allow_pickle))


def open_safetensors(file: Path) -> list[Tensor]:
    """Return the tensors of a safetensors file; the library has checked its header against its length."""
    try:
        # By reads, not by a memory map: a map's pages count as ours, and would double the peak.
        handle = safe_open(regular(file), "np", backend="pread")
        parts = {name: handle.get_slice(name) for name in handle.keys()}
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UsageError(f"{file}: not a whole safetensors file: {error}") from None
    return [
        Tensor(name, file, tuple(part.get_shape()), part.get_dtype(), partial(handle.get_tensor, name))
        for name, part in parts.items()
    ]


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
        regular(file)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
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
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.is_nested
        if not plain or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UsageError(f"{file}: {name!r} is sparse, or else no plain tensor of values; only those can be read")
    return [
        Tensor(
            name,
            file,
            tuple(tensor.shape),
            TORCH_DTYPES.get(str(tensor.dtype), str(tensor.dtype)),
            partial(_torch_values, tensor),
        )
        for name, tensor in state.items()
    ]


def _torch_values(tensor: Any) -> np.ndarray:
    import torch

    plain = tensor.detach().resolve_neg()  # parameters have gradients, and views may be negated when they are read
    if plain.dtype == torch.bfloat16:  # NumPy's own types lack it
        return plain.contiguous().view(torch.uint16).numpy().view(jnp.dtype(jnp.bfloat16)).copy()
    return plain.numpy().copy()


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
    with replacing(weights) as part:
        save_file(tensors, part, {"format": "pt"})
        write_json(settings, values)
        shutil.copymode(settings, part)  # safetensors makes files for their owner only


def _shards(index: Path) -> list[Path]:
    """Return the files of an index, which must lie beside it."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UsageError(f"{index}: no weight_map from tensors to files")
    files = []
    for name in dict.fromkeys(map(str, names.values())):
        if Path(name).name != name or "\\" in name:
            raise UsageError(f"{index}: {name!r} is not the name of a file in its folder")
        if not os.path.isfile(index.parent / name):  # False, unlike Path.is_file, for a name that can't be a path
            raise UsageError(f"{index}: the shard {name} is missing, or no file")
        files.append(index.parent / name)
    return files
