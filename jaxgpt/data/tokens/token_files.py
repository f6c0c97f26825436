"""Token files: ids one after another in raw little-endian binary, as nanoGPT's `train.bin`, with a JSON sidecar.

The sidecar `train.bin.json` says what the ids mean. A file without one is taken as nanoGPT writes it: uint16 where all
of the vocabulary fits, in GPT-2's or in the characters that a `meta.pkl` beside it lists; or, where it begins with
llm.c's header, as that says. The files are memory-mapped: a corpus may be larger than memory.
"""

from __future__ import annotations

import codecs
import contextlib
import copy
import hashlib
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.errors import RunError, UsageError
from jaxgpt.files import read_json, regular

GPT2_VOCAB_SIZE = 50257
CHECKED = 1 << 28
"""Bytes that are read when tokens are opened; of more, so many are, spread over all."""
_BLOCK = 1 << 22  # bytes
_HEADER = 1 << 10  # bytes
_HEADERS = {20240520: (1, np.dtype("<u2")), 20240801: (7, np.dtype("<u4"))}  # llm.c's: magic → version, type of ids
_TELLING = 16  # ids; fewer may look like anything by chance


@dataclass(frozen=True)
class Sidecar:
    """The contents of `NAME.bin.json`, which describes `NAME.bin`.

    Attributes:
        vocab_size: every id is below it.
        dtype: "uint16" or "uint32".
        tokens: number of ids.
        sha256: of the whole file.
        tokenizer: name of the tokenizer, for people.
        tokenizer_fingerprint: `Tokenizer.fingerprint`.
    """

    vocab_size: int
    dtype: str
    tokens: int
    sha256: str
    tokenizer: str
    tokenizer_fingerprint: str

    @classmethod
    def of(cls, path: Path) -> Sidecar | None:
        """Return the sidecar of a token file, or None if it has none."""
        file = path.with_name(path.name + ".json")
        if not file.exists():
            return None
        contents: dict[str, Any] = read_json(file)
        for field in fields(cls):
            value, kind = contents.get(field.name), int if field.type == "int" else str
            if type(value) is not kind:
                raise UsageError(f"{file}: {field.name} is {value!r}; must be of type {kind.__name__}")
        if contents["dtype"] not in ("uint16", "uint32"):
            raise UsageError(f"{file}: dtype is {contents['dtype']!r}; valid are 'uint16' and 'uint32'")
        return cls(**{field.name: contents[field.name] for field in fields(cls)})


class TokenFile:
    """A token file, memory-mapped and read-only: `len`, and slices or index arrays that give numpy arrays.

    Opening checks it: whole up to 256 MiB, beyond that 64 blocks of 4 MiB spread evenly, first and last included.

    Args:
        path: the file.
        vocab_size: of a file without a sidecar.
        checked: bytes to read, if the file has more; None for those 256 MiB.

    Attributes:
        vocab_size: every id is below it.
        dtype: of the ids in the file.
        fingerprint: SHA-256 of what was checked; equal files have equal ones. Of a whole file, what `sha256sum` says.
        sidecar: what its sidecar says, or None.

    Raises:
        UsageError: if the file is missing, empty, cut, changed since it was written, or holds an id beyond
            `vocab_size`.
    """

    def __init__(self, path: str | Path, vocab_size: int = GPT2_VOCAB_SIZE, *, checked: int | None = None):
        self.path = Path(path)
        self.sidecar = sidecar = Sidecar.of(self.path)
        self.vocab_size = sidecar.vocab_size if sidecar else vocab_size
        try:
            self._stat = os.stat(regular(self.path))
            self._header = b"" if sidecar else _header(self.path)
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
        self.dtype = np.dtype(sidecar.dtype).newbyteorder("<") if sidecar else ids_dtype(vocab_size)
        told, tokens = ("sidecar", sidecar.tokens) if sidecar else ("", 0)
        if self._header:
            told, (tokens, self.dtype) = "header", _read_header(self.path, self._header)
        name = self.dtype.name
        self._size = size = self._stat.st_size - len(self._header)
        if size == 0 or size % self.dtype.itemsize:
            raise UsageError(f"{path}: {size} bytes is no whole number of {name} ids above 0")
        if told and size != tokens * self.dtype.itemsize:
            raise UsageError(f"{path}: {size} bytes, but its {told} says {tokens} ids of {name}")
        self._part = slice(0, size // self.dtype.itemsize)
        self._checked = CHECKED if checked is None else checked
        self.fingerprint = self._check_ids()
        if sidecar and size <= self._checked and self.fingerprint != sidecar.sha256:
            raise UsageError(
                f"{path}: SHA-256 is not the one in its sidecar: the file was changed after it was written"
            )

    def __len__(self) -> int:
        return self._part.stop - self._part.start

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        return self._ids[index]

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.path.name

    @cached_property
    def _ids(self) -> np.ndarray:
        return self.map()

    def map(self) -> np.ndarray:
        """Return (N,) the ids, mapped anew: the file is open as long as the array is there.

        Raises:
            RunError: the file is gone.
        """
        try:
            with self.path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise RunError(f"{self.path}: gone while in use: {error.strerror}") from None
        if self._size > self._checked and hasattr(mapped, "madvise"):
            # Windows lie anywhere; without this, up to megabytes around each are read, too, and not used.
            mapped.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(mapped, self.dtype, offset=len(self._header))[self._part]

    def check_unchanged(self) -> None:
        """Make sure that the file is still the one that was opened; costs one system call.

        Reading past the new end of a file that was cut kills a process that maps it (SIGBUS), without a message.

        Raises:
            RunError: if it was replaced, cut or written to.
        """
        try:
            now = os.stat(self.path)
        except OSError as error:
            raise RunError(f"{self.path}: gone while in use: {error.strerror}") from None
        if any(getattr(now, name) != getattr(self._stat, name) for name in ("st_size", "st_mtime_ns", "st_ino")):
            raise RunError(
                f"{self.path}: changed while in use ({self._stat.st_size} bytes at start, {now.st_size} now)"
            )

    def split(self, val_fraction: float) -> tuple[TokenFile, TokenFile]:
        """Return the first ids, to train on, and the last, to validate on; each knows the whole file's fingerprint."""
        cut = int(len(self) * (1 - val_fraction))
        vars(self).pop("_ids", None)
        train, val = copy.copy(self), copy.copy(self)
        train._part, val._part = slice(0, cut), slice(cut, len(self))
        return train, val

    def _check_ids(self) -> str:
        digest, bare = hashlib.sha256(self._header), not (self.sidecar or self._header)
        lanes = np.zeros(4, int)  # how many of the ids number 0, 4, 8 …, of those number 1, 5, 9 …, are above 0
        for start, block in self._blocks():
            digest.update(block.data)
            if start == 0 and bare:
                self._refuse_others(block.tobytes())
            lanes += np.roll([np.count_nonzero(block[i::4]) for i in range(4)], start % 4)
            if int(block.max()) >= self.vocab_size:
                at = int(np.argmax(block >= self.vocab_size))
                raise UsageError(
                    f"{self.path}: id {block[at]} at offset {start + at} is beyond the vocabulary of "
                    f"{self.vocab_size}; written by another tokenizer, or not {self.dtype.name}?"
                )
        if bare and lanes.max() >= _TELLING and lanes.min() == 0:
            name = self.dtype.name
            raise UsageError(
                f"{self.path}: every fourth of its {name} ids is 0, so it holds wider numbers; without a sidecar ids "
                f"must be {name}: write it anew by numpy's astype('{name}').tofile"
            )
        return digest.hexdigest()

    def _refuse_others(self, data: bytes) -> None:
        """Refuse what begins as other files do; their bytes, two by two, would mostly pass for ids."""
        if data.startswith(b"\x93NUMPY"):
            raise UsageError(f"{self.path}: is NumPy's .npy, with a header; write the ids alone by tofile")
        with contextlib.suppress(UnicodeDecodeError):
            if len(self) >= _TELLING and "\0" not in codecs.getincrementaldecoder("utf-8")().decode(data):
                raise UsageError(f"{self.path}: is a text and no file of ids; give it a name that ends in .txt")

    def _blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        if self._size <= self._checked:
            length = _BLOCK // self.dtype.itemsize
            starts = range(0, len(self), length)
        else:
            blocks = max(self._checked // _BLOCK, 2)  # first and last
            length = self._checked // blocks // self.dtype.itemsize
            starts = np.linspace(0, len(self) - length, blocks, dtype=np.int64).tolist()
        try:
            with self.path.open("rb") as file:
                for start in starts:
                    file.seek(len(self._header) + start * self.dtype.itemsize)
                    yield start, np.frombuffer(file.read(length * self.dtype.itemsize), self.dtype)
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be read: {error.strerror}") from None


def _header(path: Path) -> bytes:
    """Return the header of a file of llm.c's, or of who writes as that does; nothing of another file."""
    with path.open("rb") as file:
        header = file.read(_HEADER)
    return header if int.from_bytes(header[:4], "little") in _HEADERS else b""


def _read_header(path: Path, header: bytes) -> tuple[int, np.dtype]:
    """Return what llm.c's header says: the number of ids, and their type."""
    if len(header) < _HEADER:
        raise UsageError(f"{path}: ends within its header, after {len(header)} bytes of {_HEADER}")
    magic, version, tokens = np.frombuffer(header, "<i4", 3).tolist()
    known, dtype = _HEADERS[magic]
    if version != known:
        raise UsageError(f"{path}: begins with llm.c's header of version {version}; only version {known} is known")
    return tokens, dtype


def ids_dtype(vocab_size: int) -> np.dtype:
    """Return how the ids of a vocabulary are stored: in 16 bits where all of it fits, else in 32."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
