"""Token files are written: ids one after another, and the sidecar that says what they mean."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from jaxgpt.data.tokens.token_files import Sidecar, ids_dtype
from jaxgpt.files import replacing, write_json
from jaxgpt.tokenizers.tokenizer import Tokenizer

_BLOCK = 1 << 22  # bytes


class TokenWriter:
    """A token file that ids are appended to; they are uint16 where all of the vocabulary fits, else uint32.

    Attributes:
        tokens: how many ids there are.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, *, kept: int = 0) -> None:
        """Begin a file, or go on behind the first `kept` ids of one that is there, as far as it has them."""
        self._tokenizer, self._dtype, self._digest = tokenizer, ids_dtype(tokenizer.vocab_size), hashlib.sha256()
        self._file = path.open("r+b" if kept else "wb")
        size = kept * self._dtype.itemsize
        while block := self._file.read(min(_BLOCK, size - self._file.tell())) if kept else b"":
            self._digest.update(block)
        self._file.truncate()
        self.tokens = self._file.tell() // self._dtype.itemsize

    def append(self, ids: np.ndarray) -> None:
        stored = ids.astype(self._dtype, copy=False).tobytes()
        self._digest.update(stored)
        self.tokens += len(ids)
        self._file.write(stored)

    @property
    def sha256(self) -> str:
        """Of all that there is."""
        return self._digest.hexdigest()

    def sync(self) -> None:
        """Wait until all is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def write_sidecar(self, path: Path) -> None:
        """Write what describes this file once it is at `path`."""
        size, name, fingerprint = self._tokenizer.vocab_size, self._tokenizer.name, self._tokenizer.fingerprint
        sidecar = Sidecar(size, self._dtype.name, self.tokens, self.sha256, name, fingerprint)
        write_json(path.with_name(path.name + ".json"), asdict(sidecar))

    def close(self) -> None:
        self._file.close()


def write_token_file(path: Path, chunks: Iterable[np.ndarray], tokenizer: Tokenizer) -> None:
    """Write ids to `path` and its sidecar; `path` appears only when both are complete."""
    with replacing(path) as part, contextlib.closing(TokenWriter(part, tokenizer)) as writer:
        for chunk in chunks:
            writer.append(chunk)
        writer.sync()
        writer.write_sidecar(path)
