"""Ids that come one by one as text, a character at a time."""

from __future__ import annotations

import codecs

from jaxgpt.tokenizers.tokenizer import Tokenizer


class StreamDecoder:
    """Turns ids into text one by one, holding back a character until all of its bytes are there."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` completes, which may be empty."""
        return self._utf8.decode(self._tokenizer.decode_bytes([token_id]))

    def flush(self) -> str:
        """Return what was held back at the end: U+FFFD for a half character, else nothing."""
        return self._utf8.decode(b"", final=True)
