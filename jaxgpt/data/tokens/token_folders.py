"""A folder of token files, or a single one → ids to train on and to validate on, and the tokenizer that made them."""

from __future__ import annotations

import re
from pathlib import Path

from jaxgpt.data.documents import SUFFIXES, suffix_of
from jaxgpt.data.folders import files_below, refuse_trained_on, splits_by_name
from jaxgpt.data.sources import VAL_FRACTION
from jaxgpt.data.tokens.shards import Tokens, open_files
from jaxgpt.errors import UsageError
from jaxgpt.tokenizers.tokenizer import TOKENIZER_FILES, Tokenizer, load_tokenizer

MADE = ("char", "bpe")
"""Tokenizers that are made from text."""
_VAL_BINS = ("val.bin", "valid.bin", "validation.bin")
_TEXTS = {".txt", *SUFFIXES} - {".json"}
_NO_TEXTS = re.compile(r"(merges|vocab|notes|readme|license|licence|requirements)\b.*", re.IGNORECASE)
_TOTAL = re.compile(r"(\d+)-of-(\d+)")


def are_tokens(path: Path) -> bool:
    """Return whether there are token files and no texts: a .bin file, or a folder with `train.bin` or shards."""
    if path.is_dir():
        return (path / "train.bin").exists() or bool(_shards(path)[0])
    return path.suffix == ".bin" and path.is_file()


def open_tokens(
    path: Path,
    tokenizer: str | Path | Tokenizer | None,
    val_fraction: float | None,
    val_dataset: str | Path | None,
) -> tuple[Tokens, Tokens, Tokenizer, tuple[str, ...]]:
    """Open a folder with token files, or one such file, and others to validate on if those are named."""
    folder = path if path.is_dir() else path.parent
    has_own = any((folder / file).exists() for file in TOKENIZER_FILES)
    own = load_tokenizer(folder if has_own else "gpt2")
    if tokenizer in MADE and tokenizer != own.name:
        raise UsageError(f"tokenizer {tokenizer!r}: made from text, but {path} holds tokens, made by {own.name!r}")
    if isinstance(tokenizer, str | Path):
        tokenizer = own if tokenizer in MADE else load_tokenizer(tokenizer)
    tokenizer = own if tokenizer is None else tokenizer
    train, val, notes = token_files(path)
    if val_dataset is not None:
        other = Path(val_dataset)
        if not (are_tokens(other) or _val_bin(other).exists()):
            raise UsageError(f"val_dataset {val_dataset}: must be tokens too, a .bin file or a folder, as {path} is")
        all_of_it, val, more = token_files(other)
        val, notes = val or all_of_it, [*notes, *more]
        refuse_trained_on(path, train, val_dataset, val)
    elif val and val_fraction is not None:
        raise UsageError(f"val_fraction {val_fraction}: {path} has tokens to validate on, in a file of their own")
    parts = [open_files(files, tokenizer.vocab_size) for files in (train, val) if files]
    for ids in parts:
        refuse_other_tokenizer(ids, tokenizer, "another one than is asked for")
    if len(parts) == 1:
        parts = parts[0].split(val_fraction or VAL_FRACTION)
    return parts[0], parts[1], tokenizer, tuple(notes)


def token_files(path: Path) -> tuple[list[Path], list[Path], list[str]]:
    """Return the files to train on, those to validate on, if names say which, and what is to be said of both.

    Args:
        path: a .bin file; a folder with `train.bin` and `val.bin`; or one of shards, whose names (train_000001.bin,
            fineweb_val_000000.bin, train-00000-of-00010.bin …) may say what they are for.

    Raises:
        UsageError: of files numbered as 00000-of-00010 some are missing.
    """
    if not path.is_dir():
        return [path], [], []
    files, notes = ([], []) if (path / "train.bin").exists() else _shards(path)
    if not files:
        notes = [f"{path}: test.bin is left out"] if (path / "test.bin").exists() else []
        return [path / "train.bin"], [_val_bin(path)], notes
    train, val = splits_by_name(path, files, notes)
    for part in (train, val):
        _refuse_missing(path, part)
    return train, val, notes


def refuse_other_tokenizer(ids: Tokens, tokenizer: Tokenizer, why: str) -> None:
    """Raise a UsageError if a sidecar says that another tokenizer made the ids."""
    if ids.sidecar and ids.sidecar.tokenizer_fingerprint != tokenizer.fingerprint:
        raise UsageError(f"{ids.path}: made by tokenizer {ids.sidecar.tokenizer!r}, {why}")


def _val_bin(folder: Path) -> Path:
    return next((path for name in _VAL_BINS if (path := folder / name).exists()), folder / _VAL_BINS[0])


def _shards(folder: Path) -> tuple[list[Path], list[str]]:
    """Return a folder's .bin files in the order of the numbers in their names, if they are what it holds, and notes."""
    files, notes = files_below(folder)
    if any(suffix_of(file) in _TEXTS and not _NO_TEXTS.fullmatch(file.name) for file in files):
        return [], []
    return sorted((file for file in files if file.suffix == ".bin"), key=_numbered), notes


def _numbered(file: Path) -> list[tuple[int, str]]:
    """Return what sorts names as people count: shard_2 comes before shard_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", str(file))]


def _refuse_missing(folder: Path, files: list[Path]) -> None:
    """Refuse shards whose names say that there are more."""
    found = [match for file in files if (match := _TOTAL.search(file.name))]
    if found and len(found) < (total := max(int(match[2]) for match in found)):
        raise UsageError(f"{folder}: has {len(found)} of the {total} files that names as {found[0].string} count")
