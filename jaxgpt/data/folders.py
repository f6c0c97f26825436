"""Which files of a folder are read, and as what: texts or records, to train on, to validate on or left alone."""

from __future__ import annotations

import os
import re
from pathlib import Path

from jaxgpt.data.documents import SUFFIXES, TEXT_COLUMN, DocumentFiles, suffix_of
from jaxgpt.data.sources import VAL_FRACTION, Source, TextFiles
from jaxgpt.errors import UsageError

_NO_DATA = re.compile(r"(readme|license|licence|dataset_infos?|state)\b.*", re.IGNORECASE)
_SPLITS = {"train": "train", **dict.fromkeys(("val", "valid", "validation", "dev"), "val"), "test": "test"}


def open_path(
    path: Path,
    val_fraction: float | None = None,
    *,
    text_column: str | None = None,
    separator: str | None = None,
) -> Source:
    """Open a file, or a folder: all files in it and below, sorted by path, but for hidden ones.

    A folder's files are records if it has parquet or JSON lines, or no others than records; then texts are left out.
    Where one file is named train and others are named val (or valid, validation, dev) or test, as most are, these are
    the splits, and what is named test is never read.

    Args:
        path: what to open.
        val_fraction: for validation; None is 0.1.
        text_column: of records, the column with the text; None is "text".
        separator: what separates documents in text files; None where each file is one.

    Raises:
        UsageError: there is nothing to read, or an argument has no meaning for what there is.
    """
    train, val, notes = split_files(path) if path.is_dir() else ([path], [], [])
    files = [*train, *val]
    records = suffix_of(files[0]) in SUFFIXES and all(suffix_of(file) in SUFFIXES for file in files)
    if val and val_fraction is not None:
        raise UsageError(f"val_fraction {val_fraction}: {path} has files to validate on, {val[0].name} and so on")
    if text_column is not None and not records:
        raise UsageError(f"text_column {text_column!r}: {path} is text, without columns")
    if separator is not None and records:
        raise UsageError(f"document_separator {separator!r}: each row of {path} is a document")
    fraction = val_fraction or VAL_FRACTION
    if records or val or separator is not None:
        column = text_column or TEXT_COLUMN
        if records:
            notes.append(f"{path}: of each row the column {column!r} is a document")
        source = DocumentFiles(str(path), train, fraction, val_paths=val, text_column=column, separator=separator)
    else:
        source = TextFiles(str(path), train, fraction)
    source.notes += notes
    return source


def split_files(folder: Path) -> tuple[list[Path], list[Path], list[str]]:
    """Return a folder's files to train on, those to validate on, if names say which, and what is to be said of both.

    Raises:
        UsageError: there are none, or a folder can't be read.
    """
    files, notes = files_below(folder)
    if not files:
        raise UsageError(f"{folder}: no files in this folder")
    train, val = _splits(folder, _of_one_kind(files, notes), notes)
    return train, val, notes


def _of_one_kind(files: list[Path], notes: list[str]) -> list[Path]:
    """Return the files of records, or all where these are texts; what is left out is noted."""
    records = [file for file in files if suffix_of(file) in SUFFIXES]
    others = [file for file in files if file not in set(records)]
    if any(suffix_of(file) in (".parquet", ".jsonl") for file in records) or all(map(_is_no_data, others)):
        data = [file for file in records if not _is_no_data(file)]
        if data:
            if left := [file for file in files if file not in set(data)]:
                notes.append(
                    f"{_some(left)} left out: the data are the {', '.join(sorted({*map(suffix_of, data)}))} files"
                )
            return data
    if records:
        notes.append(f"{_some(records)} read as plain text, as the texts beside are")
    return files


def _splits(folder: Path, files: list[Path], notes: list[str]) -> tuple[list[Path], list[Path]]:
    """Return the files to train on and those to validate on; none of the latter where names don't tell them apart."""
    named: dict[str, list[Path]] = {"train": [], "val": [], "test": [], "": []}
    for file in files:
        named[_split_of(file.relative_to(folder))].append(file)
    train, val, left = named["train"], named["val"], named["test"] + named[""]
    if not train or not (val or named["test"]) or 2 * len(named[""]) > len(files):
        return files, []
    said = [f"{_some(train)} trained on"]
    said += [f"{_some(files)} {what}" for files, what in ((val, "validated on"), (left, "left out")) if files]
    notes.append(f"{folder}: {', '.join(said)}, by their names")
    return train, val


def _split_of(path: Path) -> str:
    """Return the split that a file's name says, or else its nearest folder's; empty if none does."""
    words = re.split(r"[^a-z]+", str(path).lower())
    return next((_SPLITS[word] for word in reversed(words) if word in _SPLITS), "")


def _is_no_data(path: Path) -> bool:
    return _NO_DATA.fullmatch(path.name) is not None


def _some(files: list[Path]) -> str:
    """Return the first files' names, with a verb."""
    names = ", ".join(file.name for file in files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    return f"{names} {'is' if len(files) == 1 else 'are'}"


def files_below(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the files in a folder and below it, through links too, but for hidden ones; and what was left out.

    Raises:
        UsageError: a folder can't be read.
    """
    files: list[Path] = []
    notes: list[str] = []
    top = os.path.realpath(folder)
    seen = {top}
    for here, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        visible = sorted(name for name in folders if not name.startswith("."))
        folders.clear()
        for name in visible:
            # What is reached again, as through a link to a folder above, would be read twice, or for ever.
            real = os.path.realpath(os.path.join(here, name))
            if real in seen or top.startswith(os.path.join(real, "")):
                notes.append(f"{os.path.join(here, name)} is left out: it leads to {real}, once more")
            else:
                folders.append(name)
            seen.add(real)
        for file in (Path(here, name) for name in names if not name.startswith(".")):
            if file.is_file():
                files.append(file)
            else:
                notes.append(f"{file} is left out: {'a link to nothing' if file.is_symlink() else 'no file'}")
    return sorted(files), sorted(notes)


def _refuse(error: OSError) -> None:
    raise UsageError(f"{error.filename}: cannot be read: {error.strerror}")
