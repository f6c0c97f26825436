"""Token ids → text as they come, up to an end id or a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from jaxgpt import checks
from jaxgpt.tokenizers import StreamDecoder, Tokenizer


class TextStream:
    """The text of one row. What may turn out to be the beginning of a stop string, or half a character, is held back.

    Attributes:
        ended: whether an end id or a stop string has come; it and what follows are left out.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), end_ids: Sequence[int] = (), after: Sequence[int] = ()
    ) -> None:
        """Begin a text behind the ids `after`, that ends before any string in `stop` and any token in `end_ids`.

        Raises:
            UsageError: `stop` is no list of texts, or one of them is empty.
        """
        self._decoder = StreamDecoder(tokenizer, after)
        self._end_ids = end_ids
        self._stop = checks.texts("stop", stop)
        self._held = ""
        self.ended = False

    def push(self, token_id: int) -> str:
        """Return the text that is certain now."""
        if self.ended:
            return ""
        if token_id in self._end_ids:
            text, self.ended = self.flush(), True
            return text
        self._held += self._decoder.push(token_id)
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        self.ended = bool(found)
        certain = min(found) if found else len(self._held) - self._doubtful()
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def read(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of ids, none of it empty, until it has ended or there are no more."""
        for token_id in ids:
            if piece := self.push(token_id):
                yield piece
            if self.ended:
                return
        if piece := self.flush():
            yield piece

    def flush(self) -> str:
        """Return what was held back, when no more ids come."""
        return "" if self.ended else self._held + self._decoder.flush()

    def _doubtful(self) -> int:
        """Return how many characters at the end may begin a stop string."""
        begun = (n for stop in self._stop for n in range(1, len(stop)) if self._held.endswith(stop[:n]))
        return max(begun, default=0)
