"""A folder of token files, or a single one → ids to train on and to validate on, and the tokenizer that made them."""

from __future__ import annotations

from pathlib import Path

from jaxgpt.data.sources import VAL_FRACTION
from jaxgpt.data.tokens.token_files import TokenFile
from jaxgpt.errors import UsageError
from jaxgpt.tokenizers.tokenizer import TOKENIZER_FILES, Tokenizer, load_tokenizer

_VAL_BINS = ("val.bin", "valid.bin", "validation.bin")


def are_tokens(path: Path) -> bool:
    return (path / "train.bin").exists() or (path.suffix == ".bin" and path.is_file())


def open_tokens(
    path: Path,
    tokenizer: str | Path | Tokenizer | None,
    val_fraction: float | None,
    val_dataset: str | Path | None,
) -> tuple[TokenFile, TokenFile, Tokenizer, tuple[str, ...]]:
    """Open a folder with token files, or one such file, and another one to validate on if that is named."""
    folder = path if path.is_dir() else path.parent
    has_own = any((folder / file).exists() for file in TOKENIZER_FILES)
    own = load_tokenizer(folder if has_own else "gpt2")
    if tokenizer in ("char", "bpe") and tokenizer != own.name:
        raise UsageError(f"tokenizer {tokenizer!r}: made from text, but {path} holds tokens, made by {own.name!r}")
    if isinstance(tokenizer, str | Path):
        tokenizer = own if tokenizer in ("char", "bpe") else load_tokenizer(tokenizer)
    tokenizer = own if tokenizer is None else tokenizer
    if path.is_dir() and val_fraction is not None:
        raise UsageError(f"val_fraction {val_fraction}: {path} has tokens to validate on, in a file of their own")
    paths = [path / "train.bin", _val_tokens(path)] if path.is_dir() else [path]
    if val_dataset is not None:
        if not (are_tokens(other := Path(val_dataset)) or _val_tokens(other).exists()):
            raise UsageError(f"val_dataset {val_dataset}: must be tokens too, a .bin file or a folder, as {path} is")
        paths = [paths[0], _val_tokens(other) if other.is_dir() else other]
    notes = [f"{path}: test.bin is left out"] if (path / "test.bin").exists() else []
    files = [TokenFile(file, vocab_size=tokenizer.vocab_size) for file in paths]
    for ids in files:
        if ids.sidecar and ids.sidecar.tokenizer_fingerprint != tokenizer.fingerprint:
            raise UsageError(f"{ids.path}: made by tokenizer {ids.sidecar.tokenizer!r}, another one than is asked for")
    train, val = files if len(files) > 1 else files[0].split(val_fraction or VAL_FRACTION)
    return train, val, tokenizer, tuple(notes)


def _val_tokens(folder: Path) -> Path:
    return next((path for name in _VAL_BINS if (path := folder / name).exists()), folder / _VAL_BINS[0])
