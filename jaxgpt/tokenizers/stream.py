"""Ids that come one by one as text, a character at a time."""

from __future__ import annotations

import codecs
import os
from collections.abc import Sequence

from jaxgpt.notes import note
from jaxgpt.tokenizers.hf_tokenizer import HFTokenizer
from jaxgpt.tokenizers.tokenizer import Tokenizer


class StreamDecoder:
    """Turns ids into text one by one, holding back a character until all of its bytes are there.

    A tokenizer of another kind than GPT-2's may make of its ids together what their texts in a row are not. What
    comes is then what each adds to the text so far; where one changes that, a note says so.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()):
        """Begin behind the ids `after`, which a tokenizer of another kind joins the first ones to."""
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._joins = isinstance(tokenizer, HFTokenizer)
        self._ids = list(after) if self._joins else []
        self._given = tokenizer.decode(self._ids) if self._ids else ""

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` completes, which may be empty."""
        if not self._joins:
            return self._utf8.decode(self._tokenizer.decode_bytes([token_id]))
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids)
        return "" if text.endswith("\ufffd") else self._behind(text)

    def flush(self) -> str:
        """Return what was held back at the end: U+FFFD for a half character, else nothing."""
        return self._behind(self._tokenizer.decode(self._ids)) if self._joins else self._utf8.decode(b"", final=True)

    def _behind(self, text: str) -> str:
        """Return what a text has behind that which has been given."""
        same = len(os.path.commonprefix([text, self._given]))
        if same < len(self._given):
            note("this tokenizer's decoder changes text that was shown already; decoded at once it reads otherwise")
        self._given, before = text, len(self._given)
        return text[before:]
