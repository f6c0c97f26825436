"""JSON files of tokenizers, which are someone else's: read whole and bounded, and asked for what they should hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from jaxgpt.errors import UsageError
from jaxgpt.files import regular

# JSON may spell halves of a character beyond U+FFFF. Read, a pair of them is that character, and one alone is nothing.
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_WITH_SURROGATE = re.compile('"[^"]*[\ud800-\udfff][^"]*"')

_MAX_FILE_BYTES = 1 << 28  # far beyond any vocabulary in use; refused before it is read into memory
_MAX_IDS = 1 << 24


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file, which must be an object.

    Raises:
        UsageError: if it is none, or larger than any such file has reason to be, or has what no text can have.
    """
    text = read_text(path)
    try:
        contents = typed(json.loads(text), dict, "contents", path)
        spelled = json.dumps(contents, ensure_ascii=False) if _SURROGATE_ESCAPE.search(text) else ""
    except UsageError:
        raise
    except (ValueError, RecursionError) as error:  # a number may have too many digits
        raise UsageError(f"{path}: not JSON: {error}") from None
    if found := _WITH_SURROGATE.search(spelled):
        raise UsageError(f"{path}: {found[0][:80]!r} has a lone surrogate, which is no character")
    return contents


def check_id(token: str, i: Any, path: Path) -> None:
    """Make sure that a token and its id are ones."""
    if not token:
        raise UsageError(f"{path}: id {i!r:.20} is that of a token without text, {token!r}")
    if type(i) is not int or not 0 <= i < _MAX_IDS:
        raise UsageError(
            f"{path}: id of {token[:80]!r} is {repr(i)[:80]}; valid are whole numbers from 0 to {_MAX_IDS - 1}"
        )


def read_text(path: Path) -> str:
    """Return the text of a file; raise a UsageError that names it if that can't be."""
    try:
        if (size := regular(path).stat().st_size) > _MAX_FILE_BYTES:
            raise UsageError(f"{path}: {size} bytes is too large for a tokenizer's file (limit {_MAX_FILE_BYTES})")
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from None


def typed(value: Any, kind: type, name: str, path: Path) -> Any:
    """Return a value of a file, which must be of this kind."""
    if not isinstance(value, kind):
        raise UsageError(f"{path}: {name} must be of type {kind.__name__}, not {type(value).__name__}")
    return value
