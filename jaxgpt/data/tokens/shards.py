"""Token files in shards: many files that are read as one, as large corpora come."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from jaxgpt.data.tokens.token_files import CHECKED, GPT2_VOCAB_SIZE, Sidecar, TokenFile
from jaxgpt.errors import UsageError
from jaxgpt.files import digest

_MAPPED = 64  # at once: each takes one of the files that a process may have open, often 1,024
_LEAST = 1 << 13  # bytes of each file that are read when it is opened


class TokenShards:
    """Token files, one after another as one sequence: `len`, and slices or index arrays that give numpy arrays.

    What is read may begin in one file and end in the next. Opening checks as many bytes as of a single file: all of
    them up to 256 MiB, beyond that an equal part of each file, its first and last ids among them (8 KiB at least).

    Args:
        paths: the files, in the order of their ids.
        vocab_size: of files without a sidecar.

    Attributes:
        paths: the files.
        vocab_size: every id is below it.
        dtype: of the ids in the files.
        fingerprint: of all files, in their order.
        sidecar: that of the first file that has one, or None.

    Raises:
        UsageError: see `TokenFile`; or files disagree in their type, their vocabulary or their tokenizer.
    """

    def __init__(self, paths: Sequence[Path], vocab_size: int = GPT2_VOCAB_SIZE):
        size = sum(path.stat().st_size for path in paths if path.is_file())
        checked = CHECKED if size <= CHECKED else max(CHECKED // len(paths), _LEAST)
        self.paths = tuple(paths)
        files: list[TokenFile] = []
        for path in paths:
            files.append(TokenFile(path, vocab_size, checked=checked))
            _refuse_difference(files)
        self.vocab_size, self.dtype = files[0].vocab_size, files[0].dtype
        self.sidecar: Sidecar | None = next((file.sidecar for file in files if file.sidecar), None)
        self.fingerprint = digest([[len(file), file.fingerprint] for file in files])
        self._files = files
        self._ends = np.cumsum([len(file) for file in files], dtype=np.int64)
        self._first, self._last = 0, int(self._ends[-1])
        self._map = lru_cache(maxsize=_MAPPED)(lambda number: files[number].map())

    def __len__(self) -> int:
        return self._last - self._first

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        if not isinstance(index, slice):
            return self._at(np.asarray(index))
        first, last, step = index.indices(len(self))
        if step != 1:
            return self._at(np.arange(first, last, step))
        first, last = first + self._first, max(first, last) + self._first
        parts = []
        for number in range(*np.searchsorted(self._ends, [first, last - 1], side="right") + [0, 1]):
            begin = int(self._ends[number]) - len(self._files[number])
            parts.append(self._map(number)[max(first - begin, 0) : last - begin])
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [np.zeros(0, self.dtype)])

    @property
    def path(self) -> Path:
        """The first file."""
        return self.paths[0]

    @property
    def name(self) -> str:
        """What messages call them."""
        return f"{self.path.name} and {len(self.paths) - 1} more"

    def check_unchanged(self) -> None:
        """Make sure that all files are still those that were opened; costs a system call a file.

        Raises:
            RunError: see `TokenFile.check_unchanged`.
        """
        for file in self._files:
            file.check_unchanged()

    def split(self, val_fraction: float) -> tuple[TokenShards, TokenShards]:
        """Return the first ids, to train on, and the last, to validate on; each knows the fingerprint of all."""
        train, val = copy.copy(self), copy.copy(self)
        train._last = val._first = self._first + int(len(self) * (1 - val_fraction))
        return train, val

    def _at(self, places: np.ndarray) -> np.ndarray:
        """Return the ids at these places, in an array of their shape."""
        flat = places.ravel()
        if flat.size and not -len(self) <= flat.min() <= flat.max() < len(self):
            raise IndexError(f"there are {len(self)} ids")
        flat = flat + np.where(flat < 0, self._last, self._first)
        which = np.searchsorted(self._ends, flat, side="right")
        order = np.argsort(which, kind="stable")
        numbers, begins = np.unique(which[order], return_index=True)
        found = np.empty(len(flat), self.dtype)
        for number, rows in zip(numbers.tolist(), np.split(order, begins[1:]), strict=False):
            begin = int(self._ends[number]) - len(self._files[number])
            found[rows] = self._map(number)[flat[rows] - begin]
        return found.reshape(places.shape)


Tokens = TokenFile | TokenShards
"""A sequence of ids, in one file or in many."""


def open_files(paths: Sequence[Path], vocab_size: int = GPT2_VOCAB_SIZE) -> Tokens:
    """Open one token file, or several as one sequence of ids."""
    return TokenFile(paths[0], vocab_size) if len(paths) == 1 else TokenShards(paths, vocab_size)


def _refuse_difference(files: Sequence[TokenFile]) -> None:
    """Refuse the last file where it is unlike those before it."""
    first, last = files[0], files[-1]
    differences = [(f"ids of {file.dtype.name}", f"a vocabulary of {file.vocab_size}") for file in (last, first)]
    for own, other in zip(*differences, strict=True):
        if own != other:
            raise UsageError(f"{last.path}: has {own}, but {first.name} has {other}; shards must be alike")
    told = next((file for file in files if file.sidecar), last)
    if last.sidecar and told.sidecar and last.sidecar.tokenizer_fingerprint != told.sidecar.tokenizer_fingerprint:
        made = f"made by tokenizer {last.sidecar.tokenizer!r}, but {told.name} by another, {told.sidecar.tokenizer!r}"
        raise UsageError(f"{last.path}: {made}; shards must be alike")
