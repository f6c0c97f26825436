"""nanoGPT's `meta.pkl`: the alphabet of a character-level data set, read as data and never run.

A pickle is a program. Of its instructions only those that make dictionaries, texts and whole numbers are let through,
which is all that nanoGPT's has; none of them can import, call or build anything.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn

from jaxgpt.errors import UsageError
from jaxgpt.files import regular

META_FILE = "meta.pkl"
_MAX_FILE_BYTES = 1 << 25  # more than all of Unicode takes
_ADVICE = "; take it away, and give a tokenizer, if it says nothing about the token files"
_HARMLESS = frozenset(
    """
    PROTO FRAME STOP MARK EMPTY_DICT SETITEM SETITEMS BINUNICODE SHORT_BINUNICODE BININT BININT1 BININT2
    MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET
    """.split()
)


def read_alphabet(path: Path) -> str:
    """Return the characters of a `meta.pkl` in the order of their ids, which is that of code points.

    Raises:
        UsageError: if it is something else.
    """
    meta = _read_plain(path)
    itos, stoi, size = (meta.get(key) if isinstance(meta, dict) else None for key in ("itos", "stoi", "vocab_size"))
    if not isinstance(itos, dict) or not isinstance(stoi, dict) or type(size) is not int:
        raise UsageError(f"{path}: must hold vocab_size, itos and stoi, as nanoGPT's prepare.py writes them{_ADVICE}")
    chars = [char for i in range(len(itos)) if isinstance(char := itos.get(i), str) and len(char) == 1]
    if not itos or len(chars) != len(itos):
        raise UsageError(f"{path}: itos must give one character to each id from 0 up{_ADVICE}")
    if size != len(chars) or stoi != {char: i for i, char in enumerate(chars)}:
        raise UsageError(f"{path}: vocab_size, itos and stoi contradict one another{_ADVICE}")
    if chars != sorted(chars):
        raise UsageError(f"{path}: its characters are not in the order of code points{_ADVICE}")
    return "".join(chars)


class _Unpickler(pickle.Unpickler):
    """Knows no class and no function."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"asks for {module_name}.{global_name}")


def _read_plain(path: Path) -> Any:
    try:
        if (size := regular(path).stat().st_size) > _MAX_FILE_BYTES:
            raise UsageError(f"{path}: {size} bytes is too large for an alphabet (limit {_MAX_FILE_BYTES})")
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        for code, argument, _ in pickletools.genops(data):
            # The memo is an array: a number in the billions would ask for that much memory.
            if code.name not in _HARMLESS or code.name == "LONG_BINPUT" and int(argument or 0) > len(data):
                raise UsageError(f"{path}: a pickle with {code.name}: it is not opened, for it may run code{_ADVICE}")
        return _Unpickler(io.BytesIO(data)).load()
    except UsageError:
        raise
    except Exception as error:  # bytes that are no pickle fail in every way there is
        raise UsageError(f"{path}: not a pickle of plain values: {error}{_ADVICE}") from None
