"""A data set by name or path → its documents, to train on and to validate on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from jaxgpt.data.documents import TEXT_COLUMN, DocumentFiles, are_records
from jaxgpt.data.download import DOWNLOADS, download
from jaxgpt.data.folders import find_splits, refuse_trained_on
from jaxgpt.data.hub import is_hub
from jaxgpt.data.sources import PLAYS_FOLDER, VAL_FRACTION, Source, TextFiles
from jaxgpt.errors import UsageError, did_you_mean

NAMES = ("plays", *DOWNLOADS)
Paths = Sequence[Path | str]


def open_source(
    dataset: str | Path,
    val_fraction: float | None = None,
    *,
    val_dataset: str | Path | None = None,
    text_column: str | None = None,
    separator: str | None = None,
    cache_dir: Path | None = None,
    test: bool = False,
) -> Source:
    """Open a corpus by name, a file, a folder or a data set of the hub.

    Args:
        dataset: one of `NAMES`, or what `find_splits` takes.
        val_fraction: for validation; None is the corpus's own, else 0.1.
        val_dataset: likewise, to validate on: its own part for that, or else all of it; nothing that is trained on.
        text_column: of records, the column with the text; None is "text".
        separator: what separates documents in text files; None where each file is one.
        cache_dir: downloads go to `downloads/` in it; None for `default_cache_dir()`.
        test: of a corpus by name that has a part to test on, open that alone, to validate on.

    Raises:
        UsageError: there is nothing to read, or an argument has no meaning for what there is.
    """
    cache = cache_dir or default_cache_dir()
    train, val, notes = find_parts("dataset", dataset, cache, test=test)
    rows = _rows(dataset, [*train, *val])
    if val_dataset is not None:
        own, beside, more = find_parts("val_dataset", val_dataset, cache)
        val, notes = beside or own, [*notes, *more]
        refuse_trained_on(dataset, train, val_dataset, val)
        rows = {**_rows(dataset, train), **_rows(val_dataset, val)}
    if val and val_fraction is not None:
        where = dataset if val_dataset is None else val_dataset
        raise UsageError(
            f"val_fraction {val_fraction}: {where} has files to validate on, {Path(val[0]).name} and so on"
        )
    if text_column is not None and not rows:
        raise UsageError(f"text_column {text_column!r}: {dataset} is text, without columns")
    if separator is not None and str(dataset) in NAMES:
        raise UsageError(f"document_separator {separator!r}: of no use, as {dataset} is read as it is")
    if separator is not None and len(rows) == len(train) + len(val):
        raise UsageError(f"document_separator {separator!r}: each row of {dataset} is a document")
    name = str(dataset)
    fraction = val_fraction or (DOWNLOADS[name].val_fraction if name in DOWNLOADS else VAL_FRACTION)
    texts = [path for path in train if isinstance(path, Path)]
    if rows or val or separator is not None or len(texts) < len(train):
        column = text_column or TEXT_COLUMN
        if rows and name not in NAMES:
            where = name if train[0] in rows else val_dataset
            notes.append(f"{where}: of each row the column {column!r} is a document")
        source = DocumentFiles(name, train, fraction, val_paths=val, rows=rows, text_column=column, separator=separator)
    else:
        source = TextFiles(name, texts, fraction)
    source.notes += notes
    return source


def default_cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/jaxgpt`, by default `~/.cache/jaxgpt`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxgpt"


def find_parts(what: str, dataset: str | Path, cache: Path, *, test: bool = False) -> tuple[Paths, Paths, list[str]]:
    """Return what to train on, what to validate on if that is told apart, and what is to be said of both.

    Args:
        what: what messages call it.
        dataset, test: see `open_source`.
        cache: the folder of downloads.

    Raises:
        UsageError: there is no such data set, or it can't be downloaded.
    """
    if dataset == "plays":
        return sorted(PLAYS_FOLDER.glob("*.txt")), [], []
    if isinstance(dataset, str) and dataset in DOWNLOADS:
        if not DOWNLOADS[dataset].has_splits:
            return download(dataset, cache), [], []
        train = [] if test else download(dataset, cache, "train")
        return train, download(dataset, cache, "test" if test else "validation"), []
    if not is_hub(dataset) and not Path(dataset).exists():
        raise UsageError(
            f"{what} {str(dataset)!r}: no such file or folder, nor one of {', '.join(NAMES)}"
            f"{did_you_mean(str(dataset), NAMES)}"
        )
    return find_splits(dataset)


def _rows(dataset: str | Path, paths: Paths) -> dict[Path | str, str | None]:
    """Return what of a data set is read row by row, as `DocumentFiles` takes it.

    It is all of it, or nothing, as a text may have any name.
    """
    separator = DOWNLOADS[str(dataset)].row_separator if str(dataset) in DOWNLOADS else None
    return dict.fromkeys(paths, separator) if all(map(are_records, paths)) else {}
