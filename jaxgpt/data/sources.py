"""Sources of text, each a sequence of documents; and text files.

Text is read in pieces, so a document may be larger than memory. It must be UTF-8 and hold no NUL: anything else is an
error that names file and offset, never repaired. Two things are taken out, and reported in `notes`: a byte order mark,
and carriage returns at line ends (as Python does for text files).
"""

from __future__ import annotations

import codecs
import hashlib
import io
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from jaxgpt.errors import UsageError
from jaxgpt.files import regular

VAL_FRACTION = 0.1
PLAYS_FOLDER = Path(__file__).parent / "plays"

Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")
Documents = Iterator[tuple[Split, Iterator[str]]]
"""Documents of both splits, each with its own, as an iterator over its pieces, to be used up before the next."""
_READ_BYTES = 1 << 20
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"PK\x03\x04")  # as gzip, zstd, xz and zip begin


@runtime_checkable
class Source(Protocol):
    """Documents in two splits.

    Attributes:
        name: what messages call it.
        notes: what was taken out of the text or passed over, for people; complete once all documents were read.
        paths: the files, in the order in which they are read; a text is the name of a data set of the hub.
    """

    name: str
    notes: list[str]
    paths: Sequence[Path | str]

    def fingerprint(self) -> str:
        """Return a hash of all that decides the documents of the splits."""
        ...

    def documents(self, split: Split) -> Iterator[Iterator[str]]:
        """Yield each document of a split as an iterator over its pieces, to be used up before the next."""
        ...

    def all_documents(self) -> Documents:
        """Yield the documents of both splits, each with its own, in the order in which that takes least reading."""
        ...


class TextFiles:
    """Text files, each a document. Their first characters, all taken together, are for training, the last for val.

    Args:
        name: what messages call it.
        paths: in the order in which they are read.
        val_fraction: of the characters, for validation.
    """

    def __init__(self, name: str, paths: Sequence[Path], val_fraction: float):
        self.name = name
        self.paths: Sequence[Path | str] = paths
        self.notes: list[str] = []
        self._files, self._val_fraction = paths, val_fraction

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"text {self._val_fraction}\n".encode())
        for path in self._files:
            with open_file(path) as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def documents(self, split: Split) -> Iterator[Iterator[str]]:
        cut = int(sum(self._lengths) * (1 - self._val_fraction))
        first, last = (0, cut) if split == "train" else (cut, sum(self._lengths))
        begin = 0
        for path, length in zip(self._files, self._lengths, strict=True):
            start, stop = max(first - begin, 0), min(last - begin, length)
            begin += length
            if start < stop:
                yield _characters(read_text(path, []), start, stop)

    def all_documents(self) -> Documents:
        return ((split, pieces) for split in SPLITS for pieces in self.documents(split))

    @cached_property
    def _lengths(self) -> list[int]:
        """Characters of each file: the split needs them, and bad input is best found before work is begun."""
        lengths, has_text = [], False
        for path in self._files:
            lengths.append(0)
            for piece in read_text(path, self.notes):
                lengths[-1] += len(piece)
                has_text = has_text or not piece.isspace()
            if not lengths[-1]:
                self.notes.append(f"{path} is empty")
        if not has_text:
            raise UsageError(f"dataset {self.name}: no text in it, only {sum(lengths)} characters of white space")
        return lengths


def read_text(path: Path, notes: list[str]) -> Iterator[str]:
    """Yield a UTF-8 file's text in pieces, and add to `notes` what was taken out.

    Raises:
        UsageError: if it cannot be read, is not UTF-8, or holds NUL.
    """
    utf8 = codecs.getincrementaldecoder("utf-8")("strict")
    # Also turns a carriage return at the end of one piece and a line feed at the start of the next into one line end.
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset = returns = 0
    with open_file(path) as file:
        data = file.read(_READ_BYTES)
        if data.startswith(_COMPRESSED):
            raise UsageError(f"{path}: is compressed; texts are read as they are, and only records (.jsonl …) as .gz")
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


def open_file(path: Path) -> io.BufferedReader:
    """Open a regular file to read its bytes.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return regular(path).open("rb")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
