"""Pretrained weights in and out: HF folders and hub names ⇄ (config, params), by the atlas.

The atlas has each parameter's name and shape on both sides; what it does not name is left over, and an error.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import tree_leaves_with_path
from jax.typing import DTypeLike
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jaxgpt.errors import RunError, UsageError
from jaxgpt.hf.files import FLOAT_BYTES, Tensor, open_weights, read_json
from jaxgpt.hf.hub import locate
from jaxgpt.hf.nanogpt import open_nanogpt
from jaxgpt.model.atlas import map_parameters, parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.text import Tokenizer

DTYPES = ("float32", "bfloat16", "float16")
TABLE, HEAD = "wte.weight", "lm_head.weight"
# The causal mask, which older versions of transformers and nanoGPT stored with the weights.
BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


def load_pretrained(
    source: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.float32,
    allow_pickle: bool = False,
    revision: str | None = None,
) -> tuple[GPTConfig, dict[str, Any]]:
    """Read a model's config and parameters.

    Everything that headers tell is checked before the first tensor is read, and tensors are read one by one into
    their place.

    Args:
        source: a model's name on the Hugging Face hub, a folder as `save_pretrained` writes it, or nanoGPT's
            `ckpt.pt` or the folder it lies in.
        dtype: of the parameters; float32, bfloat16 or float16, whatever the file's is.
        allow_pickle: also read `pytorch_model.bin` and `ckpt.pt`, by torch's unpickler for weights only.
        revision: branch, tag or commit on the hub.

    Returns:
        The config, and the parameters as `GPT(config).init` would make them.

    Raises:
        UsageError: files that are missing, damaged, or do not fit the config or one another; the message names them.
    """
    if not any(dtype == jnp.dtype(name) for name in DTYPES):
        raise UsageError(f"dtype is {dtype!r}; valid are {', '.join(DTYPES)}")
    path = locate(source if isinstance(source, str) else Path(source), revision=revision, allow_pickle=allow_pickle)
    config, tensors = open_pretrained(path, allow_pickle=allow_pickle)
    leaves = {name: jnp.array(tensor.read(), dtype) for name, tensor in tensors.items()}
    # By its extremes, which NaN is among, and which take no memory.
    if bad := [name for name, leaf in leaves.items() if not jnp.isfinite(leaf.max() - leaf.min())]:
        raise UsageError(f"{path}: {_listed('values that are not finite in ' + jnp.dtype(dtype).name, set(bad))[0]}")
    if config.tie_word_embeddings and HEAD in leaves and not _same(leaves[HEAD], leaves[TABLE]):
        # Versions of transformers disagree on which of the two to use then.
        raise UsageError(
            f"{path}: {HEAD} differs from {TABLE}, but tie_word_embeddings is true; set it to false in config.json "
            f"to keep both, or remove {HEAD} from the weights"
        )
    return config, map_parameters(config, lambda parameter: leaves[parameter.hf_name])


def save_pretrained(
    directory: str | os.PathLike[str],
    config: GPTConfig,
    params: Mapping[str, Any],
    *,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a folder that `GPT2LMHeadModel.from_pretrained` of transformers opens.

    Config and weights are written beside their places and then moved into them. A model without biases gets zeros,
    which make the same function.

    Args:
        directory: made if it does not exist.
        config: the architecture.
        params: the parameters, written in their dtype.
        tokenizer: its files are written too, and rows of the embedding table beyond its ids are cut (`cut_padding`).
            Without one, all rows are written.

    Raises:
        UsageError: the parameters do not fit the config, HF's GPT-2 has no such architecture, or the folder
            can't be made.
        RunError: writing failed.
    """
    folder = Path(directory)
    if tokenizer is not None:
        config, params = cut_padding(config, params, tokenizer.vocab_size)
    hf_config = config.to_hf()
    tensors = hf_tensors(config, params)
    hf_config["dtype"] = str(jnp.result_type(*tensors.values()))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}") from None
    named = {name if name == HEAD else f"transformer.{name}": tensor for name, tensor in tensors.items()}
    weights, settings = folder / "model.safetensors", folder / "config.json"
    try:
        if tokenizer is not None:
            tokenizer.save(folder)
        _beside(settings).write_text(json.dumps(hf_config, indent=2) + "\n", encoding="utf-8")
        save_file(named, _beside(weights), {"format": "pt"})
        shutil.copymode(_beside(settings), _beside(weights))  # safetensors makes files for their owner only
        os.replace(_beside(weights), weights)
        os.replace(_beside(settings), settings)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{folder}: {error}") from None


def cut_padding(config: GPTConfig, params: Mapping[str, Any], vocab_size: int) -> tuple[GPTConfig, Mapping[str, Any]]:
    """Return the model with `vocab_size` rows in its embedding table and head, or as it is if it has no more.

    The rows beyond pad the table, as nanoGPT pads GPT-2's 50257 to 50304: they stand for no text, and whoever samples
    from the model should not have to know of them. Logits of the ids that stay are the same.

    Raises:
        UsageError: the parameters do not fit the config.
    """
    if config.vocab_size <= vocab_size:
        return config, params
    hf_tensors(config, params)  # raises
    leaves = {tuple(key.key for key in path): leaf for path, leaf in tree_leaves_with_path(params)}
    config = replace(config, vocab_size=vocab_size)
    return config, map_parameters(config, lambda p: leaves[p.path][tuple(slice(size) for size in p.shape)])


def open_pretrained(path: Path, *, allow_pickle: bool = False) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Return the config and, by its name in a `GPT2Model`, each tensor of a folder or checkpoint; all of it checked.

    The tensors may include the head of a model whose head is tied.
    """
    checkpoint = path / "ckpt.pt" if path.is_dir() else path
    if path.is_dir() and ((path / "config.json").exists() or not checkpoint.exists()):
        values = read_json(path / "config.json")
        try:
            config = GPTConfig.from_hf(values)
        except UsageError as error:
            raise UsageError(f"{path / 'config.json'}: {error}") from None
        tensors = open_weights(path, allow_pickle=allow_pickle)
    else:
        config, tensors = open_nanogpt(checkpoint, allow_pickle=allow_pickle)
    try:
        return config, match(config, tensors)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def match(config: GPTConfig, tensors: list[Tensor]) -> dict[str, Tensor]:
    """Return tensors by their names in a `GPT2Model`, one for each parameter of the config and none left over."""
    found: dict[str, Tensor] = {}
    problems = []
    for tensor in tensors:
        name = tensor.name.replace("_orig_mod.", "").removeprefix("transformer.")
        if BUFFER.fullmatch(name):
            continue
        if name in found:
            problems.append(f"{name} is there twice, as {found[name].name} and {tensor.name}")
        found[name] = tensor
    required = {parameter.hf_name for parameter in parameters(config)}
    shapes = {p.hf_name: p.shape for p in parameters(replace(config, tie_word_embeddings=False))}
    problems += _listed("missing", required - found.keys())
    problems += _listed("not of this model", found.keys() - shapes.keys())
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
    there = sum(file.stat().st_size for file in {tensor.file for tensor in tensors})
    if needed > there:
        raise UsageError(f"the weights would take {needed} bytes, but the files have {there}")
    return found


def hf_tensors(config: GPTConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return every tensor of HF's model by its name in a `GPT2Model`; on CPU they share the parameters' memory."""
    leaves = {tuple(key.key for key in path): leaf for path, leaf in tree_leaves_with_path(params)}
    shapes = {parameter.path: parameter.shape for parameter in parameters(config)}
    problems = _listed("missing", {"/".join(path) for path in shapes.keys() - leaves.keys()})
    problems += _listed("not of this config", {"/".join(path) for path in leaves.keys() - shapes.keys()})
    for path in shapes.keys() & leaves.keys():
        if leaves[path].shape != shapes[path]:
            problems.append(f"{'/'.join(path)} has shape {leaves[path].shape}; the config makes it {shapes[path]}")
    if problems:
        raise UsageError(f"the parameters do not fit the config: {'; '.join(sorted(problems)[:5])}")
    dtype = next(iter(leaves.values())).dtype
    # HF's layers always have biases.
    return {
        p.hf_name: np.ascontiguousarray(leaves[p.path]) if p.path in leaves else np.zeros(p.shape, dtype)
        for p in parameters(replace(config, bias=True))
    }


def _same(a: Array, b: Array) -> bool:
    return bool(jnp.array_equal(a, b, equal_nan=True))


def _beside(file: Path) -> Path:
    return file.with_name(f".{file.name}.tmp")


def _listed(what: str, names: set[str]) -> list[str]:
    shown = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return [f"{what}: {shown}"] if names else []
