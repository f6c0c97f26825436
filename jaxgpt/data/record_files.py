"""Files of records, one after another, each with its place: .jsonl, .json, .csv, .tsv and .txt, also as .gz; .parquet.

Whatever is wrong with a file is an error that begins with that place, FILE:LINE; nothing is repaired or passed over but
blank lines, a byte order mark and carriage returns at line ends.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import importlib
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jaxgpt.data.hub import is_hub, read_hub
from jaxgpt.errors import UsageError
from jaxgpt.files import regular

Record = tuple[str, dict[str, Any]]
"""Where a record stands, for messages, and what it holds."""

_SURROGATES = re.compile("[\ud800-\udfff]")
_LINES = re.compile(r"\s*\{[^\n]*\}[ \t\r]*\n\s*\{")  # an object in the first line, and another begins behind it
_MAX_LINE = 1 << 24  # bytes; refused before more is read into memory
_MAX_JSON = 1 << 28  # bytes of a .json file, which is read whole


def read_records(path: str | Path, suffixes: tuple[str, ...], column: str = "") -> Iterator[Record]:
    """Yield the records of a file.

    Args:
        path: `hub:OWNER/NAME…`, as of `read_hub`, or a file. A .jsonl file has an object a line, a
            .json file a list of objects, a .csv or .tsv file a header and a record a row, a .txt file a text a line;
            of a .parquet file, values that are null are left out.
        suffixes: the formats among these that are welcome.
        column: name of the field that a .txt file's lines fill.

    Raises:
        UsageError: another format, a file that can't be read or has no records, or a line that isn't what it must be.
    """
    if is_hub(path):
        rows, _ = read_hub(str(path))
        yield from ((f"{path} row {number}", row) for number, row in enumerate(rows, start=1))
        return
    path = Path(path)
    readers: Mapping[str, Callable[[Path], Iterator[Record]]] = {
        ".jsonl": _jsonl,
        ".json": _json,
        ".csv": _csv,
        ".tsv": partial(_csv, delimiter="\t"),
        ".parquet": _parquet,
        ".txt": lambda path: ((f"{path}:{number}", {column: line}) for number, line in _lines(path) if line.strip()),
    }
    if (suffix := suffix_of(path)) not in suffixes:
        raise UsageError(f"{path}: must be a file that ends in {', '.join(suffixes)}")
    empty, lone = True, 0
    try:
        for record in readers[suffix](regular(path)):
            empty = False
            lone += _lone_surrogates(record[1])
            yield record
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: not a gzip file, or damaged: {error}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    if empty:
        raise UsageError(f"{path}: no records in it")
    if lone:
        print(f"note: {path}: {lone} lone surrogates, which are no characters, are read as U+FFFD", file=sys.stderr)


def suffix_of(path: Path | str) -> str:
    """Return a file's suffix in small letters, without that of gzip behind it; JSON lines have one, whatever theirs."""
    path = Path(path)
    suffix = path.with_suffix("" if path.suffix.lower() == ".gz" else path.suffix).suffix.lower()
    return ".jsonl" if suffix in (".ndjson", ".jsonlines") else suffix


def _jsonl(path: Path) -> Iterator[Record]:
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}:{number}"
            yield where, _object(_parse(line, where), where)


def _json(path: Path) -> Iterator[Record]:
    with _open(path) as file:
        contents = file.read(_MAX_JSON + 1)
    if len(contents) > _MAX_JSON:
        raise UsageError(f"{path}: too large for one list (limit {_MAX_JSON} bytes); make it a .jsonl file")
    try:
        text = contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise UsageError(f"{path}:{line}: not UTF-8 at byte {error.start} of the file: {error.reason}") from None
    if _LINES.match(text):  # JSON lines, of which many a hub file has only the name of JSON
        yield from _jsonl(path)
        return
    entries = _parse(text, str(path))
    if not isinstance(entries, list):
        raise UsageError(f"{path}: must be a list of objects, not {_named(entries)}")
    for number, entry in enumerate(entries, start=1):
        where = f"{path}: entry {number}"
        yield where, _object(entry, where)


def _csv(path: Path, delimiter: str = ",") -> Iterator[Record]:
    rows = csv.reader((f"{line}\n" for _, line in _lines(path)), strict=True, delimiter=delimiter)
    header, first = None, 1
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise UsageError(f"{path}:{first}: not CSV: {error}") from None
        if row is None:
            return
        where, first = f"{path}:{first}", rows.line_num + 1  # a row in quotes may go on for many lines
        if header is None:
            header = row
            if len(set(header)) < len(header):
                raise UsageError(f"{where}: two columns of one name in the header {', '.join(header)}")
        elif row:
            if len(row) != len(header):
                raise UsageError(f"{where}: {len(row)} fields, but the header has {len(header)}: {', '.join(header)}")
            yield where, dict(zip(header, row, strict=True))


def _parquet(path: Path) -> Iterator[Record]:
    parquet = import_parquet(path)
    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", {name: value for name, value in row.items() if value is not None}
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path}: not a parquet file, or damaged: {' '.join(str(error).split())[:200]}") from None


def import_parquet(name: str | Path) -> Any:
    """Return `pyarrow.parquet`.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UsageError(f"{name}: parquet files need another package: pip install pyarrow") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each line's number and text, without its line end."""
    with _open(path) as file:
        number = 0
        while data := file.readline(_MAX_LINE + 1):
            number += 1
            if len(data) > _MAX_LINE:
                raise UsageError(f"{path}:{number}: longer than {_MAX_LINE} bytes, the limit for one line")
            if number == 1:
                data = data.removeprefix(codecs.BOM_UTF8)
            try:
                yield number, data.decode().removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                why = f"not UTF-8 at byte {error.start} of the line: {error.reason}"
                raise UsageError(f"{path}:{number}: {why}") from None


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if "\n" not in text.strip() else f"line {error.lineno} column {error.colno}"
        raise UsageError(f"{where}: not JSON: {error.msg} at {place}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets as deep
        raise UsageError(f"{where}: not JSON that can be read: {error}") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: must be an object, not {_named(value)}")
    return value


def _lone_surrogates(record: dict[str, Any]) -> int:
    """Count them in a record's texts: JSON can spell what UTF-8 can't hold, and pairs are characters by now."""
    count, left = 0, list(record.values())
    while left:
        value = left.pop()
        if isinstance(value, str):
            count += 0 if value.isascii() else len(_SURROGATES.findall(value))
        elif isinstance(value, dict | list):
            left.extend(value.values() if isinstance(value, dict) else value)
    return count


def _named(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
