"""Token files: ids one after another in raw little-endian binary, as nanoGPT's `train.bin`, with a JSON sidecar.

The sidecar `train.bin.json` says what the ids mean. A file without one is taken as nanoGPT writes it: uint16 where all
of the vocabulary fits, in GPT-2's or in the characters that a `meta.pkl` beside it lists. The files are memory-mapped:
a corpus may be larger than memory.
"""

from __future__ import annotations

import codecs
import contextlib
import copy
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.errors import RunError, UsageError
from jaxgpt.files import read_json, regular, replacing, write_json
from jaxgpt.tokenizers.tokenizer import Tokenizer

_GPT2_VOCAB_SIZE = 50257
_WHOLE = 1 << 28  # bytes; a larger file is looked at in `_SAMPLES` places when opened
_SAMPLES = 64
_BLOCK = 1 << 22  # bytes
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

    Attributes:
        vocab_size: every id is below it.
        fingerprint: SHA-256 of what was checked; equal files have equal ones. Of a whole file, what `sha256sum` says.
        sidecar: what its sidecar says, or None.

    Raises:
        UsageError: if the file is missing, empty, cut, changed since it was written, or holds an id beyond
            `vocab_size`.
    """

    def __init__(self, path: str | Path, vocab_size: int = _GPT2_VOCAB_SIZE):
        self.path = Path(path)
        self.sidecar = sidecar = Sidecar.of(self.path)
        self.vocab_size = sidecar.vocab_size if sidecar else vocab_size
        dtype = np.dtype(sidecar.dtype).newbyteorder("<") if sidecar else _dtype(vocab_size)
        try:
            self._stat = os.stat(regular(self.path))
            size = self._stat.st_size
            if size == 0 or size % dtype.itemsize:
                raise UsageError(f"{path}: {size} bytes is no whole number of {dtype.name} ids above 0")
            if sidecar and size != sidecar.tokens * dtype.itemsize:
                raise UsageError(f"{path}: {size} bytes, but its sidecar says {sidecar.tokens} ids of {dtype.name}")
            self._ids = np.memmap(self.path, dtype=dtype, mode="r")
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
        self.fingerprint = self._check_ids()
        if sidecar and size <= _WHOLE and self.fingerprint != sidecar.sha256:
            raise UsageError(
                f"{path}: SHA-256 is not the one in its sidecar: the file was changed after it was written"
            )

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        return np.asarray(self._ids[index])

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
        train, val = copy.copy(self), copy.copy(self)
        train._ids, val._ids = self._ids[:cut], self._ids[cut:]
        return train, val

    def _check_ids(self) -> str:
        digest = hashlib.sha256()
        lanes = np.zeros(4, int)  # how many of the ids number 0, 4, 8 …, of those number 1, 5, 9 …, are above 0
        for start, block in self._blocks():
            data = block.tobytes()
            digest.update(data)
            if start == 0 and self.sidecar is None:
                self._refuse_others(data)
            lanes += np.roll([np.count_nonzero(block[i::4]) for i in range(4)], start % 4)
            if int(block.max()) >= self.vocab_size:
                at = int(np.argmax(block >= self.vocab_size))
                raise UsageError(
                    f"{self.path}: id {block[at]} at offset {start + at} is beyond the vocabulary of "
                    f"{self.vocab_size}; written by another tokenizer, or not {self._ids.dtype.name}?"
                )
        if self.sidecar is None and lanes.max() >= _TELLING and lanes.min() == 0:
            name = self._ids.dtype.name
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
        length = _BLOCK // self._ids.dtype.itemsize
        if self._ids.nbytes <= _WHOLE:
            starts = range(0, len(self), length)
        else:
            starts = np.linspace(0, len(self) - length, _SAMPLES, dtype=np.int64).tolist()
        for start in starts:
            yield start, self._ids[start : start + length]


def write_token_file(path: Path, chunks: Iterable[np.ndarray], tokenizer: Tokenizer) -> None:
    """Write ids to `path` and its sidecar; `path` appears only when both are complete.

    ids are uint16 where all of the vocabulary fits, else uint32.
    """
    dtype = _dtype(tokenizer.vocab_size)
    digest, tokens = hashlib.sha256(), 0
    with replacing(path) as part:
        with part.open("wb") as file:
            for chunk in chunks:
                encoded = chunk.astype(dtype).tobytes()
                digest.update(encoded)
                tokens += len(chunk)
                file.write(encoded)
        name, fingerprint = tokenizer.name, tokenizer.fingerprint
        sidecar = Sidecar(tokenizer.vocab_size, dtype.name, tokens, digest.hexdigest(), name, fingerprint)
        write_json(path.with_name(path.name + ".json"), asdict(sidecar))


def _dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
