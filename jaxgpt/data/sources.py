"""Sources of text: the bundled plays, files and folders, parquet files; each a sequence of documents.

Text is read in pieces, so a document may be larger than memory. It must be UTF-8 and hold no NUL: anything else is an
error that names file and offset, never repaired. Two things are taken out, and reported in `notes`: a byte order mark,
and carriage returns at line ends (as Python does for text files).
"""

from __future__ import annotations

import codecs
import hashlib
import importlib
import io
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from jaxgpt.errors import UsageError
from jaxgpt.files import regular

PLAYS_FOLDER = Path(__file__).parent / "plays"

Split = Literal["train", "val"]
_READ_BYTES = 1 << 20


@runtime_checkable
class Source(Protocol):
    """Documents in two splits.

    Attributes:
        name: what messages call it.
        notes: what was taken out of the text or passed over, for people; complete once all documents were read.
        paths: the files, in the order in which they are read.
    """

    name: str
    notes: list[str]
    paths: Sequence[Path]

    def fingerprint(self) -> str:
        """Return a hash of all that decides the documents of the splits."""
        ...

    def documents(self, split: Split) -> Iterator[Iterator[str]]:
        """Yield each document of a split as an iterator over its pieces, to be used up before the next."""
        ...


class TextFiles:
    """Text files, each a document. Their first characters, all taken together, are for training, the last for val.

    Args:
        name: what messages call it.
        paths: in the order in which they are read.
        val_fraction: of the characters, for validation.
    """

    def __init__(self, name: str, paths: Sequence[Path], val_fraction: float):
        self.name, self.paths = name, paths
        self.notes: list[str] = []
        self._val_fraction = val_fraction

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"text {self._val_fraction}\n".encode())
        for path in self.paths:
            with _open(path) as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def documents(self, split: Split) -> Iterator[Iterator[str]]:
        cut = int(sum(self._lengths) * (1 - self._val_fraction))
        first, last = (0, cut) if split == "train" else (cut, sum(self._lengths))
        begin = 0
        for path, length in zip(self.paths, self._lengths, strict=True):
            start, stop = max(first - begin, 0), min(last - begin, length)
            begin += length
            if start < stop:
                yield _characters(read_text(path, []), start, stop)

    @cached_property
    def _lengths(self) -> list[int]:
        """Characters of each file: the split needs them, and bad input is best found before work is begun."""
        lengths, has_text = [], False
        for path in self.paths:
            lengths.append(0)
            for piece in read_text(path, self.notes):
                lengths[-1] += len(piece)
                has_text = has_text or not piece.isspace()
            if not lengths[-1]:
                self.notes.append(f"{path} is empty")
        if not has_text:
            raise UsageError(f"dataset {self.name}: no text in it, only {sum(lengths)} characters of white space")
        return lengths


class ParquetFiles:
    """Parquet files with a column `text`, each row a document, as data sets come from the Hugging Face hub.

    Documents number 0, k, 2k, … are for validation, with k = 1 / val_fraction; so nothing needs to be counted before.

    Args:
        name: what messages call it.
        paths: in the order in which they are read.
        val_fraction: of the documents, for validation.
    """

    def __init__(self, name: str, paths: Sequence[Path], val_fraction: float):
        self.name, self.paths = name, paths
        self.notes: list[str] = []
        self._every = max(2, round(1 / val_fraction))
        self._parquet = _import_parquet(name)

    def fingerprint(self) -> str:
        """Hash names, sizes and footers, which hold each column's statistics, instead of some hundred GB."""
        digest = hashlib.sha256(f"parquet {self._every}\n".encode())
        for path in self.paths:
            with _open(path) as file:
                size = file.seek(0, io.SEEK_END)
                file.seek(max(0, size - _READ_BYTES))
                digest.update(f"{path.name} {size} {hashlib.sha256(file.read()).hexdigest()}\n".encode())
        return digest.hexdigest()

    def documents(self, split: Split) -> Iterator[Iterator[str]]:
        number = 0
        for path in self.paths:
            try:
                for rows in self._parquet.ParquetFile(path).iter_batches(columns=["text"]):
                    for text in rows.column("text").to_pylist():
                        if (number % self._every == 0) == (split == "val") and text:
                            yield iter([text])
                        number += 1
            except (OSError, ValueError, KeyError) as error:
                raise UsageError(f"{path}: not a parquet file with a column 'text': {error}") from None


def open_path(path: Path, val_fraction: float) -> Source:
    """Open a text file, or a folder: all files in it and below, sorted by path, but for hidden ones.

    A folder with parquet files is a folder of those alone.
    """
    files, notes = files_below(path) if path.is_dir() else ([path], [])
    if not files:
        raise UsageError(f"{path}: no files in this folder")
    parquet = [file for file in files if file.suffix == ".parquet"]
    source = ParquetFiles(str(path), parquet, val_fraction) if parquet else TextFiles(str(path), files, val_fraction)
    source.notes += notes
    return source


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


def read_text(path: Path, notes: list[str]) -> Iterator[str]:
    """Yield a UTF-8 file's text in pieces, and add to `notes` what was taken out.

    Raises:
        UsageError: if it cannot be read, is not UTF-8, or holds NUL.
    """
    utf8 = codecs.getincrementaldecoder("utf-8")("strict")
    # Also turns a carriage return at the end of one piece and a line feed at the start of the next into one line end.
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset = returns = 0
    with _open(path) as file:
        data = file.read(_READ_BYTES)
        if data.startswith(codecs.BOM_UTF8):
            data, offset = data[len(codecs.BOM_UTF8) :], len(codecs.BOM_UTF8)
            notes.append(f"{path}: left out the byte order mark")
        while True:
            if (nul := data.find(b"\0")) >= 0:
                raise UsageError(f"{path}: NUL at byte {offset + nul}: no text, or not in UTF-8")
            held = len(utf8.getstate()[0])
            try:
                text = utf8.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise UsageError(f"{path}: not UTF-8 at byte {offset - held + error.start}: {error.reason}") from None
            returns += text.count("\r")
            if piece := newlines.decode(text, final=not data):
                yield piece
            if not data:
                break
            offset += len(data)
            data = file.read(_READ_BYTES)
    if returns:
        notes.append(f"{path}: read {returns} carriage returns as line ends")


def _characters(pieces: Iterator[str], start: int, stop: int) -> Iterator[str]:
    """Yield characters number `start` to `stop` of a text in pieces."""
    begin = 0
    for piece in pieces:
        if part := piece[max(start - begin, 0) : max(stop - begin, 0)]:
            yield part
        begin += len(piece)
        if begin >= stop:
            return


def _open(path: Path) -> io.BufferedReader:
    try:
        return regular(path).open("rb")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None


def _import_parquet(name: str) -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UsageError(
            f"dataset {name!r} is in parquet files, which need another package: pip install pyarrow"
        ) from None
