"""Special tokens that a text spells: they are plain text unless asked for, and whoever meant them should hear of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from jaxgpt.tokenizers.roles import END_OF_TEXT


class SpecialTexts:
    """Counts texts that mean something special in documents that go by."""

    def __init__(self, texts: Iterable[str]):
        """Look for `texts`, none of which is empty."""
        self._texts = sorted(texts)
        self._reach = max(map(len, self._texts), default=1) - 1
        self._counts: Counter[str] = Counter()

    def watch(self, document: Iterable[str]) -> Iterator[str]:
        """Yield a document's pieces as they are."""
        before = ""
        for piece in document:
            seen = before + piece
            for text in self._texts:
                if count := seen.count(text) - before.count(text):
                    self._counts[text] += count
            before = seen[max(len(seen) - self._reach, 0) :]
            yield piece

    def notes(self, name: str) -> list[str]:
        """Return what to say of those that were seen in a dataset."""
        notes = []
        for text, count in sorted(self._counts.items()):
            advice = "--allow_special reads it as the token that it is"
            if text == END_OF_TEXT:
                advice = f"--document_separator {text!r} makes documents of what it divides in a text file"
            notes.append(f"{name}: {text!r} stands in it {count} times and is read as plain text; {advice}")
        return notes
