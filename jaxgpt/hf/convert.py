"""Pretrained weights in and out: HF folders and hub names ⇄ (config, params), by the atlas.

The atlas has each parameter's name and shape on both sides; what it does not name is left over, and an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jaxgpt import checks
from jaxgpt.commands import called
from jaxgpt.errors import UsageError
from jaxgpt.files import read_json
from jaxgpt.hf.files import open_weights, replace_files, writing
from jaxgpt.hf.hub import locate
from jaxgpt.hf.nanogpt import open_nanogpt
from jaxgpt.hf.tensors import Tensor, by_name, fit, read_values
from jaxgpt.model.atlas import leaves_of, map_parameters, parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.notes import note
from jaxgpt.tokenizers import Tokenizer
from jaxgpt.tokenizers.tokenizer import count_ids

ADAPTERS = "adapter_config.json"
TABLE, HEAD = "wte.weight", "lm_head.weight"
HEADS = (HEAD, "score.weight")
# The causal mask, which older versions of transformers and nanoGPT stored with the weights.
BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
# What others train beside a language model: TRL's and trlX's values, and the heads of transformers' other GPT-2 models.
BESIDE = re.compile(r"(v_head|value_head|ilql_heads|multiple_choice_head|classifier|qa_outputs)\..+")


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
        source: a model's name on the Hugging Face hub, a folder with HF's weights (or Flax's), or nanoGPT's
            `ckpt.pt` or the folder it lies in.
        dtype: of the parameters; float32, bfloat16 or float16, whatever the file's is.
        allow_pickle: also read `pytorch_model.bin` and `ckpt.pt`, by torch's unpickler for weights only.
        revision: branch, tag or commit on the hub.

    Returns:
        The config, and the parameters as `GPT(config).init` would make them.

    Raises:
        UsageError: files that are missing, damaged, or do not fit the config or one another; the message names them.
    """
    dtype = jnp.dtype(checks.floating("dtype", dtype))
    allow_pickle = checks.flag("allow_pickle", allow_pickle)
    revision = None if revision is None else checks.text("revision", revision)
    if not isinstance(source, str):
        source = checks.path("source", source, "a model's name on the hub, or the path of a folder or of ckpt.pt")
    path = locate(source, revision=revision, allow_pickle=allow_pickle)
    config, tensors = open_pretrained(path, allow_pickle=allow_pickle)
    try:
        leaves = read_values(tensors, dtype)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
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

    With labels it is `GPT2ForSequenceClassification` that does. That one reads a row's scores at its last token that
    isn't `pad_token_id`, and without such an id takes one row at a time.

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
    folder = checks.path("directory", directory)
    checks.instance("config", config, GPTConfig, "a GPTConfig")
    if tokenizer is not None:
        checks.instance("tokenizer", tokenizer, Tokenizer, "a tokenizer, as load_tokenizer gives it, or None")
        config, params = cut_padding(config, params, tokenizer.vocab_size)
    hf_config = config.to_hf()
    tensors = hf_tensors(config, params)
    hf_config["dtype"] = str(jnp.result_type(*tensors.values()))
    named = {full_name(name): tensor for name, tensor in tensors.items()}
    with writing(folder):
        if tokenizer is not None:
            tokenizer.save(folder)
        replace_files(folder / "model.safetensors", named, folder / "config.json", hf_config)


def cut_padding(config: GPTConfig, params: Mapping[str, Any], vocab_size: int) -> tuple[GPTConfig, Mapping[str, Any]]:
    """Return the model with `vocab_size` rows in its embedding table and head, or as it is if it has no more.

    The rows beyond pad the table, as nanoGPT pads GPT-2's 50257 to 50304: they stand for no text, and whoever samples
    from the model should not have to know of them. Logits of the ids that stay are the same.

    Raises:
        UsageError: the parameters do not fit the config.
    """
    if config.vocab_size <= vocab_size:
        return config, params
    leaves = leaves_of(params, parameters(config))
    config = replace(config, vocab_size=vocab_size, tokenizer_vocab_size=None)
    return config, map_parameters(config, lambda p: leaves[p.path][tuple(slice(size) for size in p.shape)])


def open_pretrained(path: Path, *, allow_pickle: bool = False) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Return the config and, by its name in a `GPT2Model`, each tensor of a folder or checkpoint; all of it checked.

    The tensors may include the head of a model whose head is tied.
    """
    checkpoint = path / "ckpt.pt" if path.is_dir() else path
    if (path / ADAPTERS).exists() and not (path / "config.json").exists():
        raise UsageError(
            f"{path} holds PEFT's adapters and no model: {called('convert')} {path} DIR --base MODEL merges them"
        )
    if path.is_dir() and ((path / "config.json").exists() or not checkpoint.exists()):
        values = read_json(path / "config.json")
        if (path / "checkpoints").is_dir():
            raise UsageError(
                f"{path} is a run's folder, which jaxgpt.runs.weights.load_params reads; {called('convert')} makes a "
                "folder of pretrained weights from it"
            )
        try:
            config = GPTConfig.from_hf(values)
        except UsageError as error:
            raise UsageError(f"{path / 'config.json'}: {error}") from None
        config = _with_stop_ids(config, path / "generation_config.json")
        tensors = open_weights(path, allow_pickle=allow_pickle)
        if config.labels is not None and all(tensor.name != HEAD for tensor in tensors):
            # HF's model that scores has no LM head; ours then takes the table, whatever the config says.
            config = replace(config, tie_word_embeddings=True)
    else:
        config, tensors = open_nanogpt(checkpoint, allow_pickle=allow_pickle)
    try:
        return with_tokenizer_size(config, checkpoint.parent), match(config, tensors)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def with_tokenizer_size(config: GPTConfig, folder: Path) -> GPTConfig:
    """Return the config with the number of ids of a folder's tokenizer, where the embedding table has more rows."""
    ids = count_ids(folder)
    return replace(config, tokenizer_vocab_size=ids) if ids is not None and ids < config.vocab_size else config


def _with_stop_ids(config: GPTConfig, file: Path) -> GPTConfig:
    """Return the config with the ids that end a generation.

    As in transformers, a file beside the config says which they are, and where it names none there are none.
    """
    if not file.exists():
        return config
    ids = read_json(file).get("eos_token_id")
    try:
        return replace(config, eos_token_id=tuple(ids) if isinstance(ids, list) else ids)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


def match(config: GPTConfig, tensors: list[Tensor]) -> dict[str, Tensor]:
    """Return tensors by their names in a `GPT2Model`, one for each parameter of the config and none left over."""
    found = by_name(tensors, lambda name: name.replace("_orig_mod.", "").removeprefix("transformer."))
    found = {name: tensor for name, tensor in found.items() if not BUFFER.fullmatch(name)}
    if beside := sorted(filter(BESIDE.fullmatch, found)):
        note(f"heads beside the model are left alone: {', '.join(beside)}")
        found = {name: tensor for name, tensor in found.items() if name not in beside}
    shapes = {p.hf_name: p.shape for p in parameters(replace(config, tie_word_embeddings=False))}
    fit(found, shapes, optional=shapes.keys() - {parameter.hf_name for parameter in parameters(config)})
    return found


def hf_tensors(config: GPTConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return every tensor of HF's model by its name in a `GPT2Model`; on CPU they share the parameters' memory."""
    leaves = leaves_of(params, parameters(config))
    dtype = next(iter(leaves.values())).dtype
    # HF's layers always have biases.
    return {
        p.hf_name: np.ascontiguousarray(leaves[p.path]) if p.path in leaves else np.zeros(p.shape, dtype)
        for p in parameters(replace(config, bias=True))
    }


def full_name(hf_name: str) -> str:
    """Return the name in a model with heads of what has this one in a `GPT2Model`."""
    return hf_name if hf_name in HEADS else f"transformer.{hf_name}"


def _same(a: Array, b: Array) -> bool:
    return bool(jnp.array_equal(a, b, equal_nan=True))
