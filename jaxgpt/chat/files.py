"""Where examples are read from: a file, a folder whose files' names say which split they are, a data set of the hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from jaxgpt.data.folders import find_splits, refuse_trained_on
from jaxgpt.data.hub import is_hub, read_hub
from jaxgpt.errors import UsageError
from jaxgpt.files import sha256
from jaxgpt.notes import note


@dataclass(frozen=True)
class ExampleFiles:
    """Files, or names of data sets of the hub.

    Attributes:
        train: to train on.
        val: to validate on; empty where that is to be a part of the others.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]


def find_files(dataset: str, val_dataset: str | None = None, val_fraction: float | None = None) -> ExampleFiles:
    """Return the files of a data set, and those to validate on where there are some.

    Args:
        dataset: what `jaxgpt.data.folders.find_splits` takes.
        val_dataset: the same, to validate on; nothing that is trained on.
        val_fraction: what is asked for in the place of files to validate on.

    Raises:
        UsageError: there is nothing to read, or files to validate on and a fraction are both there.
    """
    train, val = _splits(dataset)
    if val_dataset is not None:
        own, beside = _splits(val_dataset)
        refuse_trained_on(dataset, train, val_dataset, beside or own)
        return ExampleFiles(train, beside or own)
    if val and val_fraction is not None:
        raise UsageError(f"val_fraction {val_fraction}: {dataset} has {val[0]} and so on to validate on")
    return ExampleFiles(train, val)


def fingerprint(files: tuple[str, ...]) -> str:
    """Return a hash of what files hold; of a data set of the hub its revision."""
    hashes = [read_hub(file)[1] if is_hub(file) else sha256(Path(file)) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _splits(dataset: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    train, val, notes = find_splits(dataset)
    for text in notes:
        note(text)
    return tuple(map(str, train)), tuple(map(str, val))
