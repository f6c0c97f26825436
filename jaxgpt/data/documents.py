"""Files of many documents: rows of parquet, JSON lines, CSV and the like or of the hub's data sets, and texts.

Documents are read one after another, so files may be larger than memory.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path

from jaxgpt.data.hub import columns_and_size, is_hub, read_hub
from jaxgpt.data.record_files import import_parquet, read_records, suffix_of
from jaxgpt.data.sources import SPLITS, Documents, Split, open_file, read_text
from jaxgpt.errors import UsageError

TEXT_COLUMN = "text"
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".tsv")
"""Of files of records; all but parquet also as .gz."""

_FOOTER_BYTES = 1 << 20
_TEXT_TYPE = re.compile(r"(dictionary<values=)?(large_)?string(_view)?\b")  # as Arrow spells its types of texts
_ROWS, _BUFFER = 1 << 6, 1 << 20  # of parquet, read at a time: a group of rows may be larger than memory, a page not


class DocumentFiles:
    """Files of documents, some for training and some for validation.

    Documents number 0, k, 2k, … are for validation, with k = 1 / val_fraction, so that nothing needs to be counted
    before; where files to validate on are given, all documents of the others are for training.

    Args:
        name: what messages call it.
        paths: in the order in which they are read; a text is the name of a data set of the hub, as of `read_hub`.
        val_fraction: of the documents, for validation.
        val_paths: likewise, to validate on, in the place of a fraction.
        rows: those of the paths that are records; the others are texts, whatever their names. By each, what stands
            between its rows where they are parts of one text, and None where each is a document.
        text_column: of records, the column with the text.
        separator: what separates documents in text files; None where each file is one.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[Path | str],
        val_fraction: float,
        *,
        val_paths: Sequence[Path | str] = (),
        rows: Mapping[Path | str, str | None],
        text_column: str = TEXT_COLUMN,
        separator: str | None = None,
    ):
        self.name = name
        self.paths: Sequence[Path | str] = [*paths, *val_paths]
        self.notes: list[str] = []
        self._train_paths, self._val_paths = paths, val_paths or paths
        self._every = max(2, round(1 / val_fraction))
        self._rows, self._column, self._separator = rows, text_column, separator
        if any(suffix_of(path) == ".parquet" for path in rows):
            self._parquet = import_parquet(f"dataset {name!r}")

    @property
    def held_out(self) -> Sequence[Path | str]:
        """The paths that are there to validate on; empty where that is a share of all documents."""
        return () if self._val_paths is self._train_paths else self._val_paths

    def fingerprint(self) -> str:
        """Hash what the files hold; of parquet names, sizes and footers, which hold each column's statistics.

        Of a data set of the hub it is the revision.
        """
        kind = ["documents", self._every, len(self._train_paths), len(self._val_paths), self._column, self._separator]
        kind += [len(self._rows)] if 0 < len(self._rows) < len(self.paths) else []
        kind += [separator for separator in self._rows.values() if separator is not None]
        digest = hashlib.sha256(f"{kind}\n".encode(errors="surrogatepass"))
        for path in self.paths:
            if isinstance(path, str):
                digest.update(f"{path} {read_hub(path)[1]}\n".encode())
                continue
            with open_file(path) as file:
                if suffix_of(path) == ".parquet":
                    size = file.seek(0, io.SEEK_END)
                    file.seek(max(0, size - _FOOTER_BYTES))
                    digest.update(f"{path.name} {size} {hashlib.sha256(file.read()).hexdigest()}\n".encode())
                else:
                    digest.update(suffix_of(path).encode() + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def documents(self, split: Split) -> Iterator[Iterator[str]]:
        return (pieces for its_split, pieces in self._documents(split) if its_split == split)

    def all_documents(self) -> Documents:
        return self._documents(*SPLITS)

    def _documents(self, *splits: Split) -> Documents:
        """Yield documents, each with its split, of which those that are asked for must not be empty."""
        each: Documents
        if self._val_paths == self._train_paths:
            numbered = enumerate(self.read(self._train_paths))
            each = ((self._split_of(number), pieces) for number, pieces in numbered)
        else:
            paths: dict[Split, Sequence[Path | str]] = {"train": self._train_paths, "val": self._val_paths}
            each = ((split, pieces) for split in splits for pieces in self.read(paths[split]))
        count, found = 0, set[Split]()
        for split, pieces in each:
            count += 1
            found.add(split)
            yield split, pieces
        for split in splits:
            if split not in found:
                what = "train" if split == "train" else "validate"
                raise UsageError(f"dataset {self.name}: {count} documents in it, of which there is none to {what} on")

    def _split_of(self, number: int) -> Split:
        return "train" if number % self._every else "val"

    def read(self, paths: Iterable[Path | str]) -> Iterator[Iterator[str]]:
        """Yield the documents of some of the files that are not empty."""
        for path in paths:
            for pieces in self._read(path):
                if (first := next(filter(None, pieces), None)) is not None:
                    yield itertools.chain([first], pieces)

    def _read(self, path: Path | str) -> Iterator[Iterator[str]]:
        """Yield a file's documents, each as an iterator over its pieces, to be used up before the next."""
        if isinstance(path, str):
            if self._column not in (columns := columns_and_size(path)[0]):
                raise self._missing(path, columns)
            rows, _ = read_hub(path, self._column)
            yield from (self._text(f"{path} row {n}", row.get(self._column)) for n, row in enumerate(rows, start=1))
        elif path in self._rows and suffix_of(path) == ".parquet":
            texts, between = self._rows_of_parquet(path), self._rows[path]
            yield from (iter([text]) for text in texts) if between is None else [_joined(texts, between)]
        elif path in self._rows:
            for where, record in read_records(path, SUFFIXES[1:]):
                if self._column not in record:
                    raise self._missing(where, list(record))
                yield self._text(where, record[self._column])
        else:
            notes: list[str] = []
            pieces = read_text(path, notes)
            yield from [pieces] if self._separator is None else separated(pieces, self._separator)
            self.notes += [note for note in notes if note not in self.notes]

    def _rows_of_parquet(self, path: Path) -> Iterator[str]:
        try:
            file = self._parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
            if self._column not in file.schema_arrow.names:
                raise self._missing(str(path), file.schema_arrow.names)
            if not _TEXT_TYPE.match(kind := str(file.schema_arrow.field(self._column).type)):
                raise UsageError(f"{path}: column {self._column!r} is of type {kind}; it must be a text")
            for rows in file.iter_batches(_ROWS, columns=[self._column]):
                yield from (text or "" for text in rows.column(self._column).to_pylist())
        except (OSError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{path}: not a parquet file: {error}") from None

    def _text(self, where: str, value: object) -> Iterator[str]:
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{where}: {self._column!r} is {value!r:.80}; it must be a text")
        return iter([value or ""])

    def _missing(self, where: str, columns: list[str]) -> UsageError:
        there = ", ".join(map(repr, columns)) or "none"
        return UsageError(f"{where}: no column {self._column!r}; text_column must be one of its columns: {there}")


def _joined(texts: Iterator[str], separator: str) -> Iterator[str]:
    """Yield the pieces of one text, made of several."""
    yield next(texts, "")
    for text in texts:
        yield separator
        yield text


def are_records(path: Path | str) -> bool:
    """Return whether what is read is rows, and not a text."""
    return is_hub(path) or suffix_of(Path(path)) in SUFFIXES


def separated(pieces: Iterator[str], separator: str) -> Iterator[Iterator[str]]:
    """Yield what a separator divides, without it and a line end on each of its sides, as iterators over pieces."""
    return (map(itemgetter(1), parts) for _, parts in itertools.groupby(_numbered(pieces, separator), itemgetter(0)))


def _numbered(pieces: Iterator[str], separator: str) -> Iterator[tuple[int, str]]:
    """Yield the parts of a text, each with the number of its document."""
    pattern = re.compile(f"\n?{re.escape(separator)}\n?")
    number, held = 0, ""
    for piece in pieces:
        held, done = held + piece, 0
        for match in pattern.finditer(held):
            if match.end() == len(held):  # a line end may follow
                break
            yield number, held[done : match.start()]
            number, done = number + 1, match.end()
        kept = max(done, len(held) - len(separator) - 2)
        yield number, held[done:kept]
        held = held[kept:]
    for text in pattern.split(held):
        yield number, text
        number += 1
