"""nanoGPT's `ckpt.pt`: the same model under the same names, with its linear layers stored the other way round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxgpt.errors import UsageError
from jaxgpt.hf.files import load_pickle, torch_tensors
from jaxgpt.hf.tensors import Tensor, transposed
from jaxgpt.model.atlas import parameters
from jaxgpt.model.config import GPTConfig

ARGUMENTS = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout")


def open_nanogpt(file: Path, *, allow_pickle: bool) -> tuple[GPTConfig, list[Tensor]]:
    """Return the config and the tensors, as HF stores them, of a checkpoint.

    Raises:
        UsageError: it is something else, or `allow_pickle` is off.
    """
    checkpoint = load_pickle(file, allow_pickle=allow_pickle)
    if not isinstance(checkpoint, dict) or not {"model", "model_args"} <= checkpoint.keys():
        raise UsageError(f"{file}: not a checkpoint of nanoGPT, which holds a model and its model_args")
    try:
        config = read_arguments(checkpoint["model_args"])
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None
    kernels = tuple(parameter.hf_name for parameter in parameters(config) if parameter.path[-1] == "kernel")
    tensors = torch_tensors(file, checkpoint["model"])
    return config, [transposed(tensor) if tensor.name.endswith(kernels) else tensor for tensor in tensors]


def read_arguments(arguments: Any) -> GPTConfig:
    """Return the config that a checkpoint's `model_args` describe; nanoGPT's GELU is the exact one."""
    if not isinstance(arguments, dict) or set(arguments) != set(ARGUMENTS):
        raise UsageError(f"model_args is {arguments!r}; it must hold {', '.join(ARGUMENTS)}")
    dropout, vocab_size = arguments["dropout"], arguments["vocab_size"]
    config = GPTConfig(
        vocab_size=vocab_size,
        n_positions=arguments["block_size"],
        n_embd=arguments["n_embd"],
        n_layer=arguments["n_layer"],
        n_head=arguments["n_head"],
        activation_function="gelu",
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bias=arguments["bias"],
        tokenizer_vocab_size=50257 if vocab_size == 50304 else None,
    )
    # With GPT-2's vocabulary (50257, or padded to 50304) the defaults hold; one of characters has no special ids.
    return config if vocab_size >= 50257 else replace(config, bos_token_id=None, eos_token_id=None)
