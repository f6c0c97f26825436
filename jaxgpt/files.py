"""All that is done with files as such: which may be read, JSON, hashes, and writing whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxgpt.errors import UsageError, naming

JSON_LIMIT, JSON_DEPTH = 1 << 28, 64  # bytes, far beyond any vocabulary in use; lists and objects inside one another
# JSON may spell halves of a character beyond U+FFFF. Read, a pair of them is that character, and one alone is nothing.
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_WITH_SURROGATE = re.compile('"[^"]*[\ud800-\udfff][^"]*"')

ReadJSON = Callable[[Path], dict[str, Any]]
"""`read_json`, or `functools.cache` of it, which reads each file of a folder once."""


def regular(path: str | os.PathLike[str]) -> Path:
    """Return the path of a regular file, or of a link to one: a pipe or a device may block for ever.

    Raises:
        OSError: nothing is there, or something else; its `strerror` says what.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Neither a file nor a folder, but a pipe, a socket or a device", str(path))
    return Path(path)


def read_text(file: Path) -> str:
    """Return the text of a file.

    Raises:
        UsageError: it can't be read, is not UTF-8, or is larger than any such file has reason to be.
    """
    try:
        if (size := regular(file).stat().st_size) > JSON_LIMIT:
            raise UsageError(f"{file}: {size} bytes is too large for such a file (limit {JSON_LIMIT})")
        return file.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 at byte {error.start}") from None


def read_json(file: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        UsageError: see `read_text`; or it is no JSON, no object, too deep, or has what no text can have.
    """
    text = read_text(file)
    try:
        contents = json.loads(text)
    except (ValueError, RecursionError) as error:  # a number may have too many digits
        raise UsageError(f"{file}: not JSON: {error}") from None
    if not isinstance(contents, dict):
        raise UsageError(f"{file}: holds a {type(contents).__name__}; it must be an object")
    if _is_deeper(contents, JSON_DEPTH):  # what could be read may still be too deep to compare or to print
        raise UsageError(f"{file}: lists and objects inside one another, more than {JSON_DEPTH} deep")
    spelled = json.dumps(contents, ensure_ascii=False) if _SURROGATE_ESCAPE.search(text) else ""
    if found := _WITH_SURROGATE.search(spelled):
        raise UsageError(f"{file}: {found[0][:80]!r} has a lone surrogate, which is no character")
    return contents


def typed(value: Any, kind: type, name: str, file: Path) -> Any:
    """Return a value of a file, which must be of this kind."""
    if not isinstance(value, kind):
        raise UsageError(f"{file}: {name} must be of type {kind.__name__}, not {type(value).__name__}")
    return value


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    with replacing(file) as part, open(part, "w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=2, allow_nan=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give the path of a file to write, which takes the place of `file` once the block has ended well."""
    part = file.with_name(f".{file.name}.part")
    try:
        with naming(file):
            yield part
            os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Wait until all files of a folder are on the disk, before it is given a name by which it is taken for whole."""
    for file in folder.iterdir():
        with file.open("r+b") as stream:
            os.fsync(stream.fileno())


def free_name(path: Path) -> Path:
    """Return `PATH.old-1`, or the next number that is free, to move aside to: nothing is ever deleted."""
    return next(old for i in itertools.count(1) if not (old := Path(f"{path}.old-{i}")).exists())


def sha256(file: Path) -> str:
    """Return the hash of a file's bytes."""
    with open(regular(file), "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Return the hash of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        inside = [node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list)]
        level = [node for nodes in inside for node in nodes]
    return any(isinstance(node, dict | list) for node in level)
