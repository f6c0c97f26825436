"""Where a model comes from: a run's folder, a folder of pretrained weights, or the Hugging Face hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jaxgpt.errors import UsageError, did_you_mean
from jaxgpt.hf.convert import load_pretrained
from jaxgpt.hf.hub import locate
from jaxgpt.model.config import GPTConfig
from jaxgpt.text import Tokenizer, load_tokenizer
from jaxgpt.text.tokenizers import TOKENIZER_FILES
from jaxgpt.train.manifest import Which
from jaxgpt.train.weights import load_params

# The hub's models without an owner in their name; any other name without a slash is a folder that is not there.
HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")


def open_model(
    source: str, *, checkpoint: Which | None = None, allow_pickle: bool = False, ignore_config_change: bool = False
) -> tuple[GPTConfig, Any, Tokenizer]:
    """Open a model by path or name.

    Args:
        source: a run's folder; another folder, or nanoGPT's ckpt.pt; or a name on the hub. What exists here comes
            first.
        checkpoint: which of a run's; None for the best.
        allow_pickle: see `load_pretrained`.
        ignore_config_change: see `load_params`.

    Returns:
        The config, the parameters, and the tokenizer.

    Raises:
        UsageError: there is no such model, or it is broken, or lacks ids that its tokenizer has.
    """
    config, params, tokenizer = _open(source, checkpoint, allow_pickle, ignore_config_change)
    check_tokenizer(source, config, tokenizer)
    return config, params, tokenizer


def check_tokenizer(source: object, config: GPTConfig, tokenizer: Tokenizer) -> None:
    """Make sure that a model has a row for each id of its tokenizer; for others it would read NaN.

    Raises:
        UsageError: it has not.
    """
    if tokenizer.vocab_size > config.vocab_size:
        ids, rows = tokenizer.vocab_size, config.vocab_size
        raise UsageError(
            f"{source}: its tokenizer has {ids} ids, but its embedding table {rows} rows; added tokens need rows, too"
        )


def find_tokenizer(folder: Path, vocab_size: int) -> Tokenizer | None:
    """Return the tokenizer beside a model's weights, or GPT-2's for a vocabulary of its size; None if neither."""
    if any((folder / name).exists() for name in TOKENIZER_FILES):
        return load_tokenizer(folder)
    if vocab_size not in (50257, 50304):  # 50304 is how nanoGPT pads GPT-2's
        return None
    # Neither nanoGPT's checkpoints nor `save_pretrained` of a model bring a tokenizer.
    print(f"note: {folder} has no tokenizer; its {vocab_size} ids are taken as GPT-2's", file=sys.stderr)
    return load_tokenizer("gpt2")


def _open(
    source: str, checkpoint: Which | None, allow_pickle: bool, ignore_config_change: bool
) -> tuple[GPTConfig, Any, Tokenizer]:
    path = Path(source)
    if (path / "checkpoints").is_dir():
        which = "best" if checkpoint is None else checkpoint
        return *load_params(path, which, ignore_config_change=ignore_config_change), load_tokenizer(path)
    if checkpoint is not None:
        raise UsageError(f"--checkpoint {checkpoint}: only of a run's folder, and {source} is none")
    if not path.exists() and "/" not in source and source not in HUB_NAMES:
        raise UsageError(
            f"{source}: no such folder; train.py writes one, and the hub's models are {', '.join(HUB_NAMES)} "
            f"or OWNER/NAME{did_you_mean(source, HUB_NAMES)}"
        )
    path = locate(source, revision=None, allow_pickle=allow_pickle)
    config, params = load_pretrained(path, allow_pickle=allow_pickle)
    folder = path if path.is_dir() else path.parent
    # Of a folder without a tokenizer, `load_tokenizer` says what it should hold.
    return config, params, find_tokenizer(folder, config.vocab_size) or load_tokenizer(folder)
