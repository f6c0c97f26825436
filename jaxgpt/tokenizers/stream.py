"""Ids that come one by one as text, a character at a time."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from jaxgpt.notes import note
from jaxgpt.tokenizers.hf_tokenizer import HFTokenizer
from jaxgpt.tokenizers.tokenizer import Tokenizer

_TAIL = 16  # ids on which the text of the next one may depend
_HALF = 8  # more ids than one character is ever made of


class StreamDecoder:
    """Turns ids into text one by one, holding back a character until all of its bytes are there.

    A tokenizer of another kind than GPT-2's may make of its ids together what their texts in a row are not. What
    comes is then what each adds to the text of the last ids before it; where one changes that, a note says so.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()):
        """Begin behind the ids `after`, which a tokenizer of another kind joins the first ones to."""
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._joins = isinstance(tokenizer, HFTokenizer)
        self._ids = list(after) if self._joins else []
        self._given = tokenizer.decode(self._ids) if self._ids else ""
        self._held, self._longest = 0, 2 * _TAIL
        self._shorten()

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` completes, which may be empty."""
        if not self._joins:
            return self._utf8.decode(self._tokenizer.decode_bytes([token_id]))
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids)
        certain = text if self._held > _HALF else text.rstrip("\ufffd")
        if certain != text and not certain.startswith(self._given):  # a half character may spoil those before it
            piece = ""
        else:
            piece = self._behind(certain)
        self._held = 0 if piece or certain == text else self._held + 1
        if certain == text:
            self._shorten()
        return piece

    def flush(self) -> str:
        """Return what was held back at the end: U+FFFD for a half character, else nothing."""
        return self._behind(self._tokenizer.decode(self._ids)) if self._joins else self._utf8.decode(b"", final=True)

    def _behind(self, text: str) -> str:
        """Return what a text has behind that which has been given."""
        if not text.startswith(self._given):
            note("this tokenizer's decoder changes text that was shown already; decoded at once it reads otherwise")
        self._given, before = text, len(self._given)
        return text[before:]

    def _shorten(self) -> None:
        """Forget ids whose text has been given, but for the last ones, so that an id takes no longer than the first.

        What is left must read as it did among all: a decoder may drop a space before the first id, or the text of an id
        may begin in the middle of a character.
        """
        if len(self._ids) < self._longest:
            return
        for first in range(len(self._ids) - _TAIL, 0, -1)[:_TAIL]:
            text = self._tokenizer.decode(self._ids[first:])
            if text.strip() and self._given.endswith(text):
                self._ids, self._given, self._longest = self._ids[first:], text, 2 * _TAIL
                return
        self._longest = 2 * len(self._ids)
