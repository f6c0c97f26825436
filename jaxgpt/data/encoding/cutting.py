"""Text larger than memory, cut into tasks: documents in pieces come in, texts to encode in one go come out.

A text is cut only where a word ends whatever stands around it, so the ids are those of the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jaxgpt.data.sources import SPLITS, Documents, Split
from jaxgpt.errors import UsageError
from jaxgpt.tokenizers import HFTokenizer
from jaxgpt.tokenizers.added_tokens import AddedTokens
from jaxgpt.tokenizers.bpe import BPE
from jaxgpt.tokenizers.tokenizer import Tokenizer

_CHUNK = 1 << 20  # characters encoded at a time
_LONGEST_WORD = 1 << 24  # characters without a place to cut, up to which a text is held in memory

# No word of GPT-2's pattern goes on from a character that is not white space to one that is, and no word before or
# after such a place looks across it.
_LAST_CUT = re.compile(r".*\S(?=[ \n])", re.DOTALL)


@dataclass(frozen=True)
class Task:
    """Texts to encode in one go.

    Attributes:
        split: what they belong to.
        texts: one after another; None separates two documents.
    """

    split: Split
    texts: list[str | None]

    @property
    def characters(self) -> int:
        """How many there are in the texts."""
        return sum(len(text or "") for text in self.texts)


def cut_into_tasks(documents: Documents, tokenizer: Tokenizer, allow_special: bool = False) -> Iterator[Task]:
    """Yield all of a text, its documents divided.

    Args:
        documents: in the order in which they are read.
        tokenizer: will encode them.
        allow_special: a special token's text will be read as that token, so it must not be cut.
    """
    texts: dict[Split, list[str | None]] = {split: [] for split in SPLITS}
    sizes: dict[Split, int] = {}
    for split, pieces in documents:
        if split in sizes:
            texts[split].append(None)
        for text in _cut(pieces, tokenizer, allow_special):
            texts[split].append(text)
            sizes[split] = sizes.get(split, 0) + len(text)
            if (
                sizes[split] >= _CHUNK
            ):  # small documents go together, so that sending them to another process is worth it
                yield Task(split, texts[split])
                texts[split], sizes[split] = [], 0
    yield from (Task(split, texts[split]) for split in SPLITS if texts[split])


def cut_between_words(pieces: Iterable[str], added: AddedTokens | None = None) -> Iterator[str]:
    """Yield a text anew in pieces whose ids, one after another, are the ids of the whole.

    Args:
        pieces: the text.
        added: tokens that are found in it, none of which is cut.

    Raises:
        UsageError: if it goes on for 16 million characters without a space after a word.
    """
    held = ""
    for piece in pieces:
        held += piece
        if len(held) >= _CHUNK and (cut := _last_cut(held, added)):
            yield held[:cut]
            held = held[cut:]
        elif len(held) > _LONGEST_WORD:
            raise UsageError(f"{len(held)} characters from {held[:40]!r} on have no space between words to cut them at")
    if held:
        yield held


def _last_cut(text: str, added: AddedTokens | None) -> int:
    if added is not None:
        return added.last_cut(text, _LAST_CUT)
    match = _LAST_CUT.match(text)
    return match.end() if match else 0


def _cut(pieces: Iterator[str], tokenizer: Tokenizer, allow_special: bool) -> Iterator[str]:
    """Return a document's text in parts whose ids, one after another, are its own."""
    if isinstance(tokenizer, BPE):
        found = tokenizer.added if allow_special or tokenizer.added.in_plain_text else None
        return cut_between_words(pieces, found)
    return iter([_whole(pieces)]) if isinstance(tokenizer, HFTokenizer) else pieces


def _whole(pieces: Iterable[str]) -> str:
    """Return a document as one text, as it may be cut nowhere by a tokenizer of which nothing is known."""
    text = ""
    for piece in pieces:
        text += piece
        if len(text) > _LONGEST_WORD:
            raise UsageError(
                f"the document that begins {text[:40]!r} has more than {_LONGEST_WORD} characters, and a tokenizer of "
                "another kind than GPT-2's takes a document whole: divide it (--document_separator)"
            )
    return text
