"""Which files of a folder are read, and as what: texts or records, to train on, to validate on or left alone."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from jaxgpt.data.documents import SUFFIXES, suffix_of
from jaxgpt.data.hub import is_hub, read_hub, validation_split
from jaxgpt.errors import UsageError

_NO_DATA = re.compile(r"(readme|license|licence|dataset_infos?|state)\b.*", re.IGNORECASE)
_SPLITS = {"train": "train", **dict.fromkeys(("val", "valid", "validation", "dev"), "val"), "test": "test"}


def find_splits(dataset: str | Path) -> tuple[list[Path | str], list[Path | str], list[str]]:
    """Return what of a data set is to train on, what to validate on, if anything says, and what is to be said of both.

    Args:
        dataset: a file; a folder, of whose files those named train, valid, validation, val, dev and test are splits,
            the last of which is left alone; or `hub:OWNER/NAME[/CONFIG][:SPLIT]`, with a split to validate on where
            the data set has one and no split is named.

    Raises:
        UsageError: see `split_files` and `read_hub`.
    """
    if isinstance(dataset, str) and is_hub(dataset):
        val = validation_split(dataset)
        said = [] if val is None else [f"{dataset}: its split {val.rpartition(':')[2]} is validated on"]
        return [dataset], [] if val is None else [val], said
    path = Path(dataset)
    train, val, notes = split_files(path) if path.is_dir() else ([path], [], [])
    return [*train], [*val], notes


def refuse_trained_on(
    dataset: str | Path, train: Sequence[Path | str], val_dataset: str | Path, val: Sequence[Path | str]
) -> None:
    """Refuse files, or data sets of the hub, to validate on that are trained on, too, however they are spelt.

    Raises:
        UsageError: there are such.
    """
    if found := _first_of(train, val):
        raise UsageError(
            f"val_dataset {val_dataset}: {_part(dataset, found)} is trained on, so it says nothing of other texts; "
            "leave val_dataset out to hold a part back, or name another"
        )


def refuse_mixed(splits: Sequence[tuple[str | Path, Sequence[Path | str], Sequence[Path | str]]]) -> None:
    """Refuse a mixture in which one data set trains on what another validates on, however both are spelt.

    The same one twice is split alike, so it only weighs more.

    Args:
        splits: of each data set its name, what is to train on and what to validate on; if that is nothing, a part of
            the former is held back.

    Raises:
        UsageError: there are two such data sets.
    """
    for (one, train, _), (other, rest, val) in itertools.permutations(splits, 2):
        if os.path.realpath(one) != os.path.realpath(other) and (found := _first_of(val or rest, train)):
            raise UsageError(
                f"{_part(one, found)} is trained on, but dataset {other} validates on it, or on a part of it; leave "
                "one of the two out, or name a val_dataset"
            )


def split_files(folder: Path) -> tuple[list[Path], list[Path], list[str]]:
    """Return a folder's files to train on, those to validate on, if names say which, and what is to be said of both.

    They are all files in it and below, sorted by path, but for hidden ones. If there are parquet or JSON lines, or no
    others than records, texts are left out. Where one file is named train and others are named val (or valid,
    validation, dev) or test, as most are, these are the splits, and what is named test is never read.

    Raises:
        UsageError: there are none, or a folder can't be read.
    """
    files, notes = files_below(folder)
    if not files:
        raise UsageError(f"{folder}: no files in this folder")
    train, val = splits_by_name(folder, _of_one_kind(files, notes), notes)
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


def splits_by_name(folder: Path, files: list[Path], notes: list[str]) -> tuple[list[Path], list[Path]]:
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


def _first_of(these: Sequence[Path | str], others: Sequence[Path | str]) -> Path | str | None:
    """Return the first of others that is one of these, too, however they are spelt."""
    known = set(map(_identity, these))
    return next((path for path in others if _identity(path) in known), None)


def _part(dataset: str | Path, found: Path | str) -> str:
    """Return what messages call a file of a data set, which may be all of it."""
    return f"dataset {dataset}" + ("" if str(found) == str(dataset) else f" has {found}, which")


def _identity(path: Path | str) -> str:
    """Return what is the same for all spellings of a file or data set."""
    return os.path.realpath(path) if isinstance(path, Path) or not is_hub(path) else read_hub(path)[1]


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
