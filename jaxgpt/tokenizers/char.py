"""Characters as tokens: one id each, in the order of code points."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from jaxgpt import checks
from jaxgpt.errors import UsageError
from jaxgpt.files import digest, read_json
from jaxgpt.tokenizers.bpe import replace_surrogates
from jaxgpt.tokenizers.ends import Ends
from jaxgpt.tokenizers.meta_pickle import META_FILE, read_alphabet

CHARS_FILE = "chars.json"


class CharTokenizer:
    """One id per character, in the order of code points. It has no special tokens."""

    name = "char"
    eos_token_id = None
    ends = Ends()
    special_tokens: Mapping[str, int] = {}

    def __init__(self, text: str):
        """Give an id to each distinct character of `text`."""
        self.chars = "".join(sorted(set(replace_surrogates(text))))
        self.vocab_size = len(self.chars)
        self._ids = {char: i for i, char in enumerate(self.chars)}

    @classmethod
    def load(cls, directory: str | Path) -> CharTokenizer:
        """Read `chars.json`."""
        path = Path(directory) / CHARS_FILE
        chars = read_json(path).get("chars")
        if not isinstance(chars, str) or not chars or chars != "".join(sorted(set(chars))):
            raise UsageError(f"{path}: 'chars' must be a string of distinct characters in the order of code points")
        return cls(chars)

    @classmethod
    def load_meta(cls, directory: str | Path) -> CharTokenizer:
        """Read nanoGPT's `meta.pkl`."""
        path = Path(directory) / META_FILE
        tokenizer = cls(chars := read_alphabet(path))
        if tokenizer.chars != chars:
            raise UsageError(f"{path}: has surrogates, which are no characters")
        return tokenizer

    def save(self, directory: str | Path) -> None:
        """Write `chars.json` into `directory`, which is made if need be."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / CHARS_FILE).write_text(json.dumps({"chars": self.chars}) + "\n", encoding="utf-8")

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of all that decides the ids."""
        return digest(self.chars)

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Return one id per character. `allow_special` finds nothing, as there are no special tokens.

        Raises:
            UsageError: naming the first character that the vocabulary lacks.
        """
        checks.flag("allow_special", allow_special)
        try:
            return [self._ids[char] for char in replace_surrogates(checks.text("text", text))]
        except KeyError as error:
            char = error.args[0]
            raise UsageError(
                f"character {char!r} (U+{ord(char):04X}) is not among the {self.vocab_size} that this "
                "character-level vocabulary was built from"
            ) from None

    encode_part = encode

    def decode(self, ids: Iterable[SupportsIndex] | np.ndarray | Any) -> str:
        """Return the text of `ids`."""
        chars = []
        for i in checks.ids("ids", ids).tolist():
            if not 0 <= i < self.vocab_size:
                raise UsageError(f"token id {i}: not in this vocabulary of {self.vocab_size} ids")
            chars.append(self.chars[i])
        return "".join(chars)

    def decode_bytes(self, ids: Iterable[SupportsIndex] | np.ndarray | Any) -> bytes:
        """Return the text of `ids` in UTF-8."""
        return self.decode(ids).encode()
