"""Tokenizers of other kinds than GPT-2's, by Hugging Face's `tokenizers`: WordPiece, Unigram, other BPEs.

What such a `tokenizer.json` says is the library's to read, so its ids are what the library gives. It is kept and
saved as it is. Some of what our own tokenizers can is left out, as the library can't tell it: the bytes of a single
token, and how a word is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, SupportsIndex

import numpy as np

from jaxgpt import checks
from jaxgpt.errors import UsageError
from jaxgpt.files import ReadJSON, digest, read_text, typed
from jaxgpt.notes import note
from jaxgpt.tokenizers.added_tokens import read_added_tokens
from jaxgpt.tokenizers.bpe import replace_surrogates
from jaxgpt.tokenizers.ends import Ends
from jaxgpt.tokenizers.roles import read_config, read_roles, special_texts

_FILE = "tokenizer.json"
_FILES = (
    _FILE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "vocab.json",
    "merges.txt", "vocab.txt",
)  # fmt: skip


class HFTokenizer:
    """A `tokenizer.json` of any kind, opened by the optional package `tokenizers`.

    Decoded text is what the file's decoder makes of all ids together, from which the encoded text may differ: a
    normalizer may have lowered its letters, a pre-tokenizer dropped its spaces.
    """

    name = "hf"

    def __init__(self, directory: str | Path, why: str, read: ReadJSON) -> None:
        """Open a folder that has a `tokenizer.json`.

        Args:
            directory: the folder.
            why: what makes it another kind than GPT-2's, for messages.
            read: reads its JSON files.

        Raises:
            UsageError: the package is missing, or can't open the file.
        """
        directory = Path(directory)
        path = directory / _FILE
        contents, config = read(path), read_config(directory, read)
        if typed(contents.get("model"), dict, "model", path).get("dropout"):
            raise UsageError(f"{path}: dropout is set, with which a text has other ids each time")
        self._tokenizer = _open(path, why)
        ids, special = self._tokenizer.get_vocab(with_added_tokens=True), special_texts(directory, read)
        for token in read_added_tokens(directory, read).values():
            if ids.get(token.text) != token.id:
                raise UsageError(f"{path}: has no id {token.id} for the added token {token.text!r}")
        given = sorted(text for text in special if text in ids)
        self._tokenizer.add_special_tokens(given)
        added = self._tokenizer.get_added_tokens_decoder().items()
        self.special_tokens = {token.content: i for i, token in sorted(added) if token.special}
        self._special_ids = frozenset(self.special_tokens.values())
        roles = read_roles(config)
        bos, eos = (ids.get(str(roles[role])) for role in ("bos_token", "eos_token"))
        self.vocab_size = 1 + max(ids.values(), default=0)
        self.eos_token_id: int | None = eos
        self.ends = Ends.read(directory, config, bos, eos, read)
        self.fingerprint = digest([contents, given, eos])
        self._files = {name: read_text(file) for name in _FILES if (file := directory / name).is_file()}

    def save(self, directory: str | Path) -> None:
        """Write the files as they were read; `AutoTokenizer` opens them."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in self._files.items():
            (directory / name).write_text(text, encoding="utf-8", newline="")

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Return the ids of a whole text, `ends` among them; `allow_special` reads a special token's text as it."""
        return [*self.ends.begin, *self.encode_part(text, allow_special), *self.ends.end]

    def encode_part(self, text: str, allow_special: bool = False) -> list[int]:
        """Return the ids of a part of a text, to which nothing is added but what its kind puts before any text."""
        text = replace_surrogates(checks.text("text", text))
        self._tokenizer.encode_special_tokens = not checks.flag("allow_special", allow_special)
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # of a type that is nothing but Exception
            raise UsageError(f"{text[:40]!r} can't be encoded by this tokenizer: {error}") from None
        if not allow_special:
            self._note_special(text, ids)
        return ids

    def _note_special(self, text: str, ids: list[int]) -> None:
        """Note a special token that is a piece of the vocabulary, too, so that a plain text can spell it."""
        found = self._special_ids.intersection(ids)
        for token in (token for token, i in self.special_tokens.items() if i in found and token in text):
            note(f"this tokenizer reads {token!r} as the special token in any text, whether or not that is allowed")

    def decode(self, ids: Iterable[SupportsIndex] | np.ndarray | Any) -> str:
        """Return the text of `ids`, special tokens among it."""
        known = checks.ids("ids", ids).tolist()
        for i in known:
            if not 0 <= i < self.vocab_size:
                raise UsageError(f"token id {i}: not in this vocabulary of {self.vocab_size} ids")
        return self._tokenizer.decode(known, skip_special_tokens=False)

    def decode_bytes(self, ids: Iterable[SupportsIndex] | np.ndarray | Any) -> NoReturn:
        """Refuse, as a token of some kinds stands for other bytes in another place."""
        raise UsageError("a tokenizer of another kind than GPT-2's does not tell which bytes a token stands for")

    def explain(self, word: str) -> NoReturn:
        """Refuse, as `tokenizers` does not tell how it builds a word."""
        raise UsageError(f"how {word!r} is built is told by a byte-level BPE like GPT-2's only; this is another kind")


def _open(path: Path, why: str) -> Any:
    """Return the library's tokenizer, which cuts and pads nothing."""
    try:
        library = importlib.import_module("tokenizers")
    except ImportError:
        raise UsageError(f"{why}, so it opens by another package only: pip install 'jaxgpt[tokenizers]'") from None
    try:
        opened = library.Tokenizer.from_str(read_text(path))
    except UsageError:
        raise
    except BaseException as error:  # a panic of the library's is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise UsageError(f"{path}: the tokenizers library can't open it: {error}") from None
    opened.no_truncation()
    opened.no_padding()
    return opened
